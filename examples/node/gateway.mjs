// A gateway: HTTP on one side, the bus on the other.
import { createServer } from "node:http";
import { connect } from "@nats-io/transport-node";

const { NATS_URL = "nats://127.0.0.1:4222", NATS_USER, NATS_PASSWORD, PORT = "9000" } = process.env;
const bus = await connect({ servers: NATS_URL, user: NATS_USER, pass: NATS_PASSWORD });
const server = createServer(async (request, response) => {
  const url = new URL(request.url, "http://gateway");
  if (url.pathname === "/healthz") return response.end("ok\n");
  try {
    const call = { arguments: { city: url.searchParams.get("city") ?? "Oslo" } };
    const reply = await bus.request("nachos.tool.weather.call", JSON.stringify(call), { timeout: 5000 });
    response.end(`${reply.string()}\n`);
  } catch (error) {
    response.writeHead(502).end(`${error.message}\n`);
  }
});
server.listen(Number(PORT), "127.0.0.1", () => console.log(`serving on ${PORT}`));
