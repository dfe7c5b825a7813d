//! What takes places: connections that never come to say anything.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::{Bystander, Target, Wire};
use crate::command::PATIENCE;

/// Until the server closes it.
fn closed_within(stream: &mut TcpStream, limit: Duration) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    let since = Instant::now();
    let mut sink = [0; 4096];
    while let Ok(n) = stream.read(&mut sink)
        && n > 0
    {}
    assert!(since.elapsed() < limit, "it was open for {:?}", since.elapsed());
}

#[test]
fn whoever_does_not_say_who_it_is_has_to_go() {
    let target = Target::start("server: {auth: {token: t}, limits: {auth_timeout: 500ms}}");
    let mut silent: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(target.address()).expect("it listens")).collect();
    let mut slow = Wire::connect(target.address());
    // An operation that is never whole is no answer.
    slow.send(b"CONNECT {\"auth_tok");
    for stream in &mut silent {
        closed_within(stream, PATIENCE);
    }
    assert!(slow.last_words().ends_with("-ERR 'Authentication Timeout'\r\n"));
    target.metric_reaches("trunkline_connections_closed_total{reason=\"auth_timeout\"}", 101.0);
    target.is_within_its_memory();
}

#[test]
fn whoever_asks_for_no_websocket_in_time_has_to_go() {
    let websocket = "{listen: '127.0.0.1:0', handshake_timeout: 500ms}";
    let target = Target::start(&format!("server: {{websocket: {websocket}}}"));
    let mut bystander = Bystander::new(&target);
    let port = target.varz()["websocket"]["port"].as_u64().expect("a port") as u16;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut half: Vec<TcpStream> = (0..50)
        .map(|n| {
            let mut stream = TcpStream::connect(address).expect("it listens");
            if n % 2 == 0 {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: webso").expect("taken");
            }
            stream
        })
        .collect();
    for stream in &mut half {
        closed_within(stream, PATIENCE);
    }
    target.metric_reaches("trunkline_connections_closed_total{reason=\"handshake\"}", 50.0);
    bystander.is_fine();
}

#[test]
fn monitoring_answers_although_every_place_is_taken_by_requests_that_never_end() {
    let target = Target::start("");
    let mut bystander = Bystander::new(&target);
    let authority = target.server.http().trim_start_matches("http://").to_owned();
    // More than there are places for.
    let slow: Vec<TcpStream> = (0..600)
        .map(|_| {
            let mut stream = TcpStream::connect(&authority).expect("it listens");
            let _ = stream.write_all(b"GET /varz HTTP/1.1\r\nHost: a\r\nX-Slow: ");
            stream
        })
        .collect();
    let asked = Instant::now();
    assert!(target.get("/healthz").contains("ok"));
    // Nobody's patience of 10 s has to be over for that.
    assert!(asked.elapsed() < Duration::from_secs(5), "it took {:?}", asked.elapsed());
    assert!(target.metric("trunkline_http_connections_evicted_total") >= 1.0);
    bystander.is_fine();
    drop(slow);
}
