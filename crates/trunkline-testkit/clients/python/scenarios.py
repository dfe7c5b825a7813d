"""What components written in Python rely on, tried with the unmodified `nats-py`.

    python scenarios.py URL SCENARIO     runs one scenario; prints `ok SCENARIO` and exits with 0 when it holds
    python scenarios.py --list           prints the names of all scenarios

Each function below that `@scenario` marks is one rule, which names it. Nothing here is particular to one server.
"""

import asyncio
import sys
import traceback

import nats.errors

from authorization import authorization
from conversation import conversation
from envelope import envelope_answer, envelope_ask
from harness import Bus, Collector, Stopwatch, flush, raises, report, say, within
from outage import outage_of_the_backend

SCENARIOS = {}


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


@scenario
async def wildcards_match_whole_tokens(bus):
    connection = await bus.connect()
    patterns = ["chat.web.inbound", "chat.*.inbound", "chat.>", "*.web.*", ">"]
    collectors = {pattern: await bus.collect(connection, pattern) for pattern in patterns}

    subjects = ["chat.web.inbound", "chat.web.outbound", "chat", "chat.web.inbound.late", "chat.cli.inbound", "chatter.web.inbound", "end"]
    for subject in subjects:
        await connection.publish(subject, b"x")
    for pattern, count in zip(patterns, [1, 2, 4, 3, len(subjects)]):
        await collectors[pattern].wait_for(count)
    await bus.settle()

    assert collectors["chat.web.inbound"].subjects == ["chat.web.inbound"]
    assert collectors["chat.*.inbound"].subjects == ["chat.web.inbound", "chat.cli.inbound"]
    assert collectors["chat.>"].subjects == ["chat.web.inbound", "chat.web.outbound", "chat.web.inbound.late", "chat.cli.inbound"]
    assert collectors["*.web.*"].subjects == ["chat.web.inbound", "chat.web.outbound", "chatter.web.inbound"]
    assert collectors[">"].subjects == subjects


@scenario
async def queue_group_members_share_each_message_once(bus):
    publisher = await bus.connect()
    members = [await bus.collect(await bus.connect(), "jobs.*", queue="workers") for _ in range(3)]
    other_group = await bus.collect(await bus.connect(), "jobs.*", queue="auditors")
    everyone = await bus.collect(await bus.connect(), "jobs.*")

    count = 300
    expected = sorted(f"{n:04}".encode() for n in range(count))
    for payload in expected:
        await publisher.publish("jobs.one", payload)
    await flush(publisher)
    await other_group.wait_for(count)
    await everyone.wait_for(count)
    await bus.until(lambda: sum(len(member.messages) for member in members) >= count, "the members to get every message")
    await bus.settle()

    assert sorted(payload for member in members for payload in member.payloads) == expected
    assert sorted(other_group.payloads) == expected
    assert sorted(everyone.payloads) == expected
    shares = [len(member.messages) for member in members]
    assert min(shares) > 0, f"one member got nothing: {shares}"
    report(event="shares", shares=shares)


@scenario
async def messages_of_one_publisher_keep_their_order(bus):
    publisher, subscriber = await bus.connect(), await bus.connect()
    received = await bus.collect(subscriber, "ordered")
    expected = [str(n).encode() for n in range(5000)]
    for payload in expected:
        await publisher.publish("ordered", payload)
    await flush(publisher)
    await received.wait_for(len(expected))
    assert received.payloads == expected


@scenario
async def own_messages_are_echoed_unless_refused(bus):
    echoing, silent = await bus.connect(), await bus.connect(no_echo=True)
    own, others = await bus.collect(silent, "echo"), await bus.collect(echoing, "echo")
    await silent.publish("echo", b"from the silent one")
    await flush(silent)
    await echoing.publish("echo", b"from the echoing one")
    await others.wait_for(2)
    await own.wait_for(1)
    assert others.payloads == [b"from the silent one", b"from the echoing one"]
    assert own.payloads == [b"from the echoing one"]


@scenario
async def request_gets_its_own_reply(bus):
    asking, answering = await bus.connect(), await bus.connect()

    async def answer(message):
        await message.respond(b"re:" + message.data)

    await answering.subscribe("tool.search.call", queue="search", cb=answer)
    await flush(answering)
    questions = [f"q{n}".encode() for n in range(100)]
    replies = await asyncio.gather(*(asking.request("tool.search.call", question, timeout=5) for question in questions))
    assert [reply.data for reply in replies] == [b"re:" + question for question in questions]
    # A reply subject of the request's own, instead of the shared inbox.
    reply = await asking.request("tool.search.call", b"old", timeout=5, old_style=True)
    assert reply.data == b"re:old"


