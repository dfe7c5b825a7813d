"""Tools that pages call, on several servers at once: `python tools.py URL...`. Says `ready` and serves until it is killed."""

import asyncio
import sys

import nats

from harness import flush


async def serve(url):
    connection = await nats.connect(url)

    async def shout(message):
        await message.respond(message.data.upper())
        await connection.publish("chat.web.outbound", b"asked: " + message.data)

    async def echo(message):
        await message.respond(message.data)

    await connection.subscribe("tool.shout.call", queue="tools", cb=shout)
    await connection.subscribe("tool.echo.call", queue="tools", cb=echo)
    await flush(connection)


async def main():
    for url in sys.argv[1:]:
        await serve(url)
    print("ready", file=sys.stderr, flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
