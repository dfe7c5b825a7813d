//! A bridge over a backend that answers when the test says so: what waits for what, and what a client is told.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use trunkline::backend::memory::{Hub, MemoryBackend};
use trunkline::backend::{
    Backend, Capabilities, DrainError, Fut, Gap, LiveEvent, LiveSource, PublishError, PublishOptions,
    Publishing, Receipt, Streams, SubscribeError, SubscribeOptions, Unsupported,
};
use trunkline::status::BackendStatus;
use trunkline::{Front, Message, Pattern, Subject};
use trunkline_server::{Server, ServerOptions};

use super::client::{Raw, json, within};

type Outcome = Result<Receipt, PublishError>;

/// A message that the server has published, and where to say what came of it.
type Published = (Message, oneshot::Sender<Outcome>);

/// A subscription that the server starts, and where to let it stand.
type Subscribing = (Pattern, SubscribeOptions, oneshot::Sender<Result<Box<dyn LiveSource>, SubscribeError>>);

/// A backend whose every answer is the test's.
struct Asked {
    inner: MemoryBackend,
    published: mpsc::UnboundedSender<Published>,
    subscribing: mpsc::UnboundedSender<Subscribing>,
}

impl Backend for Asked {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn status(&self) -> watch::Receiver<BackendStatus> {
        self.inner.status()
    }

    fn new_inbox(&self) -> Subject {
        self.inner.new_inbox()
    }

    fn publish(&self, m: Message, _: PublishOptions) -> Publishing {
        // The server's own, at its start.
        if m.subject == "nachos.system.health" {
            return Publishing::Ready(Ok(Receipt::Accepted));
        }
        let (outcome, answer) = oneshot::channel();
        self.published.send((m, outcome)).expect("the test listens");
        Publishing::Pending(Box::pin(async { answer.await.expect("the test answers") }))
    }

    fn flush(&self) -> Fut<'_, Result<(), PublishError>> {
        self.inner.flush()
    }

    fn subscribe(
        &self,
        p: Pattern,
        o: SubscribeOptions,
    ) -> Fut<'_, Result<Box<dyn LiveSource>, SubscribeError>> {
        let (source, answer) = oneshot::channel();
        self.subscribing.send((p, o, source)).expect("the test listens");
        Box::pin(async { answer.await.expect("the test answers") })
    }

    fn streams(&self) -> Result<&dyn Streams, Unsupported> {
        self.inner.streams()
    }

    fn drain(&self, by: Instant) -> Fut<'_, Result<(), DrainError>> {
        self.inner.drain(by)
    }
}

/// A server on such a backend.
struct Bridge {
    server: Server,
    published: mpsc::UnboundedReceiver<Published>,
    subscribing: mpsc::UnboundedReceiver<Subscribing>,
    /// What subscriptions that the test lets stand are on.
    hub: MemoryBackend,
}

impl Bridge {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut ServerOptions)) -> Self {
        let hub = Arc::new(Hub::default());
        let (published, publishing) = mpsc::unbounded_channel();
        let (subscribing, subscriptions) = mpsc::unbounded_channel();
        let backend = Asked { inner: MemoryBackend::connect_to(&hub), published, subscribing };
        let mut options = ServerOptions::in_front_of(Front::Bridge(Arc::new(backend)));
        options.listen.set_port(0);
        options.http = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        options.publish_timeout = Duration::from_secs(30);
        change(&mut options);
        let server = Server::start(options).await.expect("free ports");
        let hub = MemoryBackend::connect_to(&hub);
        Self { server, published: publishing, subscribing: subscriptions, hub }
    }

    async fn client(&self) -> Raw {
        Raw::ready(self.server.nats_addr(), "\"headers\":true").await
    }

    /// The next message that the server publishes: its payload, and where to answer.
    async fn next(&mut self) -> (String, oneshot::Sender<Outcome>) {
        let (message, outcome) = within("a message", self.published.recv()).await.expect("the server lives");
        (String::from_utf8_lossy(&message.payload).into_owned(), outcome)
    }

    /// Lets the next subscription stand.
    async fn let_stand(&mut self) -> SubscribeOptions {
        let (pattern, options, stands) = self.next_subscription().await;
        let source = self.hub.subscribe(pattern, options.clone()).await;
        assert!(stands.send(source).is_ok(), "the server has given up");
        options
    }

    async fn next_subscription(&mut self) -> Subscribing {
        within("a subscription", self.subscribing.recv()).await.expect("the server lives")
    }

    /// No message was published by now.
    fn nothing_published(&mut self) {
        assert!(self.published.try_recv().is_err(), "something was published too early");
    }
}

