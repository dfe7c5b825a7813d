import asyncio, json, os, nats

async def main():
    bus = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    async def weather(msg):
        if not msg.data:
            return  # somebody looks whether this listens
        call = json.loads(msg.data)
        call = call.get("payload", call)  # with an envelope or without
        await msg.respond(json.dumps({"output": f"sunny in {call['arguments']['city']}"}).encode())
    await bus.subscribe("nachos.tool.weather.call", queue="weather", cb=weather)
    await asyncio.Event().wait()

asyncio.run(main())
