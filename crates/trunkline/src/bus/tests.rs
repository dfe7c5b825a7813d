//! The bus over the in-memory backend: publish, subscribe, request, respond.

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot, watch};

use super::*;
use crate::backend::memory::{Hub, HubOptions, MemoryBackend};
use crate::backend::{Capabilities, LiveSource, Streams, SubscribeOptions, Unsupported};
use crate::bus::context::Context;
use crate::bus::handler::HandlerError;
use crate::bus::request::RequestError;
use crate::bus::subscribe::Event;
use crate::topics::payload::{ChannelInbound, ToolCall, ToolResult};
use crate::{Headers, Pattern, Received, Topic};

const SECOND: Duration = Duration::from_secs(1);

fn subject(text: &str) -> Subject {
    text.parse().unwrap()
}

async fn message(subscription: &mut crate::Subscription) -> Received {
    match subscription.next().await {
        Some(Event::Message(received)) => received,
        other => panic!("expected a message, got {other:?}"),
    }
}

fn echo(bus: &Bus) -> Topic<Value, Value> {
    Topic::new(bus.topics().subject("test.echo").unwrap())
}

#[tokio::test]
async fn raw_bytes_arrive_as_they_are_and_typed_payloads_in_an_envelope() {
    let bus = Bus::in_memory();
    let mut all = bus.subscribe("nachos.>".parse().unwrap()).await.unwrap();
    bus.publish_bytes(subject("nachos.x"), &b"\0raw"[..]).await.unwrap();
    let said = ChannelInbound { sender: "ada".into(), text: "hi".into(), ..Default::default() };
    let inbound = bus.topics().channel("web").unwrap().inbound();
    bus.publish(inbound, &said).conversation("c-1").header("X-Tenant", "t").await.unwrap();
    let raw = message(&mut all).await;
    assert_eq!(raw.payload(), &Bytes::from_static(b"\0raw"));
    assert!(raw.envelope().is_none() && raw.headers().is_empty());
    assert!(raw.decode::<ChannelInbound>().is_err());
    let typed = message(&mut all).await;
    assert_eq!(typed.decode::<ChannelInbound>().unwrap(), said);
    assert_eq!(typed.headers().get("X-Tenant"), Some("t"));
    let envelope = typed.envelope().unwrap();
    assert_eq!(envelope.kind, "channel.inbound");
    assert_eq!(envelope.trace.conversation_id.as_deref(), Some("c-1"));
    assert_eq!(envelope.correlation_id.as_ref(), Some(&envelope.id), "the first hop makes the correlation");
}

#[tokio::test]
async fn no_responder_has_the_bus_write_a_dead_letter_for_it() {
    let hub = Arc::new(Hub::default());
    let side = || Bus::with_backend(Arc::new(MemoryBackend::connect_to(&hub)), BusOptions::default());
    let (asking, hostile) = (side(), side());
    let mut letters = hostile.subscribe("nachos.dead.>".parse().unwrap()).await.unwrap();
    let mut calls = hostile.subscribe("nachos.test.echo".parse().unwrap()).await.unwrap();
    let asked = tokio::spawn(asking.request(echo(&asking), &json!(1)).timeout(10 * SECOND).into_future());
    let mut answer = Message::new(message(&mut calls).await.reply().unwrap().clone(), "x");
    // A plain request is answered by a reply stream, which its requester then cancels where the frame says.
    for (name, value) in
        [("Trunkline-Frame", "chunk"), ("Trunkline-Seq", "0"), ("Trunkline-Control", "nachos.dead.work.c")]
    {
        answer.headers.append(name, value).unwrap();
    }
    hostile.publish_message(answer).await.unwrap();
    let error = asked.await.unwrap().unwrap_err();
    assert!(matches!(error, RequestError::ReplyStream { .. }), "{error:?}");
    // Nothing of the bus is under way any more: what it publishes in memory has arrived when the request is over.
    asking.flush().await.unwrap();
    assert!(tokio::time::timeout(Duration::ZERO, letters.next()).await.is_err());
    assert_eq!(asking.status().counters.publish_errors, 1, "it was refused, and counted");
}

