// The two official clients for Node under one roof: which one a scenario runs with, and where their interfaces differ.
//
// `nats` is the classic package (2.x), `@nats-io/transport-node` its successor (3.x). Both are CommonJS packages found through
// NODE_PATH, which `import` does not look at; hence `require`.

import { createRequire } from "node:module";

const require = createRequire(import.meta.url);

/** An nkey by its seed, or a new one, as the client takes it. */
const nkeyOf = (nkeys, module) => (text) => {
  const pair = text === undefined ? nkeys.createUser() : nkeys.fromSeed(new TextEncoder().encode(text));
  return { publicKey: pair.getPublicKey(), authenticator: module.nkeyAuthenticator(pair.getSeed()) };
};

const classic = (module) => ({
  nkey: nkeyOf(require("nkeys.js"), module),
  name: "nats",
  connect: module.connect,
  createInbox: module.createInbox,
  headers: () => module.headers(),
  requestManyUntil: {
    count: (maxMessages) => ({ strategy: module.RequestStrategy.Count, maxMessages }),
    sentinel: () => ({ strategy: module.RequestStrategy.SentinelMsg }),
    stall: (stall) => ({ strategy: module.RequestStrategy.JitterTimer, stall, jitter: stall }),
  },
  services: (connection) => connection.services,
  tellsSlowConsumers: false,
  isNoResponders: (error) => error.code === module.ErrorCode.NoResponders,
  isTimeout: (error) => error.code === module.ErrorCode.Timeout,
  isMaxPayload: (error) => error.code === module.ErrorCode.MaxPayloadExceeded,
  statusError: (status) => (status.type === module.Events.Error ? status.data : undefined),
});

const successor = (module) => ({
  nkey: nkeyOf(require("@nats-io/nkeys"), module),
  name: "@nats-io/transport-node",
  connect: module.connect,
  createInbox: module.createInbox,
  headers: () => module.headers(),
  requestManyUntil: {
    count: (maxMessages) => ({ strategy: "count", maxMessages }),
    sentinel: () => ({ strategy: "sentinel" }),
    stall: (stall) => ({ strategy: "stall", stall }),
  },
  services: (connection) => new (require("@nats-io/services").Svcm)(connection),
  tellsSlowConsumers: true,
  isNoResponders: (error) =>
    error instanceof module.NoRespondersError || (error instanceof module.RequestError && error.isNoResponders()),
  isTimeout: (error) => error instanceof module.TimeoutError,
  isMaxPayload: (error) => error instanceof module.InvalidArgumentError && error.message.includes("max_payload"),
  statusError: (status) => (status.type === "error" ? status.error : undefined),
});

// What browsers use: the successor's core on the WebSocket that the platform has.
const browser = (module) => ({ ...successor(module), name: "@nats-io/nats-core", isOfPages: true, connect: module.wsconnect });

const libraries = { "nats": classic, "transport-node": successor, "websocket": browser };
const packages = { "nats": "nats", "transport-node": "@nats-io/transport-node", "websocket": "@nats-io/nats-core" };

/** Loads one client by the name the tests know it by. */
export function loadLibrary(client) {
  if (!(client in libraries)) {
    throw new Error(`unknown client ${client}, known are ${Object.keys(libraries).join(", ")}`);
  }
  return libraries[client](require(packages[client]));
}
