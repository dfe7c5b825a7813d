//! What `up` records of conversations, on every backend and of components in every language, as its API tells it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use serde_json::Value;
use trunkline_testkit::{NatsServer, RedisServer, ServerProcess};

use crate::command::{PATIENCE, command, start};

/// The API of a running bus.
struct Api {
    address: String,
    token: String,
}

impl Api {
    /// Of a server that has written its ports file.
    fn of(server: &ServerProcess) -> Self {
        let ports = std::fs::read_to_string(server.directory().join("trunkline.ports")).unwrap();
        let ports: Value = serde_json::from_str(&ports).unwrap();
        let token = ports["admin_token"].as_str().unwrap().to_owned();
        Self { address: server.http().trim_start_matches("http://").to_owned(), token }
    }

    /// Asks for a path, and reads on from behind the head of the answer.
    fn open(&self, path: &str) -> BufReader<TcpStream> {
        let mut socket = TcpStream::connect(&self.address).expect("HTTP is served");
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let Self { address, token } = self;
        write!(
            socket,
            "GET /api/v1{path} HTTP/1.0\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\r\n"
        )
        .unwrap();
        let mut answer = BufReader::new(socket);
        let mut line = String::new();
        answer.read_line(&mut line).unwrap();
        assert!(line.contains(" 200 "), "{path}: {line}");
        while line != "\r\n" {
            line.clear();
            answer.read_line(&mut line).unwrap();
        }
        answer
    }

    fn get(&self, path: &str) -> Value {
        serde_json::from_reader(self.open(path)).unwrap()
    }
}

/// Checks the record of the conversations that `check_conversations` holds. Answers go to inboxes, so that only a server that
/// carries them itself sees every one.
pub(crate) fn check(server: &ServerProcess, sees_everything: bool) {
    let api = Api::of(server);
    let list = api.get("/conversations?limit=1000");
    assert_eq!((&list["enabled"], &list["notRecorded"]), (&true.into(), &0.into()));
    let held = list["conversations"].as_array().unwrap();
    let held: Vec<&Value> = held.iter().filter(|it| it["id"].as_str().unwrap().starts_with("c-")).collect();
    // Four players of three parts, three cities each.
    assert_eq!(held.len(), 4 * 4 * 4 * 3, "{list}");
    for summary in held {
        let id = summary["id"].as_str().unwrap();
        let record = api.get(&format!("/conversations/{id}"));
        let seen = record["observations"].as_array().unwrap();
        let published = |suffix: &str, by: &str| {
            let is = |seen: &&Value| {
                seen["what"] == "published" && seen["subject"].as_str().unwrap().ends_with(suffix)
            };
            let found: Vec<&Value> = seen.iter().filter(is).collect();
            let [found] = found.as_slice() else { panic!("{suffix} {} times in {record:#}", found.len()) };
            assert!(found["from"].as_str().unwrap().starts_with(by), "{record:#}");
            assert_eq!(found["conversationId"], id, "{record:#}");
            assert!(found["body"]["json"].is_object() && found["traceId"].is_string(), "{record:#}");
            assert!(
                !sees_everything || found["to"].as_array().is_some_and(|to| !to.is_empty()),
                "{record:#}"
            );
        };
        published(".inbound", "channel-");
        published(".call", "gateway-");
        published(".result", "tool-");
        published(".outbound", "gateway-");
        assert_eq!(summary["omitted"], 0, "{record:#}");
        let answer = seen.iter().find(|seen| seen["subject"].as_str().unwrap().starts_with("_INBOX."));
        if sees_everything && !id.ends_with("-Limbo") {
            let answer = answer.unwrap_or_else(|| panic!("no answer in {record:#}"));
            let expected = if id.ends_with("-Oslo") { "answered" } else { "answeredError" };
            assert_eq!(answer["outcome"], expected, "{record:#}");
            assert_eq!(summary["state"], "quiet", "{record:#}");
        }
    }
}

/// Runs the demo with these arguments and variables until one of its conversations is over, and looks at its record.
fn demo(arguments: &[&str], variables: &[(&str, &str)], sees_receivers: bool) {
    let free = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let mut up = command(&[&["up", "--demo"], arguments, &free].concat());
    up.env("TRUNKLINE_SERVER_AUTH_ADMIN_TOKEN", "t0ken").envs(variables.iter().copied());
    let mut up = start(up, b"");
    let line = up.until_it_says("http  ");
    let address = line.split_once("http://").unwrap().1.split_whitespace().next().unwrap().to_owned();
    let api = Api { address, token: "t0ken".to_owned() };
    let mut events = api.open("/observations?pattern=nachos.analytics.turn&after=0");
    let turn: Value = loop {
        let mut line = String::new();
        assert!(events.read_line(&mut line).unwrap() > 0, "the events ended");
        if let Some(data) = line.strip_prefix("data: ") {
            break serde_json::from_str(data).unwrap();
        }
    };
    let id = turn["conversationId"].as_str().unwrap();
    let record = api.get(&format!("/conversations/{id}"));
    let seen = record["observations"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let hops: BTreeSet<(String, String)> = seen
        .iter()
        .filter(|seen| seen["what"] == "published")
        .map(|seen| (text(&seen["subject"]), text(&seen["from"])))
        .collect();
    let hop = |subject: &str, from: &str| {
        let found = hops.iter().find(|(s, f)| s.starts_with(subject) && f == from);
        assert!(found.is_some(), "{subject} of {from} is missing in {hops:?}: {record:#}");
    };
    let channel = if id.contains("slack") { "slack" } else { "web" };
    let channel = if hops.iter().any(|(_, from)| from == "slack") { "slack" } else { channel };
    hop(&format!("nachos.channel.{channel}.inbound"), channel);
    hop("nachos.llm.request", "gateway");
    hop("_INBOX.", "llm");
    hop(&format!("nachos.channel.{channel}.outbound"), "gateway");
    let is_handled = |seen: &&Value| seen["what"] == "handled" && seen["subject"] == "nachos.llm.request";
    let handled = seen.iter().find(is_handled).unwrap_or_else(|| panic!("nobody handled: {record:#}"));
    assert_eq!((&handled["to"][0], &handled["outcome"]), (&"llm".into(), &"answered".into()), "{record:#}");
    if sees_receivers {
        let asked = seen.iter().find(|seen| seen["subject"] == "nachos.llm.request").unwrap();
        let to = asked["to"].as_array().unwrap();
        assert!(to.contains(&"llm".into()), "{record:#}");
    }
    let participants = record["summary"]["participants"].as_array().unwrap();
    for name in [channel, "gateway", "llm"] {
        assert!(participants.contains(&name.into()), "{participants:?}");
    }
}

#[test]
fn a_conversation_of_the_demo_is_recorded_in_memory() {
    demo(&[], &[], true);
}

#[test]
fn a_conversation_of_the_demo_is_recorded_on_redis() {
    let redis = RedisServer::start_volatile();
    demo(&["--backend", "redis"], &[("REDIS_URL", redis.url())], false);
}

#[test]
fn a_conversation_of_the_demo_is_recorded_on_nats() {
    let nats = NatsServer::start::<&str>([]);
    demo(&["--backend", "nats"], &[("NATS_URL", nats.url())], false);
}
