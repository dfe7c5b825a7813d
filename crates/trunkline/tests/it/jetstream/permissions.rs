//! The permissions that the operator's page lists for each role are enough, and none of them is too many.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use trunkline::backend::nats::{NatsBackend, NatsConnectError, NatsOptions};
use trunkline::backend::{
    Backend, ConsumerConfig, PublishError, PublishOptions, ReadRequest, Receipt, Settle, Start, StreamConfig,
    StreamError, Streams, SubscribeError, SubscribeOptions,
};
use trunkline::bus::consume::{ConsumerBuilder, Key};
use trunkline::bus::dead_letters::DeadLetterFilter;
use trunkline::bus::handler::HandlerError;
use trunkline::bus::respond::Reply;
use trunkline::{Bus, BusOptions, Event, Message};
use trunkline_testkit::NatsServer;

/// Longer than anything here may take; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(30);

const PAGE: &str = include_str!("../../../../../docs/nats.md");

/// What makes a consumer another one than the default.
type Setting = fn(ConsumerBuilder) -> ConsumerBuilder;

type Outcome = Result<(), Box<dyn Error>>;

/// A user and what it may do, as the page says.
#[derive(Clone, Debug)]
struct Role {
    user: String,
    publish: Vec<String>,
    subscribe: Vec<String>,
}

impl Role {
    /// As a line of the server's configuration. Lists that are empty there would allow everything.
    fn line(&self) -> String {
        let list = |rules: &[String]| match rules {
            [] => "[\"nothing\"]".to_owned(),
            rules => format!("{rules:?}"),
        };
        format!(
            "{{user: {:?}, password: pw, permissions: {{publish: {}, subscribe: {}}}}}\n",
            self.user,
            list(&self.publish),
            list(&self.subscribe)
        )
    }
}

/// The block of the page that lists the users.
fn block() -> &'static str {
    let (_, rest) = PAGE.split_once("```conf\naccounts").expect("the page lists users");
    rest.split_once("```").expect("the block ends").0
}

/// The users of the page, read from its own text.
fn roles() -> Vec<Role> {
    let text: String = block().lines().map(|line| line.split(" #").next().unwrap_or_default()).collect();
    let texts = |list: &str| list.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let list = |of: &str, key: &str| -> Vec<String> {
        let (_, rest) = of.split_once(key).expect("both lists are there");
        texts(rest.split_once(']').expect("the list ends").0)
    };
    text.split("{ user: ")
        .skip(1)
        .map(|role| Role {
            user: role.split_once(',').expect("a password follows").0.to_owned(),
            publish: list(role, "publish: ["),
            subscribe: list(role, "subscribe: ["),
        })
        .collect()
}

