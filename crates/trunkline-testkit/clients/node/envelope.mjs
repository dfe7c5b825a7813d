// The JSON envelope, spoken by hand: what a component needs to know of it, and nothing more.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { bytes, say, text, within } from "./harness.mjs";

const SUBJECT = "nachos.tool.search.call";

/** A new envelope; given the envelope that caused it, it carries on that one's correlation and trace. */
function makeEnvelope(source, type, payload, cause) {
  const envelope = {
    id: randomUUID(),
    timestamp: new Date().toISOString(),
    source,
    type,
    correlationId: cause?.correlationId ?? randomUUID(),
    payload,
  };
  if (cause) envelope.trace = { ...cause.trace, causationId: cause.id };
  return envelope;
}

function checkEnvelope(envelope) {
  for (const field of ["id", "timestamp", "source", "type", "correlationId"]) {
    assert.equal(typeof envelope[field], "string", `${field} in ${JSON.stringify(envelope)}`);
  }
  assert("payload" in envelope, JSON.stringify(envelope));
  assert(!Number.isNaN(Date.parse(envelope.timestamp)), envelope.timestamp);
}

/** Answers one call with the payload turned round, then leaves. */
export async function envelope_answer(bus) {
  const connection = await bus.connect();
  const answered = new Promise((resolve, reject) => {
    connection.subscribe(SUBJECT, {
      queue: "search",
      callback: (error, message) => {
        try {
          if (error) throw error;
          const call = JSON.parse(text(message.data));
          checkEnvelope(call);
          assert.equal(call.type, "tool.call");
          assert.equal(message.headers.get("traceparent"), call.trace.traceparentCopy);
          // The length in code points, so that both languages count alike.
          const result = { echo: call.payload, length: [...call.payload.query].length };
          const headers = bus.library.headers();
          headers.set("traceparent", message.headers.get("traceparent"));
          message.respond(bytes(JSON.stringify(makeEnvelope("node-tool", "tool.result", result, call))), { headers });
          resolve(connection.flush());
        } catch (failure) {
          reject(failure);
        }
      },
    });
  });
  await connection.flush();
  say("ready-for-call");
  await within(answered, "a call");
}

/** Makes one call and checks that the answer belongs to it. */
export async function envelope_ask(bus) {
  const connection = await bus.connect();
  const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  const query = "været i Tromsø ☃ 𝄞";
  const call = makeEnvelope("node-gateway", "tool.call", { query, limit: 3, nested: { none: null, yes: true } });
  call.trace = { conversationId: "c-42", personaId: "analyst", toolId: "search", skillId: null, traceparentCopy: traceparent };
  call.unknownField = { kept: "by whoever carries it" };
  const headers = bus.library.headers();
  headers.set("traceparent", traceparent);
  const reply = await connection.request(SUBJECT, bytes(JSON.stringify(call)), { timeout: 5000, headers });
  const result = JSON.parse(text(reply.data));
  checkEnvelope(result);
  assert.equal(result.type, "tool.result");
  assert.equal(result.correlationId, call.correlationId);
  assert.equal(result.trace.causationId, call.id);
  assert.equal(result.trace.conversationId, "c-42");
  assert.notEqual(result.id, call.id);
  assert.deepEqual(result.payload.echo, call.payload);
  assert.equal(result.payload.length, [...query].length);
  assert.equal(reply.headers.get("traceparent"), traceparent);
}