fn publish(payload: &str) -> String {
    format!("PUB a {}\r\n{payload}\r\n", payload.len())
}

fn not_connected() -> Outcome {
    Err(PublishError::NotConnected { server: "test".to_owned(), reason: "away".to_owned() })
}

fn unknown() -> Outcome {
    Err(PublishError::OutcomeUnknown { server: "test".to_owned(), waited: Duration::ZERO })
}

fn not_replicated() -> Outcome {
    Err(PublishError::NotReplicated { server: "test".to_owned(), replicas: 0, wanted: 1 })
}

#[tokio::test]
async fn messages_are_under_way_together_and_the_pong_waits_for_all_of_them() {
    let mut bridge = Bridge::start().await;
    let mut client = bridge.client().await;
    client.send(publish("1") + &publish("2") + "PING\r\n" + &publish("3") + "PING\r\n").await;
    let (first, second, third) = (bridge.next().await, bridge.next().await, bridge.next().await);
    assert_eq!((&*first.0, &*second.0, &*third.0), ("1", "2", "3"));
    // Another client shows that the server had time to say what it should not.
    third.1.send(Ok(Receipt::Accepted)).unwrap();
    second.1.send(Ok(Receipt::Accepted)).unwrap();
    bridge.client().await.flush().await;
    first.1.send(Ok(Receipt::Accepted)).unwrap();
    client.expect("PONG\r\nPONG\r\n").await;
}

#[tokio::test]
async fn a_message_waits_for_the_subscriptions_before_it() {
    let mut bridge = Bridge::start().await;
    let mut client = bridge.client().await;
    client.send("SUB b 1\r\nSUB _INBOX.x.* big.team 2\r\n".to_owned() + &publish("1") + "PING\r\n").await;
    // Both start together.
    let (pattern, options, stands) = bridge.next_subscription().await;
    assert_eq!((pattern.as_str(), options.responder, options.queue), ("b", true, None));
    let options = bridge.let_stand().await;
    assert_eq!((options.responder, options.queue.unwrap().as_str()), (false, "big%2Eteam"));
    bridge.client().await.flush().await;
    bridge.nothing_published();
    let source = bridge.hub.subscribe(pattern, SubscribeOptions::default()).await;
    assert!(stands.send(source).is_ok());
    let (payload, outcome) = bridge.next().await;
    assert_eq!(payload, "1");
    outcome.send(Ok(Receipt::Accepted)).unwrap();
    client.expect("PONG\r\n").await;
}

#[tokio::test]
async fn a_subscription_waits_for_the_messages_that_it_must_not_see() {
    let mut bridge = Bridge::start().await;
    let mut client = bridge.client().await;
    client.send(publish("1") + "SUB b 1\r\nSUB * 2\r\nPING\r\n").await;
    let (_, outcome) = bridge.next().await;
    bridge.let_stand().await;
    bridge.client().await.flush().await;
    assert!(bridge.subscribing.try_recv().is_err(), "it would see what was published before it");
    outcome.send(Ok(Receipt::Accepted)).unwrap();
    bridge.let_stand().await;
    client.expect("PONG\r\n").await;
}

