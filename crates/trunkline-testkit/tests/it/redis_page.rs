//! The operator's page for Redis: every command on it works, on a server that a bus has used.

use std::process::Command;
use std::time::Duration;

use trunkline::backend::redis::{ACL_RULES, RedisBackend, RedisOptions};
use trunkline::backend::{Backend, ConsumerConfig, PublishOptions, Start, StreamConfig, SubscribeOptions};
use trunkline::config::RedisUrl;
use trunkline::{Message, Subject};
use trunkline_testkit::{RedisServer, RedisVersion};

const PAGE: &str = include_str!("../../../../docs/redis.md");

/// The lines of all blocks of shell commands.
fn commands() -> Vec<&'static str> {
    let mut commands = Vec::new();
    let mut within = false;
    for line in PAGE.lines() {
        match line {
            "```sh" => within = true,
            "```" => within = false,
            line if within => commands.push(line),
            _ => {}
        }
    }
    commands
}

/// A bus that has left its traces: a stream, a consumer with a message at work, subscriptions and a dead letter.
async fn used(server: &RedisServer) -> RedisBackend {
    let url = RedisUrl::parse(server.url()).expect("a URL");
    let backend = RedisBackend::connect(RedisOptions::new(url)).await.expect("the server is up");
    let streams = backend.streams().expect("redis has streams");
    let tasks = StreamConfig::new("tasks", vec!["nachos.tool.*.task".parse().expect("a pattern")]);
    streams.ensure(tasks).await.expect("a stream");
    let config = ConsumerConfig { start: Start::Beginning, ..ConsumerConfig::new("workers") };
    let member = streams.join("tasks", config).await.expect("a member");
    for subject in ["nachos.tool.search.task", "nachos.tool.search.result", "nachos.dead.tasks.workers"] {
        let message = Message::new(subject.parse::<Subject>().expect("a subject"), "payload");
        backend.publish(message, PublishOptions::default()).outcome().await.expect("stored");
    }
    let queue =
        SubscribeOptions { queue: Some("q".parse().expect("a token")), ..SubscribeOptions::default() };
    let pattern = "nachos.tool.>".parse().expect("a pattern");
    let source = backend.subscribe(pattern, queue).await.expect("a subscription");
    let fetched = member.fetch(1, Duration::from_secs(10)).await.expect("a live connection");
    assert_eq!(fetched.deliveries.len(), 1);
    drop(source);
    backend
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_page_works() {
    for version in [RedisVersion::System, RedisVersion::Redis8, RedisVersion::Valkey] {
        let server = RedisServer::start_durable(version);
        let backend = used(&server).await;
        let commands = commands();
        assert!(commands.len() > 20, "{commands:?}");
        let (last, others) = commands.split_last().expect("the page has commands");
        for command in others {
            shell(&server, command);
        }
        // The user of the page can do all that a bus does.
        let url = server.url().replace("redis://", "redis://bus:password@");
        let bus = RedisOptions::new(RedisUrl::parse(&url).expect("a URL"));
        let limited = RedisBackend::connect(bus).await.expect("its rights suffice");
        let message = Message::new("nachos.tool.x.task".parse::<Subject>().expect("a subject"), "payload");
        limited.publish(message, PublishOptions::default()).outcome().await.expect("stored");
        let streams = limited.streams().expect("redis has streams");
        assert_eq!(streams.list().await.expect("its rights suffice").len(), 1);
        let member = streams
            .join("tasks", ConsumerConfig { start: Start::Beginning, ..ConsumerConfig::new("others") })
            .await
            .expect("its rights suffice");
        assert!(
            !member
                .fetch(1, Duration::from_secs(10))
                .await
                .expect("its rights suffice")
                .deliveries
                .is_empty()
        );
        member.leave().await.expect("its rights suffice");
        // In the end nothing of the prefix is left.
        let by = std::time::Instant::now() + Duration::from_secs(10);
        limited.drain(by).await.expect("nothing is under way");
        backend.drain(by).await.expect("nothing is under way");
        shell(&server, last);
        assert_eq!(shell(&server, "redis-cli DBSIZE").trim(), "0", "{version:?}");
    }
}

/// Runs a line as an operator would, against this server, and gives what it prints.
fn shell(server: &RedisServer, line: &str) -> String {
    let line = line.replace("redis-cli", &format!("redis-cli -p {}", server.port()));
    let ran = Command::new("sh").arg("-c").arg(&line).output().expect("there is a shell");
    let (said, error) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    let refused = said.lines().any(|line| line.starts_with("ERR ") || line.starts_with("(error)"));
    assert!(ran.status.success() && !refused && error.is_empty(), "{line}: {said}{error}");
    said.into_owned()
}

#[test]
fn page_allows_its_user_what_the_bus_needs() {
    let setting = commands().into_iter().find(|line| line.contains("ACL SETUSER")).expect("a user is set");
    let words: Vec<String> = setting.split(' ').map(|word| word.replace('\'', "")).collect();
    let rules: Vec<&str> = words.iter().map(String::as_str).filter(|word| word.starts_with('+')).collect();
    assert_eq!(rules, ACL_RULES.split_whitespace().collect::<Vec<_>>());
}
