//! Lame duck mode: clients are told, nobody new is let in, and who stays is closed in the end.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;

use nix::sys::signal::Signal;
use trunkline_testkit::environment;
use trunkline_testkit::servers::TrunklineServer;

use crate::command::{Running, start};

use super::{Place, address_in};

/// A server that closes its clients within four seconds, and where it listens.
fn server(place: &Place) -> (Running, String) {
    place.write("server.conf", "lame_duck_duration: \"4s\"\nlame_duck_grace_period: \"1s\"\n");
    let arguments = ["-c", "server.conf", "-p", "-1", "-P", "server.pid"];
    let mut running = start(place.command(&place.ours(), &arguments), b"");
    let address = address_in(&running.until_it_says("Listening for client connections on "));
    running.until_it_says("Server is ready");
    (running, address)
}

fn ask(place: &Place) {
    let sent = start(place.command(&place.ours(), &["--signal", "ldm=server.pid"]), b"").end();
    assert_eq!(sent.code(), 0, "{sent:?}");
}

#[test]
fn a_server_without_clients_ends_at_once() {
    let place = Place::new();
    let mut running = place.start("lame_duck_duration: \"1h\"\n");
    ask(&place);
    running.until_it_says("Entering lame duck mode, stop accepting new clients");
    assert_eq!(running.end().code(), 0);
}

/// A lame duck that waits for longer than any test.
const PATIENT: &str = "lame_duck_duration: \"1h\"\nlame_duck_grace_period: \"30m\"\n";

/// A server that will be such a one, its address, and a client that it knows.
fn patient(place: &Place) -> (Running, String, TcpStream) {
    place.write("server.conf", PATIENT);
    let mut running = start(place.command(&place.ours(), &["-c", "server.conf", "-p", "-1"]), b"");
    let address = address_in(&running.until_it_says("Listening for client connections on "));
    running.until_it_says("Server is ready");
    let client = TcpStream::connect(&address).expect("it listens");
    // INFO says that the client is known to the server.
    let info = BufReader::new(&client).lines().next();
    assert!(info.is_some_and(|line| line.is_ok_and(|line| line.starts_with("INFO "))));
    (running, address, client)
}

#[test]
fn a_signal_to_end_ends_it_at_once() {
    let place = Place::new();
    let (mut running, address, _client) = patient(&place);
    running.signal(Signal::SIGUSR2);
    running.until_it_says("clients are asked to go elsewhere");
    assert!(TcpStream::connect(&address).is_err(), "nobody new is let in");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.end().code(), 0);
}

/// Those who are asked to leave may be many, and take their time: what is asked for meanwhile counts.
#[test]
fn other_signals_still_count() {
    let place = Place::new();
    let (mut running, _, _client) = patient(&place);
    running.signal(Signal::SIGUSR2);
    running.until_it_says("clients are asked to go elsewhere");
    place.write("server.conf", &format!("{PATIENT}max_payload: 1000\n"));
    running.signal(Signal::SIGHUP);
    running.until_it_says("[INF] Reloaded: max_payload = 1000");
    running.until_it_says("[INF] Reloaded server configuration");
    running.signal(Signal::SIGUSR1);
    running.until_it_says("[INF] File log re-open ignored, not a file logger");
    running.signal(Signal::SIGUSR2);
    running.until_it_says("Trapped \"user defined signal 2\" signal");
    running.signal(Signal::SIGINT);
    assert_eq!(running.end().code(), 0);
}

/// Runs a script that connects, says `ready`, and ends well if its client is told and closed.
fn check(command: std::process::Command, place: &Place, mut server: Running) {
    let mut client = start(command, b"");
    client.until_it_says("ready");
    ask(place);
    server.until_it_says("Entering lame duck mode, stop accepting new clients");
    assert_eq!(client.end().lines(), ["told", "closed"]);
    assert_eq!(server.end().code(), 0);
}

