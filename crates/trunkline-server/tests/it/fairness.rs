//! One client that asks for too much, or is on its way out, costs the others nothing.

use std::io::Write as _;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::time::timeout;
use trunkline::backend::memory::{Inbox, Target};
use trunkline_core::Role;
use trunkline_server::WebSocketOptions;

use super::client::{Raw, json, within};
use super::fixture::Fixture;

/// A round trip of a client whose turn comes takes milliseconds; of one that has to wait for the other to be done, far
/// longer than this.
const SOON: Duration = Duration::from_secs(5);

/// On one thread, where a task that never waits would be the only one that runs.
#[tokio::test]
async fn a_client_that_sends_without_pause_leaves_room_for_others() {
    let mut fixture = Fixture::with(|options| options.threads = 0).await;
    let mut other = fixture.client().await;
    fixture.without_bystander();
    let inbox = Arc::new(Inbox::new(1 << 20));
    let target = Target::Inbox(inbox.clone());
    fixture.hub.router().insert(&"flood".parse().expect("a pattern"), Role::Subscriber, target);
    let mut socket = std::net::TcpStream::connect(fixture.nats()).expect("the server listens");
    socket.write_all(b"CONNECT {\"verbose\":false}\r\n").expect("the connection stands");
    // The server has taken the connection and waits for more.
    fixture.varz_becomes("connections", 2).await;
    other.flush().await;
    // All that the system takes, before the server runs again.
    socket.set_nonblocking(true).expect("a connected socket");
    let message = format!("PUB flood 64\r\n{}\r\n", "x".repeat(64));
    let mut sent = 0;
    while let Ok(n) = socket.write(&message.as_bytes()[sent % message.len()..]) {
        sent += n;
    }
    assert!(sent > 3 << 20, "the system took only {sent} bytes");
    assert_eq!(other.flush().await, "");
    let mut events = Vec::new();
    let _ = inbox.poll_batch(&mut Context::from_waker(Waker::noop()), usize::MAX, &mut events);
    let done = events.len() * message.len();
    // A turn of a mebibyte before the other's, and one more before this test has its own: they share the thread.
    assert!(done < 5 << 19, "the other's turn came after {done} of {sent} bytes");
}

