// What components written for Node rely on, tried with the unmodified official clients.
//
//     node scenarios.mjs --client nats|transport-node|websocket URL SCENARIO    runs one scenario; prints `ok SCENARIO` and exits with 0
//     node scenarios.mjs --client nats|transport-node|websocket --list          prints the names of all scenarios
//
// Each exported function is one rule, which names it. Nothing here is particular to one server.
// The names are the ones of `scenarios.py`, so that one list serves all clients.

import assert from "node:assert/strict";
import { authorization } from "./authorization.mjs";
import { conversation } from "./conversation.mjs";
import { envelope_answer, envelope_ask } from "./envelope.mjs";
import { outage_of_the_backend } from "./outage.mjs";
import { Bus, bytes, Collector, raises, report, say, text, timed, within } from "./harness.mjs";
import { loadLibrary } from "./library.mjs";

const numbers = (count) => Array.from({ length: count }, (_, n) => String(n));
const sorted = (list) => [...list].sort();

const scenarios = {
  async wildcards_match_whole_tokens(bus) {
    const connection = await bus.connect();
    const collectors = {};
    for (const pattern of ["chat.web.inbound", "chat.*.inbound", "chat.>", "*.web.*", ">"]) {
      collectors[pattern] = await bus.collect(connection, pattern);
    }
    const subjects = [
      "chat.web.inbound", "chat.web.outbound", "chat", "chat.web.inbound.late", "chat.cli.inbound", "chatter.web.inbound", "end",
    ];
    for (const subject of subjects) connection.publish(subject, bytes("x"));
    for (const [pattern, count] of Object.entries({ "chat.web.inbound": 1, "chat.*.inbound": 2, "chat.>": 4, "*.web.*": 3, ">": subjects.length })) {
      await collectors[pattern].waitFor(count);
    }
    await bus.settle();

    assert.deepEqual(collectors["chat.web.inbound"].subjects, ["chat.web.inbound"]);
    assert.deepEqual(collectors["chat.*.inbound"].subjects, ["chat.web.inbound", "chat.cli.inbound"]);
    assert.deepEqual(collectors["chat.>"].subjects, ["chat.web.inbound", "chat.web.outbound", "chat.web.inbound.late", "chat.cli.inbound"]);
    assert.deepEqual(collectors["*.web.*"].subjects, ["chat.web.inbound", "chat.web.outbound", "chatter.web.inbound"]);
    assert.deepEqual(collectors[">"].subjects, subjects);
  },

  async queue_group_members_share_each_message_once(bus) {
    const publisher = await bus.connect();
    const members = [];
    for (let n = 0; n < 3; n++) members.push(await bus.collect(await bus.connect(), "jobs.*", { queue: "workers" }));
    const otherGroup = await bus.collect(await bus.connect(), "jobs.*", { queue: "auditors" });
    const everyone = await bus.collect(await bus.connect(), "jobs.*");

    const expected = numbers(300);
    for (const payload of expected) publisher.publish("jobs.one", bytes(payload));
    await publisher.flush();
    await otherGroup.waitFor(expected.length);
    await everyone.waitFor(expected.length);
    await bus.until(() => members.flatMap((member) => member.messages).length >= expected.length, "the members to get every message");
    await bus.settle();

    assert.deepEqual(sorted(members.flatMap((member) => member.texts)), sorted(expected));
    assert.deepEqual(sorted(otherGroup.texts), sorted(expected));
    assert.deepEqual(everyone.texts, expected);
    const shares = members.map((member) => member.messages.length);
    assert(Math.min(...shares) > 0, `one member got nothing: ${shares}`);
    report({ event: "shares", shares });
  },

  async messages_of_one_publisher_keep_their_order(bus) {
    const [publisher, subscriber] = [await bus.connect(), await bus.connect()];
    const received = await bus.collect(subscriber, "ordered");
    const expected = numbers(5000);
    for (const payload of expected) publisher.publish("ordered", bytes(payload));
    await received.waitFor(expected.length);
    assert.deepEqual(received.texts, expected);
  },

  async own_messages_are_echoed_unless_refused(bus) {
    const [echoing, silent] = [await bus.connect(), await bus.connect({ noEcho: true })];
    const [own, others] = [await bus.collect(silent, "echo"), await bus.collect(echoing, "echo")];
    silent.publish("echo", bytes("from the silent one"));
    await silent.flush();
    echoing.publish("echo", bytes("from the echoing one"));
    await echoing.flush();
    await others.waitFor(2);
    await own.waitFor(1);
    await bus.settle();
    assert.deepEqual(others.texts, ["from the silent one", "from the echoing one"]);
    assert.deepEqual(own.texts, ["from the echoing one"]);
  },

  async request_gets_its_own_reply(bus) {
    const [asking, answering] = [await bus.connect(), await bus.connect()];
    answering.subscribe("tool.search.call", {
      queue: "search",
      callback: (_error, message) => message.respond(bytes(`re:${text(message.data)}`)),
    });
    await answering.flush();
    const questions = numbers(100);
    const replies = await Promise.all(questions.map((question) => asking.request("tool.search.call", bytes(question), { timeout: 5000 })));
    assert.deepEqual(replies.map((reply) => text(reply.data)), questions.map((question) => `re:${question}`));
    // A reply subject of the request's own, instead of the shared inbox.
    const options = { timeout: 5000, noMux: true, reply: bus.library.createInbox() };
    const reply = await asking.request("tool.search.call", bytes("old"), options);
    assert.equal(text(reply.data), "re:old");
  },

  async request_many_gets_every_reply(bus) {
    const asking = await bus.connect();
    for (const name of ["a", "b", "c"]) {
      const connection = await bus.connect();
      connection.subscribe("roll.call", {
        callback: (_error, message) => {
          for (let part = 0; part < 4; part++) message.respond(bytes(`${name}${part}`));
        },
      });
      connection.subscribe("until.the.end", {
        queue: "one",
        callback: (_error, message) => {
          for (let part = 0; part < 5; part++) message.respond(bytes(`chunk${part}`));
          message.respond();
        },
      });
      await connection.flush();
    }
    const all = async (subject, options) => {
      const replies = [];
      for await (const reply of await asking.requestMany(subject, bytes("?"), { maxWait: 5000, ...options })) replies.push(text(reply.data));
      return replies;
    };
    for (const noMux of [false, true]) {
      const counted = await within(all("roll.call", { noMux, ...bus.library.requestManyUntil.count(12) }), "12 replies");
      for (const name of ["a", "b", "c"]) {
        const parts = counted.filter((reply) => reply.startsWith(name));
        assert.deepEqual(parts, [0, 1, 2, 3].map((part) => `${name}${part}`), "the chunks of one responder keep their order");
      }
      const chunks = await within(all("until.the.end", { noMux, ...bus.library.requestManyUntil.sentinel() }), "the last chunk");
      assert.deepEqual(chunks, ["chunk0", "chunk1", "chunk2", "chunk3", "chunk4", ""]);
    }
  },

  async headers_arrive_as_they_were_sent(bus) {
    const connection = await bus.connect();
    const received = await bus.collect(connection, "headers");
    const sent = {
      "X-Case-Kept": "One", "x-case-kept": "two", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
      "Colon": "a: b:c", "Words": "two  spaces", "Name": "Åse",
    };
    const headers = bus.library.headers();
    for (const [name, value] of Object.entries(sent)) headers.set(name, value);
    connection.publish("headers", bytes("with"), { headers });
    connection.publish("headers", bytes("without"));
    const only = bus.library.headers();
    only.set("Only", "headers");
    connection.publish("headers", undefined, { headers: only });
    await received.waitFor(3);
    const [first, second, third] = received.messages;
    assert.deepEqual(first.headers.keys(), Object.keys(sent));
    for (const [name, value] of Object.entries(sent)) assert.deepEqual(first.headers.values(name), [value]);
    assert.deepEqual(received.texts, ["with", "without", ""]);
    assert.equal(second.headers, undefined);
    assert.equal(third.headers.get("Only"), "headers");
  },

  async repeated_headers_are_forwarded_byte_for_byte(bus) {
    const receiver = await bus.raw();
    receiver.send("SUB multi 7\r\n");
    await receiver.flush();
    const connection = await bus.connect();
    const received = await bus.collect(connection, "multi");
    const headers = bus.library.headers();
    for (const value of ["first", "second", "first"]) headers.append("Multi", value);
    headers.append("multi", "lower");
    connection.publish("multi", bytes("body"), { headers, reply: "reply.to" });
    await received.waitFor(1);
    assert.deepEqual(received.messages[0].headers.values("Multi"), ["first", "second", "first"]);
    assert.deepEqual(received.messages[0].headers.values("multi"), ["lower"]);

    const block = ["NATS/1.0", "Multi: first", "Multi: second", "Multi: first", "multi: lower"];
    const headerBytes = block.join("\r\n").length + 4;
    assert.equal(await receiver.linePastInfo(), `HMSG multi 7 reply.to ${headerBytes} ${headerBytes + 4}`);
    for (const line of [...block, "", "body"]) assert.equal(await receiver.line(), line);
  },

  async request_that_nobody_answers_fails_at_once(bus) {
    const connection = await bus.connect();
    for (const options of [{}, { noMux: true, reply: bus.library.createInbox() }]) {
      const ask = () => connection.request("nobody.here", bytes("?"), { timeout: 5000, ...options });
      const { milliseconds } = await timed(() => raises(bus.library.isNoResponders, ask, "a request nobody answers"));
      assert(milliseconds < 1000, `no responders took ${milliseconds} ms`);
      report({ event: "no_responders", milliseconds });
    }
    // Somebody who listens but stays silent is another matter: then the request runs into its own timeout.
    connection.subscribe("somebody.silent", { callback: () => {} });
    await connection.flush();
    await raises(bus.library.isTimeout, () => connection.request("somebody.silent", bytes("?"), { timeout: 200 }), "a request to someone silent");
  },

  async drained_subscription_handles_what_was_published(bus) {
    const [publisher, subscriber] = [await bus.connect(), await bus.connect()];
    const subscription = subscriber.subscribe("work");
    const handled = [];
    const handling = (async () => {
      for await (const message of subscription) handled.push(text(message.data));
    })();
    await subscriber.flush();
    const expected = numbers(500);
    for (const payload of expected) publisher.publish("work", bytes(payload));
    await publisher.flush();
    if (bus.bridged) await bus.until(() => handled.length >= expected.length, "the subscriber to get every message");
    await within(subscription.drain(), "the subscription to drain");
    await within(handling, "the iterator to end");
    assert.deepEqual(handled, expected);

    publisher.publish("work", bytes("too late"));
    await publisher.flush();
    await subscriber.flush();
    assert.deepEqual(handled, expected);
    assert(!subscriber.isClosed());
  },

  async drained_connection_handles_and_sends_everything(bus) {
    const [publisher, subscriber, observer] = [await bus.connect(), await bus.connect(), await bus.connect()];
    const answers = await bus.collect(observer, "answers");
    for (const pattern of ["work.a", "work.b"]) {
      subscriber.subscribe(pattern, { callback: (_error, message) => subscriber.publish("answers", bytes(`done:${text(message.data)}`)) });
    }
    await subscriber.flush();
    const payloads = numbers(200);
    payloads.forEach((payload, n) => publisher.publish(n % 2 ? "work.a" : "work.b", bytes(payload)));
    await publisher.flush();
    if (bus.bridged) await answers.waitFor(payloads.length);
    await within(subscriber.drain(), "the connection to drain");
    assert.equal(await within(subscriber.closed(), "the connection to close"), undefined);
    await answers.waitFor(payloads.length);
    assert.deepEqual(sorted(answers.texts), sorted(payloads.map((payload) => `done:${payload}`)));
  },

  async auto_unsubscribe_stops_after_max(bus) {
    const [publisher, subscriber] = [await bus.connect(), await bus.connect()];
    const limited = await bus.collect(subscriber, "limited", { max: 5 });
    const control = await bus.collect(subscriber, "limited");
    for (const payload of numbers(20)) publisher.publish("limited", bytes(payload));
    await control.waitFor(20);
    await limited.waitFor(5);
    assert.deepEqual(limited.texts, numbers(5));

    // The client stops by itself too, so what the server does is seen on a bare socket: the limit counts what was already delivered.
    const raw = await bus.raw();
    raw.send("SUB counted 1\r\n");
    await raw.flush();
    const publish = async (from, to) => {
      for (let n = from; n < to; n++) publisher.publish("counted", bytes(String(n)));
      await publisher.flush();
    };
    const expectMessages = async (from, to) => {
      for (let n = from; n < to; n++) {
        assert.equal(await raw.linePastInfo(), "MSG counted 1 1");
        assert.equal(await raw.line(), String(n));
      }
    };
    await publish(0, 3);
    await expectMessages(0, 3);
    raw.send("UNSUB 1 5\r\n");
    await raw.flush();
    await publish(3, 10);
    await expectMessages(3, 5);
    raw.send("PING\r\n");
    assert.equal(await raw.linePastInfo(), "PONG");
  },

  async subscriptions_resume_after_a_restart(bus) {
    const connection = await bus.connect({ reconnect: true, maxReconnectAttempts: -1, reconnectTimeWait: 50, reconnectJitter: 0 });
    const plain = await bus.collect(connection, "chat.*.inbound");
    const queued = await bus.collect(connection, "chat.>", { queue: "gateway" });
    connection.subscribe("tool.call", { callback: (_error, message) => message.respond(bytes("still here")) });
    connection.publish("chat.web.inbound", bytes("before"));
    await plain.waitFor(1);
    await queued.waitFor(1);

    const reconnected = (async () => {
      const seen = [];
      for await (const status of connection.status()) {
        seen.push(status.type);
        if (status.type === "reconnect") return seen;
      }
    })();
    say("ready-for-restart");
    assert((await within(reconnected, "the reconnect")).includes("disconnect"));

    await connection.flush();
    connection.publish("chat.web.inbound", bytes("after"));
    await plain.waitFor(2);
    await queued.waitFor(2);
    assert.deepEqual(plain.texts, ["before", "after"]);
    assert.deepEqual(queued.texts, ["before", "after"]);
    const reply = await connection.request("tool.call", bytes("?"), { timeout: 5000 });
    assert.equal(text(reply.data), "still here");
    const late = await bus.collect(connection, "late");
    connection.publish("late", bytes("new subscriptions work"));
    await late.waitFor(1);
  },

  async client_refuses_more_than_max_payload(bus) {
    const connection = await bus.connect();
    const limit = connection.info.max_payload;
    assert(limit >= 1024, `INFO says max_payload ${limit}`);
    report({ event: "max_payload", bytes: limit });
    await raises(bus.library.isMaxPayload, () => connection.publish("big", new Uint8Array(limit + 1)), "a payload past the limit");
    await connection.flush();
  },

  async server_refuses_more_than_max_payload_and_closes(bus) {
    const raw = await bus.raw();
    await raw.flush();
    raw.send(`PUB big ${raw.info.max_payload + 1}\r\n`);
    const rest = await raw.rest();
    assert(rest.includes("-ERR 'Maximum Payload Violation'\r\n"), rest);
    // Others go on undisturbed.
    const connection = await bus.connect();
    await connection.flush();
  },

  async flush_and_rtt_are_answered(bus) {
    const connection = await bus.connect();
    for (let n = 0; n < 50; n++) await connection.flush();
    const milliseconds = await connection.rtt();
    assert(milliseconds >= 0 && milliseconds < 1000, `a round trip took ${milliseconds} ms`);
    report({ event: "rtt", milliseconds });
  },

  async binary_payload_is_not_touched(bus) {
    const connection = await bus.connect();
    const received = await bus.collect(connection, "binary");
    const sent = [
      Uint8Array.from({ length: 2048 }, (_, n) => n % 256),
      bytes("\r\n"),
      bytes("MSG binary 1 2\r\nhi\r\nPING\r\n"),
      new Uint8Array(100),
      Uint8Array.of(0xff, 0xfe, 0xc3, 0x28),
      bytes("ends with a carriage return\r"),
    ];
    const headers = bus.library.headers();
    headers.set("Kind", "binary");
    for (const payload of sent) {
      connection.publish("binary", payload);
      connection.publish("binary", payload, { headers });
    }
    await received.waitFor(2 * sent.length);
    received.messages.forEach((message, n) => assert(Buffer.from(sent[n >> 1]).equals(message.data), `payload ${n >> 1}`));
  },

  async empty_payload_is_a_message(bus) {
    const connection = await bus.connect();
    const received = await bus.collect(connection, "empty.*");
    connection.publish("empty.one");
    connection.publish("empty.two", undefined, { reply: "answer.here" });
    connection.publish("empty.three", bytes("not empty"));
    await received.waitFor(3);
    assert.deepEqual(received.subjects, ["empty.one", "empty.two", "empty.three"]);
    assert.deepEqual(received.texts, ["", "", "not empty"]);
    assert.equal(received.messages[1].reply, "answer.here");
  },

  async payload_of_exactly_one_mebibyte_passes(bus) {
    const [publisher, subscriber] = [await bus.connect(), await bus.connect()];
    const received = await bus.collect(subscriber, "large");
    const payload = Buffer.from(Uint8Array.from({ length: 1024 * 1024 }, (_, n) => n % 251));
    for (let n = 0; n < 3; n++) publisher.publish("large", payload);
    await received.waitFor(3);
    for (const message of received.messages) assert(payload.equals(message.data));
  },

  async ten_thousand_subscriptions_get_their_own_messages(bus) {
    const connection = await bus.connect();
    const subjects = numbers(10_000).map((n) => `device.${n}.state`);
    const received = new Collector();
    const subscriptions = subjects.map((subject) => connection.subscribe(subject, { callback: received.take }));
    await connection.flush();
    for (const subject of subjects) connection.publish(subject);
    await received.waitFor(subjects.length);
    const inOrder = (list) => (bus.bridged ? sorted(list) : list);
    assert.deepEqual(inOrder(received.subjects), inOrder(subjects));

    subscriptions.forEach((subscription, n) => n % 2 || subscription.unsubscribe());
    await connection.flush();
    received.messages = [];
    for (const subject of subjects) connection.publish(subject);
    await received.waitFor(subjects.length / 2);
    await bus.settle();
    assert.deepEqual(inOrder(received.subjects), inOrder(subjects.filter((_, n) => n % 2)));
  },
};

// The two halves of one call between components of different languages, which the test runs as a pair, and a platform that talks
// to others of its kind; and what only a server with a backend of its own can be asked, or one with users.
const paired = { authorization, conversation, envelope_answer, envelope_ask, outage_of_the_backend };

function usage() {
  console.error("usage: scenarios.mjs --client nats|transport-node (URL SCENARIO | --list)");
  process.exit(2);
}

const [flag, client, ...rest] = process.argv.slice(2);
if (flag !== "--client" || client === undefined) usage();
const library = loadLibrary(client);
if (rest.length === 1 && rest[0] === "--list") {
  say(Object.keys(scenarios).join("\n"));
} else {
  const [url, name] = rest;
  const run = { ...scenarios, ...paired }[name];
  if (rest.length !== 2 || run === undefined) usage();
  const bus = new Bus(url, library);
  try {
    await run(bus);
    await bus.close();
    say(`ok ${name}`);
  } catch (error) {
    console.error(error.stack);
    process.exit(1);
  }
}
