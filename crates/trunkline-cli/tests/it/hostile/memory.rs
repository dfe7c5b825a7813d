//! What takes memory: everything that a client can make the server keep.

use std::io::{Read as _, Write as _};
use std::thread;
use std::time::Instant;

use super::{Bystander, MEMORY, Target, Wire};
use crate::command::PATIENCE;

#[test]
fn readers_that_do_not_read_are_cut_off_before_the_process_has_too_much() {
    let target = Target::start("");
    let mut bystander = Bystander::new(&target);
    let deaf: Vec<Wire> = (0..6)
        .map(|n| {
            let mut wire = Wire::narrow(target.address());
            // One of them listens to everything.
            let pattern = if n == 0 { ">" } else { "flood" };
            let lines = format!("CONNECT {{\"verbose\":false}}\r\nSUB {pattern} 1\r\nPING\r\n");
            wire.send(lines.as_bytes());
            wire.until("PONG");
            wire
        })
        .collect();
    let mut publisher = target.client();
    let batch = format!("PUB flood 1024\r\n{}\r\n", "x".repeat(1024)).repeat(256);
    // 300 MB for each of them.
    for round in 0..1200 {
        publisher.send(batch.as_bytes());
        if round % 100 == 0 {
            bystander.asks();
        }
    }
    publisher.send(b"PING\r\n");
    assert_eq!(publisher.until("PONG"), [""; 0]);
    target.metric_reaches("trunkline_slow_consumers_total", 6.0);
    assert!(target.metric("trunkline_slow_consumers_cut_off_total{limit=\"memory\"}") >= 1.0);
    assert!(target.metric("trunkline_memory_exceeded_total") >= 1.0);
    let log = target.server.log();
    assert!(log.contains("slow consumer: cut off") && log.contains("pending_bytes="), "{log}");
    bystander.is_fine();
    drop(deaf);
    target.is_within_its_memory();
}

#[test]
fn a_million_subscriptions_are_refused_when_their_share_is_used_up() {
    let target = Target::start("");
    let mut bystander = Bystander::new(&target);
    let hostile = target.client();
    let mut reading = Wire::over(hostile.stream.try_clone().expect("a socket can be cloned"));
    let refusals = thread::spawn(move || {
        let lines = reading.until("PONG");
        assert!(
            lines.iter().all(|line| line == "-ERR 'maximum subscriptions exceeded'"),
            "{:?}",
            lines.first()
        );
        lines.len()
    });
    let mut hostile = hostile;
    for from in (0..1_000_000).step_by(1000) {
        let lines: String = (from..from + 1000).map(|n| format!("SUB many.{n}.* {n}\r\n")).collect();
        hostile.send(lines.as_bytes());
        if from % 100_000 == 0 {
            bystander.asks();
        }
    }
    hostile.send(b"PING\r\n");
    let refused = refusals.join().expect("all of them were refused for the same reason");
    let varz = target.varz();
    let stand = varz["subscriptions"].as_u64().expect("a number");
    assert_eq!(refused as u64 + stand, 1_000_002, "every one was made or refused");
    assert_eq!(varz["refused_subscriptions"].as_u64(), Some(refused as u64));
    assert!(stand > 1000, "{stand} are less than there is room for");
    assert!(target.metric("trunkline_memory_held_bytes{holding=\"subscriptions\"}") > 1e6);
    assert!(target.server.log().contains("runtime.resources.memory"), "{}", target.server.log());
    // Those that were made work.
    hostile.send(b"PUB many.7.x 1\r\n!\r\n");
    assert_eq!((hostile.line().as_deref(), hostile.line().as_deref()), (Some("MSG many.7.x 7 1"), Some("!")));
    bystander.is_fine();
    target.is_within_its_memory();
    // With the client goes what it held.
    drop(hostile);
    let gone = || target.varz()["subscriptions"] == 2 && target.varz()["connections"] == 1;
    while !gone() {
        super::look_again();
    }
    let mut again = target.client();
    again.send(b"SUB many.after 1\r\nPING\r\n");
    assert_eq!(again.until("PONG"), [""; 0]);
}

#[test]
fn patterns_of_many_tokens_are_charged_with_what_they_take() {
    let target = Target::start("");
    let mut bystander = Bystander::new(&target);
    let mut hostile = target.client();
    let deep = ".a".repeat(120);
    for n in 0..500 {
        hostile.send(format!("SUB deep{n}{deep} {n}\r\n").as_bytes());
    }
    hostile.send(b"PING\r\n");
    let lines = hostile.until("PONG");
    let refused = lines.iter().filter(|line| *line == "-ERR 'maximum subscriptions exceeded'").count();
    assert!(refused == lines.len() && (1..500).contains(&refused), "{refused} of 500, {:?}", lines.first());
    bystander.is_fine();
    target.is_within_its_memory();
}

