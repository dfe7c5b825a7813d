"""Who is let in, and what happens to who does what it may not."""

import os
from urllib.parse import urlparse

import nats.errors

from harness import Collector, flush, raises, report, within


async def works(bus, connection, subject="open.door"):
    """A message of the connection's own goes to the server and back."""
    received = await bus.collect(connection, subject)
    await connection.publish(subject, b"through")
    await received.wait_for(1)


async def refused(bus, what, **credentials):
    """The server does not let these in, and the client says why."""
    heard = []

    async def hear(error):
        heard.append(str(error))

    await raises(nats.errors.Error, bus.connect(error_cb=hear, **credentials), what)
    assert any("authorization" in error.lower() for error in heard), heard
    report(refused=what, heard=heard)


async def user_and_password_open_the_door(bus):
    for user, password in [("ann", "plain"), ("bob", "hashed")]:
        await works(bus, await bus.connect(user=user, password=password))
    address = urlparse(bus.url)
    bus.url = f"nats://ann:plain@{address.netloc}"
    await works(bus, await bus.connect())
    bus.url = f"nats://{address.netloc}"
    await refused(bus, "nobody")
    await refused(bus, "a wrong password", user="ann", password="wrong")
    await refused(bus, "a wrong password for a hash", user="bob", password="wrong")
    await refused(bus, "an unknown user", user="eve", password="plain")
    await refused(bus, "a token", token="plain")


async def a_token_opens_the_door(bus):
    await works(bus, await bus.connect(token="s3cr3t-token"))
    await refused(bus, "no token")
    await refused(bus, "a wrong token", token="s3cr3t-toke")
    await refused(bus, "a user", user="ann", password="s3cr3t-token")


async def an_nkey_opens_the_door(bus):
    await works(bus, await bus.connect(nkeys_seed=os.environ["BEHAVIOUR_NKEY_FILE"]))
    await refused(bus, "no nkey")
    await refused(bus, "an unknown nkey", nkeys_seed=os.environ["BEHAVIOUR_UNKNOWN_NKEY_FILE"])
    await refused(bus, "a user", user="ann", password="plain")


async def no_auth_user_is_who_says_nothing(bus):
    heard = []

    async def hear(error):
        heard.append(str(error))

    ann = await bus.connect(user="ann", password="plain")
    guest = await bus.connect(error_cb=hear)
    await works(bus, guest)
    await guest.publish("closed.door", b"x")
    await bus.until(lambda: heard, "the guest may not do everything")
    report(guest=heard)
    await works(bus, ann, "closed.door")
    await refused(bus, "a wrong password", user="ann", password="wrong")


async def violations_of_permissions_reach_the_error_handler(bus):
    heard = []

    async def hear(error):
        heard.append(str(error))

    connection = await bus.connect(user="ann", password="plain", error_cb=hear)
    collector = Collector()

    async def violation(action, expected):
        heard.clear()
        await action
        await bus.until(lambda: heard, expected)
        assert expected in heard[0].lower(), heard
        report(violation=heard[0])

    await violation(connection.publish("closed", b"x"), 'permissions violation for publish to "closed"')
    await violation(connection.publish("open.secret", b"x"), 'permissions violation for publish to "open.secret"')
    await violation(connection.subscribe("closed", cb=collector.take), 'permissions violation for subscription to "closed"')
    await violation(
        connection.subscribe("closed", queue="workers", cb=collector.take),
        'permissions violation for subscription to "closed" using queue "workers"',
    )
    # The connection stays, and what is permitted goes on.
    await works(bus, connection)
    await flush(connection)
    assert connection.is_connected and collector.messages == []
    reply = await raises(nats.errors.NoRespondersError, within(connection.request("open.nobody", b"?"), "a request"), "no responders")
    report(stays=True, reply=str(reply))


BEHAVIOURS = [
    user_and_password_open_the_door,
    a_token_opens_the_door,
    an_nkey_opens_the_door,
    no_auth_user_is_who_says_nothing,
    violations_of_permissions_reach_the_error_handler,
]
