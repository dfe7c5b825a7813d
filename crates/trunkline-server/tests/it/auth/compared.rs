//! The same users and the same conversation on nats-server and here: what comes back is the same, byte for byte.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use trunkline_testkit::NatsServer;

use super::super::client::{Raw, json};
use super::{answer, client, server, user};

const THEIRS: &str = r#"
authorization {
  users = [
    {user: full, password: f, permissions: {publish: ">", subscribe: ">"}}
    {user: ann, password: a, permissions: {
      publish: {allow: ["x.*", "in.>"], deny: ["x.no", "in.*.secret"]}
      subscribe: {
        allow: ["foo.*", "bar.>", "q.x v1", "q.y", "q.y v2", "q.z v.*", "_INBOX.a"]
        deny: ["foo.no", "bar.secret.>", "bar.*.hidden", "bar.group q1"]
      }
    }}
    {user: svc, password: s, permissions: {subscribe: "svc.>", allow_responses: {max: 2, expires: "1m"}}}
    {user: one, password: o, permissions: {subscribe: ["one"], publish: ["_INBOX.never"], allow_responses: true}}
    {user: def, password: d}
  ]
  default_permissions: {publish: ["d"], subscribe: {deny: ["d.no"]}}
}
"#;

const OURS: &str = r#"
{users: [
  {user: full, password: f, permissions: {publish: ">", subscribe: ">"}},
  {user: ann, password: a, permissions: {
    publish: {allow: ["x.*", "in.>"], deny: ["x.no", "in.*.secret"]},
    subscribe: {
      allow: ["foo.*", "bar.>", "q.x v1", "q.y", "q.y v2", "q.z v.*", "_INBOX.a"],
      deny: ["foo.no", "bar.secret.>", "bar.*.hidden", "bar.group q1"]
    }
  }},
  {user: svc, password: s, permissions: {subscribe: "svc.>", allow_responses: {max: 2, expires: 1m}}},
  {user: one, password: o, permissions: {subscribe: ["one"], publish: ["_INBOX.never"], allow_responses: true}},
  {user: def, password: d}],
 permissions: {publish: ["d"], subscribe: {deny: ["d.no"]}}}
"#;

/// Who sends what, in this order. Every step ends with a PING of everybody, so that it is seen what each of them got.
const CONVERSATION: &[(&str, &str)] = &[
    // What may be subscribed to.
    ("ann", "SUB foo.a 1"),
    ("ann", "SUB foo.no 2"),
    ("ann", "SUB * 3"),
    ("ann", "SUB > 4"),
    ("ann", "SUB baz 5"),
    ("ann", "SUB foo 6"),
    ("ann", "SUB bar.secret.> 7"),
    ("ann", "SUB bar.secret.* 8"),
    ("ann", "SUB bar.secret.x 9"),
    ("ann", "SUB bar.x.hidden 10"),
    ("ann", "SUB _INBOX.a 11"),
    ("ann", "SUB _INBOX.b 12"),
    ("ann", "SUB _INBOX.> 13"),
    // And in which queue groups.
    ("ann", "SUB q.x 20"),
    ("ann", "SUB q.x v1 21"),
    ("ann", "SUB q.x v2 22"),
    ("ann", "SUB q.y 23"),
    ("ann", "SUB q.y v1 24"),
    ("ann", "SUB q.y v2 25"),
    ("ann", "SUB q.z v.1 26"),
    ("ann", "SUB q.z v 27"),
    ("ann", "SUB q.* v1 28"),
    ("ann", "SUB bar.group q1 29"),
    ("ann", "SUB bar.group q2 30"),
    ("ann", "UNSUB 30"),
    // What may be published.
    ("ann", "PUB x.a 0\r\n"),
    ("ann", "PUB x.no 0\r\n"),
    ("ann", "PUB x 0\r\n"),
    ("ann", "PUB x.a.b 0\r\n"),
    ("ann", "PUB in.a.b.c 0\r\n"),
    ("ann", "PUB in.a.secret 0\r\n"),
    ("ann", "PUB x.a denied.reply 0\r\n"),
    ("ann", "HPUB y 12 12\r\nNATS/1.0\r\n\r\n"),
    // What is denied inside of what is allowed is not delivered.
    ("ann", "SUB foo.* 40"),
    ("ann", "UNSUB 1"),
    ("ann", "SUB bar.> 41"),
    ("full", "PUB foo.a 1\r\n1"),
    ("full", "PUB foo.no 1\r\n2"),
    ("full", "PUB bar.ok 1\r\n3"),
    ("full", "PUB bar.secret.x 1\r\n4"),
    ("full", "PUB bar.secret 1\r\n5"),
    ("full", "PUB bar.x.hidden 1\r\n6"),
    ("full", "PUB bar.x.shown 1\r\n7"),
    // Responders.
    ("svc", "SUB svc.a 50"),
    ("svc", "SUB other 51"),
    ("svc", "PUB _INBOX.f 0\r\n"),
    ("full", "SUB _INBOX.f 60"),
    ("full", "PUB svc.a _INBOX.f 1\r\n8"),
    ("svc", "PUB _INBOX.f 1\r\n9"),
    ("svc", "PUB _INBOX.g 1\r\n9"),
    ("one", "SUB one 70"),
    ("full", "PUB one _INBOX.f 1\r\na"),
    ("one", "PUB _INBOX.f 1\r\nb"),
    ("one", "PUB _INBOX.f 1\r\nc"),
    ("one", "PUB _INBOX.never 1\r\nd"),
    ("full", "PUB one _INBOX.f 1\r\ne"),
    ("one", "PUB _INBOX.f 1\r\nf"),
    // Several at once on one subject are judged one by one.
    ("full", "PUB foo.no 1\r\ng\r\nPUB foo.no 1\r\nh\r\nPUB foo.a 1\r\ni\r\nPUB foo.a 1\r\nj"),
    ("full", "PUB one _INBOX.f 1\r\np"),
    ("one", "PUB _INBOX.f 1\r\nq\r\nPUB _INBOX.f 1\r\nr\r\nPUB _INBOX.f 1\r\ns"),
    // Who has no permissions of its own has the default ones.
    ("def", "PUB d 0\r\n"),
    ("def", "PUB e 0\r\n"),
    ("def", "SUB d.no 80"),
    ("def", "SUB d.yes 81"),
];