#[tokio::test]
async fn nobody_but_the_bus_publishes_dead_letters() {
    let bus = Bus::in_memory();
    let error = bus.publish_bytes(subject("nachos.dead.audit.siem"), "x").await.unwrap_err();
    assert_eq!(error, PublishError::Reserved(subject("nachos.dead.audit.siem")));
    assert!(bus.publish_blocking(Message::new(subject("nachos.dead.a"), "x")).is_err());
    assert!(bus.publish_bytes(subject("nachos.deadline"), "x").await.is_ok());
}

#[tokio::test]
async fn a_header_that_cannot_be_sent_is_an_error_of_the_publish() {
    let bus = Bus::in_memory();
    let error = bus.publish(echo(&bus), &json!(1)).header("bad name", "v").await.unwrap_err();
    assert!(matches!(error, PublishError::Header(_)), "{error}");
}

#[tokio::test]
async fn publish_many_answers_in_order_and_recv_many_takes_batches() {
    let bus = Bus::in_memory();
    let mut sub = bus.subscribe("a.*".parse().unwrap()).await.unwrap();
    let messages = (0..10).map(|n| match n {
        4 => Message::new(subject("nachos.dead.x"), "x"),
        n => Message::new(subject(&format!("a.{n}")), "x"),
    });
    let outcomes = bus.publish_many(messages).await;
    let failed: Vec<usize> = (0..10).filter(|n| outcomes[*n].is_err()).collect();
    assert_eq!(failed, [4]);
    let mut events = Vec::new();
    assert_eq!(sub.recv_many(&mut events, 4).await, 4);
    assert_eq!(sub.recv_many(&mut events, 100).await, 5);
    let last = events.pop().and_then(Event::into_message).unwrap();
    assert_eq!(last.subject().as_str(), "a.9");
}

#[tokio::test]
async fn unsubscribe_gives_out_what_had_arrived() {
    let bus = Bus::in_memory();
    let sub = bus.subscribe("a".parse().unwrap()).await.unwrap();
    bus.publish_bytes(subject("a"), "1").await.unwrap();
    bus.publish_bytes(subject("a"), "2").await.unwrap();
    assert_eq!(sub.unsubscribe().await.unwrap().len(), 2);
}

#[tokio::test]
async fn what_a_subscription_has_no_room_for_is_a_gap() {
    let bus = Bus::in_memory();
    let mut sub = bus.subscribe("a".parse().unwrap()).max_pending(2).await.unwrap();
    for _ in 0..5 {
        bus.publish_bytes(subject("a"), "x").await.unwrap();
    }
    // What was dropped stands after what was kept.
    let mut events = Vec::new();
    while events.len() < 3 {
        assert_ne!(sub.recv_many(&mut events, 10).await, 0);
    }
    let missed: u64 =
        events.iter().map(|event| if let Event::Gap(gap) = event { gap.missed.unwrap() } else { 0 }).sum();
    let counters = bus.status().counters;
    assert_eq!((missed, counters.gaps, counters.missed, counters.received), (3, 1, 3, 2));
}

#[tokio::test]
async fn a_request_is_answered_and_the_reply_belongs_to_the_same_chain() {
    let bus = Bus::in_memory();
    let search = bus.topics().tool("search").unwrap().call();
    let _responder = bus
        .respond(search.clone(), async |request, call: ToolCall| {
            let context = request.context();
            let output = json!({"q": call.arguments, "conversation": context.trace().conversation_id});
            Ok(ToolResult { output, ..Default::default() })
        })
        .queue("search")
        .start()
        .await
        .unwrap();
    let call = ToolCall { arguments: json!("oslo"), ..Default::default() };
    let received = bus
        .request(search.clone(), &call)
        .conversation("c-9")
        .correlation_id("chain")
        .received()
        .await
        .unwrap();
    let envelope = received.envelope().unwrap();
    assert_eq!((&*envelope.kind, envelope.correlation_id.as_deref()), ("tool.result", Some("chain")));
    assert!(envelope.trace.causation_id.is_some());
    assert_eq!(envelope.deadline, None, "only requests inherit the deadline");
    let result: ToolResult = bus.request(search, &call).conversation("c-9").await.unwrap();
    assert_eq!(result.output, json!({"q": "oslo", "conversation": "c-9"}));
    assert_eq!(bus.status().counters.requests_in_flight, 0);
}

