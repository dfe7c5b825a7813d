"""What a component sees when the backend behind its server is away for longer than the server waits: its flush fails, the client
connects again by itself, and what is published afterwards arrives.
"""

import asyncio

from harness import flush, say, within


async def outage_of_the_backend(bus):
    disconnected = asyncio.Event()

    async def on_disconnect():
        disconnected.set()

    async def expected_error(_error):
        """The connection that ends reports itself."""

    connection = await bus.connect(
        allow_reconnect=True, max_reconnect_attempts=-1, reconnect_time_wait=0.05,
        disconnected_cb=on_disconnect, error_cb=expected_error,
    )

    async def confirmed():
        """Whether a message was published for sure: the connection that took it has answered a flush."""
        disconnected.clear()
        try:
            await connection.publish("outage.probe", b"x")
            await asyncio.wait_for(flush(connection), 10)
        except Exception:
            return False
        return not disconnected.is_set()

    received = await bus.collect(connection, "outage.after")
    await connection.publish("outage.after", b"before")
    await received.wait_for(1)

    say("ready-for-outage")

    async def failing():
        # Until the backend is away a flush succeeds; from then on none may.
        while await confirmed():
            await asyncio.sleep(0)

    async def succeeding():
        while not await confirmed():
            await asyncio.sleep(0.01)

    await within(failing(), "a flush to fail", 20)
    say("flush-failed")
    await within(succeeding(), "a flush to succeed again", 20)
    await connection.publish("outage.after", b"after")
    await bus.until(lambda: b"after" in received.payloads, "what is published after the outage")
    assert not connection.is_closed
