"""What the scenarios stand on: connections of the stock client whose errors are not lost, raw sockets, and waiting with a bound."""

import asyncio
import json
import logging
import os
import ssl
import time
from urllib.parse import urlparse

import nats

# A scenario takes well under a second; the bound only has to be shorter than that of the test that runs it.
PATIENCE_SECONDS = 8.0


def say(line):
    """Prints one line that the test at the other end of the pipe acts upon."""
    print(line, flush=True)


def report(**event):
    """Prints one event, a JSON object on a line of its own."""
    say(json.dumps(event))


async def within(awaitable, what, seconds=PATIENCE_SECONDS):
    """Awaits with a bound; past it, fails saying what was awaited."""
    task = asyncio.ensure_future(awaitable)
    # Not `wait_for`: its TimeoutError could not be told from one that the client itself raises.
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if not done:
        task.cancel()
        raise AssertionError(f"nothing within {seconds} s: {what}")
    return task.result()


async def raises(expected, awaitable, what):
    """Awaits something that has to fail with the error `expected`, and returns that error."""
    try:
        result = await within(awaitable, what)
    except expected as error:
        return error
    raise AssertionError(f"{what}: expected {expected}, got {result!r}")


async def flush(connection):
    """Returns once the server has dealt with everything sent on this connection so far.

    `flush()` of nats-py 2.16 alone does not say that: it writes its PING ahead of what the client still buffers.
    So the buffer is emptied into the socket first.
    """
    await connection._flush_pending(force_flush=True)
    await connection.flush()


class Stopwatch:
    """Measures seconds since it was made."""

    def __init__(self):
        self.started = time.monotonic()

    def seconds(self):
        return time.monotonic() - self.started


class Collector:
    """Keeps what subscriptions were given and lets a scenario wait for the n-th message."""

    def __init__(self):
        self.messages = []
        self._arrived = asyncio.Event()

    async def take(self, message):
        self.messages.append(message)
        self._arrived.set()

    async def wait_for(self, count):
        async def enough():
            while len(self.messages) < count:
                self._arrived.clear()
                await self._arrived.wait()

        try:
            await asyncio.wait_for(enough(), PATIENCE_SECONDS)
        except asyncio.TimeoutError:
            raise AssertionError(f"{len(self.messages)} of {count} messages arrived") from None

    @property
    def subjects(self):
        return [message.subject for message in self.messages]

    @property
    def payloads(self):
        return [message.data for message in self.messages]


def tls_context():
    """Trusts the test's authority alone, and shows a certificate where the test has given one."""
    # A server that ends TLS in good order makes asyncio's streams warn of their own answer to that.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    context = ssl.create_default_context(cafile=os.environ["SCENARIO_TLS_CA"])
    if "SCENARIO_TLS_CERT" in os.environ:
        context.load_cert_chain(os.environ["SCENARIO_TLS_CERT"], os.environ["SCENARIO_TLS_KEY"])
    return context


class Bus:
    """One server under test: opens connections, closes them all, and fails the scenario for an error none of its lines expected."""

    def __init__(self, url):
        self.url = url
        # A server in front of a backend of its own says with a PONG what came of this client's operations, not that
        # everything others have published has arrived; and what one publisher sent to several subscriptions of one
        # connection is in order within each of them.
        self.bridged = "SCENARIO_BRIDGED" in os.environ
        self.errors = []
        self._connections = []
        self._subscriptions = []

    async def connect(self, **options):
        async def remember(error):
            self.errors.append(error)

        options.setdefault("error_cb", remember)
        options.setdefault("allow_reconnect", False)
        if "SCENARIO_TLS_CA" in os.environ:
            options.setdefault("tls", tls_context())
            options.setdefault("tls_handshake_first", "SCENARIO_TLS_FIRST" in os.environ)
        connection = await within(nats.connect(self.url, **options), "connect")
        self._connections.append(connection)
        return connection

    async def collect(self, connection, pattern, queue="", into=None):
        """Subscribes, waits until the server has dealt with it, and returns the collector of what arrives."""
        collector = Collector() if into is None else into
        self._subscriptions.append(await connection.subscribe(pattern, queue=queue, cb=collector.take))
        await flush(connection)
        return collector

    async def settle(self):
        """Returns once every collector holds all that the server had for it up to now."""
        for connection in self._connections:
            await flush(connection)

        async def handled():
            while any(subscription.pending_msgs for subscription in self._subscriptions):
                await asyncio.sleep(0)

        await within(handled(), "the clients to hand over what they received")

    async def until(self, holds, what, seconds=PATIENCE_SECONDS):
        """Waits for something that messages on their way bring about."""

        async def looking():
            while not holds():
                await asyncio.sleep(0.005)

        await within(looking(), what, seconds)

    async def raw(self):
        """A bare socket that has read INFO and sent CONNECT."""
        address = urlparse(self.url)
        reader, writer = await within(asyncio.open_connection(address.hostname, address.port), "raw connect")
        raw = RawConnection(reader, writer)
        line = await raw.line()
        assert line.startswith(b"INFO "), line
        raw.info = json.loads(line[5:])
        raw.send(b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":1}\r\n')
        self._connections.append(raw)
        return raw

    async def close(self):
        for connection in self._connections:
            if not connection.is_closed:
                await connection.close()
        assert not self.errors, f"errors that nobody expected: {self.errors!r}"


class RawConnection:
    """The protocol as bytes, for what a stock client would never send or would not show."""

    def __init__(self, reader, writer):
        self._reader = reader
        self._writer = writer
        self.info = None
        self.is_closed = False

    def send(self, data):
        self._writer.write(data)

    async def line(self):
        return await within(self._reader.readline(), "a protocol line")

    async def line_past_info(self):
        """The next line, past a second INFO and the server's own pings."""
        while True:
            line = await self.line()
            if not line.startswith((b"INFO ", b"PING")):
                return line

    async def exactly(self, count):
        return await within(self._reader.readexactly(count), f"{count} bytes")

    async def flush(self):
        """Returns once the server has dealt with everything sent so far."""
        self.send(b"PING\r\n")
        line = await self.line_past_info()
        assert line == b"PONG\r\n", line

    async def rest(self):
        """Everything up to the end of the connection. A reset is an end too: bytes nobody read were still on their way."""
        received = b""
        try:
            while chunk := await within(self._reader.read(65536), "the server to close the connection"):
                received += chunk
        except (ConnectionResetError, BrokenPipeError):
            pass
        return received

    async def close(self):
        self.is_closed = True
        self._writer.close()
