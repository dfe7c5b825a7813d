"""What a component sees of users and permissions: its credentials open, the wrong ones do not, a violation is an error of its own and no
end, and a reload sends away only who is gone.
"""

import asyncio

import nats.errors

from harness import flush, raises, say, within


async def authorization(bus):
    heard = []

    async def hear(error):
        heard.append(str(error).lower())

    async def heard_of(text):
        await bus.until(lambda: any(text.lower() in error for error in heard), f"{text} among {heard}")
        heard.clear()

    for credentials in [{}, {"user": "gateway", "password": "wrong"}, {"user": "stranger", "password": "gate-pass"}, {"token": "wrong"}]:
        error = await raises(nats.errors.Error, bus.connect(error_cb=hear, **credentials), f"connect with {credentials}")
        assert "authorization" in str(error).lower(), error
    heard.clear()

    gateway = await bus.connect(user="gateway", password="gate-pass")
    search = await bus.connect(user="search", password="search-pass", error_cb=hear)
    everybody = await bus.connect(token="t0ken-for-all")

    async def answer(message):
        await message.respond(b"found")

    # A responder answers although it may not publish to inboxes.
    await search.subscribe("nachos.tool.search.call", cb=answer)
    await flush(search)
    for connection in [gateway, everybody]:
        reply = await within(connection.request("nachos.tool.search.call", b"?", timeout=5), "the answer")
        assert reply.data == b"found"

    await search.publish("nachos.other", b"x")
    await heard_of('permissions violation for publish to "nachos.other"')
    await search.subscribe("nachos.other")
    await heard_of('permissions violation for subscription to "nachos.other"')
    await search.subscribe("nachos.tool.search.task", queue="others")
    await heard_of('permissions violation for subscription to "nachos.tool.search.task" using queue "others"')
    await search.subscribe("nachos.tool.search.task", queue="workers")
    await flush(search)
    assert heard == [] and search.is_connected

    gone = asyncio.Event()

    async def closed():
        gone.set()

    leaver = await bus.connect(user="leaver", password="leaver-pass", error_cb=hear, closed_cb=closed)
    say("ready-for-reload")
    await within(gone.wait(), "the end of a user that is gone")
    assert leaver.is_closed
    await heard_of('permissions violation for subscription to "nachos.tool.search.task" using queue "workers" (sid')
    reply = await within(gateway.request("nachos.tool.search.call", b"?", timeout=5), "the answer after the reload")
    assert reply.data == b"found"
