//! `$SYS.REQ.USER.INFO`: a client asks who it is to the server. `nats account info` does.

use std::net::SocketAddr;

use serde_json::Value;
use trunkline_testkit::NatsServer;

use super::super::client::Raw;
use super::{server, user};

const THEIRS: &str = r#"
accounts {
  east { users = [
    {user: ann, password: a}
    {user: amy, password: a, permissions: {
      publish: {allow: ["x.>", "$SYS.REQ.USER.INFO"], deny: "x.no"}
      subscribe: {allow: ["a", "b q", "_INBOX.>"], deny: ["c", "d q.*"]}
      allow_responses: {max: 3, expires: "5s"}
    }}
    {user: dan, password: a, permissions: {publish: {deny: "$SYS.>"}}}
  ]}
  west { users = [{user: bob, password: b, permissions: {subscribe: {deny: "$SYS.>"}, publish: "$SYS.REQ.>", allow_responses: true}}] }
}
no_auth_user: bob
"#;

const OURS: &str = r#"
{accounts: {
  east: {users: [
    {user: ann, password: a},
    {user: amy, password: a, permissions: {
      publish: {allow: ["x.>", "$SYS.REQ.USER.INFO"], deny: ["x.no"]},
      subscribe: {allow: ["a", "b q", "_INBOX.>"], deny: ["c", "d q.*"]},
      allow_responses: {max: 3, expires: 5s}
    }},
    {user: dan, password: a, permissions: {publish: {deny: ["$SYS.>"]}}}]},
  west: {users: [{user: bob, password: b, permissions: {
    subscribe: {deny: ["$SYS.>"]}, publish: "$SYS.REQ.>", allow_responses: true}}]}},
 auth: {no_auth_user: bob}}
"#;

/// Of the server: what differs from one to the next, and how nats-server has set its JetStream.
const OF_ITS_OWN: [&str; 6] = ["name", "id", "ver", "seq", "time", "feature_flags"];

/// What a client with these fields of CONNECT is told, and on which subscription.
async fn ask(address: SocketAddr, fields: &str) -> Result<(String, Value), String> {
    let mut raw = Raw::ready(address, fields).await;
    raw.send("SUB _INBOX.me.1 i\r\nPUB $SYS.REQ.USER.INFO _INBOX.me.1 0\r\n\r\n").await;
    loop {
        let line = raw.line().await;
        if line.starts_with("MSG ") {
            let (head, size) = line.rsplit_once(' ').expect("a size");
            let body = raw.take(size.parse().expect("a number")).await;
            return Ok((head.to_owned(), serde_json::from_slice(&body).expect("JSON")));
        }
        if line.starts_with("-ERR") {
            return Err(line);
        }
    }
}

/// With rules in one order: nats-server's is another each time.
fn without(mut answer: Value, fields: &[&str]) -> Value {
    let server = answer["server"].as_object_mut().expect("an object");
    fields.iter().for_each(|field| drop(server.remove(*field)));
    for path in ["publish/allow", "publish/deny", "subscribe/allow", "subscribe/deny"] {
        let rules = answer.pointer_mut(&format!("/data/permissions/{path}")).and_then(Value::as_array_mut);
        rules.into_iter().for_each(|rules| rules.sort_by_key(Value::to_string));
    }
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_who_they_are_as_nats_server_tells_them() {
    let theirs = NatsServer::start_with_config(THEIRS);
    let there = theirs.url().trim_start_matches("nats://").parse().expect("an address");
    let ours = server(OURS).await;
    for fields in [user("ann", "a"), user("amy", "a"), user("dan", "a"), user("bob", "b"), String::new()] {
        let (told, answer) = (ask(there, &fields).await, ask(ours.nats_addr(), &fields).await);
        if let Ok((_, answer)) = &answer {
            assert_eq!(answer["server"]["id"], ours.id());
            assert!(answer["server"]["seq"].is_u64() && answer["server"]["time"].is_string(), "{answer}");
            assert!(!answer.to_string().contains("password"), "{answer}");
        }
        let common = |(head, answer)| (head, without(answer, &OF_ITS_OWN));
        assert_eq!(answer.map(common), told.map(common), "{fields}");
    }
    // Without users, too.
    let (theirs, ours) = (NatsServer::start_with_config(""), server("{}").await);
    let there = theirs.url().trim_start_matches("nats://").parse().expect("an address");
    let (_, told) = ask(there, "").await.expect("an answer");
    let (_, answer) = ask(ours.nats_addr(), "").await.expect("an answer");
    assert_eq!(without(answer, &OF_ITS_OWN), without(told, &OF_ITS_OWN));
    let by_token = server("{auth: {token: s3cret}}").await;
    let (_, answer) = ask(by_token.nats_addr(), "\"auth_token\":\"s3cret\"").await.expect("an answer");
    assert_eq!(answer["data"]["user"], "[REDACTED]");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_somebody_is_is_told_to_nobody_else() {
    let server = server("{users: [{user: a, password: a}, {user: b, password: b, permissions: {publish: [$SYS.REQ.USER.INFO]}}]}")
        .await;
    let mut other = Raw::ready(server.nats_addr(), &user("a", "a")).await;
    other.send("SUB > 1\r\nSUB > q 2\r\n").await;
    assert_eq!(other.flush().await, "");
    // Nothing is published where the client may not publish, nor where the bus alone does.
    let mut asking = Raw::ready(server.nats_addr(), &user("b", "b")).await;
    for reply in ["elsewhere", "nachos.dead.a.b"] {
        asking.send(format!("PUB $SYS.REQ.USER.INFO {reply} 0\r\n\r\n")).await;
        assert_eq!(asking.flush().await, "");
    }
    let seen = other.flush().await;
    assert!(seen.contains("MSG $SYS.REQ.USER.INFO ") && !seen.contains("\"user\":\"b\""), "{seen}");
    assert!(!seen.contains("MSG elsewhere ") && !seen.contains("MSG nachos.dead."), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_who_asks_are_numbered_and_go_where_the_client_may_listen() {
    let server =
        server("{users: [{user: a, password: a, permissions: {subscribe: {deny: ['r.no']}}}]}").await;
    let mut raw = Raw::ready(server.nats_addr(), &user("a", "a")).await;
    raw.send("SUB r.* 1\r\nPUB $SYS.REQ.USER.INFO r.no 0\r\n\r\n").await;
    assert_eq!(raw.flush().await, "");
    let mut numbers = Vec::new();
    for _ in 0..2 {
        let (_, answer) = ask(server.nats_addr(), &user("a", "a")).await.expect("an answer");
        numbers.push(answer["server"]["seq"].as_u64().expect("a number"));
    }
    assert_eq!(numbers[1], numbers[0] + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_who_asks_counts_as_a_delivery() {
    let server = server("{}").await;
    let mut raw = Raw::ready(server.nats_addr(), "\"headers\":true,\"no_responders\":true").await;
    raw.send("SUB r.* q 1\r\nSUB r.x 2\r\nUNSUB 1 1\r\nUNSUB 2 1\r\n").await;
    raw.send("PUB $SYS.REQ.USER.INFO r.x 0\r\n\r\nPUB $SYS.REQ.USER.INFO r.x 0\r\n\r\n").await;
    let seen = raw.flush().await;
    let mut lines: Vec<&str> = seen.lines().filter(|line| line.contains("MSG")).collect();
    lines.sort_unstable();
    assert_eq!(lines.len(), 2, "{seen}");
    assert!(lines[0].starts_with("MSG r.x 1 ") && lines[1].starts_with("MSG r.x 2 "), "{seen}");
}
