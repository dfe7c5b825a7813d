// An agent platform in one process: a channel, a gateway and a tool, each on a connection of its own, in a plain client for Node.
//
// Beside it run the same three in other languages. Every channel talks to every gateway about every tool, so that each part is
// played by each of them in turn. What a component needs to know of the envelope is written out here.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { bytes, say, text, within } from "./harness.mjs";

// Who plays a part: the library, and the stock clients.
const PLAYERS = ["rust", "nats-py", "nats-js", "transport-node"];
const TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
// As long as the gateway waits for a tool when nobody is in a hurry.
const TOOL_TIMEOUT_MILLISECONDS = 8000;
// When the answer about a city that takes for ever is not wanted any more.
const HURRY_MILLISECONDS = 2000;

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const decode = (message) => JSON.parse(text(message.data));
const encode = (envelope) => bytes(JSON.stringify(envelope));

/** The three parts, and what went wrong in them. */
class Platform {
  constructor(bus) {
    this.library = bus.library;
    this.me = bus.library.name === "nats" ? "nats-js" : "transport-node";
    this.failed = new Promise((_, reject) => (this.fail = reject));
    // It may be that nobody looks any more when something fails.
    this.failed.catch(() => {});
  }

  /** A new envelope; given the envelope that caused it, it carries on that one's correlation and trace. */
  makeEnvelope(source, type, payload, { cause, trace = {}, deadline } = {}) {
    const envelope = {
      id: randomUUID(),
      timestamp: new Date().toISOString(),
      source: `${source}-${this.me}`,
      type,
      correlationId: cause?.correlationId ?? randomUUID(),
      payload,
      trace: cause ? { ...cause.trace, ...trace, causationId: cause.id } : trace,
    };
    if (deadline !== undefined) envelope.deadline = new Date(deadline).toISOString();
    return envelope;
  }

  headers(fields) {
    const headers = this.library.headers();
    for (const [name, value] of Object.entries(fields)) headers.set(name, value);
    return { headers };
  }

  traceHeaders(message) {
    return this.headers({ traceparent: message.headers.get("traceparent") });
  }

  /** Makes a callback of a handler whose failure is told. */
  taking(handle) {
    return (error, message) => {
      if (error) return this.fail(error);
      handle(message).catch(this.fail);
    };
  }

  async startTool(connection) {
    const tool = `weather-${this.me}`;
    const publishCopy = (message, call, result) => {
      const envelope = this.makeEnvelope("tool", "tool.result", result, { cause: call });
      connection.publish(`nachos.tool.${tool}.result`, encode(envelope), this.traceHeaders(message));
    };
    const refuse = (message, code, reason) =>
      message.respond(bytes(""), this.headers({ "Nats-Service-Error-Code": String(code), "Nats-Service-Error": reason }));

    const forecast = async (message) => {
      const call = decode(message);
      assert.equal(call.type, "tool.call");
      const { callId, arguments: { city } } = call.payload;
      const left = Date.parse(call.deadline) - Date.now();
      if (left <= 0) return refuse(message, 408, "deadline passed");
      if (city === "Atlantis") {
        publishCopy(message, call, { callId, output: "it sank", isError: true });
        return refuse(message, 422, "Atlantis sank");
      }
      if (city === "Limbo") {
        await sleep(left);
        publishCopy(message, call, { callId, output: "gave up", isError: true });
        return refuse(message, 408, "deadline passed");
      }
      const result = { callId, output: `sunny in ${city}, says ${this.me}`, isError: false };
      publishCopy(message, call, result);
      message.respond(encode(this.makeEnvelope("tool", "tool.result", result, { cause: call })), this.traceHeaders(message));
    };
    connection.subscribe(`nachos.tool.${tool}.call`, { queue: tool, callback: this.taking(forecast) });
    await connection.flush();
  }

