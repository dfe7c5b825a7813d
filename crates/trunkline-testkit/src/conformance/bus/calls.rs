//! Requests and responders.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};
use trunkline::backend::PublishError;
use trunkline::{Bus, HandlerError, Message, RequestError, Responder, Topic};

use super::{bus, next, topic};
use crate::conformance::Harness;
use crate::conformance::probe::soon;
use crate::faulty::{FaultRates, FaultyBackend};

/// Answers every request with its payload.
async fn echo(bus: &Bus, topic: &Topic<Value, Value>) -> Responder {
    let responder = bus.respond(topic.clone(), async |_, value: Value| Ok(value)).start();
    soon("start", responder).await.expect("a responder on a live connection")
}

/// Asks, and gives the answer.
async fn ask(bus: &Bus, topic: &Topic<Value, Value>, value: Value) -> Result<Value, RequestError> {
    soon("the reply", bus.request(topic.clone(), &value).into_future()).await
}

/// Tells the moment at which a handler is dropped.
struct Dropped(Arc<Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// What is published typed arrives in an envelope; what is published raw arrives raw.
pub async fn typed_payloads_travel_in_an_envelope_and_bytes_as_they_are(harness: &Harness) {
    let (one, two) = (bus(harness).await, bus(harness).await);
    let topic = topic(harness, "analytics.turn").kind("analytics.turn");
    let mut all =
        soon("subscribe", two.subscribe(topic.pattern()).into_future()).await.expect("a live connection");
    let published = one.publish(topic.clone(), &json!({"n": 1})).conversation("c-1").header("X-Tenant", "t");
    soon("publish", published.into_future()).await.expect("a live connection");
    let raw = soon("publish", one.publish_bytes(topic.subject().clone(), &b"\0raw"[..])).await;
    raw.expect("a live connection");

    let typed = next(&mut all).await;
    let envelope = typed.envelope().expect("a typed payload has an envelope");
    assert_eq!((&*envelope.kind, envelope.source.as_deref()), ("analytics.turn", Some("suite")));
    assert_eq!(envelope.trace.conversation_id.as_deref(), Some("c-1"));
    assert_eq!(envelope.correlation_id.as_ref(), Some(&envelope.id), "the first hop makes the correlation");
    assert_eq!(typed.headers().get("X-Tenant"), Some("t"));
    assert_eq!(typed.decode::<Value>().expect("the payload"), json!({"n": 1}));
    let raw = next(&mut all).await;
    assert!(raw.envelope().is_none() && raw.headers().is_empty());
    assert_eq!(&raw.payload()[..], b"\0raw");
}

/// Many requests at once, to a group of responders on several connections: each gets its own reply, once.
pub async fn each_request_gets_its_own_reply(harness: &Harness) {
    let (asking, one, two) = (bus(harness).await, bus(harness).await, bus(harness).await);
    let topic = topic(harness, "tool.echo.call");
    let handled = Arc::new(AtomicUsize::new(0));
    let mut responders = Vec::new();
    for bus in [&one, &two, &asking] {
        let handled = handled.clone();
        let responder = bus.respond(topic.clone(), move |_, value: Value| {
            handled.fetch_add(1, Ordering::Relaxed);
            async move { Ok(value) }
        });
        responders.push(soon("start", responder.queue("echo").start()).await.expect("a live connection"));
    }
    let replies = (0..300).map(|n| ask(&asking, &topic, json!(n)));
    for (n, reply) in join_all(replies).await.into_iter().enumerate() {
        assert_eq!(reply.expect("somebody answers"), json!(n));
    }
    assert_eq!(handled.load(Ordering::Relaxed), 300, "one of the group handles each");
    assert_eq!(asking.status().counters.requests_in_flight, 0);
}

/// That nobody answers is known at once, not after the timeout; and again after a responder has stopped.
pub async fn nobody_answering_is_known_at_once(harness: &Harness) {
    let (asking, answering) = (bus(harness).await, bus(harness).await);
    let topic = topic(harness, "tool.none.call");
    let none = async || {
        let asked = Instant::now();
        let request = asking.request(topic.clone(), &json!(1)).timeout(Duration::from_secs(600));
        let error = soon("the answer", request.into_future()).await.expect_err("nobody answers");
        assert!(matches!(error, RequestError::NoResponders { .. }), "{error:?}");
        assert!(asked.elapsed() < Duration::from_secs(1), "it took {:?}", asked.elapsed());
    };
    none().await;
    let responder = echo(&answering, &topic).await;
    assert_eq!(ask(&asking, &topic, json!(2)).await.expect("somebody answers"), json!(2));
    soon("stop", responder.stop()).await;
    answering.flush().await.expect("a live connection");
    none().await;
}

/// A responder that is there and silent is a timeout, in time; a late reply is nobody else's.
pub async fn silent_responder_is_a_timeout_and_its_late_reply_goes_to_nobody(harness: &Harness) {
    let (asking, answering) = (bus(harness).await, bus(harness).await);
    let topic = topic(harness, "tool.late.call");
    let calls = answering.subscribe(topic.pattern()).responder();
    let mut calls = soon("subscribe", calls.into_future()).await.expect("live");
    let timeout = Duration::from_millis(100);
    let asked = Instant::now();
    let request = asking.request(topic.clone(), &json!(1)).timeout(timeout);
    let error = soon("the answer", request.into_future()).await.expect_err("nobody replies");
    assert!(matches!(error, RequestError::Timeout { waited, .. } if waited == timeout), "{error:?}");
    assert!(asked.elapsed() >= timeout && asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());

    let first = next(&mut calls).await.reply().expect("a request has a reply subject").clone();
    let late = async {
        let second = next(&mut calls).await.reply().expect("a request has a reply subject").clone();
        assert_ne!(first, second, "every request has a reply subject of its own");
        for (to, text) in [(&first, "\"late\""), (&second, "\"right\"")] {
            answering.publish_bytes(to.clone(), text).await.expect("a live connection");
        }
    };
    let (answer, ()) = tokio::join!(ask(&asking, &topic, json!(2)), late);
    assert_eq!(answer.expect("the second is answered"), json!("right"));
}

/// A handler's error, a panic and an unreadable payload are error replies with code and text, and the responder
/// goes on.
pub async fn failing_handler_tells_its_requester_and_goes_on(harness: &Harness) {
    let (asking, answering) = (bus(harness).await, bus(harness).await);
    let moody: Topic<String, String> = Topic::new(harness.subject("tool.moody.call"));
    let responder = answering.respond(moody.clone(), async |_, mood: String| match &*mood {
        "error" => Err(HandlerError::new("no").code(418)),
        "panic" => panic!("a handler of the suite panics on purpose"),
        _ => Ok("fine".to_owned()),
    });
    let _responder = soon("start", responder.concurrency(1).start()).await.expect("a live connection");
    let topic = Topic::new(moody.subject().clone());
    for round in 0..3 {
        for (mood, code) in [(json!("error"), 418), (json!("panic"), 500), (json!({"not": "text"}), 400)] {
            match ask(&asking, &topic, mood.clone()).await {
                Err(RequestError::Service { code: found, message, .. }) => {
                    assert_eq!(found, code, "{mood} in round {round}: {message}");
                    assert!(!message.is_empty());
                }
                other => panic!("{mood} is an error reply, not {other:?}"),
            }
        }
        assert_eq!(ask(&asking, &topic, json!("well")).await.expect("an answer"), json!("fine"));
    }
}

/// Handlers that never end hold up no other, up to the bound on concurrency; past the bound nothing runs.
pub async fn slow_handlers_hold_up_no_other_and_are_bounded(harness: &Harness) {
    const BOUND: usize = 4;
    let (asking, answering) = (bus(harness).await, bus(harness).await);
    let topic = topic(harness, "tool.slow.call");
    let (running, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (stuck, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let responder = {
        let (stuck, gate, running, peak) = (stuck.clone(), gate.clone(), running.clone(), peak.clone());
        answering.respond(topic.clone(), move |_, value: Value| {
            let (stuck, gate) = (stuck.clone(), gate.clone());
            let (running, peak) = (running.clone(), peak.clone());
            async move {
                peak.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                if value == json!("stuck") {
                    stuck.add_permits(1);
                    gate.acquire().await?.forget();
                }
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(value)
            }
        })
    };
    let _responder = soon("start", responder.concurrency(BOUND).start()).await.expect("a live connection");
    let held: Vec<_> = (0..BOUND - 1)
        .map(|_| tokio::spawn(asking.request(topic.clone(), &json!("stuck")).into_future()))
        .collect();
    let all_stuck = soon("handlers start", stuck.acquire_many(BOUND as u32 - 1)).await;
    all_stuck.expect("the semaphore lives").forget();
    for n in 0..20 {
        assert_eq!(ask(&asking, &topic, json!(n)).await.expect("one place is free"), json!(n));
    }
    let more = join_all((0..50).map(|n| ask(&asking, &topic, json!(n)))).await;
    assert!(more.iter().all(Result::is_ok), "requests past the bound wait and are answered");
    gate.add_permits(BOUND);
    for held in held {
        assert_eq!(soon("the reply", held).await.expect("no panic").expect("an answer"), json!("stuck"));
    }
    assert!(peak.load(Ordering::SeqCst) <= BOUND, "{} handlers ran at once", peak.load(Ordering::SeqCst));
}

/// A tool call that waits for an approval does not hold up the approval: the handler asks over the same bus, while
/// every place for tool calls is taken.
pub async fn stuck_call_does_not_block_the_approval_that_releases_it(harness: &Harness) {
    let (asking, answering) = (bus(harness).await, bus(harness).await);
    let (call, approve) = (topic(harness, "tool.shell.call"), topic(harness, "gateway.approve"));
    let waiting = approve.clone();
    let tool = answering.respond(call.clone(), move |request, value: Value| {
        let approve = waiting.clone();
        async move { Ok(json!([request.bus().request(approve, &value).await?, value])) }
    });
    let _tool = soon("start", tool.concurrency(1).start()).await.expect("a live connection");
    let _approver = echo(&answering, &approve).await;
    let calls = join_all((0..10).map(|n| ask(&asking, &call, json!(n)))).await;
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.expect("the approval came"), json!([n, n]));
    }
}

/// A handler publishes and requests, waiting or blocking its thread, on a runtime of one thread: nothing deadlocks.
pub async fn handler_that_publishes_does_not_deadlock(harness: &Harness) {
    let backend = harness.backend().await;
    let asking = super::bus_over(harness, backend);
    let event = harness.subject("analytics.tool");
    let mut events = soon("subscribe", asking.subscribe((&event).into()).into_future()).await.expect("live");
    let topic = topic(harness, "tool.chatty.call");

    // The tasks of this connection share their one thread with the handler that blocks it.
    let (connecting, options) = (harness.connecting(), super::options(harness));
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (serving, served) = (topic.clone(), event.clone());
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let answering = Bus::with_backend(connecting.await, options);
            let responder = answering.respond(serving, move |request, value: Value| {
                let event = served.clone();
                async move {
                    let bus = request.bus();
                    bus.publish_bytes(event.clone(), "1").await?;
                    for message in ["2", "3"] {
                        bus.publish_blocking(Message::new(event.clone(), message))?;
                    }
                    Ok(value)
                }
            });
            let _responder = responder.concurrency(2).start().await.expect("a live connection");
            ready.send(()).expect("somebody waits");
            // Ends when the other side is done, or has panicked.
            let _ = stopped.await;
        });
    });
    soon("the responder", is_ready).await.expect("it starts");
    for n in 0..10 {
        assert_eq!(ask(&asking, &topic, json!(n)).await.expect("no deadlock"), json!(n));
        for expected in ["1", "2", "3"] {
            assert_eq!(&next(&mut events).await.payload()[..], expected.as_bytes());
        }
    }
    drop(stop);
    let joined = soon("the thread", tokio::task::spawn_blocking(move || thread.join())).await;
    assert!(joined.expect("no panic").is_ok());
}

