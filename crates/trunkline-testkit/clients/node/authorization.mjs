// What a component sees of users and permissions: its credentials open, the wrong ones do not, a violation is an error of its own and no
// end, and a reload sends away only who is gone.

import assert from "node:assert/strict";
import { bytes, raises, say, text, within } from "./harness.mjs";

export async function authorization(bus) {
  const refused = (error) => /authorization/i.test(`${error.code} ${error.message}`);
  for (const credentials of [{}, { user: "gateway", pass: "wrong" }, { user: "stranger", pass: "gate-pass" }, { token: "wrong" }]) {
    await raises(refused, () => bus.connect(credentials), `connect with ${JSON.stringify(credentials)}`);
  }
  const { authenticator, publicKey } = bus.library.nkey(process.env.SCENARIO_NKEY_SEED);
  assert.match(publicKey, /^U/);
  const stranger = bus.library.nkey().authenticator;
  await raises(refused, () => bus.connect({ authenticator: stranger }), "connect with an nkey that nobody knows");

  const gateway = await bus.connect({ user: "gateway", pass: "gate-pass" });
  const search = await bus.connect({ user: "search", pass: "search-pass" });
  const everybody = await bus.connect({ token: "t0ken-for-all" });
  const signer = await bus.connect({ authenticator });

  // A responder answers although it may not publish to inboxes.
  search.subscribe("nachos.tool.search.call", { callback: (_, message) => message.respond(bytes("found")) });
  await search.flush();
  for (const connection of [gateway, everybody, signer]) {
    const reply = await connection.request("nachos.tool.search.call", bytes("?"), { timeout: 5000 });
    assert.equal(text(reply.data), "found");
  }

  /** Waits for an error of a connection that nobody asked for. The classic client passes on no more than its code. */
  const heard = async (pattern) => {
    const said = (error) => error === "PERMISSIONS_VIOLATION" || pattern.test(error.message);
    await bus.until(() => bus.errors.some(said), `${pattern}`);
    bus.errors.length = 0;
  };
  search.publish("nachos.other", bytes("x"));
  await heard(/Permissions Violation for Publish to "nachos.other"/i);
  const denied = (subject, options) =>
    new Promise((resolve) => search.subscribe(subject, { ...options, callback: (error) => error && resolve(error) }));
  const subscription = await within(denied("nachos.other"), "the error of a subscription");
  assert.match(`${subscription.message} ${subscription.chainedError?.message}`, /Permissions Violation for Subscription to "nachos.other"/i);
  const grouped = await within(denied("nachos.tool.search.task", { queue: "others" }), "the error of a queue subscription");
  assert.match(`${grouped.message} ${grouped.chainedError?.message}`, /using queue "others"/i);
  const lost = denied("nachos.tool.search.task", { queue: "workers" });
  await search.flush();
  assert(!search.isClosed());

  const leaver = await bus.connect({ user: "leaver", pass: "leaver-pass" });
  bus.errors.length = 0;
  say("ready-for-reload");
  await within(leaver.closed(), "the end of a user that is gone");
  await within(lost, "the error of a subscription that is not permitted any more");
  const reply = await gateway.request("nachos.tool.search.call", bytes("?"), { timeout: 5000 });
  assert.equal(text(reply.data), "found");
  // That they were sent away, or refused, was reported to those whom it concerns.
  bus.errors.length = 0;
}