@scenario
async def request_many_gets_every_reply(bus):
    asking = await bus.connect()
    for name in [b"a", b"b", b"c"]:
        connection = await bus.connect()

        async def answer(message, connection=connection, name=name):
            for part in range(4):
                await connection.publish(message.reply, name + str(part).encode())

        await connection.subscribe("roll.call", cb=answer)
        await flush(connection)

    inbox = asking.new_inbox()
    replies = await bus.collect(asking, inbox)
    await asking.publish("roll.call", b"?", reply=inbox)
    await replies.wait_for(12)
    for name in [b"a", b"b", b"c"]:
        parts = [payload for payload in replies.payloads if payload.startswith(name)]
        assert parts == [name + str(part).encode() for part in range(4)], "the chunks of one responder keep their order"


@scenario
async def headers_arrive_as_they_were_sent(bus):
    connection = await bus.connect()
    received = await bus.collect(connection, "headers")
    sent = {"X-Case-Kept": "One", "x-case-kept": "two", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "Colon": "a: b:c", "Words": "two  spaces", "Name": "Åse"}
    await connection.publish("headers", b"with", headers=sent)
    await connection.publish("headers", b"without")
    await connection.publish("headers", b"", headers={"Only": "headers"})
    await received.wait_for(3)
    assert received.messages[0].headers == sent
    assert received.payloads == [b"with", b"without", b""]
    assert received.messages[1].headers is None
    assert received.messages[2].headers == {"Only": "headers"}


@scenario
async def repeated_headers_are_forwarded_byte_for_byte(bus):
    # The stock Python client keeps one value of each name, so what is on the wire is compared as bytes.
    sender, receiver = await bus.raw(), await bus.raw()
    receiver.send(b"SUB multi 7\r\n")
    await receiver.flush()
    block = b"NATS/1.0\r\nMulti: first\r\nmulti: lower\r\nMulti: second\r\nMulti: first\r\n\r\n"
    payload = b"body"
    sizes = f"{len(block)} {len(block) + len(payload)}".encode()
    sender.send(b"HPUB multi reply.to " + sizes + b"\r\n" + block + payload + b"\r\n")
    assert await receiver.line_past_info() == b"HMSG multi 7 reply.to " + sizes + b"\r\n"
    assert await receiver.exactly(len(block) + len(payload) + 2) == block + payload + b"\r\n"

    connection = await bus.connect()
    received = await bus.collect(connection, "multi")
    sender.send(b"HPUB multi " + sizes + b"\r\n" + block + payload + b"\r\n")
    await received.wait_for(1)
    assert received.messages[0].headers == {"Multi": "first", "multi": "lower"}


@scenario
async def request_that_nobody_answers_fails_at_once(bus):
    connection = await bus.connect()
    watch = Stopwatch()
    await raises(nats.errors.NoRespondersError, connection.request("nobody.here", b"?", timeout=5), "a request nobody answers")
    assert watch.seconds() < 1, f"no responders took {watch.seconds():.3f} s"
    report(event="no_responders", milliseconds=round(watch.seconds() * 1000, 2))

    # Somebody who listens but stays silent is another matter: then the request runs into its own timeout.
    async def ignore(_message):
        pass

    await connection.subscribe("somebody.silent", cb=ignore)
    await flush(connection)
    await raises(nats.errors.TimeoutError, connection.request("somebody.silent", b"?", timeout=0.2), "a request to someone silent")


@scenario
async def drained_subscription_handles_what_was_published(bus):
    publisher, subscriber = await bus.connect(), await bus.connect()
    handled = []

    async def handle(message):
        await asyncio.sleep(0)
        handled.append(message.data)

    subscription = await subscriber.subscribe("work", cb=handle)
    await flush(subscriber)
    expected = [str(n).encode() for n in range(500)]
    for payload in expected:
        await publisher.publish("work", payload)
    await flush(publisher)
    if bus.bridged:
        await bus.until(lambda: len(handled) >= len(expected), "the subscriber to get every message")
    await within(subscription.drain(), "the subscription to drain")
    assert handled == expected, f"{len(handled)} of {len(expected)}, {handled[:3]} … {handled[-3:]}"

    await publisher.publish("work", b"too late")
    await flush(publisher)
    await flush(subscriber)
    assert handled == expected, f"{len(handled)} of {len(expected)}, {handled[:3]} … {handled[-3:]}"
    assert subscriber.is_connected


