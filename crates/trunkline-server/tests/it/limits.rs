//! Bounds: reaching one is told and counted, concerns who reached it, and leaves everybody else alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket};
use trunkline::backend::memory::Hub;
use trunkline_server::{Server, StartError};

use super::client::{Raw, get, json, within};
use super::fixture::{Fixture, options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_too_many_is_told_and_a_place_that_is_free_can_be_taken() {
    let mut fixture = Fixture::with(|options| options.limits.max_connections = 3).await;
    let first = fixture.client().await;
    let _second = fixture.client().await;
    let mut third = Raw::without_info(fixture.nats()).await;
    assert_eq!(third.until_closed().await, "-ERR 'maximum connections exceeded'\r\n");
    fixture.bystander_is_fine().await;
    drop(first);
    fixture.varz_becomes("connections", 2).await;
    let mut again = fixture.client().await;
    assert_eq!(again.flush().await, "");
    assert_eq!(fixture.varz().await["total_connections"], 4, "one that was refused was not served");
}

/// What one more client is told: it is let in, or it is refused.
async fn come(fixture: &Fixture) -> (Raw, String) {
    let mut raw = Raw::without_info(fixture.nats()).await;
    let first = raw.line().await;
    if first.starts_with("INFO ") {
        raw.send("CONNECT {\"verbose\":false}\r\nPING\r\n").await;
        raw.expect("PONG\r\n").await;
    }
    (raw, first)
}

const REFUSED: &str = "-ERR 'maximum connections exceeded'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_not_said_connect_gives_its_place_to_who_does() {
    let mut fixture = Fixture::with(|options| options.limits.max_connections = 3).await;
    let mut silent = [Raw::connect(fixture.nats()).await, Raw::connect(fixture.nats()).await];
    let mut here = Vec::new();
    for silent in &mut silent {
        // Not at once: whoever has just come is given a moment to say CONNECT.
        let place = async {
            loop {
                let (raw, said) = come(&fixture).await;
                if said.starts_with("INFO ") {
                    return raw;
                }
                assert_eq!(said, REFUSED);
            }
        };
        here.push(within("a place for who speaks", place).await);
        assert_eq!(
            silent.until_closed().await.trim_end(),
            REFUSED,
            "who has been silent for longest is told"
        );
    }
    let (_, said) = come(&fixture).await;
    assert_eq!(said, REFUSED, "nobody who has said CONNECT gives way");
    for raw in &mut here {
        assert_eq!(raw.flush().await, "");
    }
    let page = get(fixture.http(), "/metrics").await.body;
    assert!(page.contains("trunkline_connections_closed_total{reason=\"no_connect\"} 2\n"), "{page}");
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_opens_connections_too_fast_is_refused_for_the_rest_of_the_second() {
    let mut fixture = Fixture::with(|options| options.limits.connection_rate = Some(2)).await;
    let refused = async {
        loop {
            let (_, said) = come(&fixture).await;
            if !said.starts_with("INFO ") {
                return said;
            }
        }
    };
    assert_eq!(within("a connection too many", refused).await, REFUSED);
    let varz = fixture.varz().await;
    assert!(varz["refused_by_rate"].as_u64() >= Some(1), "{varz}");
    assert_eq!(varz["refused_connections"], varz["refused_by_rate"]);
    let admitted = async { while !come(&fixture).await.1.starts_with("INFO ") {} };
    within("the next second", admitted).await;
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_too_many_is_refused_and_the_others_stay() {
    let mut fixture = Fixture::with(|options| options.limits.max_subscriptions = 3).await;
    let mut raw = fixture.client().await;
    raw.send("SUB a 1\r\nSUB b 2\r\nSUB c 3\r\nSUB d 4\r\n").await;
    assert_eq!(raw.flush().await, "-ERR 'maximum subscriptions exceeded'\r\n");
    raw.send("UNSUB 2\r\nSUB d 4\r\nPUB d 1\r\nx\r\n").await;
    assert_eq!(raw.flush().await, "MSG d 4 1\r\nx\r\n");
    let mut other = fixture.client().await;
    other.send("SUB d 1\r\nPUB d 1\r\nx\r\n").await;
    assert_eq!(other.flush().await, "MSG d 1 1\r\nx\r\n", "the bound is each client's own");
    fixture.bystander_is_fine().await;
}

/// A client that subscribed to `flood` and reads nothing from then on, with little room in its socket.
async fn deaf_client(address: SocketAddr) -> Raw {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a size that is possible");
    let mut raw = Raw::over(within("connect", socket.connect(address)).await.expect("the server listens"));
    raw.send("CONNECT {\"verbose\":false}\r\nSUB flood 1\r\nPING\r\n").await;
    while raw.line().await != "PONG" {}
    raw
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_is_cut_off_and_the_others_get_everything() {
    let mut fixture = Fixture::with(|options| options.limits.max_pending = 2 << 20).await;
    let mut deaf = deaf_client(fixture.nats()).await;
    let mut listener = fixture.client().await;
    listener.send("SUB flood 1\r\nPING\r\n").await;
    listener.expect("PONG\r\n").await;
    let mut publisher = fixture.client().await;
    let payload = "x".repeat(1024);
    // Far more than the sockets of the deaf one and its bound hold together.
    for n in 0..320 {
        let message = format!("PUB flood 1024\r\n{payload}\r\n");
        publisher.send(message.repeat(64)).await;
        let expected = format!("MSG flood 1 1024\r\n{payload}\r\n").repeat(64);
        let got = listener.take(expected.len()).await;
        assert!(got == expected.as_bytes(), "batch {n} is not what was published");
    }
    assert_eq!(publisher.flush().await, "");
    fixture.varz_becomes("slow_consumers", 1).await;
    fixture.varz_becomes("connections", 3).await;
    let closed = json(fixture.http(), "/connz?state=closed").await;
    assert_eq!(closed["connections"][0]["reason"], "Slow Consumer (Pending Bytes)");
    assert_eq!(closed["connections"][0]["subscriptions"], 1, "as it was before it was cut off");
    let got = deaf.until_closed().await;
    assert!(got.len() < 320 * 64 * 1024, "the deaf one was cut off before it had everything");
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_stuck_for_the_write_deadline_is_cut_off() {
    let mut fixture = Fixture::with(|options| {
        options.limits.max_pending = 1 << 30;
        options.limits.write_deadline = Duration::from_millis(300);
    })
    .await;
    let deaf = deaf_client(fixture.nats()).await;
    let mut publisher = fixture.client().await;
    let message = format!("PUB flood 1024\r\n{}\r\n", "x".repeat(1024)).repeat(1024);
    for _ in 0..16 {
        publisher.send(&message).await;
    }
    assert_eq!(publisher.flush().await, "");
    fixture.varz_becomes("slow_consumers", 1).await;
    fixture.varz_becomes("connections", 2).await;
    let closed = json(fixture.http(), "/connz?state=closed").await;
    assert_eq!(closed["connections"][0]["reason"], "Slow Consumer (Write Deadline)");
    fixture.bystander_is_fine().await;
    drop(deaf);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_pauses_those_who_flood_it_and_nobody_else() {
    let mut fixture = Fixture::with(|options| {
        options.limits.max_pending = 1 << 30;
        options.limits.write_deadline = Duration::from_secs(60);
    })
    .await;
    let deaf = deaf_client(fixture.nats()).await;
    let mut publisher = fixture.client().await;
    let message = format!("PUB flood 1024\r\n{}\r\n", "x".repeat(1024)).repeat(1024);
    for _ in 0..16 {
        publisher.send(&message).await;
    }
    assert_eq!(publisher.flush().await, "");
    let paused = fixture.varz().await["stalled_clients"].clone();
    assert!(paused.as_u64().is_some_and(|paused| paused > 0), "{paused}");
    let mut polite = fixture.client().await;
    for _ in 0..50 {
        polite.send("PUB flood 1\r\nx\r\n").await;
        assert_eq!(polite.flush().await, "");
    }
    assert_eq!(fixture.varz().await["stalled_clients"], paused, "a little to it costs nobody a pause");
    fixture.bystander_is_fine().await;
    drop(deaf);
}

/// How many connections this process can have both ends of, up to `wanted`.
fn connections_possible(wanted: usize) -> usize {
    const OTHERS: u64 = 400;
    let needed = 2 * wanted as u64 + OTHERS;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    // Raising the hard limit is root's to do; where it fails, the hard limit is what there is.
    if setrlimit(Resource::RLIMIT_NOFILE, needed.max(hard), needed.max(hard)).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit is allowed");
    }
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    wanted.min((soft.saturating_sub(OTHERS) / 2) as usize)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_are_served() {
    let count = connections_possible(10_000);
    assert!(count >= 100, "the limit of open files leaves room for {count} connections only");
    let mut fixture = Fixture::start().await;
    let mut idle = Vec::with_capacity(count);
    for _ in 0..count {
        idle.push(Raw::connect(fixture.nats()).await);
    }
    fixture.varz_becomes("connections", count as u64 + 1).await;
    fixture.bystander_is_fine().await;
    let page = json(fixture.http(), "/connz?limit=100000&sort=idle").await;
    assert_eq!(page["total"], count as u64 + 1);
    assert_eq!(page["connections"].as_array().map(Vec::len), Some(count + 1));
    // The first and the last that came are as good as any.
    let (last, first) = (idle.pop().expect("some"), idle.swap_remove(0));
    for mut raw in [first, last] {
        raw.send("CONNECT {\"verbose\":false}\r\nSUB a 1\r\nPUB a 1\r\nx\r\n").await;
        assert_eq!(raw.flush().await, "MSG a 1 1\r\nx\r\n");
    }
    drop(idle);
    fixture.varz_becomes("connections", 1).await;
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_subscriptions_of_one_client_route() {
    const COUNT: usize = 100_000;
    let mut fixture = Fixture::start().await;
    let mut raw = fixture.client().await;
    let lines: String = (0..COUNT).map(|n| format!("SUB many.{n}.* {n}\r\n")).collect();
    raw.send(lines).await;
    assert_eq!(raw.flush().await, "");
    fixture.varz_becomes("subscriptions", COUNT as u64 + 1).await;
    let mut publisher = fixture.client().await;
    for n in [0, 1, 31_337, COUNT / 2, COUNT - 1] {
        publisher.send(format!("PUB many.{n}.x 1\r\nx\r\n")).await;
        assert_eq!(publisher.flush().await, "");
        assert_eq!(raw.flush().await, format!("MSG many.{n}.x {n} 1\r\nx\r\n"));
    }
    let found = json(fixture.http(), "/subsz?subs=1&test=many.31337.x").await;
    assert_eq!(found["total"], 1);
    assert_eq!(found["subscriptions_list"][0]["sid"], "31337");
    let page = json(fixture.http(), "/subsz?subs=1&offset=50001&limit=10").await;
    assert_eq!(page["total"], COUNT as u64 + 1);
    assert_eq!(page["subscriptions_list"][0]["subject"], "many.50000.*", "behind the bystander's one");
    fixture.bystander_is_fine().await;
    drop(raw);
    fixture.varz_becomes("subscriptions", 1).await;
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_sends_what_waits() {
    let mut fixture = Fixture::start().await;
    let mut reader = fixture.client().await;
    reader.send("SUB flood 1\r\nPING\r\n").await;
    reader.expect("PONG\r\n").await;
    let mut publisher = fixture.client().await;
    // More than the sockets of a reader that does not read hold.
    let payload = "x".repeat(64 << 10);
    publisher.send(format!("PUB flood {}\r\n{payload}\r\n", payload.len()).repeat(500)).await;
    assert_eq!(publisher.flush().await, "");
    let connections = json(fixture.http(), "/connz?sort=pending").await;
    let pending = connections["connections"][0]["pending_bytes"].as_u64().expect("a number");
    assert!(pending > 0, "the reader has not read, so something waits: {connections}");
    fixture.without_bystander();
    let stopping = tokio::spawn(async move { fixture.server.shutdown(Duration::from_secs(20)).await });
    let got = reader.until_closed().await;
    assert_eq!(got.len(), format!("MSG flood 1 {}\r\n{payload}\r\n", payload.len()).len() * 500);
    assert_eq!(within("shutdown", stopping).await.expect("shutdown ends"), 0, "nobody was cut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_cuts_who_does_not_read_when_its_time_is_over() {
    let mut fixture = Fixture::start().await;
    let deaf = deaf_client(fixture.nats()).await;
    let mut publisher = fixture.client().await;
    publisher.send(format!("PUB flood 65536\r\n{}\r\n", "x".repeat(65536)).repeat(200)).await;
    assert_eq!(publisher.flush().await, "");
    fixture.without_bystander();
    let cut = within("shutdown", fixture.server.shutdown(Duration::from_millis(200))).await;
    assert_eq!(cut, 1);
    drop(deaf);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_taken_or_exposed_is_an_error_that_names_the_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let taken = taken.local_addr().map(|address| (address, taken)).expect("an address");
    for setting in ["server.listen", "server.http"] {
        for (address, exposed) in [(taken.0, false), (SocketAddr::from(([0, 0, 0, 0], 0)), true)] {
            let options = options(Arc::new(Hub::default()), |options| match setting {
                "server.listen" => options.listen = address,
                _ => options.http = Some(address),
            });
            let error = Server::start(options).await.expect_err("the address cannot be used");
            match &error {
                StartError::Bind { address: told, setting: named, .. } if !exposed => {
                    assert_eq!((told, *named), (&address, setting));
                }
                StartError::Exposed { address: told, setting: named } if exposed => {
                    assert_eq!((told, *named), (&address, setting));
                }
                other => panic!("{other:?}"),
            }
            assert!(error.hint().contains(setting), "{}", error.hint());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subject_root_that_is_none_is_an_error() {
    for root in ["", "a b", "a..b", "*"] {
        let options = options(Arc::new(Hub::default()), |options| options.subject_root = root.to_owned());
        let error = Server::start(options).await.expect_err("no subject begins so");
        assert!(matches!(&error, StartError::SubjectRoot { root: told, .. } if told == root), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn monitoring_tells_the_truth_under_load() {
    const MESSAGES: u64 = 200_000;
    let mut fixture = Fixture::start().await;
    let (mut listener, mut publisher) = (fixture.client().await, fixture.client().await);
    listener.send("SUB load 1\r\nPING\r\n").await;
    listener.expect("PONG\r\n").await;
    fixture.bystander_is_fine().await;
    let publishing = tokio::spawn(async move {
        let batch = "PUB load 16\r\n0123456789abcdef\r\n".repeat(1000);
        for _ in 0..MESSAGES / 1000 {
            publisher.send(&batch).await;
        }
        assert_eq!(publisher.flush().await, "");
        publisher
    });
    let listening = tokio::spawn(async move {
        listener.take("MSG load 1 16\r\n0123456789abcdef\r\n".len() * MESSAGES as usize).await;
        listener
    });
    let (mut before, mut looks) = (0, 0);
    while !(publishing.is_finished() && listening.is_finished()) || looks == 0 {
        let seen = fixture.varz().await["in_msgs"].as_u64().expect("a number");
        assert!(seen >= before, "a counter went back from {before} to {seen}");
        assert_eq!(get(fixture.http(), "/connz?subs=detail&sort=msgs_from").await.status, 200);
        (before, looks) = (seen, looks + 1);
    }
    let (_publisher, _listener) = (publishing.await.expect("published"), listening.await.expect("listened"));
    let page = json(fixture.http(), "/connz?subs=detail&sort=msgs_to").await;
    let row = |sort: &str, field: &str| {
        let rows = page["connections"].as_array().expect("a list");
        let row = rows.iter().find(|row| row[field] == MESSAGES);
        row.unwrap_or_else(|| panic!("{sort}: nobody with {MESSAGES} {field} in {page}")).clone()
    };
    assert_eq!(row("listener", "out_msgs")["subscriptions_list_detail"][0]["msgs"], MESSAGES);
    assert_eq!(row("publisher", "in_msgs")["in_bytes"], MESSAGES * 16);
    fixture.bystander_is_fine().await;
}
