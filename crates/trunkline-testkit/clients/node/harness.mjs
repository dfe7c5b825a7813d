// What the scenarios stand on: connections of a stock client whose errors are not lost, raw sockets, and waiting with a bound.

import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";

// A scenario takes well under a second; the bound only has to be shorter than that of the test that runs it.
const PATIENCE_MILLISECONDS = 8000;

export const text = (bytes) => new TextDecoder().decode(bytes);
export const bytes = (string) => new TextEncoder().encode(string);

/** Prints one line that the test at the other end of the pipe acts upon. */
export function say(line) {
  process.stdout.write(`${line}\n`);
}

/** Prints one event, a JSON object on a line of its own. */
export function report(event) {
  say(JSON.stringify(event));
}

/** Awaits with a bound; past it, fails saying what was awaited. */
export async function within(promise, what, milliseconds = PATIENCE_MILLISECONDS) {
  let timer;
  const bound = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new assert.AssertionError({ message: `nothing within ${milliseconds} ms: ${what}` })), milliseconds);
  });
  try {
    return await Promise.race([promise, bound]);
  } finally {
    clearTimeout(timer);
  }
}

/** Runs what has to fail with an error for which `expected` holds, and returns that error. */
export async function raises(expected, action, what) {
  let result;
  try {
    result = await within(Promise.resolve().then(action), what);
  } catch (error) {
    assert(expected(error), `${what}: failed otherwise: ${error.stack}`);
    return error;
  }
  assert.fail(`${what}: expected an error, got ${result}`);
}

/** Milliseconds an action takes, and its result. */
export async function timed(action) {
  const started = performance.now();
  const result = await action();
  return { result, milliseconds: performance.now() - started };
}

/** Keeps what a subscription was given and lets a scenario wait for the n-th message. */
export class Collector {
  messages = [];
  #waiting = [];

  /** The callback to subscribe with. */
  take = (error, message) => {
    if (error) throw error;
    this.messages.push(message);
    this.#waiting = this.#waiting.filter(({ count, resolve }) => this.messages.length < count || resolve());
  };

  async waitFor(count) {
    if (this.messages.length >= count) return;
    const enough = new Promise((resolve) => this.#waiting.push({ count, resolve }));
    await within(enough, `message ${count}`).catch((error) => {
      error.message += `, ${this.messages.length} arrived`;
      throw error;
    });
  }

  get subjects() {
    return this.messages.map((message) => message.subject);
  }

  get texts() {
    return this.messages.map((message) => text(message.data));
  }
}

/** One server under test: opens connections, closes them all, and fails the scenario for an error it did not expect. */
export class Bus {
  errors = [];
  #connections = [];
  #raws = [];

  constructor(url, library) {
    this.url = url;
    this.library = library;
    // A server in front of a backend of its own says with a PONG what came of this client's operations, not that
    // everything others have published has arrived; and what one publisher sent to several subscriptions of one
    // connection is in order within each of them.
    this.bridged = "SCENARIO_BRIDGED" in process.env;
    const { SCENARIO_TLS_CA: caFile, SCENARIO_TLS_CERT: certFile, SCENARIO_TLS_KEY: keyFile } = process.env;
    const handshakeFirst = "SCENARIO_TLS_FIRST" in process.env;
    this.tls = caFile === undefined ? {} : { tls: { caFile, certFile, keyFile, handshakeFirst } };
  }

  async connect(options = {}) {
    const connection = await within(this.library.connect({ servers: this.url, reconnect: false, ...this.tls, ...options }), "connect");
    this.#connections.push(connection);
    this.#watch(connection);
    return connection;
  }

  // Ends by itself when the connection is closed, which `close` below does at the latest.
  async #watch(connection) {
    for await (const status of connection.status()) {
      const error = this.library.statusError(status);
      if (error !== undefined) this.errors.push(error);
    }
  }

  /** Subscribes, waits until the server has dealt with it, and returns the collector of what arrives. */
  async collect(connection, pattern, options = {}) {
    const collector = new Collector();
    connection.subscribe(pattern, { ...options, callback: collector.take });
    await connection.flush();
    return collector;
  }

  /** Returns once every collector holds all that the server had for it up to now. */
  async settle() {
    await within(Promise.all(this.#connections.map((connection) => connection.flush())), "a flush of all connections");
  }

  /** Waits for something that messages on their way bring about. */
  async until(holds, what) {
    const looking = async () => {
      while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5));
    };
    await within(looking(), what);
  }

  /** A bare socket that has read INFO and sent CONNECT. */
  async raw() {
    const raw = new RawConnection(new URL(this.url));
    this.#raws.push(raw);
    await raw.open();
    return raw;
  }

  async close() {
    for (const raw of this.#raws) raw.close();
    for (const connection of this.#connections) {
      if (!connection.isClosed()) await within(connection.close(), "close");
    }
    assert.deepEqual(this.errors, [], "errors that nobody expected");
  }
}

/** The protocol as bytes, for what a stock client would never send or would not show. */
export class RawConnection {
  info = undefined;
  #socket;
  #received = Buffer.alloc(0);
  #ended = false;

  constructor(url) {
    this.#socket = net.connect(Number(url.port), url.hostname);
    this.#socket.on("data", (chunk) => {
      this.#received = Buffer.concat([this.#received, chunk]);
      this.#socket.emit("more");
    });
    const end = () => {
      this.#ended = true;
      this.#socket.emit("more");
    };
    // A reset is an end too: bytes that nobody read were still on their way.
    this.#socket.on("error", end);
    this.#socket.on("close", end);
  }

  async open() {
    const line = await this.line();
    assert.match(line, /^INFO /);
    this.info = JSON.parse(line.slice(5));
    this.send('CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":1}\r\n');
  }

  send(data) {
    this.#socket.write(data);
  }

  async line() {
    for (;;) {
      const end = this.#received.indexOf("\r\n");
      if (end >= 0) {
        const line = this.#received.toString("utf8", 0, end);
        this.#received = this.#received.subarray(end + 2);
        return line;
      }
      assert(!this.#ended, "the server closed the connection");
      await within(once(this.#socket, "more"), "a protocol line");
    }
  }

  /** The next line, past a second INFO and the server's own pings. */
  async linePastInfo() {
    for (;;) {
      const line = await this.line();
      if (!line.startsWith("INFO ") && line !== "PING") return line;
    }
  }

  /** Returns once the server has dealt with everything sent so far. */
  async flush() {
    this.send("PING\r\n");
    assert.equal(await this.linePastInfo(), "PONG");
  }

  /** Everything up to the end of the connection. */
  async rest() {
    while (!this.#ended) await within(once(this.#socket, "more"), "the server to close the connection");
    return this.#received.toString();
  }

  close() {
    this.#socket.destroy();
  }
}