/// When the requester's time is over, the responder's handler is dropped: nobody waits for its answer.
pub async fn handler_ends_at_the_deadline_of_its_request(harness: &Harness) {
    let (asking, answering) = (bus(harness).await, bus(harness).await);
    let topic = topic(harness, "tool.endless.call");
    let (dropped, finished) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let responder = {
        let (dropped, finished) = (dropped.clone(), finished.clone());
        answering.respond(topic.clone(), move |_, value: Value| {
            let (guard, finished) = (Dropped(dropped.clone()), finished.clone());
            async move {
                std::future::pending::<()>().await;
                finished.store(true, Ordering::SeqCst);
                drop(guard);
                Ok(value)
            }
        })
    };
    let _responder = soon("start", responder.start()).await.expect("a live connection");
    let request = asking.request(topic, &json!(1)).timeout(Duration::from_millis(200));
    let error = soon("the answer", request.into_future()).await.expect_err("the handler never ends");
    // Whose clock is first is open: the requester's, or the responder's, which says 408.
    assert!(
        matches!(error, RequestError::Timeout { .. } | RequestError::Service { code: 408, .. }),
        "{error:?}"
    );
    soon("the handler is dropped", dropped.notified()).await;
    assert!(!finished.load(Ordering::SeqCst));
}