#[test]
fn giant_messages_that_never_end_are_cut_off_and_whole_ones_are_delivered() {
    let target = Target::start("");
    let mut bystander = Bystander::new(&target);
    let connections = target.metric("trunkline_connections");
    let mut hostile: Vec<Wire> = (0..200).map(|_| target.client()).collect();
    // All but the last bytes of a message that is header for the most part: 190 MB together.
    let head = "HPUB giant 1000000 1000100\r\nNATS/1.0\r\nX: ";
    let most = [head.as_bytes(), &vec![b'h'; 950_000]].concat();
    for (n, wire) in hostile.iter_mut().enumerate() {
        // Some are cut off before they have sent so much.
        let _ = wire.stream.write_all(&most);
        if n % 50 == 0 {
            bystander.asks();
        }
    }
    target.metric_reaches("trunkline_connections_closed_total{reason=\"memory\"}", 100.0);
    let was_told = |wire: &mut Wire| {
        let mut words = [0; 256];
        // Some were not cut off, and are told nothing.
        wire.stream.set_nonblocking(true).expect("a socket");
        let n = wire.stream.read(&mut words).unwrap_or_default();
        words[..n].starts_with(b"-ERR 'Insufficient Memory'")
    };
    // The first came when there was room; of the last not all were told, as some had sent more than was read.
    let told = hostile.iter_mut().rev().take(150).map(was_told).filter(|told| *told).count();
    assert!(told > 0, "nobody was told why");
    bystander.is_fine();
    drop(hostile);
    // When they are gone, there is room again for those who send all of it.
    target.metric_falls_to("trunkline_connections", connections);
    let mut whole = target.client();
    whole.send(b"SUB giant 1\r\n");
    let header = format!("NATS/1.0\r\nX: {}\r\n\r\n", "h".repeat(999_000));
    let (size, total) = (header.len(), header.len() + 5);
    whole.send(format!("HPUB giant {size} {total}\r\n{header}hello\r\n").as_bytes());
    assert_eq!(whole.line(), Some(format!("HMSG giant 1 {size} {total}")));
    assert_eq!(whole.until("hello").len(), 3);
    // What is given up in pieces of a megabyte goes back to the system with a delay: a fifth too much was seen.
    target.has_exceeded_by_at_most(MEMORY / 3);
}

#[test]
fn one_giant_message_is_not_kept_for_everybody_who_does_not_read_it() {
    let target = Target::start("");
    let mut bystander = Bystander::new(&target);
    // When TCP takes no more, 150 MB would wait for them of a single message.
    let deaf: Vec<Wire> = (0..150)
        .map(|_| {
            let mut wire = Wire::narrow(target.address());
            wire.send(b"CONNECT {\"verbose\":false}\r\nSUB giant 1\r\nPING\r\n");
            wire.until("PONG");
            wire
        })
        .collect();
    let mut publisher = target.client();
    let message = [b"PUB giant 1000000\r\n".as_slice(), &vec![b'g'; 1_000_000], b"\r\nPING\r\n"].concat();
    for _ in 0..10 {
        publisher.send(&message);
        assert_eq!(publisher.until("PONG"), [""; 0], "the publisher is not to blame");
    }
    target.metric_reaches("trunkline_slow_consumers_cut_off_total{limit=\"memory\"}", 100.0);
    bystander.is_fine();
    drop(deaf);
    target.has_exceeded_by_at_most(MEMORY / 3);
}

#[test]
fn what_is_remembered_for_publishers_is_bounded_whatever_their_subjects_are() {
    let target = Target::start("");
    let mut bystander = Bystander::new(&target);
    let mut hostile: Vec<Wire> = (0..60).map(|_| target.client()).collect();
    for (n, wire) in hostile.iter_mut().enumerate() {
        let subject = format!("{n}.{}", "s".repeat(240));
        let lines: String = (0..1024).map(|m| format!("PUB {subject}{m} 0\r\n\r\n")).collect();
        wire.send(lines.as_bytes());
        wire.send(b"PING\r\n");
        assert_eq!(wire.until("PONG"), [""; 0]);
    }
    bystander.is_fine();
    target.is_within_its_memory();
}

