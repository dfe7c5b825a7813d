//! Stock clients and the ways in which their test helpers start a server.

use trunkline_testkit::clients::{ClientLibrary, check_scenario};
use trunkline_testkit::environment;
use trunkline_testkit::servers::NatsServer;

use crate::command::start;

use super::Place;

/// Started, restarted and stopped as the real one is in all other tests.
#[test]
fn stock_clients_run_their_scenarios() {
    let place = Place::new();
    for library in ClientLibrary::ALL {
        for scenario in [
            "subscriptions_resume_after_a_restart",
            "headers_arrive_as_they_were_sent",
            "request_that_nobody_answers_fails_at_once",
        ] {
            check_scenario(library, scenario, &mut NatsServer::start_program::<&str>(&place.ours(), []));
        }
    }
}

/// As the tests of nats-py do: the program by its name on the path, flags for everything, `/varz` until it answers, SIGKILL
/// or SIGTERM at the end.
#[test]
fn the_way_of_nats_py() {
    let place = Place::new();
    place.write(
        "spawn.py",
        r#"
import asyncio, json, os, signal, socket, subprocess, sys, time, urllib.request
import nats

def free():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

async def main():
    port, http = free(), free()
    process = subprocess.Popen(
        ["nats-server", "-p", "%d" % port, "-m", "%d" % http, "-a", "127.0.0.1", "--user", "u", "--pass", "p", "-DV"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                varz = json.load(urllib.request.urlopen("http://127.0.0.1:%d/varz" % http, timeout=2))
                break
            except OSError:
                assert time.monotonic() < deadline, "no answer"
                await asyncio.sleep(0.02)
        assert varz["port"] == port and varz["auth_required"] is True, varz
        nc = await nats.connect("nats://u:p@127.0.0.1:%d" % port)
        sub = await nc.subscribe("hello")
        await nc.publish("hello", b"there")
        assert (await sub.next_msg(timeout=10)).data == b"there"
        await nc.close()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    print("ok")

asyncio.run(main())
"#,
    );
    let mut command = place.command(&environment::python(), &["spawn.py"]);
    command.env("PATH", path(&place)).env("PYTHONDONTWRITEBYTECODE", "1");
    assert_eq!(start(command, b"").end().lines(), ["ok"]);
}

/// As the tests of nats.js do: a configuration file with everything in it, the ports file until it is there, the log until
/// it says that the server is ready.
#[test]
fn the_way_of_nats_js() {
    let place = Place::new();
    place.write(
        "spawn.cjs",
        r#"
const { spawn } = require("node:child_process");
const { existsSync, readFileSync, writeFileSync } = require("node:fs");
const { once } = require("node:events");
const { connect } = require("@nats-io/transport-node");

(async () => {
  writeFileSync("js.conf", `
host: 127.0.0.1
port: -1
http: "127.0.0.1:-1"
ports_file_dir: "${process.cwd()}"
max_payload: 1024
authorization {
  users: [
    {
      user: derek
      password: foobar
      permission: {
        subscribe: bar
        publish: foo
      }
    }
  ]
}
`);
  const server = spawn("nats-server", ["-DV", "-c", "js.conf"], { stdio: ["ignore", "ignore", "pipe"] });
  let log = "";
  server.stderr.on("data", (data) => { log += data; });
  const ended = once(server, "exit");
  const file = `nats-server_${server.pid}.ports`;
  const until = async (what, holds) => {
    const deadline = Date.now() + 20000;
    while (!holds()) {
      if (Date.now() > deadline) throw new Error(`${what}: ${log}`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  };
  await until("ports", () => existsSync(file) && readFileSync(file, "utf8").endsWith("}"));
  await until("ready", () => log.includes("Server is ready"));
  const ports = JSON.parse(readFileSync(file, "utf8"));
  const varz = await (await fetch(`${ports.monitoring[0]}/varz`)).json();
  if (varz.max_payload !== 1024) throw new Error(JSON.stringify(varz));
  const nc = await connect({ servers: ports.nats[0], user: "derek", pass: "foobar" });
  const sub = nc.subscribe("nope");
  const why = await (async () => { try { for await (const _ of sub); } catch (error) { return error.message; } })();
  if (!/Permissions Violation for Subscription to "nope"/.test(why)) throw new Error(why);
  await nc.close();
  server.kill("SIGTERM");
  const [code] = await ended;
  if (code !== 0 || existsSync(file)) throw new Error(`ended with ${code}`);
  console.log("ok");
})().catch((error) => { console.error(error); process.exit(1); });
"#,
    );
    let mut command = place.command(std::path::Path::new("node"), &["spawn.cjs"]);
    command.env("PATH", path(&place)).env("NODE_PATH", environment::node_path().join("node_modules"));
    assert_eq!(start(command, b"").end().lines(), ["ok"]);
}

/// A path on which our binary is found as `nats-server`.
fn path(place: &Place) -> std::ffi::OsString {
    let own = place.path().join("bin");
    let rest = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&rest))).expect("no colon in it")
}
