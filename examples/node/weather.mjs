import { connect } from "@nats-io/transport-node";

const bus = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222" });
bus.subscribe("nachos.tool.weather.call", {
  queue: "weather",
  callback: (error, msg) => {
    if (error) throw error;
    const { city } = msg.json().payload.arguments;
    msg.respond(JSON.stringify({ output: `sunny in ${city}` }));
  },
});
await bus.closed();
