"""An agent platform in one process: a channel, a gateway and a tool, each on a connection of its own, in plain `nats-py`.

Beside it run the same three in other languages. Every channel talks to every gateway about every tool, so that each part is played
by each of them in turn. What a component needs to know of the envelope is written out here.
"""

import asyncio
import json
import uuid
from datetime import datetime, timedelta, timezone

import nats.errors

from harness import flush, say, within

ME = "nats-py"
# Who plays a part: the library, and the stock clients.
PLAYERS = ["rust", "nats-py", "nats-js", "transport-node"]
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
# As long as the gateway waits for a tool when nobody is in a hurry.
TOOL_TIMEOUT_SECONDS = 8.0
# When the answer about a city that takes for ever is not wanted any more.
HURRY_SECONDS = 2.0


def now():
    return datetime.now(timezone.utc)


def timestamp(moment):
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text):
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def make_envelope(source, kind, payload, cause=None, trace=None, deadline=None):
    """A new envelope; given the envelope that caused it, it carries on that one's correlation and trace."""
    envelope = {
        "id": str(uuid.uuid4()),
        "timestamp": timestamp(now()),
        "source": f"{source}-{ME}",
        "type": kind,
        "correlationId": cause["correlationId"] if cause else str(uuid.uuid4()),
        "payload": payload,
        "trace": trace or {},
    }
    if cause:
        envelope["trace"] = {**cause["trace"], **envelope["trace"], "causationId": cause["id"]}
    if deadline:
        envelope["deadline"] = timestamp(deadline)
    return envelope


def encode(envelope):
    return json.dumps(envelope, ensure_ascii=False).encode()


def trace_headers(message):
    return {"traceparent": message.headers["traceparent"]}


