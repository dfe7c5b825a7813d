//! The backend is one word in one file: everything else stays as it is, and works.

use nix::sys::signal::Signal;
use trunkline_testkit::{NatsServer, RedisServer, environment};

use super::Platform;
use crate::command::{command, start};

/// A tool in Python, with the stock client.
const WEATHER: &str = r#"
import asyncio, json, os, nats

async def main():
    bus = await nats.connect(os.environ["NATS_URL"])
    async def weather(msg):
        if msg.data:
            await msg.respond(json.dumps({"output": "sunny in " + json.loads(msg.data)["city"]}).encode())
    await bus.subscribe("platform.weather", queue="weather", cb=weather)
    await bus.flush()
    print("weather is up")
    await asyncio.Event().wait()

asyncio.run(main())
"#;

/// A gateway for Node, with the stock client; it asks the tool.
const GATEWAY: &str = r#"
const { connect } = require("@nats-io/transport-node");
(async () => {
  const bus = await connect({ servers: process.env.NATS_URL });
  bus.subscribe("platform.advice", {
    queue: "gateway",
    callback: async (error, msg) => {
      if (error) throw error;
      if (msg.data.length === 0) return;
      const reply = await bus.request("platform.weather", msg.data, { timeout: 20000 });
      msg.respond(JSON.stringify({ advice: `wear a hat, ${reply.json().output}` }));
    },
  });
  await bus.flush();
  console.log("gateway is up");
  await bus.closed();
})();
"#;

#[test]
fn changing_the_backend_moves_the_demo_and_a_platform_of_stock_clients_across() {
    let (redis, nats) = (RedisServer::start(), NatsServer::start(["-js"]));
    // Known beforehand, so that `trunkline status` finds it by the same file.
    let http = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let yaml = |backend: &str| {
        format!(
            "messaging:\n  backend: {backend}\n  redis_url: redis://127.0.0.1:{1}\n  nats_url: {2}\n  fallback: fail\n\
             server: {{listen: '127.0.0.1:0', http: '{http}'}}\n\
             components:\n  \
             weather: {{command: [{3}, weather.py], ready: 'responder:platform.weather'}}\n  \
             gateway: {{command: [node, gateway.cjs], env: {{NODE_PATH: {4}}}, ready: 'responder:platform.advice', depends_on: [weather]}}\n  \
             asker: {{command: [sh, -c, '{0} wait responder:platform.advice && exec {0} request platform.advice \"$0\"', '{{\"city\":\"Oslo\"}}'], restart: 'no', depends_on: [gateway]}}\n",
            env!("CARGO_BIN_EXE_trunkline"),
            redis.port(),
            nats.url(),
            environment::python().display(),
            environment::node_path().join("node_modules").display(),
        )
    };
    let platform = Platform::new("");
    platform.write("weather.py", WEATHER);
    platform.write("gateway.cjs", GATEWAY);
    for backend in ["in_memory", "redis", "nats"] {
        platform.write("config.yaml", &yaml(backend));
        let mut up = platform.up(&["--demo"]);
        up.until_it_says("Ctrl-C stops it");
        let mut waiting = command(&["status", "--wait"]);
        waiting.current_dir(platform.path());
        let waited = start(waiting, b"").end();
        assert!(waited.status.success(), "{backend}: {waited:?}");
        up.until_it_says("wear a hat, sunny in Oslo");
        up.until_it_says("done component=\"asker\"");
        up.signal(Signal::SIGTERM);
        let ended = up.end();
        assert!(ended.status.success(), "{backend}: {ended:?}");
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(said.contains("nachos.tool.weather.call"), "{backend}: the demo runs beside it: {said}");
    }
}
