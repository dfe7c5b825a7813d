"""The JSON envelope, spoken by hand: what a component needs to know of it, and nothing more."""

import asyncio
import json
import uuid
from datetime import datetime, timezone

from harness import flush, say, within

SUBJECT = "nachos.tool.search.call"
FIELDS_OF_EVERY_ENVELOPE = {"id": str, "timestamp": str, "source": str, "type": str, "correlationId": str}


def make_envelope(source, kind, payload, cause=None):
    """A new envelope; given the envelope that caused it, it carries on that one's correlation and trace."""
    envelope = {
        "id": str(uuid.uuid4()),
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "source": source,
        "type": kind,
        "correlationId": cause["correlationId"] if cause else str(uuid.uuid4()),
        "payload": payload,
    }
    if cause:
        envelope["trace"] = {**cause.get("trace", {}), "causationId": cause["id"]}
    return envelope


def check_envelope(envelope):
    for field, kind in FIELDS_OF_EVERY_ENVELOPE.items():
        assert isinstance(envelope.get(field), kind), f"{field} in {envelope}"
    assert "payload" in envelope, envelope
    datetime.fromisoformat(envelope["timestamp"].replace("Z", "+00:00"))


async def envelope_answer(bus):
    """Answers one call with the payload turned round, then leaves."""
    connection = await bus.connect()
    answered = asyncio.get_running_loop().create_future()

    async def answer(message):
        try:
            call = json.loads(message.data)
            check_envelope(call)
            assert call["type"] == "tool.call", call
            assert message.headers["traceparent"] == call["trace"]["traceparentCopy"]
            result = make_envelope("python-tool", "tool.result", {"echo": call["payload"], "length": len(call["payload"]["query"])}, cause=call)
            await connection.publish(message.reply, json.dumps(result, ensure_ascii=False).encode(), headers={"traceparent": message.headers["traceparent"]})
            await flush(connection)
            answered.set_result(None)
        except Exception as error:
            answered.set_exception(error)

    await connection.subscribe(SUBJECT, queue="search", cb=answer)
    await flush(connection)
    say("ready-for-call")
    await within(answered, "a call")


async def envelope_ask(bus):
    """Makes one call and checks that the answer belongs to it."""
    connection = await bus.connect()
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    call = make_envelope("python-gateway", "tool.call", {"query": "været i Tromsø ☃ 𝄞", "limit": 3, "nested": {"none": None, "yes": True}})
    call["trace"] = {"conversationId": "c-42", "personaId": "analyst", "toolId": "search", "skillId": None, "traceparentCopy": traceparent}
    call["unknownField"] = {"kept": "by whoever carries it"}
    reply = await connection.request(SUBJECT, json.dumps(call, ensure_ascii=False).encode(), timeout=5, headers={"traceparent": traceparent})
    result = json.loads(reply.data)
    check_envelope(result)
    assert result["type"] == "tool.result"
    assert result["correlationId"] == call["correlationId"]
    assert result["trace"]["causationId"] == call["id"]
    assert result["trace"]["conversationId"] == "c-42"
    assert result["id"] != call["id"]
    assert result["payload"]["echo"] == call["payload"]
    assert reply.headers["traceparent"] == traceparent
