"""What there is too much of: messages for who reads slowly, bytes in one message, connections, subscriptions."""

import asyncio
import os

import nats.errors

from behaviour.access import works
from behaviour.life import PATIENT, Story
from harness import flush, raises, report, say


async def a_slow_subscription_drops_in_the_client(bus):
    story = Story()
    connection = await bus.connect(**story.callbacks())
    publisher = await bus.connect()
    gate = asyncio.Event()
    handled = []

    async def handle(message):
        await gate.wait()
        handled.append(int(message.data))

    subscription = await connection.subscribe("busy", cb=handle, pending_msgs_limit=10)
    await flush(connection)
    for number in range(100):
        await publisher.publish("busy", str(number).encode())
    await flush(publisher)
    await bus.until(lambda: story.errors, "the error handler to be told")
    await flush(connection)
    gate.set()
    await bus.until(lambda: subscription.pending_msgs == 0, "the handler to catch up")
    assert all(isinstance(error, nats.errors.SlowConsumerError) for error in story.errors), story.errors
    assert 10 <= len(handled) < 100 and handled == sorted(handled), handled
    # The connection is none the worse for it.
    await works(bus, connection)
    report(slow=True, events=story.events)


async def a_slow_client_is_cut_off(bus):
    story = Story()
    connection = await bus.connect(**PATIENT, **story.callbacks())
    flood = await bus.collect(connection, "flood")
    received = await bus.collect(connection, "still")
    say("freeze-until-slow")
    await bus.until(lambda: "reconnected" in story.events, "the connection to come back", 20)
    await flush(connection)
    await connection.publish("still", b"here")
    await received.wait_for(1)
    assert all(len(payload) == 65536 for payload in flood.payloads)
    report(events=story.events)


async def too_large_a_payload_is_refused_in_the_client(bus):
    connection = await bus.connect()
    assert connection.max_payload == 1024, connection.max_payload
    received = await bus.collect(connection, "size")
    error = await raises(nats.errors.MaxPayloadError, connection.publish("size", b"x" * 1025), "one byte too many")
    await connection.publish("size", b"x" * 1024)
    await received.wait_for(1)
    report(error=str(error), received=[len(payload) for payload in received.payloads])


async def too_large_a_payload_ends_the_connection(bus):
    story = Story()
    bus.url = os.environ["BEHAVIOUR_PROXY"]
    connection = await bus.connect(**story.callbacks())
    assert connection.max_payload > 1024
    await connection.publish("size", b"x" * 1025)
    await bus.until(lambda: "closed" in story.events, "the server to end the connection")
    # This client closes for an error that it was told, and keeps it; what nobody reads any more may end the reading too.
    report(last_error=str(connection.last_error), events=sorted(set(story.events)))


async def one_connection_too_many_is_refused(bus):
    async def ignore(_error):
        """What matters is that there is no connection."""

    # The server closes behind its error, so that what this client says meanwhile may find the connection gone.
    no_room = (nats.errors.Error, OSError)
    first, second = await bus.connect(), await bus.connect()
    await raises(no_room, bus.connect(error_cb=ignore), "a third connection")
    await works(bus, second)
    await first.close()

    async def enters():
        try:
            return await bus.connect(error_cb=ignore)
        except no_room:
            # The server may not yet know that there is room.
            return None

    third = await enters()
    while third is None:
        third = await enters()
    await works(bus, third)


async def one_subscription_too_many_is_refused(bus):
    story = Story()
    connection = await bus.connect(**story.callbacks())
    kept = [await bus.collect(connection, subject) for subject in ["one", "two"]]
    await connection.subscribe("three")
    # The server only refuses the subscription; this client takes every error but those of permissions for the end.
    await bus.until(lambda: "closed" in story.events, "the client to close")
    report(last_error=str(connection.last_error), kept=len(kept))


BEHAVIOURS = [
    a_slow_subscription_drops_in_the_client,
    a_slow_client_is_cut_off,
    too_large_a_payload_is_refused_in_the_client,
    too_large_a_payload_ends_the_connection,
    one_connection_too_many_is_refused,
    one_subscription_too_many_is_refused,
]
