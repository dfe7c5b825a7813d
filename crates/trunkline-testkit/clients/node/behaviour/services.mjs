// What is said at connecting, and requests: without an answer, with several, and to services that can be discovered.

import assert from "node:assert/strict";
import { bytes, raises, report, text, timed, within } from "../harness.mjs";

const all = async (iterator) => {
  const items = [];
  for await (const item of iterator) items.push(item);
  return items;
};

export const behaviours = {
  async what_connect_asks_for_is_honoured(bus) {
    const silent = await bus.connect({ name: "silent", noEcho: true, verbose: true, pedantic: true });
    const other = await bus.connect({ name: "other" });
    const received = await bus.collect(silent, "echo");
    silent.publish("echo", bytes("own"));
    await silent.flush();
    other.publish("echo", bytes("other"));
    await received.waitFor(1);
    await silent.flush();
    report({ texts: received.texts });
    assert.deepEqual(received.texts, ["other"]);
  },

  async a_request_without_responders_fails_at_once(bus) {
    const connection = await bus.connect();
    for (const options of [{}, { noMux: true, reply: bus.library.createInbox() }]) {
      const ask = () => connection.request("nobody", bytes("?"), { timeout: 5000, ...options });
      const { milliseconds } = await timed(() => raises(bus.library.isNoResponders, ask, "a request"));
      assert(milliseconds < 4000, `it took ${milliseconds} ms`);
    }
    // Who only listens for the answer is told by a message with a status and no body.
    const inbox = bus.library.createInbox();
    const received = await bus.collect(connection, inbox);
    connection.publish("nobody", bytes("?"), { reply: inbox });
    await received.waitFor(1);
    const [message] = received.messages;
    report({ code: message.headers.code, status: message.headers.status, payload: text(message.data) });
  },

  async a_request_has_many_replies(bus) {
    const [asking, answering] = [await bus.connect(), await bus.connect()];
    for (const name of ["a", "b", "c"]) {
      const answer = (_, message) => [0, 1, 2].forEach((part) => message.respond(bytes(`${name}${part}`)));
      answering.subscribe("roll.call", { callback: answer });
    }
    await answering.flush();
    for (const noMux of [false, true]) {
      const options = { maxWait: 5000, noMux, ...bus.library.requestManyUntil.count(9) };
      const replies = await within(asking.requestMany("roll.call", bytes("?"), options).then(all), "nine replies");
      report({ replies: replies.map((reply) => text(reply.data)).sort() });
    }
    const stalled = { maxWait: 5000, ...bus.library.requestManyUntil.stall(100) };
    const replies = await within(asking.requestMany("roll.call", bytes("?"), stalled).then(all), "replies until a silence");
    assert.equal(replies.length, 9);
  },

  async services_are_discovered(bus) {
    const [asking, serving] = [await bus.connect(), await bus.connect()];
    const service = await bus.library.services(serving).add({ name: "shout", version: "1.2.3", description: "says it louder" });
    service.addGroup("voice").addEndpoint("shout", (_, message) => {
      if (text(message.data) === "bad") message.respondError(400, "not that");
      else message.respond(bytes(text(message.data).toUpperCase()));
    });
    await serving.flush();
    const answer = await asking.request("voice.shout", bytes("hello"), { timeout: 5000 });
    const error = await asking.request("voice.shout", bytes("bad"), { timeout: 5000 });
    const discovering = bus.library.services(asking).client({ maxWait: 5000, ...bus.library.requestManyUntil.count(1) });
    const [ping] = await all(await discovering.ping("shout"));
    const [info] = await all(await discovering.info("shout", ping.id));
    const [stats] = await all(await discovering.stats("shout", ping.id));
    report({
      answer: text(answer.data),
      error: [error.headers.get("Nats-Service-Error"), error.headers.get("Nats-Service-Error-Code")],
      ping: [ping.name, ping.version, ping.type],
      info: info.endpoints.map((endpoint) => [endpoint.name, endpoint.subject, endpoint.queue_group]),
      stats: stats.endpoints.map((endpoint) => [endpoint.num_requests, endpoint.num_errors]),
    });
    await service.stop();
    await serving.flush();
    const gone = () => asking.request("$SRV.PING.shout", undefined, { timeout: 5000 });
    await raises(bus.library.isNoResponders, gone, "a service that is gone");
  },
};
