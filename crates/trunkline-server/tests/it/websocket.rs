//! NATS over WebSocket: the client that browsers use, pages that may not, and frames of every kind.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use trunkline::backend::memory::Hub;
use trunkline_server::{Server, ServerOptions, WebSocketOptions};
use trunkline_testkit::NatsServer;
use trunkline_testkit::clients::ClientLibrary;
use tungstenite::client::IntoClientRequest as _;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};
use tungstenite::{Message, WebSocket};

use super::auth::auth;
use super::client::{self, PATIENCE};
use super::differential::web_address;
use super::fixture::options;
use super::tls::{self, Trust};

async fn server(change: impl FnOnce(&mut ServerOptions)) -> Server {
    let with = |options: &mut ServerOptions| {
        options.websocket = Some(WebSocketOptions::at(([127, 0, 0, 1], 0).into()));
        change(options);
    };
    Server::start(options(Arc::new(Hub::default()), with)).await.expect("free ports")
}

fn address(server: &Server) -> SocketAddr {
    server.websocket_addr().expect("it was asked for")
}

/// Opens a WebSocket as a page of `origin` does.
fn open(address: SocketAddr, origin: Option<&str>) -> Result<WebSocket<TcpStream>, String> {
    let stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a connected socket");
    let mut request = format!("ws://{address}/").into_client_request().expect("a URL");
    if let Some(origin) = origin {
        request.headers_mut().insert("Origin", origin.parse().expect("a value"));
    }
    tungstenite::client(request, stream).map(|(web, _)| web).map_err(|error| error.to_string())
}

/// What the server says next, in whatever frames.
fn next(web: &mut WebSocket<TcpStream>) -> Message {
    web.read().expect("the connection stands")
}

/// Everything up to a line that ends with `end`.
fn text_until(web: &mut WebSocket<TcpStream>, end: &str) -> String {
    let mut all = String::new();
    while !all.ends_with(end) {
        match next(web) {
            Message::Binary(bytes) => all.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("{other:?} after {all:?}"),
        }
    }
    all
}

/// The close frame that the server sends, and what it said before.
fn closing(web: &mut WebSocket<TcpStream>) -> (String, CloseCode) {
    let (before, code, _) = closing_for(web);
    (before, code)
}

/// As [`closing`], with the reason in words.
fn closing_for(web: &mut WebSocket<TcpStream>) -> (String, CloseCode, String) {
    let mut before = String::new();
    loop {
        match next(web) {
            Message::Binary(bytes) => before.push_str(&String::from_utf8_lossy(&bytes)),
            Message::Close(Some(frame)) => return (before, frame.code, frame.reason.to_string()),
            other => panic!("{other:?} after {before:?}"),
        }
    }
}

/// A frame of this text without a mask.
fn bare_frame(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = FrameHeader { is_final: true, opcode: OpCode::Data(Data::Binary), ..FrameHeader::default() };
    header.format(text.len() as u64, &mut bytes).expect("a header");
    bytes.extend_from_slice(text);
    bytes
}