class Platform:
    """The three parts, and what went wrong in them."""

    def __init__(self):
        # One failure is told; the first of them.
        self.failed = asyncio.get_running_loop().create_future()
        self._tasks = set()

    def spawn(self, handling):
        """A message is handled beside others, because the client waits for one callback before it makes the next."""
        task = asyncio.create_task(handling)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task):
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() and not self.failed.done():
            self.failed.set_exception(task.exception())

    async def start_tool(self, connection):
        tool = f"weather-{ME}"

        async def publish_copy(message, call, result):
            envelope = make_envelope("tool", "tool.result", result, cause=call)
            await connection.publish(f"nachos.tool.{tool}.result", encode(envelope), headers=trace_headers(message))
            return envelope

        async def refuse(message, code, text):
            await connection.publish(message.reply, b"", headers={"Nats-Service-Error-Code": str(code), "Nats-Service-Error": text})

        async def forecast(message):
            call = json.loads(message.data)
            assert call["type"] == "tool.call", call
            city, call_id = call["payload"]["arguments"]["city"], call["payload"]["callId"]
            left = (parse_time(call["deadline"]) - now()).total_seconds()
            if left <= 0:
                return await refuse(message, 408, "deadline passed")
            if city == "Atlantis":
                await publish_copy(message, call, {"callId": call_id, "output": "it sank", "isError": True})
                return await refuse(message, 422, "Atlantis sank")
            try:
                if city == "Limbo":
                    await asyncio.wait_for(asyncio.Event().wait(), left)
            except asyncio.TimeoutError:
                await publish_copy(message, call, {"callId": call_id, "output": "gave up", "isError": True})
                return await refuse(message, 408, "deadline passed")
            result = {"callId": call_id, "output": f"sunny in {city}, says {ME}", "isError": False}
            await publish_copy(message, call, result)
            reply = make_envelope("tool", "tool.result", result, cause=call)
            await connection.publish(message.reply, encode(reply), headers=trace_headers(message))

        async def take(message):
            self.spawn(forecast(message))

        await connection.subscribe(f"nachos.tool.{tool}.call", queue=tool, cb=take)
        await flush(connection)

    async def start_gateway(self, connection):
        async def ask_tool(message, inbound):
            tool, call_id = inbound["payload"]["metadata"]["tool"], str(uuid.uuid4())
            deadline = now() + timedelta(seconds=TOOL_TIMEOUT_SECONDS)
            if "deadline" in inbound:
                deadline = min(deadline, parse_time(inbound["deadline"]))
            payload = {"callId": call_id, "arguments": {"city": inbound["payload"]["text"]}}
            call = make_envelope("gateway", "tool.call", payload, cause=inbound, trace={"toolId": tool}, deadline=deadline)
            left = max((deadline - now()).total_seconds(), 0.001)
            try:
                reply = await connection.request(f"nachos.tool.{tool}.call", encode(call), timeout=left, headers=trace_headers(message))
            except nats.errors.TimeoutError:
                return "no answer in time"
            code = (reply.headers or {}).get("Nats-Service-Error-Code")
            if code == "408":
                return "no answer in time"
            if code:
                return f"error {code}: {reply.headers['Nats-Service-Error']}"
            result = json.loads(reply.data)
            assert result["type"] == "tool.result", result
            assert result["correlationId"] == call["correlationId"], (call, result)
            assert result["trace"]["causationId"] == call["id"], (call, result)
            assert result["trace"]["conversationId"] == call["trace"]["conversationId"], (call, result)
            assert result["payload"]["callId"] == call_id and not result["payload"]["isError"], result
            assert reply.headers["traceparent"] == TRACEPARENT, reply.headers
            return result["payload"]["output"]

        async def answer(message):
            inbound = json.loads(message.data)
            assert inbound["type"] == "channel.inbound", inbound
            channel = message.subject.split(".")[2]
            payload = {"recipient": inbound["payload"]["sender"], "text": await ask_tool(message, inbound)}
            outbound = make_envelope("gateway", "channel.outbound", payload, cause=inbound)
            await connection.publish(f"nachos.channel.{channel}.outbound", encode(outbound), headers=trace_headers(message))

        async def take(message):
            self.spawn(answer(message))

        for channel in PLAYERS:
            await connection.subscribe(f"nachos.channel.{channel}-{ME}.inbound", queue="gateway", cb=take)
        await flush(connection)

    async def start_channel(self, connection):
        """Returns what makes one turn of a conversation: what somebody says, and what they are told."""
        awaited = {}

        async def take(message):
            outbound = json.loads(message.data)
            awaited.pop(outbound["trace"]["conversationId"]).set_result((message, outbound))

        for gateway in PLAYERS:
            await connection.subscribe(f"nachos.channel.{ME}-{gateway}.outbound", cb=take)
        await flush(connection)

        async def turn(gateway, tool, city, expected, hurry=None):
            conversation = f"c-{ME}-{gateway}-{tool}-{city}"
            payload = {"sender": "ann", "text": city, "metadata": {"tool": f"weather-{tool}"}}
            deadline = hurry and now() + timedelta(seconds=hurry)
            inbound = make_envelope("channel", "channel.inbound", payload, trace={"conversationId": conversation}, deadline=deadline)
            answer = awaited[conversation] = asyncio.get_running_loop().create_future()
            await connection.publish(f"nachos.channel.{ME}-{gateway}.inbound", encode(inbound), headers={"traceparent": TRACEPARENT})
            message, outbound = await within(answer, f"an answer in {conversation}")
            assert outbound["type"] == "channel.outbound", outbound
            assert outbound["source"] == f"gateway-{gateway}", outbound
            assert outbound["correlationId"] == inbound["correlationId"], (inbound, outbound)
            assert outbound["trace"]["causationId"] == inbound["id"], (inbound, outbound)
            assert outbound["payload"] == {"recipient": "ann", "text": expected}, outbound
            assert message.headers["traceparent"] == TRACEPARENT, message.headers

        return turn


async def conversation(bus):
    """Plays all three parts; the channel speaks once everybody is there, and the others serve until all have spoken."""
    platform = Platform()
    control = await bus.connect()
    begin, end = asyncio.Event(), asyncio.Event()

    async def on_begin(_):
        begin.set()

    async def on_end(_):
        end.set()

    await control.subscribe("talk.begin", cb=on_begin)
    await control.subscribe("talk.end", cb=on_end)
    await flush(control)
    await platform.start_tool(await bus.connect())
    await platform.start_gateway(await bus.connect())
    turn = await platform.start_channel(await bus.connect())
    say("ready-to-talk")

    async def talk():
        await begin.wait()
        pairs = [(gateway, tool) for gateway in PLAYERS for tool in PLAYERS]
        good = [turn(gateway, tool, "Oslo", f"sunny in Oslo, says {tool}") for gateway, tool in pairs]
        bad = [turn(gateway, tool, "Atlantis", "error 422: Atlantis sank") for gateway, tool in pairs]
        await asyncio.gather(*good, *bad)
        await asyncio.gather(*(turn(gateway, tool, "Limbo", "no answer in time", HURRY_SECONDS) for gateway, tool in pairs))
        say("talked")
        await end.wait()

    talking = asyncio.ensure_future(talk())
    await within(asyncio.wait({talking, platform.failed}, return_when=asyncio.FIRST_COMPLETED), "the conversations", 25)
    if platform.failed.done():
        platform.failed.result()
    await talking
