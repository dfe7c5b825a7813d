// A page as platforms have them: it connects to the bus over WebSocket, follows a conversation and calls a tool. What it saw goes to the
// test by POST. The test says in `/plan.json` which servers there are, and whether this page may connect to them, and
// names the page of another origin to open in a frame: without a window, a browser opens one page alone.

import { connect as connectClassic, headers as classicHeaders } from "/modules/nats.ws/esm/nats.js";
import { load } from "/modules.mjs";

const PATIENCE_MILLISECONDS = 15_000;
const bytes = (string) => new TextEncoder().encode(string);
const text = (data) => new TextDecoder().decode(data);

async function within(promise, what) {
  let timer;
  const bound = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`nothing within ${PATIENCE_MILLISECONDS} ms: ${what}`)), PATIENCE_MILLISECONDS);
  });
  try {
    return await Promise.race([promise, bound]);
  } finally {
    clearTimeout(timer);
  }
}

async function next(messages) {
  const { value } = await within(messages.next(), "a message");
  return value;
}

/** What a page that may connect does. */
async function use({ connect, headers }, server) {
  const connection = await within(connect({ servers: server, reconnect: false }), "connect");
  const seen = { server: connection.getServer().startsWith("localhost:") };
  // One iterator for all of them: a subscription has no second.
  const conversation = connection.subscribe("chat.web.outbound")[Symbol.asyncIterator]();
  await within(connection.flush(), "a flush");

  const marked = headers();
  marked.set("Conversation", "c-42");
  connection.publish("chat.web.outbound", bytes("ålso from a page"), { headers: marked });
  const own = await next(conversation);
  seen.own = [text(own.data), own.headers.get("Conversation")];

  const answer = await within(connection.request("tool.shout.call", bytes("hello"), { timeout: 10_000 }), "the tool");
  seen.answer = text(answer.data);
  // The tool also tells the conversation what it was asked.
  seen.told = text((await next(conversation)).data);

  const large = new Uint8Array(300_000).fill(7);
  const echoed = await within(connection.request("tool.echo.call", large, { timeout: 10_000 }), "the echo");
  seen.large = echoed.data.length === large.length && echoed.data.every((byte) => byte === 7);

  const nobody = (error) => (error.code === "503" || error.isNoResponders?.() ? "no responders" : `${error}`);
  seen.nobody = await connection.request("nobody", bytes("?"), { timeout: 10_000 }).then(() => "answered", nobody);
  await within(connection.drain(), "the connection to drain");
  seen.closed = connection.isClosed();
  return seen;
}

/** What a page that may not connect gets to see. */
async function tryToUse({ connect }, server) {
  try {
    const connection = await within(connect({ servers: server, reconnect: false }), "connect");
    await connection.close();
    return "connected";
  } catch {
    return "refused";
  }
}

async function main() {
  const plan = await (await fetch("/plan.json")).json();
  if (plan.frame !== undefined) document.body.append(Object.assign(document.createElement("iframe"), { src: plan.frame }));
  const core = await load("@nats-io/nats-core");
  const clients = {
    "nats.ws": { connect: connectClassic, headers: classicHeaders },
    "nats-core": { connect: core.wsconnect, headers: core.headers },
  };
  const seen = {};
  for (const [name, server] of Object.entries(plan.servers)) {
    seen[name] = {};
    for (const [client, library] of Object.entries(clients)) {
      seen[name][client] = await (plan.allowed ? use : tryToUse)(library, server);
    }
  }
  return seen;
}

const report = await main().catch((error) => ({ error: `${error.stack ?? error}` }));
await fetch("/report", { method: "POST", body: JSON.stringify(report) });