/// The two INFOs of a client that says this, and a PING among it.
pub(crate) fn introduced(address: SocketAddr, hello: String) -> [String; 2] {
    let mut web = open(address, None).expect("a WebSocket");
    let line = |web: &mut WebSocket<TcpStream>| text_until(web, "\r\n").trim_end().to_owned();
    let first = line(&mut web);
    web.send(Message::binary(hello.into_bytes())).expect("the connection stands");
    let mut behind = line(&mut web);
    while !behind.contains("INFO ") {
        behind = line(&mut web);
    }
    let second = behind.lines().find(|line| line.starts_with("INFO ")).expect("an INFO");
    [first, second.to_owned()]
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_whose_name_was_made_to_lead_here_is_refused() {
    let server = server(|_| {}).await;
    let at = address(&server);
    let ask = async |host: String| {
        let mut raw = client::Raw::without_info(at).await;
        raw.send(format!(
            "GET / HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ))
        .await;
        raw.line().await
    };
    assert_eq!(ask(at.to_string()).await, "HTTP/1.1 101 Switching Protocols");
    assert_eq!(ask(format!("localhost:{}", at.port())).await, "HTTP/1.1 101 Switching Protocols");
    // What a browser sends for a page of evil.example once that resolves to this machine.
    assert_eq!(ask(format!("evil.example:{}", at.port())).await, "HTTP/1.1 403 Forbidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_browsers_works_over_ws() {
    let server = server(|_| {}).await;
    let url = server.websocket_url().expect("it was asked for");
    assert!(url.starts_with("ws://"), "{url}");
    tls::clients::run(ClientLibrary::WebSocket, url, Vec::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_browsers_works_over_wss() {
    let trust = Trust::make();
    let server = server(|options| options.tls = Some(trust.options())).await;
    let url = server.websocket_url().expect("it was asked for");
    assert!(url.starts_with("wss://"), "{url}");
    let ca = trust.authority.ca_file().to_str().expect("a path that is text").to_owned();
    tls::clients::run(ClientLibrary::WebSocket, url, vec![("NODE_EXTRA_CA_CERTS", ca)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_are_refused() {
    let server = server(|options| {
        let websocket = options.websocket.as_mut().expect("set above");
        websocket.allowed_origins = vec!["https://chat.example.org".to_owned()];
    })
    .await;
    let address = address(&server);
    let own = format!("http://{address}");
    blocking(move || {
        for allowed in [None, Some("https://chat.example.org"), Some(&*own)] {
            let mut web = open(address, allowed).unwrap_or_else(|error| panic!("{allowed:?}: {error}"));
            assert!(text_until(&mut web, "\r\n").starts_with("INFO {"));
        }
        for refused in ["https://evil.example.org", "null", "http://chat.example.org"] {
            let error = open(address, Some(refused)).expect_err("another origin");
            assert!(error.contains("403"), "{refused}: {error}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_of_every_kind_are_understood() {
    let server = server(|_| {}).await;
    let address = address(&server);
    blocking(move || {
        let mut web = open(address, None).expect("a WebSocket");
        let info = text_until(&mut web, "\r\n");
        assert!(info.starts_with("INFO {"), "{info}");
        // As on nats-server the address is that of the listener the client has come to.
        assert!(info.contains(&format!("\"port\":{}", address.port())), "{info}");
        let part = |web: &mut WebSocket<TcpStream>, bytes: &'static [u8], kind, last| {
            let frame = Frame::message(bytes, OpCode::Data(kind), last);
            web.send(Message::Frame(frame)).expect("the connection stands");
        };
        // One operation over three frames, with a ping among them; then several operations in one frame of text.
        part(&mut web, b"CONNECT {\"verb", Data::Binary, false);
        web.send(Message::Ping(b"are you there".as_slice().into())).expect("the connection stands");
        part(&mut web, b"ose\":false}\r\nSUB a", Data::Continue, false);
        part(&mut web, b" 1\r\n", Data::Continue, true);
        assert_eq!(next(&mut web), Message::Pong(b"are you there".as_slice().into()));
        part(&mut web, b"PUB a 2\r\nhi\r\nPING\r\n", Data::Text, true);
        assert_eq!(text_until(&mut web, "PONG\r\n"), "MSG a 1 2\r\nhi\r\nPONG\r\n");
        // Its close is answered with the same code.
        let code = CloseCode::Normal;
        web.close(Some(tungstenite::protocol::CloseFrame { code, reason: "".into() }))
            .expect("open until now");
        assert_eq!(closing(&mut web).1, code);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_frames_end_their_connection_with_the_reason() {
    let server = server(|options| options.limits.max_payload = 1024).await;
    let address = address(&server);
    blocking(move || {
        // No mask, which RFC 6455 forbids.
        let mut web = open(address, None).expect("a WebSocket");
        assert!(text_until(&mut web, "\r\n").starts_with("INFO {"));
        std::io::Write::write_all(web.get_mut(), &bare_frame(b"PING\r\n")).expect("the connection stands");
        let (said, code, reason) = closing_for(&mut web);
        assert_eq!((said.as_str(), code), ("", CloseCode::Protocol));
        assert!(reason.contains("unmasked"), "{reason}");

        // A frame that is larger than any message.
        let mut web = open(address, None).expect("a WebSocket");
        assert!(text_until(&mut web, "\r\n").starts_with("INFO {"));
        let header = FrameHeader {
            is_final: true,
            opcode: OpCode::Data(Data::Binary),
            mask: Some([1, 2, 3, 4]),
            ..FrameHeader::default()
        };
        let mut bytes = Vec::new();
        header.format(64 << 20, &mut bytes).expect("a header");
        std::io::Write::write_all(web.get_mut(), &bytes).expect("the connection stands");
        assert_eq!(closing(&mut web), (String::new(), CloseCode::Size));

        // A control frame that is none.
        let mut web = open(address, None).expect("a WebSocket");
        assert!(text_until(&mut web, "\r\n").starts_with("INFO {"));
        let mut bytes = Vec::new();
        let header = FrameHeader { opcode: OpCode::Control(Control::Reserved(11)), ..header };
        header.format(0, &mut bytes).expect("a header");
        std::io::Write::write_all(web.get_mut(), &bytes).expect("the connection stands");
        assert_eq!(closing(&mut web).1, CloseCode::Protocol);

        // Whole frames, and in them no protocol of ours.
        let mut web = open(address, None).expect("a WebSocket");
        assert!(text_until(&mut web, "\r\n").starts_with("INFO {"));
        web.send(Message::Binary(b"HELLO\r\n".as_slice().into())).expect("the connection stands");
        let (said, code) = closing(&mut web);
        assert!(said.starts_with("-ERR"), "{said}");
        assert_eq!(code, CloseCode::Protocol);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_may_leave_masks_out_where_they_ask_to() {
    let server = server(|_| {}).await;
    let mut raw = client::Raw::without_info(address(&server)).await;
    raw.send(
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nNats-No-Masking: true\r\n\r\n",
    )
    .await;
    // To the letter: not everything that reads it takes names in small letters.
    raw.expect(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nNats-No-Masking: true\r\n\r\n",
    )
    .await;
    raw.line().await;
    raw.send(bare_frame(b"CONNECT {\"verbose\":false}\r\nPING\r\n")).await;
    raw.expect(b"\x82\x06PONG\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_asks_for_no_websocket_gets_an_http_error() {
    let server = server(|_| {}).await;
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 400 "),
        ("POST / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 405 "),
        ("CONNECT {}\r\nPING\r\n\r\n", "HTTP/1.1 400 "),
    ] {
        let mut raw = client::Raw::without_info(address(&server)).await;
        raw.send(request).await;
        let answer = raw.until_closed().await;
        assert!(answer.starts_with(status), "{request:?}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_connect_is_told_inside_and_out() {
    let server = server(|options| options.auth = auth("{users: [{user: ann, password: pw}]}")).await;
    let address = address(&server);
    blocking(move || {
        let mut web = open(address, None).expect("a WebSocket");
        assert!(text_until(&mut web, "\r\n").contains("\"auth_required\":true"));
        let hello = b"CONNECT {\"user\":\"ann\",\"pass\":\"no\"}\r\n".as_slice();
        web.send(Message::Binary(hello.into())).expect("the connection stands");
        // The words are nats-server's.
        let (said, code, reason) = closing_for(&mut web);
        assert_eq!((said.as_str(), code), ("-ERR 'Authorization Violation'\r\n", CloseCode::Policy));
        assert_eq!(reason, "Authentication Failure");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_has_nats_servers_code_and_reason() {
    let server = server(|options| options.limits.max_payload = 1024).await;
    let address = address(&server);
    blocking(move || {
        let hello = "CONNECT {\"verbose\":false}\r\n";
        let line = format!("{hello}SUB {} 1\r\n", "s".repeat(8 << 10));
        let payload = format!("{hello}PUB a 1025\r\n");
        for (operations, code, reason) in [
            (payload, CloseCode::Size, "Maximum Message Payload Exceeded"),
            (line, CloseCode::Policy, "Maximum Control Line Exceeded"),
        ] {
            let mut web = open(address, None).expect("a WebSocket");
            for part in operations.as_bytes().chunks(512) {
                web.send(Message::Binary(part.to_vec().into())).expect("the connection stands");
            }
            let (said, got, why) = closing_for(&mut web);
            assert_eq!((got, why.as_str()), (code, reason), "{said}");
        }
    })
    .await;
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn monitoring_shows_the_listener_and_its_clients() {
    let server = server(|_| {}).await;
    let (address, http) = (address(&server), server.http_addr().expect("served by default"));
    let web = blocking(move || {
        let mut web = open(address, None).expect("a WebSocket");
        assert!(text_until(&mut web, "\r\n").starts_with("INFO {"));
        web
    })
    .await;
    let varz = client::json(http, "/varz").await;
    assert_eq!(varz["websocket"]["port"], address.port(), "{varz}");
    assert_eq!(varz["websocket"]["no_tls"], true, "{varz}");
    let connz = client::json(http, "/connz").await;
    assert_eq!(connz["connections"][0]["type"], "websocket", "{connz}");
    drop(web);
}

/// A client that has read INFO and said `hello`; up to its PONG, if it has sent PING.
fn entered(address: SocketAddr, hello: &str) -> WebSocket<TcpStream> {
    let mut web = open(address, None).expect("a WebSocket");
    assert!(text_until(&mut web, "\r\n").starts_with("INFO {"));
    if !hello.is_empty() {
        web.send(Message::binary(hello.as_bytes().to_vec())).expect("the connection stands");
    }
    if hello.ends_with("PING\r\n") {
        text_until(&mut web, "PONG\r\n");
    }
    web
}

/// What it is told of its end: errors of the protocol, and the close frame.
fn told(mut web: WebSocket<TcpStream>) -> (String, CloseCode, String) {
    let (said, code, reason) = closing_for(&mut web);
    (said.lines().filter(|line| line.starts_with("-ERR")).collect(), code, reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn why_a_connection_ends_is_said_as_nats_server_says_it() {
    const LISTEN: &str = "websocket { listen: \"127.0.0.1:-1\", no_tls: true }\n";
    const SOON: Duration = Duration::from_millis(300);
    let known: fn(&mut ServerOptions) = |options| {
        options.auth = auth("{users: [{user: ann, password: pw}]}");
        options.auth.timeout = SOON;
    };
    let pinged: fn(&mut ServerOptions) =
        |options| (options.limits.ping_interval, options.limits.ping_max) = (SOON, 1);
    let plain: fn(&mut ServerOptions) = |_| {};
    for (config, change, hello, code, reason) in [
        (
            "authorization {users: [{user: ann, password: pw}], timeout: 0.3}",
            known,
            "",
            CloseCode::Policy,
            "Authentication Timeout",
        ),
        ("ping_interval: 300ms, ping_max: 1", pinged, "CONNECT {}\r\n", CloseCode::Away, "Stale Connection"),
        ("", plain, "CONNECT {}\r\n-ERR 'x'\r\n", CloseCode::Protocol, "Parse Error"),
    ] {
        let theirs = NatsServer::start_with_config(&format!("{LISTEN}{config}"));
        let ours = server(change).await;
        let (there, here) = (web_address(&theirs), address(&ours));
        let (there, here) = blocking(move || (told(entered(there, hello)), told(entered(here, hello)))).await;
        assert_eq!((here.1, here.2.as_str()), (code, reason));
        assert_eq!(here, there);
    }
    let (theirs, ours) = (NatsServer::start_with_config(LISTEN), server(plain).await);
    let (there, here) = (web_address(&theirs), address(&ours));
    let hello = "CONNECT {}\r\nPING\r\n";
    let (there, here) = blocking(move || (entered(there, hello), entered(here, hello))).await;
    theirs.signal(Signal::SIGTERM);
    let (told, _) = tokio::join!(blocking(move || (told(there), told(here))), ours.shutdown(PATIENCE));
    assert_eq!(told.1, (String::new(), CloseCode::Away, "Server Shutdown".to_owned()));
    assert_eq!(told.1, told.0);
}
