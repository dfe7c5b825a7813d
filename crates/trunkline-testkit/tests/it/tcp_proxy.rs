//! The fault proxy breaks connections as told, and only then.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use trunkline_testkit::TcpProxy;
use trunkline_testkit::tcp_proxy::Lost;

/// Longest wait for what has to come.
const SOON: Duration = Duration::from_secs(5);

/// A server that sends back what it gets, on every connection; it ends with the runtime of the
/// test.
async fn echo_server() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                // A connection that breaks is what these tests are about.
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    (address, serving)
}

async fn proxy() -> TcpProxy {
    let (target, _) = echo_server().await;
    TcpProxy::start(target).await.expect("a free port")
}

async fn connect(proxy: &TcpProxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.expect("the proxy listens")
}

async fn receive(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut received = vec![0; count];
    timeout(SOON, stream.read_exact(&mut received))
        .await
        .expect("the bytes come in time")
        .expect("the connection holds");
    received
}

/// What reading from a connection that has to end gives.
async fn end_of(stream: &mut TcpStream) -> io::Result<usize> {
    timeout(SOON, stream.read(&mut [0; 1])).await.expect("the connection ends in time")
}

#[tokio::test]
async fn bytes_pass_both_ways_and_so_does_the_end() {
    let proxy = proxy().await;
    let stream = connect(&proxy).await;
    let sent: Vec<u8> = (0..4_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let (mut read, mut write) = stream.into_split();
    let sending = {
        let sent = sent.clone();
        tokio::spawn(async move {
            write.write_all(&sent).await?;
            write.shutdown().await
        })
    };
    let mut received = Vec::new();
    timeout(SOON, read.read_to_end(&mut received))
        .await
        .expect("the end comes in time")
        .expect("the connection ends in order");
    assert!(received == sent, "{} of {} bytes came back", received.len(), sent.len());
    sending.await.expect("no panic").expect("everything was sent");
    timeout(SOON, proxy.wait_for_open(0)).await.expect("the connection is let go");
    assert_eq!(proxy.connections_accepted(), 1);
}

#[tokio::test]
async fn cut_resets_old_and_new_connections_until_healed() {
    let proxy = proxy().await;
    let mut stream = connect(&proxy).await;
    stream.write_all(b"x").await.expect("the connection holds");
    assert_eq!(receive(&mut stream, 1).await, b"x");
    assert_eq!(proxy.connections_open(), 1);

    proxy.cut();
    assert_eq!(end_of(&mut stream).await.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
    timeout(SOON, proxy.wait_for_open(0)).await.expect("the connection is let go");
    let mut refused = connect(&proxy).await;
    assert!(end_of(&mut refused).await.is_err());

    proxy.heal();
    let mut healed = connect(&proxy).await;
    healed.write_all(b"y").await.expect("the connection holds");
    assert_eq!(receive(&mut healed, 1).await, b"y");
    assert_eq!(proxy.connections_accepted(), 3);
}

#[tokio::test]
async fn cut_that_is_healed_at_once_still_cuts() {
    let proxy = proxy().await;
    let mut stream = connect(&proxy).await;
    timeout(SOON, proxy.wait_for_open(1)).await.expect("the connection is served");
    proxy.cut();
    proxy.heal();
    assert!(end_of(&mut stream).await.is_err());

    let mut stream = connect(&proxy).await;
    timeout(SOON, proxy.wait_for_accepted(2)).await.expect("the connection is accepted");
    proxy.cut_once();
    assert!(end_of(&mut stream).await.is_err());
    let mut next = connect(&proxy).await;
    next.write_all(b"z").await.expect("the connection holds");
    assert_eq!(receive(&mut next, 1).await, b"z");
}

#[tokio::test]
async fn half_open_connection_is_silent_and_loses_nothing() {
    let proxy = proxy().await;
    let mut stream = connect(&proxy).await;
    stream.write_all(b"before").await.expect("the connection holds");
    assert_eq!(receive(&mut stream, 6).await, b"before");

    proxy.half_open();
    stream.write_all(b"during").await.expect("the connection looks alive");
    let silence = timeout(Duration::from_millis(100), stream.read(&mut [0; 1])).await;
    assert!(silence.is_err(), "something came through: {silence:?}");
    assert_eq!(proxy.connections_open(), 1);

    proxy.heal();
    assert_eq!(receive(&mut stream, 6).await, b"during");
}

#[tokio::test]
async fn delay_holds_each_way_and_keeps_the_order() {
    let proxy = proxy().await;
    let mut stream = connect(&proxy).await;
    let delay = Duration::from_millis(100);
    proxy.delay(delay);
    let started = Instant::now();
    for byte in 0..10_u8 {
        stream.write_all(&[byte]).await.expect("the connection holds");
    }
    assert_eq!(receive(&mut stream, 10).await, (0..10).collect::<Vec<u8>>());
    let taken = started.elapsed();
    assert!(taken >= 2 * delay, "a round trip took {taken:?}");
    // Ten messages wait together, not one after the other.
    assert!(taken < 10 * delay, "a round trip took {taken:?}");
}

#[tokio::test]
async fn unreachable_target_resets_the_client() {
    // Bound and let go again: nobody listens there.
    let target = TcpListener::bind("127.0.0.1:0").await.and_then(|listener| listener.local_addr());
    let proxy = TcpProxy::start(target.expect("a free port")).await.expect("a free port");
    let mut stream = connect(&proxy).await;
    assert!(end_of(&mut stream).await.is_err());
}

#[tokio::test]
async fn dropped_proxy_closes_everything() {
    let proxy = proxy().await;
    let mut stream = connect(&proxy).await;
    timeout(SOON, proxy.wait_for_open(1)).await.expect("the connection is served");
    let address = proxy.address();
    drop(proxy);
    assert!(matches!(end_of(&mut stream).await, Ok(0) | Err(_)));
    assert!(TcpStream::connect(address).await.is_err());
}

/// Sends both halves of a request apart, so that the proxy has to put them together to know it.
async fn send_in_two(stream: &mut TcpStream, first: &[u8], second: &[u8]) {
    stream.write_all(first).await.expect("the proxy reads");
    receive(stream, first.len()).await;
    stream.write_all(second).await.expect("the proxy reads");
}

#[tokio::test]
async fn lost_request_takes_its_connection_along_and_no_other() {
    let proxy = proxy().await;
    let (mut losing, mut other) = (connect(&proxy).await, connect(&proxy).await);
    proxy.lose_next("needle", Lost::Request);
    send_in_two(&mut losing, b"a nee", b"dle here").await;
    timeout(SOON, proxy.wait_for_lost(1)).await.expect("it is noticed");
    // The order is carried out once: the same bytes pass elsewhere.
    other.write_all(b"needle").await.expect("the proxy reads");
    assert_eq!(receive(&mut other, 6).await, b"needle");
    // The server never saw it: after the end of the client's side it ends too, without a byte.
    losing.write_all(b"more").await.expect("the proxy reads");
    losing.shutdown().await.expect("an open connection");
    assert_eq!(end_of(&mut losing).await.expect("an orderly end"), 0);
}

#[tokio::test]
async fn lost_answer_was_sent_by_the_server() {
    let proxy = proxy().await;
    let mut stream = connect(&proxy).await;
    proxy.lose_next("needle", Lost::Answer);
    send_in_two(&mut stream, b"a nee", b"dle here").await;
    timeout(SOON, proxy.wait_for_lost(1)).await.expect("the server answers");
    stream.shutdown().await.expect("an open connection");
    assert_eq!(end_of(&mut stream).await.expect("an orderly end"), 0);
}

#[tokio::test]
async fn injected_answer_comes_between_the_real_ones() {
    let proxy = proxy().await;
    let mut stream = connect(&proxy).await;
    stream.write_all(b"one").await.expect("the proxy reads");
    assert_eq!(receive(&mut stream, 3).await, b"one");
    proxy.inject_answer("???");
    assert_eq!(receive(&mut stream, 3).await, b"???");
    stream.write_all(b"two").await.expect("the proxy reads");
    assert_eq!(receive(&mut stream, 3).await, b"two");
    // Who connects later does not get it.
    let mut later = connect(&proxy).await;
    later.write_all(b"one").await.expect("the proxy reads");
    assert_eq!(receive(&mut later, 3).await, b"one");
}
