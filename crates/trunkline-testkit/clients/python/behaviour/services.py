"""What is said at connecting, and requests: without an answer, with several, and to services that can be discovered."""

import asyncio
import json

import nats.errors
from nats.micro import add_service

from harness import Collector, Stopwatch, flush, raises, report, within


async def what_connect_asks_for_is_honoured(bus):
    silent = await bus.connect(name="silent", no_echo=True, verbose=True, pedantic=True)
    other = await bus.connect(name="other")
    received = await bus.collect(silent, "echo")
    await silent.publish("echo", b"own")
    await flush(silent)
    await other.publish("echo", b"other")
    await received.wait_for(1)
    await flush(silent)
    report(payloads=[payload.decode() for payload in received.payloads])
    assert received.payloads == [b"other"]


async def a_request_without_responders_fails_at_once(bus):
    connection = await bus.connect()
    stopwatch = Stopwatch()
    for old_style in [False, True]:
        await raises(nats.errors.NoRespondersError, connection.request("nobody", b"?", timeout=5, old_style=old_style), "a request")
    assert stopwatch.seconds() < 4
    # Who only listens for the answer is told by a message with a status and no body.
    inbox = connection.new_inbox()
    received = await bus.collect(connection, inbox)
    await connection.publish("nobody", b"?", reply=inbox)
    await received.wait_for(1)
    # Newer servers add the subject of the request.
    report(status=received.messages[0].headers["Status"], payload=received.messages[0].data.decode())


async def a_request_has_many_replies(bus):
    asking, answering = await bus.connect(), await bus.connect()
    for name in ["a", "b", "c"]:

        async def answer(message, name=name):
            for part in range(3):
                await message.respond(f"{name}{part}".encode())

        await answering.subscribe("roll.call", cb=answer)
    await flush(answering)
    inbox = asking.new_inbox()
    replies = await bus.collect(asking, inbox)
    await asking.publish("roll.call", b"?", reply=inbox)
    await replies.wait_for(9)
    report(replies=sorted(payload.decode() for payload in replies.payloads))


async def services_are_discovered(bus):
    asking, serving = await bus.connect(), await bus.connect()

    async def handle(request):
        if request.data == b"bad":
            await request.respond_error("400", "not that")
        else:
            await request.respond(request.data.upper())

    service = await add_service(serving, name="shout", version="1.2.3", description="says it louder")
    await service.add_group(name="voice").add_endpoint(name="shout", handler=handle)
    await flush(serving)

    async def discover(kind, *rest):
        reply = await within(asking.request(".".join(["$SRV", kind, *rest]), b"", timeout=5), kind)
        return json.loads(reply.data)

    answer = await asking.request("voice.shout", b"hello", timeout=5)
    error = await asking.request("voice.shout", b"bad", timeout=5)
    ping, info = await discover("PING"), await discover("INFO", "shout")
    stats = await discover("STATS", "shout", ping["id"])
    report(
        answer=answer.data.decode(),
        error=[error.headers["Nats-Service-Error"], error.headers["Nats-Service-Error-Code"]],
        ping=[ping["name"], ping["version"], ping["type"]],
        info=[[endpoint["name"], endpoint["subject"], endpoint["queue_group"]] for endpoint in info["endpoints"]],
        stats=[[endpoint["num_requests"], endpoint["num_errors"]] for endpoint in stats["endpoints"]],
    )
    await service.stop()
    await flush(serving)
    await raises(nats.errors.NoRespondersError, asking.request("$SRV.PING.shout", b"", timeout=5), "a service that is gone")


BEHAVIOURS = [
    what_connect_asks_for_is_honoured,
    a_request_without_responders_fails_at_once,
    a_request_has_many_replies,
    services_are_discovered,
]