fn message(subject: &str, payload: &str) -> Message {
    Message::new(subject.parse().expect("a subject"), payload.to_owned())
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

async fn backend(server: &NatsServer, user: &str, password: &str) -> Result<NatsBackend, NatsConnectError> {
    let url = server.url().replace("nats://", &format!("nats://{user}:{password}@"));
    NatsBackend::connect(NatsOptions::new([url])).await
}

async fn connect(server: &NatsServer, user: &str, password: &str) -> Result<Bus, NatsConnectError> {
    let backend = backend(server, user, password).await?;
    Ok(Bus::with_backend(Arc::new(backend), BusOptions::default()))
}

fn pattern(text: &str) -> trunkline::Pattern {
    text.parse().expect("a pattern")
}

/// What the others of a role's bus have done before: streams, a responder, messages, a dead letter.
struct Furnished {
    root: Bus,
    _responder: trunkline::bus::respond::Responder,
}

/// A user who may do everything makes what the roles work with.
async fn furnish(server: &NatsServer) -> Furnished {
    let root = connect(server, "root", "pw").await.expect("it may do everything");
    for (name, subject) in [("tasks", "nachos.tool.*.task"), ("audit", "nachos.audit.log")] {
        root.ensure_stream(StreamConfig::new(name, vec![pattern(subject)])).await.expect("a stream");
    }
    root.publish_message(message("nachos.audit.log", "before")).await.expect("stored");
    let answer = async |_| Ok(Reply::bytes("answer"));
    let responder = root.respond_raw(pattern("nachos.tool.echo.call"), answer).start().await.expect("one");
    Furnished { root, _responder: responder }
}

/// All that a user of this role does, each thing once.
async fn everything(role: &str, bus: &Bus, others: &Furnished) -> Outcome {
    match role {
        "publisher" => publisher(bus).await,
        "requester" => requester(bus).await,
        "responder" => responder(bus, others).await,
        "reader" => reader(bus, others).await,
        "worker" => worker(bus, others).await,
        "operator" => operator(bus, others).await,
        other => panic!("the page has a role {other} that nobody tries"),
    }?;
    bus.flush().await?;
    bus.drain(Duration::from_secs(5)).await?;
    Ok(())
}

fn must(holds: bool, what: &'static str) -> Outcome {
    holds.then_some(()).ok_or_else(|| format!("it should be that {what}").into())
}

async fn publisher(bus: &Bus) -> Outcome {
    let options = || PublishOptions { dedupe_id: Some("once".to_owned()), ..PublishOptions::default() };
    for _ in 0..2 {
        let receipt = bus.publish_with(message("nachos.tool.search.task", "1"), options()).await?;
        must(matches!(receipt, Receipt::Stored { .. }), "it is stored")?;
    }
    Ok(())
}

async fn requester(bus: &Bus) -> Outcome {
    let request = message("nachos.tool.echo.call", "?");
    let reply = bus.request_message(request, Duration::from_secs(5)).await?;
    must(&*reply.message().payload == b"answer", "it is answered")?;
    Ok(())
}

async fn responder(bus: &Bus, others: &Furnished) -> Outcome {
    let answer = async |_| Ok(Reply::bytes("found"));
    let responder = bus.respond_raw(pattern("nachos.tool.search.call"), answer).start().await?;
    let request = message("nachos.tool.search.call", "?");
    let reply = others.root.request_message(request, Duration::from_secs(5)).await?;
    must(&*reply.message().payload == b"found", "it answers")?;
    responder.stop().await;
    Ok(())
}

async fn reader(bus: &Bus, others: &Furnished) -> Outcome {
    let mut live = bus.subscribe(pattern("nachos.audit.log")).await?;
    let mut past = bus.subscribe(pattern("nachos.audit.log")).start(Start::Beginning).await?;
    others.root.publish_message(message("nachos.audit.log", "now")).await?;
    for source in [&mut live, &mut past] {
        must(matches!(source.next().await, Some(Event::Message(_))), "it hears what was published")?;
    }
    past.unsubscribe().await?;
    live.unsubscribe().await?;
    Ok(())
}

/// One that fails for good and one that does not, by a consumer of any order and by one that keeps order by key.
async fn worker(bus: &Bus, others: &Furnished) -> Outcome {
    let consumers: [(&str, Setting); 2] =
        [("workers", |builder| builder), ("ordered", |builder| builder.ordered_by(Key::Subject))];
    for (name, with) in consumers {
        let (seen, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let builder = with(bus.stream("tasks")?.consumer(name)?);
        let consumer = builder
            .spawn(move |delivered| {
                let seen = seen.clone();
                async move {
                    let payload = delivered.received().message().payload.clone();
                    // The test may have ended.
                    let _ = seen.send(payload.clone());
                    match &*payload == b"bad" {
                        true => Err(HandlerError::reject("it is bad")),
                        false => Ok(()),
                    }
                }
            })
            .await?;
        for payload in ["good", "bad"] {
            others.root.publish_message(message("nachos.tool.search.task", payload)).await?;
            must(heard.recv().await.as_deref() == Some(payload.as_bytes()), "it is handled")?;
        }
        must(consumer.drain(PATIENCE).await?, "nothing is left at work")?;
    }
    let dead = others.root.dead_letters()?;
    let page = dead.page(&DeadLetterFilter::default(), Start::Beginning, 10).await?;
    must(page.letters.len() >= 2, "there are dead letters")?;
    // Limits remove what it has not read, which is counted.
    let streams = bus.backend().streams()?;
    let config = ConsumerConfig { start: Start::New, ..ConsumerConfig::new("missing") };
    let member = streams.join("tasks", config).await?;
    others.root.publish_message(message("nachos.tool.search.task", "1")).await?;
    let fetched = member.fetch(1, PATIENCE).await?;
    member.settle(vec![(fetched.deliveries[0].token.clone(), Settle::Ack)]).await?;
    for n in ["2", "3", "4"] {
        others.root.publish_message(message("nachos.tool.search.task", n)).await?;
    }
    let limited = |max_messages| StreamConfig {
        max_messages,
        ..StreamConfig::new("tasks", vec![pattern("nachos.tool.*.task")])
    };
    others.root.ensure_stream(limited(Some(1))).await?;
    others.root.ensure_stream(limited(None)).await?;
    must(member.fetch(1, PATIENCE).await?.missed == 2, "what is missed is counted")?;
    member.leave().await?;
    Ok(())
}

async fn operator(bus: &Bus, others: &Furnished) -> Outcome {
    let mut config = StreamConfig::new("extra", vec![pattern("extra.>")]);
    bus.ensure_stream(config.clone()).await?;
    config.max_messages = Some(7);
    bus.ensure_stream(config).await?;
    let streams: &dyn Streams = bus.backend().streams()?;
    // What a worker leaves behind.
    let root: &dyn Streams = others.root.backend().streams()?;
    let config = ConsumerConfig { start: Start::Beginning, ..ConsumerConfig::new("c") };
    let member = root.join("tasks", config).await?;
    bus.publish_message(message("nachos.tool.search.task", "work")).await?;
    let builder = others.root.stream("tasks")?.consumer("failing")?.start(Start::New);
    let failing = builder.spawn(async |_| Err(HandlerError::reject("always"))).await?;
    bus.publish_message(message("nachos.tool.search.task", "dead")).await?;
    let dead = bus.dead_letters()?;
    let letter = loop {
        let page = dead.page(&DeadLetterFilter::default(), Start::Beginning, 10).await?;
        if let Some(letter) = page.letters.into_iter().next() {
            break letter;
        }
    };
    failing.stop().await?;
    must(streams.list().await?.len() >= 3, "streams are listed")?;
    let info = streams.consumer_info("tasks", "c").await?.ok_or("the consumer is there")?;
    must(info.members == 1, "members are counted")?;
    let page = ReadRequest { from: Start::Beginning, filter: None, max: 10 };
    must(!streams.read("tasks", page).await?.messages.is_empty(), "streams are read")?;
    dead.redrive(&letter, None).await?;
    member.leave().await?;
    for consumer in ["c", "failing"] {
        must(streams.remove_consumer("tasks", consumer).await?, "consumers are removed")?;
    }
    must(streams.remove("extra").await?, "streams are removed")?;
    Ok(())
}

/// The configuration of a server that knows these users, and `root`.
fn config(roles: &[Role]) -> String {
    let mut users = "{user: root, password: pw}\n".to_owned();
    for role in roles {
        write!(users, "{}", role.line()).expect("a String takes everything");
    }
    format!("accounts {{ BUS {{ jetstream: enabled, users: [\n{users}] }} }}\njetstream: enabled\n")
}

/// Whether the server has denied something to the user.
fn denied(server: &NatsServer, user: &str) -> bool {
    ["Publish", "Subscription"]
        .iter()
        .any(|what| server.log().contains(&format!("user:{user}\" - {what} Violation")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_of_the_page_can_do_its_work() {
    // As the page has it, its passwords included, and a user who furnishes.
    let users = block().replacen("users: [", "users: [\n{user: root, password: pw}\n", 1);
    let server = NatsServer::start_with_config(&format!("jetstream: enabled\naccounts{users}"));
    let others = furnish(&server).await;
    let roles = roles();
    assert_eq!(roles.len(), 6, "{roles:?}");
    for (n, role) in roles.iter().enumerate() {
        let bus = connect(&server, &role.user, &format!("secret-{}", n + 1)).await.unwrap();
        soon(everything(&role.user, &bus, &others)).await.unwrap_or_else(|error| panic!("{role:?}: {error}"));
        assert!(!denied(&server, &role.user), "{role:?}: {}", server.log());
    }
}

/// Without any one of the rules something is denied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_rule_of_the_page_is_too_many() {
    let (mut users, mut rounds) = (Vec::new(), Vec::new());
    for role in roles() {
        let rules = role.publish.len() + role.subscribe.len();
        for left_out in 0..rules {
            let mut user = role.clone();
            user.user = format!("{}-{left_out}", role.user);
            let rule = match left_out.checked_sub(role.publish.len()) {
                None => user.publish.remove(left_out),
                Some(n) => user.subscribe.remove(n),
            };
            rounds.push((role.user.clone(), user.user.clone(), rule));
            users.push(user);
        }
    }
    assert!(rounds.len() > 40, "{}", rounds.len());
    let mut unneeded = Vec::new();
    for (role, user, rule) in rounds {
        // A server for each: buckets that one user has made, the next one need not make.
        let server = NatsServer::start_with_config(&config(&users));
        let others = furnish(&server).await;
        let working = async {
            let bus = connect(&server, &user, "pw").await?;
            everything(&role, &bus, &others).await
        };
        // What nobody waits for is denied in silence, and shows in the server's log alone: then the rest need not come to
        // an end.
        let until_denied = async {
            while !denied(&server, &user) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let done = tokio::select! {
            done = soon(working) => done,
            () = until_denied => continue,
        };
        if !denied(&server, &user) {
            unneeded.push(format!("{user}: {rule}: {done:?}"));
        }
    }
    assert!(unneeded.is_empty(), "{unneeded:#?}");
}

/// Whoever waits for what the server denies is told at once, with the subject.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denials_are_told_at_once_and_name_the_subject() {
    // Far longer than the test may take: nothing here ends by a timeout.
    let slow = |url: String| NatsOptions { publish_timeout: 2 * PATIENCE, ..NatsOptions::new([url]) };
    let allowed = |user: &str, publish: &[&str]| Role {
        user: user.to_owned(),
        publish: publish.iter().map(|rule| (*rule).to_owned()).collect(),
        subscribe: vec!["_INBOX.>".to_owned()],
    };
    let server = NatsServer::start_with_config(&config(&[
        allowed("silent", &["$JS.API.INFO", "$JS.API.STREAM.LIST", "_INBOX.>"]),
        allowed("blind", &["$JS.API.INFO", "nachos.>", "_INBOX.>"]),
        allowed(
            "idle",
            &[
                "$JS.API.INFO",
                "$JS.API.STREAM.>",
                "$JS.API.CONSUMER.INFO.>",
                "$JS.API.CONSUMER.CREATE.>",
                "$KV.>",
                "_INBOX.>",
            ],
        ),
        allowed("deaf", &["$JS.API.INFO", "$JS.API.STREAM.>", "_INBOX.>"]),
    ]));
    let others = furnish(&server).await;
    let connect = async |user: &str| {
        let url = server.url().replace("nats://", &format!("nats://{user}:pw@"));
        NatsBackend::connect(slow(url)).await.expect("it may connect")
    };
    let publish = async |backend: &NatsBackend| {
        let publishing = backend.publish(message("nachos.tool.x.task", "1"), PublishOptions::default());
        soon(publishing.outcome()).await
    };

    let silent = connect("silent").await;
    // Many at once, and again on a subject that is known by then.
    for round in 0..3 {
        let many = std::iter::repeat_with(|| publish(&silent)).take(10);
        for refused in futures_util::future::join_all(many).await {
            match refused {
                Err(PublishError::Denied { subject, reason }) => {
                    assert!(
                        subject == "nachos.tool.x.task" && reason.contains("Permissions Violation"),
                        "{reason}"
                    );
                }
                other => panic!("round {round}: {other:?}"),
            }
        }
    }
    assert_eq!(soon(silent.flush()).await, Ok(()), "it has been told");

    match publish(&connect("blind").await).await {
        Err(PublishError::Denied { reason, .. }) => {
            assert!(reason.contains("$JS.API.STREAM.LIST"), "{reason}")
        }
        other => panic!("{other:?}"),
    }

    let idle = connect("idle").await;
    let streams = idle.streams().unwrap();
    let member = soon(streams.join("tasks", ConsumerConfig::new("c"))).await.unwrap();
    let refused = soon(member.fetch(1, PATIENCE)).await.unwrap_err();
    assert!(refused.to_string().contains("$JS.API.CONSUMER.MSG.NEXT.atlas_bus_tasks.c"), "{refused}");
    assert!(!refused.is_retryable());
    match soon(streams.list()).await {
        Err(StreamError::Denied { subject, reason }) => {
            assert_eq!(subject, "$JS.API.CONSUMER.LIST.atlas_bus_tasks");
            assert!(reason.contains("Permissions Violation"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    let page = ReadRequest { from: Start::Beginning, filter: None, max: 1 };
    let refused = soon(streams.read("audit", page)).await.unwrap_err();
    assert!(refused.to_string().contains("$JS.API.DIRECT.GET.atlas_bus_audit"), "{refused}");

    let deaf = connect("deaf").await;
    let from = |start| SubscribeOptions { start: Some(start), ..SubscribeOptions::default() };
    for (options, subject) in [
        (SubscribeOptions::default(), "nachos.audit.log"),
        (from(Start::Beginning), "$JS.API.CONSUMER.CREATE.atlas_bus_audit."),
    ] {
        match soon(deaf.subscribe(pattern("nachos.audit.log"), options)).await {
            Err(SubscribeError::Denied { reason, .. }) => assert!(reason.contains(subject), "{reason}"),
            other => panic!("{:?}", other.map(|_| ())),
        }
    }
    drop(others);
}
