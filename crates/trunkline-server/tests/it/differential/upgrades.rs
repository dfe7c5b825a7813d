//! Requests for a WebSocket, with nats-server and here: which are taken, and what others are answered. Where they are meant
//! to differ, the reason stands beside the request.

use std::fs;
use std::net::SocketAddr;

use serde_json::Value;
use trunkline_server::WebSocketOptions;
use trunkline_testkit::NatsServer;

use super::super::auth::server_with;
use super::super::client::Raw;

const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const VERSION: &str = "Sec-WebSocket-Version: 13\r\n";
const UPGRADE: &str = "Upgrade: websocket\r\n";
const CONNECTION: &str = "Connection: Upgrade\r\n";
const HOST: &str = "Host: localhost\r\n";
const GET: &str = "GET / HTTP/1.1\r\n";

const BAD: u16 = 400;
/// The connection is closed without an answer.
const CLOSED: u16 = 0;
const OPENED: u16 = 101;

/// Lines of a request, the status with which it is answered by both.
const ALIKE: &[(&[&str], u16)] = &[
    (&[GET, HOST, UPGRADE, CONNECTION, KEY, VERSION], OPENED),
    (&["GET /any/path?x=1 HTTP/1.1\r\n", HOST, UPGRADE, CONNECTION, KEY, VERSION], OPENED),
    (&["GET http://localhost/ HTTP/1.1\r\n", HOST, UPGRADE, CONNECTION, KEY, VERSION], OPENED),
    (&[GET, HOST, "Upgrade: foo, websocket\r\n", CONNECTION, KEY, VERSION], OPENED),
    (&[GET, HOST, "Upgrade: websocket,foo\r\n", CONNECTION, KEY, VERSION], OPENED),
    (&[GET, HOST, "Upgrade: foo\r\nUpgrade: WebSocket\r\n", CONNECTION, KEY, VERSION], OPENED),
    (&[GET, HOST, "Upgrade: websocket\r\nUpgrade: foo\r\n", CONNECTION, KEY, VERSION], OPENED),
    (&[GET, HOST, "upgrade:\twebsocket \r\n", CONNECTION, KEY, VERSION], OPENED),
    (&[GET, HOST, "Upgrade: websocket/13\r\n", CONNECTION, KEY, VERSION], BAD),
    (&[GET, HOST, "Upgrade: websocket;q=1\r\n", CONNECTION, KEY, VERSION], BAD),
    (&[GET, HOST, CONNECTION, KEY, VERSION], BAD),
    (&[GET, HOST, UPGRADE, "Connection: keep-alive, Upgrade\r\n", KEY, VERSION], OPENED),
    (&[GET, HOST, UPGRADE, "Connection: keep-alive\r\nConnection: UPGRADE\r\n", KEY, VERSION], OPENED),
    (&[GET, HOST, UPGRADE, "Connection: keep-alive\r\n", KEY, VERSION], BAD),
    (&[GET, HOST, UPGRADE, KEY, VERSION], BAD),
    (&[GET, HOST, UPGRADE, CONNECTION, KEY, "Sec-WebSocket-Version: 8, 13\r\n"], OPENED),
    (&[GET, HOST, UPGRADE, CONNECTION, KEY, "Sec-WebSocket-Version: 8\r\n", VERSION], OPENED),
    (&[GET, HOST, UPGRADE, CONNECTION, KEY, "Sec-WebSocket-Version: 8\r\n"], BAD),
    (&[GET, HOST, UPGRADE, CONNECTION, KEY], BAD),
    (&[GET, HOST, UPGRADE, CONNECTION, VERSION], BAD),
    (&[GET, HOST, UPGRADE, CONNECTION, "Sec-WebSocket-Key: abc\r\n", VERSION], BAD),
    (&[GET, UPGRADE, CONNECTION, KEY, VERSION], BAD),
    (&[GET, "Host:\r\n", UPGRADE, CONNECTION, KEY, VERSION], BAD),
    (&[GET, HOST, HOST, UPGRADE, CONNECTION, KEY, VERSION], BAD),
    (&[GET, "Host: a b\r\n", UPGRADE, CONNECTION, KEY, VERSION], BAD),
    (&["POST / HTTP/1.1\r\n", HOST, UPGRADE, CONNECTION, KEY, VERSION], 405),
    (&["GET /mqtt HTTP/1.1\r\n", HOST, UPGRADE, CONNECTION, KEY, VERSION], 404),
    (&[GET, HOST, UPGRADE, CONNECTION, KEY, VERSION, "Nats-No-Masking: true\r\n"], OPENED),
    (&[GET, HOST, UPGRADE, CONNECTION, KEY, VERSION, "X-Other: \u{fc}\r\n"], OPENED),
];

