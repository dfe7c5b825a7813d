// Who is let in, and what happens to who does what it may not.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { bytes, raises, report, within } from "../harness.mjs";

/** A message of the connection's own goes to the server and back. */
export async function works(bus, connection, subject = "open.door") {
  const received = await bus.collect(connection, subject);
  connection.publish(subject, bytes("through"));
  await received.waitFor(1);
}

/** How a client names an error: the classic one by a code, its successor by a class. */
export const describe = (error) => (typeof error === "string" ? error : `${error.code ?? error.name}: ${error.message}`);

/** The server does not let these in, and the client says why. */
async function refused(bus, what, options = {}) {
  const authorization = (error) => /authorization/i.test(`${error.code} ${error.name} ${error.message}`);
  const error = await raises(authorization, () => bus.connect(options), what);
  report({ refused: what, error: describe(error) });
}

/** Waits for an error of a connection that nobody asked for. */
async function heard(bus, what) {
  await bus.until(() => bus.errors.length > 0, what);
  return describe(bus.errors.splice(0)[0]);
}

const nkey = (bus, variable) => ({ authenticator: bus.library.nkey(readFileSync(process.env[variable], "utf8").trim()).authenticator });

export const behaviours = {
  async user_and_password_open_the_door(bus) {
    for (const [user, pass] of [["ann", "plain"], ["bob", "hashed"]]) await works(bus, await bus.connect({ user, pass }));
    await refused(bus, "nobody");
    await refused(bus, "a wrong password", { user: "ann", pass: "wrong" });
    await refused(bus, "a wrong password for a hash", { user: "bob", pass: "wrong" });
    await refused(bus, "an unknown user", { user: "eve", pass: "plain" });
    await refused(bus, "a token", { token: "plain" });
  },

  async a_token_opens_the_door(bus) {
    await works(bus, await bus.connect({ token: "s3cr3t-token" }));
    await refused(bus, "no token");
    await refused(bus, "a wrong token", { token: "s3cr3t-toke" });
    await refused(bus, "a user", { user: "ann", pass: "s3cr3t-token" });
  },

  async an_nkey_opens_the_door(bus) {
    await works(bus, await bus.connect(nkey(bus, "BEHAVIOUR_NKEY_FILE")));
    await refused(bus, "no nkey");
    await refused(bus, "an unknown nkey", nkey(bus, "BEHAVIOUR_UNKNOWN_NKEY_FILE"));
    await refused(bus, "a user", { user: "ann", pass: "plain" });
  },

  async no_auth_user_is_who_says_nothing(bus) {
    const ann = await bus.connect({ user: "ann", pass: "plain" });
    const guest = await bus.connect();
    await works(bus, guest);
    guest.publish("closed.door", bytes("x"));
    report({ guest: await heard(bus, "the guest may not do everything") });
    await works(bus, ann, "closed.door");
    await refused(bus, "a wrong password", { user: "ann", pass: "wrong" });
  },

  async violations_of_permissions_reach_the_error_handler(bus) {
    const connection = await bus.connect({ user: "ann", pass: "plain" });
    for (const subject of ["closed", "open.secret"]) {
      connection.publish(subject, bytes("x"));
      report({ publish: subject, status: await heard(bus, `the violation of ${subject}`) });
    }
    for (const options of [{}, { queue: "workers" }]) {
      const denied = new Promise((resolve) => connection.subscribe("closed", { ...options, callback: (error) => error && resolve(error) }));
      const error = await within(denied, "the error of the subscription");
      assert.match(`${error.message} ${error.chainedError?.message}`, /permissions violation for subscription to "closed"/i);
      report({ subscribe: options, error: describe(error), chained: error.chainedError?.message, status: await heard(bus, "its status") });
    }
    // The connection stays, and what is permitted goes on.
    await works(bus, connection);
    await connection.flush();
    assert(!connection.isClosed());
    const error = await raises(bus.library.isNoResponders, () => connection.request("open.nobody", bytes("?"), { timeout: 5000 }), "no responders");
    report({ stays: true, reply: describe(error) });
  },
};
