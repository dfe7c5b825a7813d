// What there is too much of: messages for who reads slowly, bytes in one message, connections, subscriptions.

import assert from "node:assert/strict";
import { bytes, raises, report, say, text } from "../harness.mjs";
import { describe, works } from "./access.mjs";
import { isBack, PATIENT, Story } from "./life.mjs";

export const behaviours = {
  // These clients drop nothing: messages wait for their iterator without a bound. The newer one says so past a limit.
  async a_slow_subscription_drops_in_the_client(bus) {
    const [connection, publisher] = [await bus.connect(), await bus.connect()];
    const story = new Story(connection);
    const subscription = connection.subscribe("busy", { slow: 10 });
    await connection.flush();
    for (let n = 0; n < 100; n++) publisher.publish("busy", bytes(String(n)));
    await publisher.flush();
    await bus.until(() => subscription.getPending() === 100, "all messages to wait");
    if (bus.library.tellsSlowConsumers) await bus.until(() => story.has("slowConsumer"), "the status of a slow consumer");
    const handled = [];
    for await (const message of subscription) {
      if (handled.push(Number(text(message.data))) === 100) break;
    }
    assert.deepEqual(handled, Array.from({ length: 100 }, (_, n) => n));
    // The connection is none the worse for it.
    await works(bus, connection);
    report({ events: story.events });
  },

  async a_slow_client_is_cut_off(bus) {
    const connection = await bus.connect(PATIENT);
    const story = new Story(connection);
    const flood = await bus.collect(connection, "flood");
    const received = await bus.collect(connection, "still");
    say("freeze-until-slow");
    await isBack(bus, connection, story, received);
    assert(flood.messages.every((message) => message.data.length === 65536));
    report({ events: story.events.filter((event) => event !== "error") });
    bus.errors.length = 0;
  },

  async too_large_a_payload_is_refused_in_the_client(bus) {
    const connection = await bus.connect();
    assert.equal(connection.info.max_payload, 1024);
    const received = await bus.collect(connection, "size");
    const publish = (size) => connection.publish("size", new Uint8Array(size));
    const error = await raises(bus.library.isMaxPayload, () => publish(1025), "one byte too many");
    publish(1024);
    await received.waitFor(1);
    report({ error: describe(error), received: received.messages.map((message) => message.data.length) });
  },

  async too_large_a_payload_ends_the_connection(bus) {
    // The proxy looks into no frames; of the client in them, what it was told can be changed.
    if (!bus.library.isOfPages) bus.url = process.env.BEHAVIOUR_PROXY;
    const connection = await bus.connect();
    if (bus.library.isOfPages) connection.protocol.info.max_payload = 4096;
    const story = new Story(connection);
    assert(connection.info.max_payload > 1024);
    connection.publish("size", new Uint8Array(1025));
    await bus.until(() => story.has("closed"), "the server to end the connection");
    // Whether the status or the promise of the end comes first is not for the server to say; nor, where there are frames, whether
    // the promise has the error of the protocol or that of the close frame.
    const events = story.events.map((event) => (bus.library.isOfPages ? event.split(":")[0] : event));
    report({ events: events.sort(), errors: story.errors });
    bus.errors.length = 0;
  },

  async one_connection_too_many_is_refused(bus) {
    const [first, second] = [await bus.connect(), await bus.connect()];
    // The server closes behind its error, so that what the client says meanwhile may find the connection gone.
    await raises(() => true, () => bus.connect(), "a third connection");
    await works(bus, second);
    await first.close();
    const enters = async () => {
      // The server may not yet know that there is room.
      for (;;) {
        const connection = await bus.connect().catch(() => undefined);
        if (connection !== undefined) return connection;
      }
    };
    await works(bus, await enters());
    bus.errors.length = 0;
  },

  async one_subscription_too_many_is_refused(bus) {
    const connection = await bus.connect();
    const story = new Story(connection);
    const kept = [await bus.collect(connection, "one"), await bus.collect(connection, "two")];
    connection.subscribe("three", { callback: () => {} });
    await bus.until(() => bus.errors.length > 0, "the error");
    connection.publish("one", bytes("x"));
    await bus.until(() => kept[0].messages.length > 0 || connection.isClosed(), "the connection to go on, or to end");
    report({ error: describe(bus.errors.splice(0)[0]), kept: kept[0].messages.length, closed: connection.isClosed(), events: story.events });
  },
};