/// Lines of a request, what nats-server answers, what is answered here, and why.
const MEANT: &[(&[&str], u16, u16, &str)] = &[
    (
        &["GET / HTTP/1.0\r\n", HOST, UPGRADE, CONNECTION, KEY, VERSION],
        OPENED,
        BAD,
        "RFC 6455 asks for HTTP/1.1, as nothing before it can be upgraded",
    ),
    (
        &["GET /leafnode HTTP/1.1\r\n", HOST, UPGRADE, CONNECTION, KEY, VERSION],
        OPENED,
        404,
        "there are no leaf nodes; nats-server takes the request, and closes",
    ),
    (
        &[GET, HOST, "Upgrade: foo,\r\n websocket\r\n", CONNECTION, KEY, VERSION],
        OPENED,
        BAD,
        "headers over several lines are obsolete (RFC 9112), and read differently by what lies in between",
    ),
    (
        &["\r\n", GET, HOST, UPGRADE, CONNECTION, KEY, VERSION],
        BAD,
        OPENED,
        "an empty line before a request is to be ignored (RFC 9112)",
    ),
    (
        &[GET, HOST, UPGRADE, CONNECTION, KEY, VERSION, "\r\nframes"],
        CLOSED,
        OPENED,
        "what comes before the answer was sent is read behind it; nats-server closes if it came at once",
    ),
];

/// Where nats-server listens for WebSocket clients.
pub(crate) fn web_address(server: &NatsServer) -> SocketAddr {
    let file = server.directory().join(format!("nats-server_{}.ports", server.pid()));
    let ports: Value = serde_json::from_str(&fs::read_to_string(file).expect("a file")).expect("JSON");
    let url = ports["websocket"][0].as_str().expect("an address");
    url.trim_start_matches("ws://").parse().expect("an address")
}

/// The status that comes back.
async fn status(address: SocketAddr, lines: &[&str]) -> u16 {
    let mut raw = Raw::without_info(address).await;
    raw.send(format!("{}\r\n", lines.concat())).await;
    raw.finish_sending().await;
    let answer = raw.until_closed().await;
    answer.split(' ').nth(1).map_or(CLOSED, |status| status.parse().unwrap_or(CLOSED))
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_are_asked_for_as_on_nats_server() {
    let theirs = NatsServer::start_with_config("websocket { listen: \"127.0.0.1:-1\", no_tls: true }\n");
    let there = web_address(&theirs);
    let ours = server_with(|options| {
        options.websocket = Some(WebSocketOptions::at(([127, 0, 0, 1], 0).into()));
    })
    .await;
    let here = ours.websocket_addr().expect("it was asked for");
    let alike = ALIKE.iter().map(|(lines, both)| (*lines, *both, *both));
    let meant = MEANT.iter().map(|(lines, theirs, ours, _)| (*lines, *theirs, *ours));
    let mut wrong = Vec::new();
    for (lines, theirs, ours) in alike.chain(meant) {
        let found = (status(there, lines).await, status(here, lines).await);
        if found != (theirs, ours) {
            wrong.push(format!("{lines:?}: {found:?} and not {:?}", (theirs, ours)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(MEANT.iter().all(|(.., theirs, ours, reason)| theirs != ours && !reason.is_empty()));
}