/// Everything that everybody got, step by step.
async fn talk(address: SocketAddr) -> Vec<String> {
    let mut clients: Vec<(&str, Raw)> = Vec::new();
    for (name, password) in [("full", "f"), ("ann", "a"), ("svc", "s"), ("one", "o"), ("def", "d")] {
        let fields = format!("{},\"headers\":true", user(name, password));
        clients.push((name, Raw::ready(address, &fields).await));
    }
    let mut seen = Vec::new();
    for (who, line) in CONVERSATION {
        let (_, raw) = clients.iter_mut().find(|(name, _)| name == who).expect("everybody is known");
        raw.send(format!("{line}\r\n")).await;
        // The sender first: its PONG says that the others were served.
        let order = clients.iter().position(|(name, _)| name == who).expect("everybody is known");
        clients.swap(0, order);
        for (name, raw) in &mut clients {
            let got = raw.flush().await.replace("PING\r\n", "");
            if !got.is_empty() {
                seen.push(format!("{line:?}: {name} got {got:?}"));
            }
        }
        clients.swap(0, order);
    }
    seen
}

fn address(url: &str) -> SocketAddr {
    url.split_once("://").expect("a URL").1.parse().expect("an address")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissions_are_those_of_nats_server() {
    let theirs = NatsServer::start_with_config(THEIRS);
    let ours = server(OURS).await;
    let (there, here) = (talk(address(theirs.url())).await, talk(ours.nats_addr()).await);
    assert!(there.len() > 30, "the conversation shows something: {there:#?}");
    assert_eq!(here, there);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_let_in_is_told_what_nats_server_tells() {
    let theirs = NatsServer::start_with_config(THEIRS);
    let ours = server(OURS).await;
    for fields in [user("ann", "a"), user("ann", "b"), user("nobody", "a"), String::new(), user("", "")] {
        let there = answer(address(theirs.url()), &fields).await;
        assert_eq!(answer(ours.nats_addr(), &fields).await, there, "{fields}");
    }
    for bytes in ["PING\r\n", "SUB a 1\r\n", "nonsense\r\n", "\r\n", "cnonsense\r\n"] {
        let (mut there, mut here) =
            (Raw::connect(address(theirs.url())).await, Raw::connect(ours.nats_addr()).await);
        there.send(bytes).await;
        here.send(bytes).await;
        assert_eq!(here.until_closed().await, there.until_closed().await, "{bytes:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn monitoring_shows_users_as_nats_server_does() {
    let theirs = NatsServer::start_with_config(THEIRS);
    let ours = server(OURS).await;
    let _clients =
        (client(address(theirs.url()), "ann", "a").await, client(ours.nats_addr(), "ann", "a").await);
    for address in [address(theirs.url()), ours.nats_addr()] {
        answer(address, &user("ann", "wrong")).await;
    }
    let http = [address(theirs.http()), ours.http_addr().expect("served")];
    for (path, fields) in [
        ("/connz?auth=1", ["authorized_user", "name_tag"]),
        ("/connz", ["authorized_user", "name_tag"]),
        ("/connz?auth=1&state=closed", ["authorized_user", "reason"]),
    ] {
        let mut rows = Vec::new();
        for http in http {
            // A connection is among the closed ones a moment after its client has seen the end of it.
            let shown = async {
                loop {
                    let page = json(http, path).await;
                    if page["connections"][0].is_object() {
                        return page;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let page = tokio::time::timeout(Duration::from_secs(10), shown).await.expect("a connection");
            let row = &page["connections"][0];
            rows.push(fields.map(|field| row.get(field).cloned()));
        }
        assert_eq!(rows[1], rows[0], "{path}");
    }
    for path in ["/varz"] {
        let (there, here) = (json(http[0], path).await, json(http[1], path).await);
        assert_eq!(here["auth_required"], there["auth_required"]);
        assert_eq!(here["auth_timeout"].as_f64(), there["auth_timeout"].as_f64());
        assert_ne!(there["auth_timeout"], Value::Null);
    }
}