/// Opens a WebSocket to this server; what is written to it must be frames.
async fn web(fixture: &Fixture) -> std::net::TcpStream {
    let address = fixture.server.websocket_addr().expect("it was asked for");
    let mut raw = Raw::without_info(address).await;
    raw.send(format!(
        "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ))
    .await;
    while !raw.line().await.is_empty() {}
    raw.into_std()
}

/// A whole frame, with a mask that changes nothing.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short one");
    [&[0x80 | opcode, 0x80 | length, 0, 0, 0, 0], payload].concat()
}

const BINARY: u8 = 2;
const PING: u8 = 9;

/// On one thread, as above. Frames without anything in them are nothing to act on, and work all the same.
#[tokio::test]
async fn a_client_that_sends_empty_frames_leaves_room_for_others() {
    let mut fixture = Fixture::with(|options| {
        options.threads = 0;
        options.websocket = Some(WebSocketOptions::at(([127, 0, 0, 1], 0).into()));
    })
    .await;
    let mut other = fixture.client().await;
    fixture.without_bystander();
    other.send("SUB done 1\r\n").await;
    let mut socket = web(&fixture).await;
    socket.write_all(&frame(BINARY, b"CONNECT {\"verbose\":false}\r\n")).expect("the connection stands");
    other.flush().await;
    // As much as the system takes, less what a message at the end needs.
    socket.set_nonblocking(true).expect("a connected socket");
    let empty = frame(BINARY, b"").repeat(1000);
    let mut sent = 0;
    while sent < 3 << 20
        && let Ok(n) = socket.write(&empty[sent % empty.len()..])
    {
        sent += n;
    }
    assert!(sent > 2 << 20, "the system took only {sent} bytes");
    assert_eq!(other.flush().await, "", "the other's turn comes before all of it was looked at");
    // And all of it is looked at.
    socket.set_nonblocking(false).expect("a connected socket");
    let rest = [&empty[sent % empty.len()..], &frame(BINARY, b"PUB done 0\r\n\r\n")].concat();
    let sending = tokio::task::spawn_blocking(move || socket.write_all(&rest).map(|()| socket));
    let _socket = within("the rest", sending).await.expect("no panic").expect("the connection stands");
    other.expect("MSG done 1 0\r\n\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_pings_and_reads_nothing_is_not_answered_without_end() {
    let fixture = Fixture::with(|options| {
        options.websocket = Some(WebSocketOptions::at(([127, 0, 0, 1], 0).into()));
    })
    .await;
    let socket = web(&fixture).await;
    socket.set_nonblocking(true).expect("a connected socket");
    let mut socket = tokio::net::TcpStream::from_std(socket).expect("a socket of this runtime");
    let pings = frame(PING, &[b'p'; 100]).repeat(1000);
    let mut sent = 0;
    // As long as the server takes them.
    while sent < 128 << 20
        && let Ok(n) = timeout(Duration::from_secs(1), socket.write(&pings[sent % pings.len()..])).await
    {
        sent += n.expect("the connection stands");
    }
    assert!(sent < 64 << 20, "{sent} bytes of pings were taken, and their answers wait");
    // Once it reads, it is read again.
    let (mut read, mut write) = socket.into_split();
    let reading = tokio::spawn(async move {
        let (mut buffer, mut end) = (vec![0; 64 << 10], Vec::new());
        while !end.ends_with(b"PONG\r\n") {
            let n = read.read(&mut buffer).await.expect("the connection stands");
            assert!(n > 0, "it was closed");
            end = buffer[n.saturating_sub(6)..n].to_vec();
        }
    });
    let rest =
        [&pings[sent % pings.len()..], &frame(BINARY, b"CONNECT {\"verbose\":false}\r\nPING\r\n")].concat();
    within("the rest", write.write_all(&rest)).await.expect("the connection stands");
    within("an answer", reading).await.expect("no panic");
}

#[tokio::test]
async fn a_batch_that_concerns_very_many_subscriptions_is_done_in_turns() {
    let mut fixture = Fixture::start().await;
    let mut other = fixture.client().await;
    let mut wide = Raw::ready(fixture.nats(), "\"echo\":false").await;
    let subscriptions: String = (0..20_000).map(|n| format!("SUB wide {n}\r\n")).collect();
    wide.send(subscriptions).await;
    wide.flush().await;
    // One read batch, and far more work than a turn.
    wide.send("PUB wide 0\r\n\r\n".repeat(18_000)).await;
    for _ in 0..3 {
        let started = Instant::now();
        other.flush().await;
        assert!(started.elapsed() < SOON, "a round trip took {:?}", started.elapsed());
    }
    fixture.without_bystander();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_for_another_turn_is_done_in_order() {
    let mut fixture = Fixture::start().await;
    let mut wide = fixture.client().await;
    wide.send((0..5_000).map(|n| format!("SUB wide.{n}.* {n}\r\nSUB wide.> x{n}\r\n")).collect::<String>())
        .await;
    wide.flush().await;
    let mut publisher = fixture.client().await;
    let batch: String = (0..200).map(|n| format!("PUB wide.{n}.a 3\r\n{n:03}\r\n")).collect();
    publisher.send(batch).await;
    assert_eq!(publisher.flush().await, "");
    let got = wide.flush().await;
    let mut payloads: Vec<&str> = got.lines().skip(1).step_by(2).collect();
    assert_eq!(payloads.len(), 200 * 5_001);
    payloads.dedup();
    assert_eq!(payloads, (0..200).map(|n| format!("{n:03}")).collect::<Vec<_>>());
    fixture.bystander_is_fine().await;
}

/// A client with little room in its socket for whom something waits.
async fn behind(fixture: &Fixture, messages: usize) -> Raw {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(64 << 10).expect("a size that is possible");
    let stream = within("connect", socket.connect(fixture.nats())).await.expect("the server listens");
    let mut raw = Raw::over(stream);
    raw.send("CONNECT {\"verbose\":false}\r\nSUB flood 1\r\nPING\r\n").await;
    while raw.line().await != "PONG" {}
    let mut publisher = fixture.client().await;
    let message = format!("PUB flood 65536\r\n{}\r\n", "x".repeat(65536));
    publisher.send(message.repeat(messages)).await;
    assert_eq!(publisher.flush().await, "");
    let page = json(fixture.http(), "/connz?sort=pending").await;
    assert!(page["connections"][0]["pending_bytes"].as_u64() > Some(0), "something waits: {page}");
    raw
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_sent_away_is_no_member_of_its_queue_groups_any_more() {
    let mut fixture = Fixture::start().await;
    let mut leaving = behind(&fixture, 300).await;
    let mut worker = fixture.client().await;
    worker.send("SUB work q 1\r\n").await;
    worker.flush().await;
    leaving.send("SUB work q 2\r\nwhat\r\n").await;
    // The bystander's and the worker's; the connection itself waits for its reader.
    fixture.varz_becomes("subscriptions", 2).await;
    let mut publisher = fixture.client().await;
    publisher.send("PUB work 1\r\nx\r\n".repeat(100)).await;
    assert_eq!(publisher.flush().await, "");
    assert_eq!(worker.flush().await, "MSG work 1 1\r\nx\r\n".repeat(100));
    assert!(
        leaving.until_closed().await.ends_with("-ERR 'Unknown Protocol Operation'\r\n"),
        "it got the rest"
    );
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_sends_what_waits_to_a_client_that_goes_on_sending() {
    let mut fixture = Fixture::start().await;
    let mut reader = behind(&fixture, 200).await;
    fixture.without_bystander();
    let address = fixture.nats();
    let stopping = tokio::spawn(async move { fixture.server.shutdown(Duration::from_secs(20)).await });
    within("the listener's end", async { while tokio::net::TcpStream::connect(address).await.is_ok() {} })
        .await;
    // What nobody reads any more must not make the system throw away what was sent.
    reader.send("PING\r\n".repeat(1000)).await;
    let got = reader.until_closed().await;
    assert_eq!(got.matches("MSG flood 1 65536\r\n").count(), 200);
    assert!(got.len() >= 200 * 65536, "{} bytes", got.len());
    within("shutdown", stopping).await.expect("shutdown ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_of_a_subscription_is_free_with_its_last_delivery() {
    let mut fixture = Fixture::start().await;
    let mut raw = fixture.client().await;
    let publish = |text: &str| format!("PUB s 1\r\n{text}\r\n");
    raw.send(format!("SUB s 1\r\nUNSUB 1 1\r\n{}SUB s 1\r\n{}", publish("a"), publish("b"))).await;
    assert_eq!(raw.flush().await, "MSG s 1 1\r\na\r\nMSG s 1 1\r\nb\r\n");
    // The one before is not mistaken for it later.
    raw.send(publish("c")).await;
    assert_eq!(raw.flush().await, "MSG s 1 1\r\nc\r\n");
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_listening_is_told_once_and_takes_no_place_of_a_limit() {
    let mut fixture = Fixture::start().await;
    let mut raw = Raw::ready(fixture.nats(), "\"headers\":true,\"no_responders\":true").await;
    raw.send("SUB i.1 1\r\nUNSUB 1 1\r\nSUB i.2 2\r\nSUB i.* 2b\r\nSUB i.> 2c\r\n").await;
    raw.send("PUB nobody i.2 0\r\n\r\n").await;
    assert_eq!(raw.flush().await.matches("NATS/1.0 503").count(), 1);
    raw.send("UNSUB 2b\r\nUNSUB 2c\r\nPUB nobody i.1 0\r\n\r\nPUB i.1 1\r\nx\r\n").await;
    let got = raw.flush().await;
    assert_eq!(
        got,
        "HMSG i.1 1 38 38\r\nNATS/1.0 503\r\nNats-Subject: nobody\r\n\r\n\r\nMSG i.1 1 1\r\nx\r\n"
    );
    fixture.bystander_is_fine().await;
}