#[tokio::test]
async fn what_found_no_connection_is_sent_again_in_order() {
    let mut bridge = Bridge::start().await;
    let mut client = bridge.client().await;
    client.send(publish("1") + &publish("2") + "PING\r\n" + &publish("3")).await;
    for n in 1..=3 {
        let (payload, outcome) = bridge.next().await;
        assert_eq!(payload, n.to_string());
        outcome.send(if n == 1 { Ok(Receipt::Accepted) } else { not_connected() }).unwrap();
    }
    for n in 2..=3 {
        let (payload, outcome) = bridge.next().await;
        assert_eq!(payload, n.to_string());
        outcome.send(Ok(Receipt::Accepted)).unwrap();
    }
    client.expect("PONG\r\n").await;
}

#[tokio::test]
async fn what_may_be_lost_or_out_of_order_ends_the_connection_without_a_pong() {
    for outcomes in [
        vec![unknown()],
        vec![not_connected(), Ok(Receipt::Accepted)],
        vec![not_connected(), unknown()],
        // Stored, and a failover may lose it.
        vec![not_replicated()],
        vec![Ok(Receipt::Accepted), not_replicated()],
        vec![not_connected(), not_replicated()],
    ] {
        let mut bridge = Bridge::start().await;
        let mut client = bridge.client().await;
        let messages: String = outcomes.iter().map(|_| publish("x")).collect();
        client.send(messages + "PING\r\n").await;
        for outcome in outcomes {
            bridge.next().await.1.send(outcome).unwrap();
        }
        assert_eq!(client.until_closed().await, "-ERR 'Stale Connection'\r\n");
        let http = bridge.server.http_addr().unwrap();
        let connections = json(http, "/connz?state=closed").await;
        assert_eq!(connections["connections"][0]["reason"], "Backend Unavailable", "{connections}");
    }
}