  async startGateway(connection) {
    const askTool = async (message, inbound) => {
      const { tool } = inbound.payload.metadata;
      const callId = randomUUID();
      const deadline = Math.min(Date.now() + TOOL_TIMEOUT_MILLISECONDS, inbound.deadline === undefined ? Infinity : Date.parse(inbound.deadline));
      const payload = { callId, arguments: { city: inbound.payload.text } };
      const call = this.makeEnvelope("gateway", "tool.call", payload, { cause: inbound, trace: { toolId: tool }, deadline });
      const timeout = Math.max(deadline - Date.now(), 1);
      let reply;
      try {
        reply = await connection.request(`nachos.tool.${tool}.call`, encode(call), { timeout, ...this.traceHeaders(message) });
      } catch (error) {
        if (this.library.isTimeout(error)) return "no answer in time";
        throw error;
      }
      const code = reply.headers?.get("Nats-Service-Error-Code");
      if (code === "408") return "no answer in time";
      if (code) return `error ${code}: ${reply.headers.get("Nats-Service-Error")}`;
      const result = decode(reply);
      assert.equal(result.type, "tool.result");
      assert.equal(result.correlationId, call.correlationId);
      assert.equal(result.trace.causationId, call.id);
      assert.equal(result.trace.conversationId, call.trace.conversationId);
      assert.equal(result.payload.callId, callId);
      assert.equal(result.payload.isError, false);
      assert.equal(reply.headers.get("traceparent"), TRACEPARENT);
      return result.payload.output;
    };

    const answer = async (message) => {
      const inbound = decode(message);
      assert.equal(inbound.type, "channel.inbound");
      const channel = message.subject.split(".")[2];
      const payload = { recipient: inbound.payload.sender, text: await askTool(message, inbound) };
      const outbound = this.makeEnvelope("gateway", "channel.outbound", payload, { cause: inbound });
      connection.publish(`nachos.channel.${channel}.outbound`, encode(outbound), this.traceHeaders(message));
    };
    for (const channel of PLAYERS) {
      connection.subscribe(`nachos.channel.${channel}-${this.me}.inbound`, { queue: "gateway", callback: this.taking(answer) });
    }
    await connection.flush();
  }

  /** Returns what makes one turn of a conversation: what somebody says, and what they are told. */
  async startChannel(connection) {
    const awaited = new Map();
    const take = async (message) => {
      const outbound = decode(message);
      awaited.get(outbound.trace.conversationId)({ message, outbound });
    };
    for (const gateway of PLAYERS) {
      connection.subscribe(`nachos.channel.${this.me}-${gateway}.outbound`, { callback: this.taking(take) });
    }
    await connection.flush();

    return async (gateway, tool, city, expected, hurry) => {
      const conversationId = `c-${this.me}-${gateway}-${tool}-${city}`;
      const payload = { sender: "ann", text: city, metadata: { tool: `weather-${tool}` } };
      const deadline = hurry === undefined ? undefined : Date.now() + hurry;
      const inbound = this.makeEnvelope("channel", "channel.inbound", payload, { trace: { conversationId }, deadline });
      const answer = new Promise((resolve) => awaited.set(conversationId, resolve));
      connection.publish(`nachos.channel.${this.me}-${gateway}.inbound`, encode(inbound), this.headers({ traceparent: TRACEPARENT }));
      const { message, outbound } = await within(answer, `an answer in ${conversationId}`);
      assert.equal(outbound.type, "channel.outbound");
      assert.equal(outbound.source, `gateway-${gateway}`);
      assert.equal(outbound.correlationId, inbound.correlationId);
      assert.equal(outbound.trace.causationId, inbound.id);
      assert.deepEqual(outbound.payload, { recipient: "ann", text: expected });
      assert.equal(message.headers.get("traceparent"), TRACEPARENT);
    };
  }
}

/** Plays all three parts; the channel speaks once everybody is there, and the others serve until all have spoken. */
export async function conversation(bus) {
  const platform = new Platform(bus);
  const control = await bus.connect();
  const heard = (subject) => new Promise((resolve) => control.subscribe(subject, { max: 1, callback: resolve }));
  const begin = heard("talk.begin");
  const end = heard("talk.end");
  await control.flush();
  await platform.startTool(await bus.connect());
  await platform.startGateway(await bus.connect());
  const turn = await platform.startChannel(await bus.connect());
  say("ready-to-talk");

  const talk = async () => {
    await begin;
    const pairs = PLAYERS.flatMap((gateway) => PLAYERS.map((tool) => [gateway, tool]));
    await Promise.all(
      pairs.flatMap(([gateway, tool]) => [
        turn(gateway, tool, "Oslo", `sunny in Oslo, says ${tool}`),
        turn(gateway, tool, "Atlantis", "error 422: Atlantis sank"),
      ]),
    );
    await Promise.all(pairs.map(([gateway, tool]) => turn(gateway, tool, "Limbo", "no answer in time", HURRY_MILLISECONDS)));
    say("talked");
    await end;
  };
  await within(Promise.race([talk(), platform.failed]), "the conversations", 25000);
}