@scenario
async def drained_connection_handles_and_sends_everything(bus):
    closed = asyncio.Event()

    async def on_closed():
        closed.set()

    publisher, subscriber, observer = await bus.connect(), await bus.connect(closed_cb=on_closed), await bus.connect()
    answers = await bus.collect(observer, "answers")

    async def handle(message):
        await subscriber.publish("answers", b"done:" + message.data)

    for pattern in ["work.a", "work.b"]:
        await subscriber.subscribe(pattern, cb=handle)
    await flush(subscriber)
    expected = []
    for n in range(200):
        payload = str(n).encode()
        await publisher.publish("work.a" if n % 2 else "work.b", payload)
        expected.append(b"done:" + payload)
    await flush(publisher)
    if bus.bridged:
        await answers.wait_for(200)
    await within(subscriber.drain(), "the connection to drain")
    await within(closed.wait(), "the closed callback")
    await answers.wait_for(200)
    assert sorted(answers.payloads) == sorted(expected)
    assert subscriber.is_closed


@scenario
async def auto_unsubscribe_stops_after_max(bus):
    publisher, subscriber = await bus.connect(), await bus.connect()
    limited = Collector()
    subscription = await subscriber.subscribe("limited", cb=limited.take)
    await subscription.unsubscribe(limit=5)
    control = await bus.collect(subscriber, "limited")
    for n in range(20):
        await publisher.publish("limited", str(n).encode())
    await control.wait_for(20)
    await limited.wait_for(5)
    assert limited.payloads == [b"0", b"1", b"2", b"3", b"4"]

    # The client stops by itself too, so what the server does is seen on a bare socket: the limit counts what was already delivered.
    raw = await bus.raw()
    raw.send(b"SUB counted 1\r\n")
    await raw.flush()
    for n in range(3):
        await publisher.publish("counted", str(n).encode())
    await flush(publisher)
    for n in range(3):
        assert await raw.line_past_info() == b"MSG counted 1 1\r\n"
        assert await raw.line() == f"{n}\r\n".encode()
    raw.send(b"UNSUB 1 5\r\n")
    await raw.flush()
    for n in range(3, 10):
        await publisher.publish("counted", str(n).encode())
    await flush(publisher)
    for n in range(3, 5):
        assert await raw.line_past_info() == b"MSG counted 1 1\r\n"
        assert await raw.line() == f"{n}\r\n".encode()
    raw.send(b"PING\r\n")
    assert await raw.line_past_info() == b"PONG\r\n"


@scenario
async def subscriptions_resume_after_a_restart(bus):
    disconnected, reconnected = asyncio.Event(), asyncio.Event()

    async def on_disconnect():
        disconnected.set()

    async def on_reconnect():
        reconnected.set()

    async def expected_error(_error):
        """The connection that breaks reports itself; the scenario waits for the callbacks instead."""

    connection = await bus.connect(
        allow_reconnect=True, max_reconnect_attempts=-1, reconnect_time_wait=0.05,
        disconnected_cb=on_disconnect, reconnected_cb=on_reconnect, error_cb=expected_error,
    )
    async def answer(message):
        await message.respond(b"still here")

    plain = await bus.collect(connection, "chat.*.inbound")
    queued = await bus.collect(connection, "chat.>", queue="gateway")
    await connection.subscribe("tool.call", cb=answer)
    await connection.publish("chat.web.inbound", b"before")
    await plain.wait_for(1)
    await queued.wait_for(1)

    say("ready-for-restart")
    await within(disconnected.wait(), "the disconnect")
    await within(reconnected.wait(), "the reconnect")

    await flush(connection)
    await connection.publish("chat.web.inbound", b"after")
    await plain.wait_for(2)
    await queued.wait_for(2)
    assert plain.payloads == [b"before", b"after"]
    assert queued.payloads == [b"before", b"after"]
    reply = await connection.request("tool.call", b"?", timeout=5)
    assert reply.data == b"still here"
    late = await bus.collect(connection, "late")
    await connection.publish("late", b"new subscriptions work")
    await late.wait_for(1)