#[test]
fn streams_give_up_their_oldest_messages_and_say_how_many() {
    let target = Target::start(
        "messaging: {streams: [{name: big, subjects: ['big.>']}, {name: small, subjects: ['small.>']}]}",
    );
    let mut bystander = Bystander::new(&target);
    let mut publisher = target.client();
    for n in 0..10 {
        publisher.send(format!("PUB small.{n} 4\r\nkept\r\n").as_bytes());
    }
    let batch = format!("PUB big.x 8192\r\n{}\r\n", "x".repeat(8192)).repeat(32);
    for round in 0..500 {
        publisher.send(batch.as_bytes());
        if round % 100 == 0 {
            bystander.asks();
        }
    }
    // The same id twice would be refused; ids of any length are no way to take memory.
    let long = "i".repeat(60_000);
    for n in 0..500 {
        let header = format!("NATS/1.0\r\nNats-Msg-Id: {long}{n}\r\n\r\n");
        let size = header.len();
        publisher.send(format!("HPUB big.id {size} {size}\r\n{header}\r\n").as_bytes());
    }
    publisher.send(b"PING\r\n");
    assert_eq!(publisher.until("PONG"), [""; 0]);
    let (kept, gone) = (
        target.metric("trunkline_stream_messages{stream=\"big\"}"),
        target.metric("trunkline_stream_discarded_messages_total"),
    );
    assert!(kept > 20.0 && gone > 10_000.0 && kept + gone == 16_500.0, "{kept} kept, {gone} gone");
    assert_eq!(target.metric("trunkline_stream_messages{stream=\"small\"}"), 10.0, "the largest gives way");
    assert!(target.server.log().contains("runtime.resources.memory"), "{}", target.server.log());
    bystander.is_fine();
    target.is_within_its_memory();
}

#[test]
fn connections_beyond_their_share_are_refused_and_told() {
    let target = Target::start("");
    let mut bystander = Bystander::new(&target);
    let mut storm = Vec::new();
    for n in 0..1500 {
        let mut wire = Wire::connect(target.address());
        // Otherwise its place would go to the next. One that is refused may be closed by now; the last one listens only.
        if n < 1499 {
            let _ = wire.stream.write_all(b"CONNECT {}\r\n");
        }
        storm.push(wire);
        if n % 300 == 0 {
            bystander.asks();
        }
    }
    let last = storm.last_mut().expect("some").line();
    assert_eq!(last.as_deref(), Some("-ERR 'maximum connections exceeded'"));
    assert!(storm[0].line().is_some_and(|line| line.starts_with("INFO ")), "the first are served");
    let refused = target.varz()["refused_connections"].as_u64().expect("a number");
    assert!((100..1500).contains(&refused), "{refused}");
    bystander.is_fine();
    target.is_within_its_memory();
}

#[test]
fn frames_of_websockets_that_never_end_are_cut_off() {
    let target = Target::start("server: {websocket: {listen: '127.0.0.1:0', same_origin: false}}");
    let mut bystander = Bystander::new(&target);
    let varz = target.varz();
    let port = varz["websocket"]["port"].as_u64().expect("a port") as u16;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let mut hostile: Vec<Wire> = (0..60)
        .map(|_| {
            let mut wire = Wire::connect(address);
            wire.send(
                b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                  Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
            );
            wire.until("");
            wire
        })
        .collect();
    // A masked binary frame of 2 MiB, all but its end: 120 MB together.
    let length = 2_u64 << 20;
    let head = [&[0x82, 0x80 | 127], &length.to_be_bytes()[..], &[0; 4]].concat();
    let most = [head, vec![b'x'; length as usize - 100]].concat();
    for wire in &mut hostile {
        let _ = wire.stream.write_all(&most);
        bystander.asks();
    }
    target.metric_reaches("trunkline_connections_closed_total{reason=\"memory\"}", 20.0);
    bystander.is_fine();
    target.is_within_its_memory();
}

#[test]
fn messages_that_there_is_no_memory_for_are_told_at_the_start() {
    let start = |limits: &str| Target::start(&format!("server: {{limits: {{{limits}}}}}"));
    let told = |target: &Target| {
        let log = target.server.log();
        log.lines().find(|line| line.contains("server.limits.max_payload is larger")).map(str::to_owned)
    };
    let target = start("max_payload: 60MiB, max_pending: 60MiB");
    let since = Instant::now();
    let line = loop {
        if let Some(line) = told(&target) {
            break line;
        }
        assert!(since.elapsed() < PATIENCE, "no warning: {}", target.server.log());
    };
    let configured = format!("configured={MEMORY}");
    for named in ["WARN", "runtime.resources.memory", "max_payload=62914560", &configured, "buffers="] {
        assert!(line.contains(named), "{named} is not in {line}");
    }
    let usual = start("max_payload: 1MiB");
    usual.metric_reaches("trunkline_memory_limit_bytes", 1.0);
    assert_eq!(told(&usual), None);
}
