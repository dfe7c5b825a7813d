"""How connections end and come back."""

import asyncio

from harness import Collector, flush, report, say, within


class Story:
    """Keeps what a connection's callbacks said, in their order."""

    def __init__(self):
        self.events = []
        self.errors = []

    def callbacks(self):
        def tell(event):
            async def told():
                self.events.append(event)

            return told

        async def failed(error):
            self.errors.append(error)

        return {
            "error_cb": failed,
            "disconnected_cb": tell("disconnected"),
            "reconnected_cb": tell("reconnected"),
            "closed_cb": tell("closed"),
            "lame_duck_mode_cb": tell("lame duck"),
        }


PATIENT = {"allow_reconnect": True, "max_reconnect_attempts": -1, "reconnect_time_wait": 0.02}


async def subscriptions_and_callbacks_live_through_a_restart(bus):
    story = Story()
    connection = await bus.connect(**PATIENT, **story.callbacks())
    plain = await bus.collect(connection, "after.>")
    grouped = await bus.collect(connection, "after.restart", queue="workers")
    limited = Collector()
    subscription = await connection.subscribe("limited", cb=limited.take)
    await subscription.unsubscribe(limit=3)
    await flush(connection)
    await connection.publish("limited", b"1")
    await limited.wait_for(1)
    say("restart-server")
    await bus.until(lambda: "reconnected" in story.events, "the connection to come back", 20)
    await flush(connection)
    await connection.publish("after.restart", b"hello")
    await plain.wait_for(1)
    await grouped.wait_for(1)
    # Of the three messages one had come before.
    for payload in [b"2", b"3", b"4"]:
        await connection.publish("limited", payload)
    await limited.wait_for(3)
    await flush(connection)
    assert limited.payloads == [b"1", b"2", b"3"], limited.payloads
    report(events=story.events, plain=len(plain.messages), grouped=len(grouped.messages))


async def a_drained_subscription_loses_nothing(bus):
    publisher, subscriber = await bus.connect(), await bus.connect()
    handled = []

    async def handle(message):
        await asyncio.sleep(0)
        handled.append(int(message.data))

    subscription = await subscriber.subscribe("work", cb=handle)
    await flush(subscriber)
    for number in range(1000):
        await publisher.publish("work", str(number).encode())
    await flush(publisher)
    await within(subscription.drain(), "the subscription to drain")
    assert handled == list(range(1000)), len(handled)
    await publisher.publish("work", b"1000")
    await flush(publisher)
    await flush(subscriber)
    assert len(handled) == 1000 and subscriber.is_connected
    report(handled=len(handled))


async def a_drained_connection_loses_nothing(bus):
    story = Story()
    publisher, observer = await bus.connect(), await bus.connect()
    subscriber = await bus.connect(**story.callbacks())
    done = await bus.collect(observer, "done")

    async def handle(message):
        await subscriber.publish("done", message.data)

    for queue in ["", "workers"]:
        await subscriber.subscribe("work", queue=queue, cb=handle)
    await flush(subscriber)
    for number in range(500):
        await publisher.publish("work", str(number).encode())
    await flush(publisher)
    await within(subscriber.drain(), "the connection to drain")
    await done.wait_for(1000)
    await bus.until(lambda: "closed" in story.events, "the connection to close")
    assert sorted(int(payload) for payload in done.payloads) == sorted([*range(500), *range(500)])
    assert story.errors == [], story.errors
    report(done=len(done.messages), events=story.events)


async def lame_duck_mode_is_told(bus):
    story = Story()
    connection = await bus.connect(**story.callbacks())
    received = await bus.collect(connection, "still")
    say("lame-duck")
    await bus.until(lambda: "lame duck" in story.events, "the client to be told")
    # It is served until it is closed.
    await connection.publish("still", b"here")
    await received.wait_for(1)
    await bus.until(lambda: "closed" in story.events, "the server to close the connection")
    report(events=story.events)


async def shutdown_closes_the_connection(bus):
    story = Story()
    connection = await bus.connect(**story.callbacks())
    await bus.collect(connection, "last")
    say("stop-server")
    await bus.until(lambda: "closed" in story.events, "the connection to end")
    report(events=story.events, errors=[str(error) for error in story.errors])


async def a_silent_client_is_cut_off(bus):
    story = Story()
    connection = await bus.connect(**PATIENT, **story.callbacks())
    received = await bus.collect(connection, "still")
    say("freeze-until-gone")
    await bus.until(lambda: "reconnected" in story.events, "the connection to come back", 20)
    await flush(connection)
    await connection.publish("still", b"here")
    await received.wait_for(1)
    report(events=story.events)


async def a_silent_server_is_left(bus):
    story = Story()
    connection = await bus.connect(**PATIENT, **story.callbacks(), ping_interval=0.25, max_outstanding_pings=2)
    received = await bus.collect(connection, "still")
    say("pause-server")
    await bus.until(lambda: "disconnected" in story.events, "the client to notice")
    say("resume-server")
    await bus.until(lambda: "reconnected" in story.events, "the connection to come back", 20)
    await flush(connection)
    await connection.publish("still", b"here")
    await received.wait_for(1)
    # While nobody answers, attempts to connect may fail as well, and each of those is told.
    report(events=sorted(set(story.events)))


BEHAVIOURS = [
    subscriptions_and_callbacks_live_through_a_restart,
    a_drained_subscription_loses_nothing,
    a_drained_connection_loses_nothing,
    lame_duck_mode_is_told,
    shutdown_closes_the_connection,
    a_silent_client_is_cut_off,
    a_silent_server_is_left,
]