@scenario
async def client_refuses_more_than_max_payload(bus):
    connection = await bus.connect()
    limit = connection.max_payload
    assert limit >= 1024, f"INFO says max_payload {limit}"
    report(event="max_payload", bytes=limit)
    await raises(nats.errors.MaxPayloadError, connection.publish("big", b"x" * (limit + 1)), "a payload past the limit")
    await flush(connection)


@scenario
async def server_refuses_more_than_max_payload_and_closes(bus):
    raw = await bus.raw()
    size = raw.info["max_payload"] + 1
    await raw.flush()
    raw.send(f"PUB big {size}\r\n".encode())
    assert b"-ERR 'Maximum Payload Violation'\r\n" in await raw.rest()
    # Others go on undisturbed.
    connection = await bus.connect()
    await flush(connection)


@scenario
async def flush_and_rtt_are_answered(bus):
    connection = await bus.connect()
    for _ in range(50):
        await connection.flush()
    seconds = await connection.rtt()
    assert 0 < seconds < 1, f"a round trip took {seconds} s"
    report(event="rtt", milliseconds=round(seconds * 1000, 3))


@scenario
async def binary_payload_is_not_touched(bus):
    connection = await bus.connect()
    received = await bus.collect(connection, "binary")
    sent = [
        bytes(range(256)) * 8,
        b"\r\n",
        b"MSG binary 1 2\r\nhi\r\nPING\r\n",
        b"\x00" * 100,
        b"\xff\xfe not utf-8 \xc3\x28",
        b"ends with a carriage return\r",
    ]
    for payload in sent:
        await connection.publish("binary", payload)
        await connection.publish("binary", payload, headers={"Kind": "binary"})
    await received.wait_for(2 * len(sent))
    assert received.payloads == [payload for payload in sent for _ in range(2)]


@scenario
async def empty_payload_is_a_message(bus):
    connection = await bus.connect()
    received = await bus.collect(connection, "empty.*")
    await connection.publish("empty.one", b"")
    await connection.publish("empty.two", b"", reply="answer.here")
    await connection.publish("empty.three", b"not empty")
    await received.wait_for(3)
    assert received.subjects == ["empty.one", "empty.two", "empty.three"]
    assert received.payloads == [b"", b"", b"not empty"]
    assert received.messages[1].reply == "answer.here"


@scenario
async def payload_of_exactly_one_mebibyte_passes(bus):
    publisher, subscriber = await bus.connect(), await bus.connect()
    received = await bus.collect(subscriber, "large")
    payload = bytes(range(256)) * 4096
    assert len(payload) == 1024 * 1024
    for _ in range(3):
        await publisher.publish("large", payload)
    await received.wait_for(3)
    assert all(data == payload for data in received.payloads)


@scenario
async def ten_thousand_subscriptions_get_their_own_messages(bus):
    connection = await bus.connect()
    count = 10_000
    received = Collector()
    subscriptions = [await connection.subscribe(f"device.{n}.state", cb=received.take) for n in range(count)]
    await flush(connection)
    for n in range(count):
        await connection.publish(f"device.{n}.state", b"")
    await received.wait_for(count)
    assert sorted(received.subjects) == sorted(f"device.{n}.state" for n in range(count))

    for subscription in subscriptions[::2]:
        await subscription.unsubscribe()
    await flush(connection)
    received.messages.clear()
    for n in range(count):
        await connection.publish(f"device.{n}.state", b"")
    await received.wait_for(count // 2)
    await flush(connection)
    assert sorted(received.subjects) == sorted(f"device.{n}.state" for n in range(1, count, 2))


# The two halves of one call between components of different languages, which the test runs as a pair, and a platform that talks to
# others of its kind; and what only a server with a backend of its own can be asked, or one with users.
PAIRED = {
    "authorization": authorization,
    "conversation": conversation,
    "envelope_answer": envelope_answer,
    "envelope_ask": envelope_ask,
    "outage_of_the_backend": outage_of_the_backend,
}


async def run(url, name):
    bus = Bus(url)
    await {**SCENARIOS, **PAIRED}[name](bus)
    await bus.close()


def main():
    if sys.argv[1:] == ["--list"]:
        print("\n".join(SCENARIOS))
        return 0
    if len(sys.argv) != 3 or sys.argv[2] not in {**SCENARIOS, **PAIRED}:
        print("usage: scenarios.py URL SCENARIO | --list", file=sys.stderr)
        return 2
    _, url, name = sys.argv
    try:
        asyncio.run(run(url, name))
    except Exception:
        traceback.print_exc()
        return 1
    say(f"ok {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