/// A drain lets handlers finish and their replies go out, then refuses everything by type.
pub async fn drain_answers_what_had_arrived_then_refuses(harness: &Harness) {
    let (asking, answering) = (bus(harness).await, bus(harness).await);
    let topic = topic(harness, "tool.drained.call");
    let (started, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let responder = {
        let (started, gate) = (started.clone(), gate.clone());
        answering.respond(topic.clone(), move |_, value: Value| {
            let (started, gate) = (started.clone(), gate.clone());
            async move {
                started.add_permits(1);
                gate.acquire().await?.forget();
                Ok(value)
            }
        })
    };
    let _responder = soon("start", responder.start()).await.expect("a live connection");
    let request = tokio::spawn(asking.request(topic.clone(), &json!(7)).into_future());
    soon("the handler starts", started.acquire()).await.expect("the semaphore lives").forget();
    let (drained, ()) =
        tokio::join!(soon("drain", answering.drain(Duration::from_secs(5))), async { gate.add_permits(1) });
    drained.expect("the handler finishes in time");
    assert_eq!(soon("the reply", request).await.expect("no panic").expect("an answer"), json!(7));
    let late = soon("publish", answering.publish_bytes(topic.subject().clone(), "x")).await;
    assert_eq!(late, Err(PublishError::Closed));
    assert!(answering.subscribe(topic.pattern()).await.is_err());
    assert!(ask(&answering, &topic, json!(1)).await.is_err());
    let gone = ask(&asking, &topic, json!(1)).await;
    assert!(matches!(gone, Err(RequestError::NoResponders { .. })), "{gone:?}");
}

/// Only the bus publishes dead letters.
pub async fn dead_letter_subjects_are_reserved(harness: &Harness) {
    let bus = bus(harness).await;
    let subject = harness.subject("dead.audit.siem");
    let refused = Err(PublishError::Reserved(subject.clone()));
    assert_eq!(soon("publish", bus.publish_bytes(subject.clone(), "x")).await, refused);
    assert_eq!(bus.publish_blocking(Message::new(subject.clone(), "x")), refused);
    let typed: Topic<Value> = Topic::new(subject.clone());
    assert_eq!(soon("publish", bus.publish(typed, &json!(1)).into_future()).await, refused);
    assert_eq!(soon("publish", bus.publish_many([Message::new(subject, "x")])).await, [refused]);
}

/// On a connection that refuses publishes and leaves outcomes unknown, a request that was refused is never handled,
/// one that is answered was, and none hangs.
pub async fn requests_on_a_failing_connection_tell_the_truth(harness: &Harness) {
    let rates =
        FaultRates { publish_refused: 0.2, publish_unknown: 0.2, delay: 0.1, ..FaultRates::default() };
    let seed = fastrand::u64(..);
    println!("faults are drawn with seed {seed}");
    let faulty = Arc::new(FaultyBackend::new(harness.backend().await, rates, seed));
    let (asking, answering) = (super::bus_over(harness, faulty.clone()), bus(harness).await);
    let topic: Topic<u64, u64> = Topic::new(harness.subject("tool.unsure.call"));
    let handled = Arc::new(Mutex::new(HashSet::new()));
    let responder = {
        let handled = handled.clone();
        answering.respond(topic.clone(), move |_, n: u64| {
            handled.lock().unwrap_or_else(PoisonError::into_inner).insert(n);
            async move { Ok(n) }
        })
    };
    let _responder = soon("start", responder.start()).await.expect("a live connection");
    let mut refused = Vec::new();
    for n in 0..200 {
        let request = asking.request(topic.clone(), &n).timeout(Duration::from_millis(300));
        match soon("the outcome", request.into_future()).await {
            Ok(reply) => {
                assert_eq!(reply, n);
                assert!(handled.lock().unwrap_or_else(PoisonError::into_inner).contains(&n));
            }
            Err(RequestError::Publish(PublishError::NotConnected { .. })) => refused.push(n),
            // Whose clock is first is open: the requester's, or the responder's, which says 408.
            Err(
                RequestError::Publish(PublishError::OutcomeUnknown { .. })
                | RequestError::Timeout { .. }
                | RequestError::Service { code: 408, .. },
            ) => {}
            Err(other) => panic!("nobody provoked {other:?}"),
        }
    }
    assert!(faulty.injected() > 0 && !refused.is_empty(), "200 requests met no fault");
    faulty.calm();
    let last = soon("the reply", asking.request(topic.clone(), &1000).into_future()).await;
    assert_eq!(last.expect("all is well again"), 1000);
    let handled = handled.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(refused.iter().all(|n| !handled.contains(n)), "a request was refused as not sent, and handled");
    assert_eq!(asking.status().counters.requests_in_flight, 0);
}
