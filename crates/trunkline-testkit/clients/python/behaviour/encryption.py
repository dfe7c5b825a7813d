"""TLS, as far as a client sees it."""

import logging
import os
import ssl

import nats.errors

from behaviour.access import works
from behaviour.life import PATIENT, Story
from harness import Collector, flush, raises, report, say


def trusting(authority="BEHAVIOUR_CA", certificate=None, key=None):
    """Trusts one authority alone, and shows a certificate where one is given."""
    # A server that ends TLS in good order makes asyncio's streams warn of their own answer to that.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    context = ssl.create_default_context(cafile=os.environ[authority])
    if certificate is not None:
        context.load_cert_chain(os.environ[certificate], os.environ[key])
    return context


async def fails(bus, what, expected=Exception, **options):
    """No connection comes about."""

    async def ignore(_error):
        """What matters is that there is no connection."""

    options.setdefault("error_cb", ignore)
    await raises(expected, bus.connect(connect_timeout=3, **options), what)
    report(fails=what)


async def tls_is_required(bus):
    connection = await bus.connect(tls=trusting())
    await works(bus, connection)
    await fails(bus, "a server of a strange authority", tls=trusting("BEHAVIOUR_STRANGE_CA"))
    raw = await bus.raw()
    assert raw.info["tls_required"] is True, raw.info
    # Some servers say why before they close.
    assert await raw.rest() in [b"", b"-ERR 'Secure Connection - TLS Required'\r\n"]


async def tls_is_optional(bus):
    # This client speaks TLS where the server requires it, and only there.
    connection = await bus.connect(tls=trusting())
    raw = await bus.raw()
    assert raw.info.get("tls_available") is True and not raw.info.get("tls_required"), raw.info
    raw.send(b"SUB both 1\r\n")
    await raw.flush()
    received = await bus.collect(connection, "both")
    await connection.publish("both", b"stock")
    assert await raw.line_past_info() == b"MSG both 1 5\r\n"
    assert await raw.line() == b"stock\r\n"
    raw.send(b"PUB both 5\r\nplain\r\n")
    await received.wait_for(2)
    report(payloads=[payload.decode() for payload in received.payloads])


async def tls_comes_first(bus):
    await works(bus, await bus.connect(tls=trusting(), tls_handshake_first=True))
    await fails(bus, "a client that waits for INFO", tls=trusting())
    await fails(bus, "a server of a strange authority", tls=trusting("BEHAVIOUR_STRANGE_CA"), tls_handshake_first=True)


async def tls_comes_first_for_who_begins_with_it(bus):
    first = await bus.connect(tls=trusting(), tls_handshake_first=True)
    second = await bus.connect(tls=trusting())
    for connection in [first, second]:
        await works(bus, connection)


async def a_client_certificate_is_verified(bus):
    await works(bus, await bus.connect(tls=trusting(certificate="BEHAVIOUR_CERT", key="BEHAVIOUR_KEY")))
    await fails(bus, "no certificate", tls=trusting())


async def a_client_certificate_names_a_user(bus):
    heard = []

    async def hear(error):
        heard.append(str(error))

    ann = await bus.connect(tls=trusting(certificate="BEHAVIOUR_CERT", key="BEHAVIOUR_KEY"), error_cb=hear)
    await works(bus, ann)
    assert heard == []
    await ann.subscribe("closed", cb=Collector().take)
    await bus.until(lambda: heard, "the permissions are those of the user")
    report(violation=heard)
    heard.clear()
    nobody = trusting(certificate="BEHAVIOUR_NOBODY_CERT", key="BEHAVIOUR_NOBODY_KEY")
    await fails(bus, "a certificate that names nobody", nats.errors.Error, tls=nobody, error_cb=hear)
    report(nobody=heard)
    await fails(bus, "no certificate", tls=trusting())


async def a_secure_connection_comes_back(bus):
    story = Story()
    connection = await bus.connect(user="ann", password="plain", tls=trusting(), **PATIENT, **story.callbacks())
    received = await bus.collect(connection, "still")
    say("restart-server")
    await bus.until(lambda: "reconnected" in story.events, "the connection to come back", 20)
    await flush(connection)
    await connection.publish("still", b"here")
    await received.wait_for(1)
    report(events=story.events)


BEHAVIOURS = [
    tls_is_required,
    tls_is_optional,
    tls_comes_first,
    tls_comes_first_for_who_begins_with_it,
    a_client_certificate_is_verified,
    a_client_certificate_names_a_user,
    a_secure_connection_comes_back,
]