#[tokio::test]
async fn what_the_backend_refuses_is_said_in_its_place_and_the_connection_stays() {
    let mut bridge = Bridge::start().await;
    let mut client = Raw::connect(bridge.server.nats_addr()).await;
    client
        .send("CONNECT {\"pedantic\":false}\r\n".to_owned() + &publish("1") + &publish("2") + "SUB b q 1\r\n")
        .await;
    let denied = PublishError::Denied { subject: "a".parse().unwrap(), reason: "no".to_owned() };
    bridge.next().await.1.send(Err(denied)).unwrap();
    bridge.next().await.1.send(Ok(Receipt::Accepted)).unwrap();
    let (pattern, _, stands) = bridge.next_subscription().await;
    let denied = SubscribeError::Denied { pattern, reason: "no".to_owned() };
    assert!(stands.send(Err(denied)).is_ok());
    client.expect("+OK\r\n-ERR 'Permissions Violation for Publish to \"a\"'\r\n+OK\r\n").await;
    client.expect("-ERR 'Permissions Violation for Subscription to \"b\" using queue \"q\"'\r\n").await;
    assert_eq!(client.flush().await, "");
    let subscriptions = json(bridge.server.http_addr().unwrap(), "/subsz").await;
    assert_eq!(subscriptions["num_subscriptions"], 0, "{subscriptions}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_faster_than_the_backend_is_held_up_and_loses_nothing() {
    const COUNT: usize = 60_000;
    let mut bridge = Bridge::start().await;
    let mut client = bridge.client().await;
    let all: String = (0..COUNT).map(|n| publish(&n.to_string())).collect();
    let sending = tokio::spawn(async move {
        client.send(all + "PING\r\n").await;
        client
    });
    // None is answered until the server takes no more: what is under way then is far from all.
    let mut under_way = VecDeque::new();
    while let Ok(Some(published)) =
        tokio::time::timeout(Duration::from_millis(500), bridge.published.recv()).await
    {
        under_way.push_back(published);
    }
    assert!((8192..50_000).contains(&under_way.len()), "{} are under way", under_way.len());
    for n in 0..COUNT {
        let (message, outcome) = match under_way.pop_front() {
            Some(published) => published,
            None => within("a message", bridge.published.recv()).await.unwrap(),
        };
        assert_eq!(message.payload, n.to_string());
        outcome.send(Ok(Receipt::Accepted)).unwrap();
    }
    within("the end of sending", sending).await.unwrap().expect("PONG\r\n").await;
}

/// A subscription that tells of gaps alone.
struct Gaps(Vec<Gap>);

impl LiveSource for Gaps {
    fn poll_batch(
        &mut self,
        _: &mut std::task::Context<'_>,
        _: usize,
        out: &mut Vec<LiveEvent>,
    ) -> std::task::Poll<usize> {
        match self.0.pop() {
            Some(gap) => {
                out.push(LiveEvent::Gap(gap));
                std::task::Poll::Ready(1)
            }
            // The server drops it when the client leaves.
            None => std::task::Poll::Pending,
        }
    }

    fn stop(&mut self) -> Fut<'_, Result<(), SubscribeError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

#[tokio::test]
async fn gaps_are_counted_for_the_client_and_in_all() {
    let mut bridge = Bridge::start().await;
    let mut client = bridge.client().await;
    client.send("SUB b 1\r\nPING\r\n").await;
    let (_, _, stands) = bridge.next_subscription().await;
    let gaps = Gaps(vec![Gap { missed: None }, Gap { missed: Some(7) }]);
    assert!(stands.send(Ok(Box::new(gaps))).is_ok());
    client.expect("PONG\r\n").await;
    let http = bridge.server.http_addr().unwrap();
    let varz = within("both gaps", async {
        loop {
            let varz = json(http, "/varz").await;
            if varz["missed_gaps"] == 2 {
                return varz;
            }
        }
    })
    .await;
    assert_eq!(varz["missed_msgs"], 7, "{varz}");
    let connection = json(http, "/connz").await["connections"][0].clone();
    assert_eq!((&connection["missed_msgs"], &connection["missed_gaps"]), (&7.into(), &2.into()));
    let metrics = super::client::get(http, "/metrics").await.body;
    assert!(metrics.contains("trunkline_bridge_missed_messages_total 7"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_cut_off_and_others_get_everything() {
    const COUNT: usize = 400;
    let mut bridge = Bridge::with(|options| options.limits.max_pending = 1 << 20).await;
    let (mut slow, mut fast) = (bridge.client().await, bridge.client().await);
    for client in [&mut slow, &mut fast] {
        client.send("SUB big 1\r\nPING\r\n").await;
        bridge.let_stand().await;
        client.expect("PONG\r\n").await;
    }
    for _ in 0..COUNT {
        let message = Message::new("big".parse().unwrap(), vec![0; 65_536]);
        bridge.hub.publish(message, PublishOptions::default()).outcome().await.unwrap();
        fast.expect("MSG big 1 65536\r\n").await;
        fast.take(65_538).await;
    }
    let http = bridge.server.http_addr().unwrap();
    within("the slow one to be cut off", async { while json(http, "/varz").await["slow_consumers"] != 1 {} })
        .await;
}

#[tokio::test]
async fn a_stop_carries_out_what_was_asked_for_and_gives_up_when_its_time_is_over() {
    let mut bridge = Bridge::start().await;
    let (mut first, mut second) = (bridge.client().await, bridge.client().await);
    first.send(publish("1") + "PING\r\n").await;
    let (_, outcome) = bridge.next().await;
    second.send(publish("2") + "PING\r\n").await;
    let (_, never) = bridge.next().await;
    let told = async {
        first.send("PING\r\n").await;
        outcome.send(Ok(Receipt::Accepted)).unwrap();
        first.until_closed().await
    };
    let (cut, told) = tokio::join!(bridge.server.shutdown(Duration::from_millis(500)), told);
    assert!(told.starts_with("PONG\r\n"), "{told:?}");
    assert_eq!((cut, second.until_closed().await.as_str()), (1, ""));
    drop(never);
}
