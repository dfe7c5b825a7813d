import { connect } from "@nats-io/transport-node";

const bus = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222" });
bus.subscribe("nachos.tool.weather.call", {
  queue: "weather",
  callback: (error, msg) => {
    if (error) throw error;
    if (msg.data.length === 0) return; // somebody looks whether this listens
    const call = msg.json();
    const { city } = (call.payload ?? call).arguments; // with an envelope or without
    msg.respond(JSON.stringify({ output: `sunny in ${city}` }));
  },
});
await bus.closed();
