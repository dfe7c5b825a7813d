// How connections end and come back.

import assert from "node:assert/strict";
import { bytes, Collector, report, say, text, within } from "../harness.mjs";
import { describe } from "./access.mjs";

export const PATIENT = { reconnect: true, maxReconnectAttempts: -1, reconnectTimeWait: 20, reconnectJitter: 0 };

const TOLD = ["disconnect", "reconnect", "ldm", "staleConnection", "slowConsumer", "error"];

/** Keeps what a connection's status said, in its order, less what is chatter. */
export class Story {
  events = [];
  errors = [];

  constructor(connection) {
    this.#listen(connection);
    connection.closed().then((error) => this.events.push(error ? `closed: ${describe(error)}` : "closed"));
  }

  // Ends by itself when the connection is closed.
  async #listen(connection) {
    for await (const status of connection.status()) {
      if (TOLD.includes(status.type)) this.events.push(status.type);
      if (status.type === "error") this.errors.push(describe(status.error ?? status.data));
    }
  }

  has(event) {
    return this.events.some((seen) => seen.startsWith(event));
  }
}

/** The connection has come back, and what it subscribed to before still arrives. */
export async function isBack(bus, connection, story, received) {
  await within((async () => {
    while (!story.has("reconnect")) await new Promise((resolve) => setTimeout(resolve, 5));
  })(), "the connection to come back", 20_000);
  await connection.flush();
  connection.publish("still", bytes("here"));
  await bus.until(() => received.texts.includes("here"), "what is published afterwards");
}

/** What the connection's status said of a restart. The client of pages says it of each attempt that fails. */
export const ofRestart = (bus, story) => (bus.library.isOfPages ? [...new Set(story.events)] : story.events);

const numbers = (count) => Array.from({ length: count }, (_, n) => n);

export const behaviours = {
  async subscriptions_and_callbacks_live_through_a_restart(bus) {
    const connection = await bus.connect(PATIENT);
    const story = new Story(connection);
    const plain = await bus.collect(connection, "still");
    const grouped = await bus.collect(connection, "still", { queue: "workers" });
    const limited = new Collector();
    connection.subscribe("limited", { max: 3, callback: limited.take });
    await connection.flush();
    connection.publish("limited", bytes("1"));
    await limited.waitFor(1);
    say("restart-server");
    await isBack(bus, connection, story, plain);
    await grouped.waitFor(1);
    // Of the three messages one had come before.
    for (const payload of ["2", "3", "4"]) connection.publish("limited", bytes(payload));
    await limited.waitFor(3);
    await connection.flush();
    assert.deepEqual(limited.texts, ["1", "2", "3"]);
    report({ events: ofRestart(bus, story), plain: plain.texts, grouped: grouped.texts });
    bus.errors.length = 0;
  },

  async a_drained_subscription_loses_nothing(bus) {
    const [publisher, subscriber] = [await bus.connect(), await bus.connect()];
    const handled = [];
    const subscription = subscriber.subscribe("work");
    const handling = (async () => {
      for await (const message of subscription) {
        await Promise.resolve();
        handled.push(Number(text(message.data)));
      }
    })();
    await subscriber.flush();
    for (const number of numbers(1000)) publisher.publish("work", bytes(String(number)));
    await publisher.flush();
    await within(subscription.drain(), "the subscription to drain");
    await within(handling, "the iterator to end");
    assert.deepEqual(handled, numbers(1000));
    publisher.publish("work", bytes("1000"));
    await publisher.flush();
    await subscriber.flush();
    assert(handled.length === 1000 && !subscriber.isClosed());
    report({ handled: handled.length });
  },

  async a_drained_connection_loses_nothing(bus) {
    const [publisher, observer, subscriber] = [await bus.connect(), await bus.connect(), await bus.connect()];
    const story = new Story(subscriber);
    const done = await bus.collect(observer, "done");
    for (const options of [{}, { queue: "workers" }]) {
      subscriber.subscribe("work", { ...options, callback: (_, message) => subscriber.publish("done", message.data) });
    }
    await subscriber.flush();
    for (const number of numbers(500)) publisher.publish("work", bytes(String(number)));
    await publisher.flush();
    await within(subscriber.drain(), "the connection to drain");
    await done.waitFor(1000);
    await bus.until(() => story.has("closed"), "the connection to close");
    const twice = numbers(500).flatMap((number) => [number, number]);
    assert.deepEqual(done.texts.map(Number).sort((a, b) => a - b), twice);
    report({ done: done.messages.length, events: story.events });
  },

  async lame_duck_mode_is_told(bus) {
    const connection = await bus.connect();
    const story = new Story(connection);
    const received = await bus.collect(connection, "still");
    say("lame-duck");
    await bus.until(() => story.has("ldm"), "the client to be told");
    // It is served until it is closed.
    connection.publish("still", bytes("here"));
    await received.waitFor(1);
    await bus.until(() => story.has("closed"), "the server to close the connection");
    report({ events: story.events.sort() });
  },

  async shutdown_closes_the_connection(bus) {
    const connection = await bus.connect();
    const story = new Story(connection);
    await bus.collect(connection, "last");
    say("stop-server");
    await bus.until(() => story.has("closed"), "the connection to end");
    report({ events: story.events.sort() });
  },

  async a_silent_client_is_cut_off(bus) {
    const connection = await bus.connect(PATIENT);
    const story = new Story(connection);
    const received = await bus.collect(connection, "still");
    say("freeze-until-gone");
    await isBack(bus, connection, story, received);
    report({ events: story.events, errors: story.errors });
    bus.errors.length = 0;
  },

  async a_silent_server_is_left(bus) {
    const connection = await bus.connect({ ...PATIENT, pingInterval: 250, maxPingOut: 2, timeout: 1000 });
    const story = new Story(connection);
    const received = await bus.collect(connection, "still");
    say("pause-server");
    await bus.until(() => story.has("disconnect"), "the client to notice");
    assert(story.has("staleConnection"));
    say("resume-server");
    await isBack(bus, connection, story, received);
    // While nobody answers, attempts to connect may fail as well, and each of those is told.
    report({ events: [...new Set(story.events)].sort() });
    bus.errors.length = 0;
  },
};
