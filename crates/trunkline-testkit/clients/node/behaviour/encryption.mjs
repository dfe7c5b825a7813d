// TLS, as far as a client sees it.

import assert from "node:assert/strict";
import { bytes, raises, report, say } from "../harness.mjs";
import { describe, works } from "./access.mjs";
import { isBack, ofRestart, PATIENT, Story } from "./life.mjs";

const { BEHAVIOUR_CA, BEHAVIOUR_STRANGE_CA, BEHAVIOUR_CERT, BEHAVIOUR_KEY, BEHAVIOUR_NOBODY_CERT, BEHAVIOUR_NOBODY_KEY } = process.env;
const strange = { tls: { caFile: BEHAVIOUR_STRANGE_CA } };

/** Trusts the test's authority alone. */
const trusting = (more = {}) => ({ tls: { caFile: BEHAVIOUR_CA, ...more } });

/** No connection comes about. */
async function fails(bus, what, options) {
  await raises(() => true, () => bus.connect({ timeout: 3000, ...options }), what);
  report({ fails: what });
}

async function comesBack(bus, options) {
  const connection = await bus.connect({ ...PATIENT, ...options, user: "ann", pass: "plain" });
  const story = new Story(connection);
  const received = await bus.collect(connection, "still");
  say("restart-server");
  await isBack(bus, connection, story, received);
  assert(connection.protocol.transport.isEncrypted());
  report({ events: ofRestart(bus, story) });
  bus.errors.length = 0;
}

export const behaviours = {
  async tls_is_required(bus) {
    const connection = await bus.connect(trusting());
    await works(bus, connection);
    assert(connection.protocol.transport.isEncrypted());
    await fails(bus, "a server of a strange authority", strange);
    await fails(bus, "a client that is told to speak no TLS", { tls: null });
    const raw = await bus.raw();
    assert.equal(raw.info.tls_required, true);
    // Some servers say why before they close.
    assert(["", "-ERR 'Secure Connection - TLS Required'\r\n"].includes(await raw.rest()));
  },

  async tls_is_optional(bus) {
    const secure = await bus.connect(trusting());
    const plain = await bus.connect({ tls: null });
    assert(secure.protocol.transport.isEncrypted() && !plain.protocol.transport.isEncrypted());
    const received = { secure: await bus.collect(secure, "both"), plain: await bus.collect(plain, "both") };
    secure.publish("both", bytes("from the secure one"));
    await received.plain.waitFor(1);
    plain.publish("both", bytes("from the plain one"));
    await received.secure.waitFor(2);
    report({ secure: received.secure.texts, available: secure.info.tls_available, required: secure.info.tls_required ?? false });
    await fails(bus, "a server of a strange authority", strange);
  },

  async tls_comes_first(bus) {
    await works(bus, await bus.connect(trusting({ handshakeFirst: true })));
    await fails(bus, "a client that waits for INFO", trusting());
    await fails(bus, "a server of a strange authority", { tls: { ...strange.tls, handshakeFirst: true } });
  },

  async tls_comes_first_for_who_begins_with_it(bus) {
    const first = await bus.connect(trusting({ handshakeFirst: true }));
    const second = await bus.connect(trusting());
    for (const connection of [first, second]) {
      assert(connection.protocol.transport.isEncrypted());
      await works(bus, connection);
    }
  },

  async a_client_certificate_is_verified(bus) {
    await works(bus, await bus.connect(trusting({ certFile: BEHAVIOUR_CERT, keyFile: BEHAVIOUR_KEY })));
    await fails(bus, "no certificate", trusting());
  },

  async a_client_certificate_names_a_user(bus) {
    const ann = await bus.connect(trusting({ certFile: BEHAVIOUR_CERT, keyFile: BEHAVIOUR_KEY }));
    await works(bus, ann);
    ann.publish("closed", bytes("x"));
    await bus.until(() => bus.errors.length > 0, "the permissions are those of the user");
    report({ violation: describe(bus.errors.splice(0)[0]) });
    const nobody = trusting({ certFile: BEHAVIOUR_NOBODY_CERT, keyFile: BEHAVIOUR_NOBODY_KEY });
    const refused = (error) => /authorization/i.test(describe(error));
    await raises(refused, () => bus.connect(nobody), "a certificate that names nobody");
    await fails(bus, "no certificate", trusting());
  },

  async a_secure_connection_comes_back(bus) {
    await comesBack(bus, trusting());
  },
};

/** The same of pages, for which the platform does TLS: whom it trusts is not theirs to say. */
export const ofPages = {
  async tls_is_required(bus) {
    const connection = await bus.connect();
    await works(bus, connection);
    assert(connection.protocol.transport.isEncrypted());
    await fails(bus, "a page that asks for no TLS", { servers: bus.url.replace("wss:", "ws:") });
  },

  async a_secure_connection_comes_back(bus) {
    await comesBack(bus);
  },
};