#[tokio::test]
async fn a_plain_json_request_gets_a_plain_json_reply() {
    let bus = Bus::in_memory();
    let _responder =
        bus.respond(echo(&bus), async |_, value: Value| Ok(json!({"got": value}))).start().await.unwrap();
    let message = Message::new(echo(&bus).subject().clone(), r#"{"n":1}"#);
    let reply = bus.request_message(message, SECOND).await.unwrap();
    assert_eq!(reply.payload(), r#"{"got":{"n":1}}"#);
}

#[tokio::test]
async fn nobody_answering_is_known_at_once() {
    let bus = Bus::in_memory();
    let error = bus.request(echo(&bus), &json!(1)).timeout(Duration::from_secs(3600)).await.unwrap_err();
    assert!(matches!(error, RequestError::NoResponders { .. }), "{error}");
    assert!(error.is_retryable());
}

#[tokio::test(start_paused = true)]
async fn a_responder_that_does_not_answer_is_a_timeout() {
    let bus = Bus::in_memory();
    let _silent = bus.subscribe(echo(&bus).pattern()).await.unwrap();
    let error = bus.request(echo(&bus), &json!(1)).timeout(3 * SECOND).await.unwrap_err();
    assert!(matches!(error, RequestError::Timeout { waited, .. } if waited == 3 * SECOND), "{error}");
    assert_eq!(bus.status().counters.requests_in_flight, 0);
}

#[tokio::test]
async fn errors_panics_and_unreadable_payloads_are_error_replies_and_others_live_on() {
    let bus = Bus::in_memory();
    let topic: Topic<String, String> = Topic::new(subject("nachos.test.moody"));
    let _responder = bus
        .respond(topic.clone(), async |_, mood: String| match &*mood {
            "error" => Err(HandlerError::new("no").code(418)),
            "panic" => panic!("boom"),
            _ => Ok("fine".to_owned()),
        })
        .concurrency(1)
        .start()
        .await
        .unwrap();
    let ask = |payload: Value| {
        let topic: Topic<Value, String> = Topic::new(topic.subject().clone());
        let request = bus.request(topic, &payload);
        async move {
            match request.await {
                Ok(text) => (0, text),
                Err(RequestError::Service { code, message, .. }) => (code, message),
                Err(other) => panic!("{other}"),
            }
        }
    };
    assert_eq!(ask(json!("error")).await, (418, "no".into()));
    assert_eq!(ask(json!("panic")).await, (500, "handler panicked: boom".into()));
    assert_eq!(ask(json!(7)).await.0, 400);
    assert_eq!(ask(json!("well")).await, (0, "fine".into()));
}

#[tokio::test]
async fn a_reply_that_is_too_large_is_an_error_reply() {
    let hub = Arc::new(Hub::new(HubOptions { max_payload: 1024, ..HubOptions::default() }));
    let bus = Bus::on_hub(&hub, BusOptions::default());
    let responder = bus.respond(echo(&bus), async |_, _: Value| Ok(json!("x".repeat(2000)))).start();
    let _responder = responder.await.unwrap();
    let error = bus.request(echo(&bus), &json!(1)).timeout(60 * SECOND).await.unwrap_err();
    assert!(matches!(error, RequestError::Service { code: 500, .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_timeout_of_a_request_counts_for_its_inbox_too() {
    let hub = Arc::new(Hub::new(HubOptions::default()));
    let stuck = Stuck(MemoryBackend::connect_to(&hub));
    let bus = Bus::with_backend(Arc::new(stuck), BusOptions::default());
    let request = bus.request(echo(&bus), &json!(1)).timeout(SECOND).into_future();
    let error = tokio::time::timeout(2 * SECOND, request).await.expect("it ends in time").unwrap_err();
    assert!(matches!(error, RequestError::Timeout { waited: SECOND, .. }), "{error}");
}

#[tokio::test]
async fn a_slow_handler_blocks_nobody_up_to_the_bound() {
    let bus = Bus::in_memory();
    let topic: Topic<u32, u32> = Topic::new(subject("nachos.test.slow"));
    let (running, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::new(Notify::new());
    let _responder = {
        let (running, peak, gate) = (running.clone(), peak.clone(), gate.clone());
        bus.respond(topic.clone(), move |_, n: u32| {
            let (running, peak, gate) = (running.clone(), peak.clone(), gate.clone());
            async move {
                peak.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                if n == 0 {
                    gate.notified().await;
                }
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(n)
            }
        })
        .concurrency(2)
        .start()
        .await
        .unwrap()
    };
    let stuck = tokio::spawn(bus.request(topic.clone(), &0).into_future());
    for n in 1..20 {
        assert_eq!(bus.request(topic.clone(), &n).await.unwrap(), n);
    }
    gate.notify_one();
    assert_eq!(stuck.await.unwrap().unwrap(), 0);
    assert!(peak.load(Ordering::SeqCst) <= 2);
}

#[tokio::test]
async fn a_handler_that_requests_and_publishes_does_not_deadlock_and_passes_its_context_on() {
    let bus = Bus::in_memory();
    let mut seen = bus.subscribe("nachos.analytics.turn".parse().unwrap()).await.unwrap();
    let inner: Topic<Value, Value> = Topic::new(subject("nachos.test.inner"));
    let outer: Topic<Value, Value> = Topic::new(subject("nachos.test.outer"));
    let _inner = bus
        .respond(inner.clone(), async |request, _: Value| {
            Ok(json!({"deadline": request.context().deadline().map(|at| at.as_millisecond())}))
        })
        .start()
        .await
        .unwrap();
    let _outer = bus
        .respond(outer.clone(), move |request, value: Value| {
            let inner = inner.clone();
            async move {
                let bus = request.bus();
                let event = bus.topics().analytics("turn")?;
                bus.publish(event.clone(), &Default::default()).blocking()?;
                let context = Context::current().ok_or_else(|| HandlerError::new("no context"))?;
                let publish = {
                    let bus = bus.clone();
                    async move { bus.publish(event, &Default::default()).await }
                };
                tokio::spawn(context.scope(publish)).await??;
                Ok(bus.request(inner, &value).timeout(Duration::from_secs(3600)).await?)
            }
        })
        .concurrency(1)
        .start()
        .await
        .unwrap();
    let mut headers = Headers::new();
    headers.append("traceparent", "00-a-b-01").unwrap();
    let answer: Value = bus
        .request(outer, &json!(1))
        .conversation("c-1")
        .correlation_id("chain")
        .header("traceparent", "00-a-b-01")
        .timeout(10 * SECOND)
        .await
        .unwrap();
    for _ in 0..2 {
        let event = message(&mut seen).await;
        let envelope = event.envelope().unwrap();
        assert_eq!(envelope.correlation_id.as_deref(), Some("chain"));
        assert_eq!(envelope.trace.conversation_id.as_deref(), Some("c-1"));
        assert!(envelope.trace.causation_id.is_some() && envelope.deadline.is_none());
        assert_eq!(event.headers(), &headers);
    }
    let deadline = answer["deadline"].as_i64().unwrap();
    let latest = jiff::Timestamp::now().as_millisecond() + 10_000;
    assert!(deadline <= latest, "the inner request inherits the earlier deadline");
}

#[tokio::test]
async fn a_request_past_its_deadline_is_not_run() {
    let bus = Bus::in_memory();
    let ran = Arc::new(AtomicUsize::new(0));
    let _responder = {
        let ran = ran.clone();
        bus.respond(echo(&bus), move |_, value: Value| {
            ran.fetch_add(1, Ordering::SeqCst);
            async move { Ok(value) }
        })
        .start()
        .await
        .unwrap()
    };
    let body = r#"{"id":"a","type":"t","payload":1,"deadline":"2001-01-01T00:00:00Z"}"#;
    let message = Message::new(echo(&bus).subject().clone(), body);
    let error = bus.request_message(message, SECOND).await.unwrap_err();
    assert!(matches!(error, RequestError::Service { code: 408, .. }), "{error}");
    assert_eq!(ran.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn middleware_is_tower() {
    let bus = Bus::in_memory();
    let _responder = bus
        .respond(echo(&bus), async |_, _: Value| -> Result<Value, HandlerError> {
            std::future::pending().await
        })
        .layer(tower::timeout::TimeoutLayer::new(Duration::from_millis(1)))
        .start()
        .await
        .unwrap();
    let error = bus.request(echo(&bus), &json!(1)).await.unwrap_err();
    assert!(matches!(error, RequestError::Service { code: 500, .. }), "{error}");
}

#[tokio::test]
async fn stopping_a_responder_cancels_its_handlers_and_tells_the_requesters() {
    let bus = Bus::in_memory();
    let (started, wait) = oneshot::channel::<()>();
    let started = parking_lot::Mutex::new(Some(started));
    let responder = bus
        .respond(echo(&bus), move |_, _: Value| {
            started.lock().take().map(|started| started.send(()));
            std::future::pending::<Result<Value, HandlerError>>()
        })
        .start()
        .await
        .unwrap();
    let request = tokio::spawn(bus.request(echo(&bus), &json!(1)).into_future());
    wait.await.unwrap();
    responder.stop().await;
    let error = request.await.unwrap().unwrap_err();
    assert!(matches!(error, RequestError::Service { code: 503, .. }), "{error}");
    let error = bus.request(echo(&bus), &json!(1)).await.unwrap_err();
    assert!(matches!(error, RequestError::NoResponders { .. }), "{error}");
}

#[tokio::test]
async fn a_probe_is_answered_without_the_handler() {
    let bus = Bus::in_memory();
    let handled = Arc::new(AtomicUsize::new(0));
    let _responder = {
        let handled = handled.clone();
        bus.respond(echo(&bus), move |_, value: Value| {
            handled.fetch_add(1, Ordering::SeqCst);
            async move { Ok(value) }
        })
        .start()
        .await
        .unwrap()
    };
    let ask = |value: &str, payload: Bytes| {
        let mut headers = Headers::new();
        headers.append(crate::PROBE_HEADER, value).unwrap();
        let subject = bus.topics().subject("test.echo").unwrap();
        bus.request_message(Message { subject, reply: None, headers, payload }, SECOND)
    };
    let reply = ask("ready", Bytes::new()).await.unwrap();
    assert!(reply.payload().is_empty() && reply.headers().is_empty(), "{reply:?}");
    assert_eq!(handled.load(Ordering::SeqCst), 0);
    // Whatever says more, or asks for something else, is a request.
    ask("ready", Bytes::from_static(b"1")).await.unwrap();
    assert_eq!(handled.load(Ordering::SeqCst), 1);
    let error = ask("steady", Bytes::new()).await.unwrap_err();
    assert!(matches!(error, RequestError::Service { code: 400, .. }), "{error}");
}

#[tokio::test]
async fn drain_lets_handlers_finish_then_refuses_everything() {
    let bus = Bus::in_memory();
    let mut live = bus.subscribe("nachos.analytics.done".parse().unwrap()).await.unwrap();
    let (started, wait) = oneshot::channel::<()>();
    let started = parking_lot::Mutex::new(Some(started));
    let gate = Arc::new(Notify::new());
    let _responder = {
        let gate = gate.clone();
        bus.respond(echo(&bus), move |request, value: Value| {
            started.lock().take().map(|started| started.send(()));
            let gate = gate.clone();
            async move {
                gate.notified().await;
                let bus = request.bus();
                bus.publish(bus.topics().analytics("done")?, &Default::default()).await?;
                Ok(value)
            }
        })
        .start()
        .await
        .unwrap()
    };
    let request = tokio::spawn(bus.request(echo(&bus), &json!(1)).into_future());
    wait.await.unwrap();
    let draining = tokio::spawn({
        let bus = bus.clone();
        async move { bus.drain(10 * SECOND).await }
    });
    bus.inner().draining.cancelled().await;
    assert!(bus.subscribe("a".parse().unwrap()).await.is_err());
    gate.notify_one();
    draining.await.unwrap().unwrap();
    assert_eq!(request.await.unwrap().unwrap(), json!(1));
    drop(live.next().await);
    assert!(live.next().await.is_none());
    assert_eq!(bus.publish_bytes(subject("a"), "x").await, Err(PublishError::Closed));
    assert!(bus.request(echo(&bus), &json!(1)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn drain_cancels_what_does_not_finish_and_says_so() {
    let bus = Bus::in_memory();
    let (started, wait) = oneshot::channel::<()>();
    let started = parking_lot::Mutex::new(Some(started));
    let _responder = bus
        .respond(echo(&bus), move |_, _: Value| {
            started.lock().take().map(|started| started.send(()));
            std::future::pending::<Result<Value, HandlerError>>()
        })
        .start()
        .await
        .unwrap();
    let _request = tokio::spawn(bus.request(echo(&bus), &json!(1)).timeout(3600 * SECOND).into_future());
    wait.await.unwrap();
    assert_eq!(bus.drain(SECOND).await, Err(DrainError::Deadline { left: 1 }));
    assert_eq!(bus.status().counters.handlers_running, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_ends_although_a_handler_blocks_its_thread() {
    let bus = Bus::in_memory();
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Arc::new(parking_lot::Mutex::new(blocked));
    let (started, wait) = oneshot::channel();
    let started = parking_lot::Mutex::new(Some(started));
    let _responder = bus
        .respond(echo(&bus), move |_, value: Value| {
            let (blocked, started) = (blocked.clone(), started.lock().take());
            async move {
                let _ = started.unwrap().send(());
                let _ = blocked.lock().recv();
                Ok(value)
            }
        })
        .start()
        .await
        .unwrap();
    let request = Message { reply: Some(subject("r")), ..Message::new(subject("nachos.test.echo"), "1") };
    bus.publish_message(request).await.unwrap();
    wait.await.unwrap();
    let drained = tokio::time::timeout(30 * SECOND, bus.drain(Duration::from_millis(1))).await;
    assert!(matches!(drained, Ok(Err(DrainError::Deadline { .. }))), "{drained:?}");
    drop(release);
}

/// The in-memory backend with publishes that are over only later.
struct Later(MemoryBackend, Duration);

impl Backend for Later {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    fn status(&self) -> watch::Receiver<BackendStatus> {
        self.0.status()
    }
    fn new_inbox(&self) -> Subject {
        self.0.new_inbox()
    }
    fn publish(&self, m: Message, o: PublishOptions) -> Publishing {
        let (publishing, delay) = (self.0.publish(m, o), self.1);
        Publishing::Pending(Box::pin(async move {
            tokio::time::sleep(delay).await;
            publishing.outcome().await
        }))
    }
    fn flush(&self) -> Fut<'_, Result<(), PublishError>> {
        self.0.flush()
    }
    fn subscribe(
        &self,
        p: Pattern,
        o: SubscribeOptions,
    ) -> Fut<'_, Result<Box<dyn LiveSource>, SubscribeError>> {
        self.0.subscribe(p, o)
    }
    fn streams(&self) -> Result<&dyn Streams, Unsupported> {
        self.0.streams()
    }
    fn drain(&self, by: std::time::Instant) -> Fut<'_, Result<(), DrainError>> {
        self.0.drain(by)
    }
}

/// The in-memory backend whose subscriptions are never made, as those on a server that does not answer.
struct Stuck(MemoryBackend);

impl Backend for Stuck {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    fn status(&self) -> watch::Receiver<BackendStatus> {
        self.0.status()
    }
    fn new_inbox(&self) -> Subject {
        self.0.new_inbox()
    }
    fn publish(&self, m: Message, o: PublishOptions) -> Publishing {
        self.0.publish(m, o)
    }
    fn flush(&self) -> Fut<'_, Result<(), PublishError>> {
        self.0.flush()
    }
    fn subscribe(
        &self,
        _: Pattern,
        _: SubscribeOptions,
    ) -> Fut<'_, Result<Box<dyn LiveSource>, SubscribeError>> {
        Box::pin(std::future::pending())
    }
    fn streams(&self) -> Result<&dyn Streams, Unsupported> {
        self.0.streams()
    }
    fn drain(&self, by: std::time::Instant) -> Fut<'_, Result<(), DrainError>> {
        self.0.drain(by)
    }
}

fn later(delay: Duration, publish_timeout: Duration) -> Bus {
    let hub = Arc::new(Hub::new(HubOptions::default()));
    let options = BusOptions { publish_timeout, ..BusOptions::default() };
    Bus::with_backend(Arc::new(Later(MemoryBackend::connect_to(&hub), delay)), options)
}

#[tokio::test]
async fn publish_blocking_inside_a_handler_of_a_current_thread_runtime_does_not_deadlock() {
    let bus = later(Duration::from_millis(1), SECOND);
    let mut live = bus.subscribe("a".parse().unwrap()).await.unwrap();
    let _responder = bus
        .respond(echo(&bus), async |request, value: Value| {
            request.bus().publish_blocking(Message::new("a".parse()?, "x"))?;
            Ok(value)
        })
        .start()
        .await
        .unwrap();
    assert_eq!(bus.request(echo(&bus), &json!(1)).await.unwrap(), json!(1));
    assert_eq!(message(&mut live).await.payload(), "x");
}

#[test]
fn publish_blocking_needs_no_runtime_and_gives_up_in_time() {
    let bus = later(Duration::from_millis(1), SECOND);
    assert_eq!(bus.publish_blocking(Message::new(subject("a"), "x")), Ok(Receipt::Accepted));
    let never = later(Duration::from_secs(3600), Duration::from_millis(5));
    let error = never.publish_blocking(Message::new(subject("a"), "x")).unwrap_err();
    assert!(matches!(error, PublishError::OutcomeUnknown { .. }), "{error}");
    assert!(error.is_retryable());
}

#[tokio::test(start_paused = true)]
async fn outcomes_that_come_later_keep_their_order_in_publish_many() {
    let bus = later(SECOND, 10 * SECOND);
    let messages = (0..2500).map(|n| match n % 100 {
        7 => Message::new(subject("nachos.dead.x"), "x"),
        _ => Message::new(subject("a"), "x"),
    });
    let outcomes = bus.publish_many(messages).await;
    assert_eq!(outcomes.len(), 2500);
    for (n, outcome) in outcomes.iter().enumerate() {
        match n % 100 {
            7 => assert!(matches!(outcome, Err(PublishError::Reserved(_)))),
            _ => assert_eq!(outcome, &Ok(Receipt::Accepted)),
        }
    }
    let counters = bus.status().counters;
    assert_eq!((counters.published, counters.publish_errors), (2475, 25));
}

#[tokio::test]
async fn the_initial_start_holds_for_stored_subjects_and_no_others() {
    let hub = Arc::new(Hub::new(HubOptions::default()));
    let options = BusOptions { initial_start: Start::Beginning, ..BusOptions::default() };
    let bus = Bus::on_hub(&hub, options);
    bus.stream("kept").unwrap().ensure(vec!["kept.*".parse().unwrap()]).await.unwrap();
    bus.publish_many(["kept.a", "live.a"].map(|text| Message::new(subject(text), "old"))).await;
    let mut stored = bus.subscribe("kept.*".parse().unwrap()).await.unwrap();
    let mut live = bus.subscribe("live.*".parse().unwrap()).await.unwrap();
    bus.publish_many(["kept.a", "live.a"].map(|text| Message::new(subject(text), "new"))).await;
    assert_eq!(message(&mut stored).await.payload(), "old");
    let new = message(&mut stored).await;
    assert!(new.offset().is_some() && new.payload() == "new");
    assert_eq!(message(&mut live).await.payload(), "new");
}
