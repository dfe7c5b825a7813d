// What a component sees when the backend behind its server is away for longer than the server waits: its flush fails, the client
// connects again by itself, and what is published afterwards arrives.

import assert from "node:assert/strict";
import { bytes, say, within } from "./harness.mjs";

export async function outage_of_the_backend(bus) {
  const connection = await bus.connect({ reconnect: true, maxReconnectAttempts: -1, reconnectTimeWait: 50, reconnectJitter: 0 });
  let lost = () => {};
  (async () => {
    for await (const status of connection.status()) {
      if (status.type === "disconnect") lost();
    }
  })();
  /** Whether a message was published for sure: its connection has answered a flush behind it. */
  const confirmed = async () => {
    // A flush outlives a connection that breaks: nats.js then neither resolves nor rejects it.
    const broken = new Promise((resolve) => {
      lost = () => resolve(false);
    });
    connection.publish("outage.probe", bytes("x"));
    return await Promise.race([connection.flush().then(() => true, () => false), broken]);
  };

  const received = await bus.collect(connection, "outage.after");
  connection.publish("outage.after", bytes("before"));
  await received.waitFor(1);

  say("ready-for-outage");
  const failing = async () => {
    // Until the backend is away a flush succeeds; from then on none may.
    while (await confirmed());
  };
  await within(failing(), "a flush to fail", 20_000);
  say("flush-failed");
  const succeeding = async () => {
    while (!(await confirmed()));
  };
  await within(succeeding(), "a flush to succeed again", 20_000);
  connection.publish("outage.after", bytes("after"));
  await bus.until(() => received.texts.includes("after"), "what is published after the outage");
  assert(!connection.isClosed());
  // That its connections were ended was reported to it, as it should be.
  bus.errors.length = 0;
}