#[test]
fn nats_py_is_told_and_closed() {
    let place = Place::new();
    let (server, address) = server(&place);
    place.write(
        "client.py",
        r#"
import asyncio, sys
import nats

async def main():
    closed = asyncio.Event()
    async def on_lame_duck():
        print("told")
    async def on_disconnected():
        closed.set()
    nc = await nats.connect("nats://" + sys.argv[1], lame_duck_mode_cb=on_lame_duck, disconnected_cb=on_disconnected,
                            allow_reconnect=False)
    await nc.flush()
    print("ready", file=sys.stderr, flush=True)
    await asyncio.wait_for(closed.wait(), 25)
    print("closed")

asyncio.run(main())
"#,
    );
    let mut command = place.command(&environment::python(), &["client.py", &address]);
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    check(command, &place, server);
}

#[test]
fn nats_js_is_told_and_closed() {
    let place = Place::new();
    let (server, address) = server(&place);
    place.write(
        "client.cjs",
        r#"
const { connect } = require("@nats-io/transport-node");
(async () => {
  const nc = await connect({ servers: process.argv[2], reconnect: false });
  (async () => {
    for await (const status of nc.status()) {
      if (status.type === "ldm") console.log("told");
    }
  })();
  await nc.flush();
  console.error("ready");
  await nc.closed();
  console.log("closed");
})();
"#,
    );
    let mut command = place.command(Path::new("node"), &["client.cjs", &address]);
    command.env("NODE_PATH", environment::node_path().join("node_modules"));
    check(command, &place, server);
}

#[test]
fn clients_over_websocket_are_told_and_closed_and_find_nobody_there() {
    let place = Place::new();
    place.write(
        "server.conf",
        "lame_duck_duration: \"4s\"\nlame_duck_grace_period: \"1s\"\n\
         websocket { listen: \"127.0.0.1:-1\", no_tls: true }\n",
    );
    let arguments = ["-c", "server.conf", "-p", "-1", "-P", "server.pid"];
    let mut server = start(place.command(&place.ours(), &arguments), b"");
    let url = address_in(&server.until_it_says("Listening for websocket clients on ws://127.0.0.1:"));
    server.until_it_says("Server is ready");
    place.write(
        "client.cjs",
        r#"
const { wsconnect } = require("@nats-io/nats-core");
const { createConnection } = require("node:net");
(async () => {
  const nc = await wsconnect({ servers: process.argv[2], reconnect: false });
  (async () => {
    for await (const status of nc.status()) {
      if (status.type !== "ldm") continue;
      // Whoever is told to go elsewhere must not come back here.
      const socket = createConnection(new URL(process.argv[2]).port, "127.0.0.1");
      socket.on("connect", () => console.log("let in again"));
      socket.on("error", () => console.log("told"));
    }
  })();
  await nc.flush();
  console.error("ready");
  await nc.closed();
  console.log("closed");
})();
"#,
    );
    let mut command = place.command(Path::new("node"), &["--experimental-websocket", "client.cjs", &url]);
    command.env("NODE_PATH", environment::node_path().join("node_modules"));
    check(command, &place, server);
}

#[test]
fn up_has_the_same_mode() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = directory.path().join("config.yaml");
    let limits = "server: {limits: {lame_duck_duration: 4s, lame_duck_grace_period: 1s}}\n";
    std::fs::write(&config, limits).expect("a temporary directory takes a file");
    let arguments = ["--config", crate::command::text(&config)];
    let mut server = TrunklineServer::start(Path::new(env!("CARGO_BIN_EXE_trunkline")), arguments);
    let client = TcpStream::connect(("127.0.0.1", server.port())).expect("it listens");
    let mut lines = BufReader::new(&client).lines().map_while(Result::ok);
    let info = lines.next().expect("INFO comes");
    assert!(!info.contains("\"ldm\""), "{info}");
    (&client).write_all(b"CONNECT {\"protocol\":1,\"verbose\":false}\r\nPING\r\n").expect("it is read");
    assert_eq!(lines.next().as_deref(), Some("PONG"));
    assert!(lines.next().is_some_and(|info| info.contains("\"connect_info\":true")));
    server.signal(Signal::SIGUSR2);
    assert!(lines.next().is_some_and(|info| info.starts_with("INFO ") && info.contains("\"ldm\":true")));
    assert_eq!(lines.next(), None, "it is closed without another word");
    assert_eq!(server.wait_for_exit().code(), Some(0));
}
