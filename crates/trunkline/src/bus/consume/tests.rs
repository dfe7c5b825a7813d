//! Consumers over the in-memory backend, on a paused clock: a sleep there ends when nothing else can run.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};
use trunkline_core::{Message, Subject};

use super::*;
use crate::backend::memory::{Hub, HubOptions};
use crate::backend::{PublishOptions, ReadRequest, Receipt, StreamConfig};
use crate::bus::context::Context;
use crate::{BusOptions, Topic};

const SECOND: Duration = Duration::from_secs(1);
const MS: fn(u64) -> Duration = Duration::from_millis;

fn subject(text: &str) -> Subject {
    text.parse().unwrap()
}

/// A bus with a stream `work` on `work.*`.
async fn bus() -> Bus {
    let bus = Bus::in_memory();
    bus.stream("work").unwrap().ensure(vec!["work.*".parse().unwrap()]).await.unwrap();
    bus
}

fn consumer(bus: &Bus) -> ConsumerBuilder {
    bus.stream("work").unwrap().consumer("c").unwrap().start(Start::Beginning)
}

async fn store(bus: &Bus, subjects: &[&str]) {
    for text in subjects {
        let receipt = bus.publish_bytes(subject(text), text.to_string()).await.unwrap();
        assert!(matches!(receipt, Receipt::Stored { .. }), "{receipt:?}");
    }
}

/// What happened, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn note(&self, text: impl Into<String>) {
        self.0.lock().push(text.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock())
    }
}

/// Runs everything that can run without time passing much.
async fn settle() {
    sleep(MS(1)).await;
}

async fn pending(bus: &Bus) -> (u64, u64) {
    let info = bus.stream("work").unwrap().consumer_info("c").await.unwrap().unwrap();
    (info.pending, info.lag)
}

async fn dead_letters(bus: &Bus) -> Vec<Message> {
    let request = ReadRequest { from: Start::Beginning, filter: None, max: 100 };
    let page = bus.stream("dead-nachos").unwrap().read(request).await.unwrap();
    page.messages.iter().map(|stored| (*stored.message).clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_message_is_acknowledged_only_after_its_handler_succeeded() {
    let bus = bus().await;
    store(&bus, &["work.a"]).await;
    let gate = Arc::new(Notify::new());
    let _consumer = {
        let gate = gate.clone();
        consumer(&bus)
            .spawn(move |_| {
                let gate = gate.clone();
                async move {
                    gate.notified().await;
                    Ok(())
                }
            })
            .await
            .unwrap()
    };
    settle().await;
    assert_eq!(pending(&bus).await, (1, 0));
    gate.notify_one();
    settle().await;
    assert_eq!(pending(&bus).await, (0, 0));
    assert_eq!(bus.status().counters.handled, 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_delivery_comes_again_after_its_backoff_and_blocks_no_other() {
    let bus = bus().await;
    store(&bus, &["work.bad", "work.good"]).await;
    let (log, start) = (Log::default(), Instant::now());
    let _consumer = {
        let log = log.clone();
        consumer(&bus)
            .concurrency(1)
            .backoff([SECOND, 5 * SECOND])
            .spawn(move |delivered| {
                let (attempt, subject) = (delivered.attempt(), delivered.subject().clone());
                log.note(format!("{} {subject} {attempt}", start.elapsed().as_secs()));
                async move {
                    match subject.as_str() {
                        "work.bad" if attempt < 4 => Err(HandlerError::new("no")),
                        _ => Ok(()),
                    }
                }
            })
            .await
            .unwrap()
    };
    sleep(20 * SECOND).await;
    let expected = ["0 work.bad 1", "0 work.good 1", "1 work.bad 2", "6 work.bad 3", "11 work.bad 4"];
    assert_eq!(log.take(), expected);
    assert_eq!(pending(&bus).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_handler_chooses_its_delay() {
    let bus = bus().await;
    store(&bus, &["work.a"]).await;
    let (log, start) = (Log::default(), Instant::now());
    let _consumer = {
        let log = log.clone();
        consumer(&bus)
            .spawn(move |delivered| {
                log.note(format!("{}", start.elapsed().as_secs()));
                let first = delivered.attempt() == 1;
                async move { if first { Err(HandlerError::retry_after(7 * SECOND, "later")) } else { Ok(()) } }
            })
            .await
            .unwrap()
    };
    sleep(20 * SECOND).await;
    assert_eq!(log.take(), ["0", "7"]);
}

#[tokio::test(start_paused = true)]
async fn what_never_succeeds_becomes_a_dead_letter_with_the_original() {
    let bus = bus().await;
    let mut message = Message::new(subject("work.a"), "\0original");
    message.headers.append("X-Own", "1").unwrap();
    message.headers.append("Nats-Msg-Id", "m1").unwrap();
    message.headers.append("Trunkline-Dead-Reason", "of an earlier life").unwrap();
    message.reply = Some(subject("my.reply"));
    bus.publish_message(message).await.unwrap();
    let _consumer = consumer(&bus)
        .max_deliver(2)
        .backoff([SECOND])
        .spawn(async |delivered| match delivered.attempt() {
            1 => Err(HandlerError::new("no")),
            _ => panic!("boom"),
        })
        .await
        .unwrap();
    sleep(5 * SECOND).await;
    let letters = dead_letters(&bus).await;
    let [letter] = &letters[..] else { panic!("{letters:?}") };
    assert_eq!(letter.subject.as_str(), "nachos.dead.work.c");
    assert_eq!(letter.payload, "\0original");
    assert_eq!(letter.reply, None);
    let headers: Vec<_> = letter.headers.iter().collect();
    assert_eq!(
        headers,
        [
            ("X-Own", "1"),
            ("Trunkline-Reply-To", "my.reply"),
            ("Trunkline-Dead-Reason", "max_deliver"),
            ("Trunkline-Dead-Attempts", "2"),
            ("Trunkline-Dead-Stream", "work"),
            ("Trunkline-Dead-Consumer", "c"),
            ("Trunkline-Dead-Offset", "1"),
            ("Trunkline-Dead-Subject", "work.a"),
        ]
    );
    assert_eq!(pending(&bus).await, (0, 0));
    assert_eq!(bus.status().counters.dead_letters, 1);
}

#[tokio::test(start_paused = true)]
async fn rejected_undecodable_and_expired_messages_are_dead_letters_at_once() {
    let bus = bus().await;
    store(&bus, &["work.rejected"]).await;
    bus.publish_bytes(subject("work.undecodable"), "{").await.unwrap();
    let expired = r#"{"id":"a","type":"t","payload":1,"deadline":"2001-01-01T00:00:00Z"}"#;
    bus.publish_bytes(subject("work.expired"), expired).await.unwrap();
    let log = Log::default();
    let _consumer = {
        let log = log.clone();
        consumer(&bus)
            .spawn(move |delivered| {
                log.note(delivered.subject().as_str());
                async move {
                    match delivered.subject().as_str() {
                        "work.rejected" => Err(HandlerError::reject("never")),
                        _ => delivered.decode::<Vec<u8>>().map(drop),
                    }
                }
            })
            .await
            .unwrap()
    };
    settle().await;
    let mut seen = log.take();
    seen.sort();
    assert_eq!(seen, ["work.rejected", "work.undecodable"], "an expired message never reaches its handler");
    let letters = dead_letters(&bus).await;
    let mut reasons: Vec<_> = letters
        .iter()
        .map(|letter| {
            let header = |name| letter.headers.get(name).unwrap().to_owned();
            (header("Trunkline-Dead-Subject"), header("Trunkline-Dead-Reason"))
        })
        .collect();
    reasons.sort();
    let expected =
        [("work.expired", "expired"), ("work.rejected", "rejected"), ("work.undecodable", "rejected")];
    assert_eq!(reasons, expected.map(|(subject, reason)| (subject.to_owned(), reason.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_never_becomes_another_one() {
    let bus = bus().await;
    store(&bus, &["work.a"]).await;
    let reject = async |_| Err(HandlerError::reject("never"));
    let _consumer = consumer(&bus).spawn(reject).await.unwrap();
    let undertaker =
        bus.stream("dead-nachos").unwrap().consumer("undertaker").unwrap().start(Start::Beginning);
    let _undertaker = undertaker.spawn(reject).await.unwrap();
    sleep(60 * SECOND).await;
    assert_eq!(dead_letters(&bus).await.len(), 1);
    let info = bus.stream("dead-nachos").unwrap().consumer_info("undertaker").await.unwrap().unwrap();
    assert_eq!((info.pending, info.lag), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn dead_letters_of_a_stream_made_anew_are_not_taken_for_those_of_the_old_one() {
    let bus = bus().await;
    for text in ["work.old", "work.new"] {
        let stream = bus.stream("work").unwrap();
        stream.ensure(vec!["work.*".parse().unwrap()]).await.unwrap();
        store(&bus, &[text]).await;
        let consumer = consumer(&bus).spawn(async |_| Err(HandlerError::reject("no"))).await.unwrap();
        while pending(&bus).await != (0, 0) {
            settle().await;
        }
        consumer.stop().await.unwrap();
        stream.remove().await.unwrap();
    }
    let dead: Vec<_> = dead_letters(&bus).await.into_iter().map(|letter| letter.payload).collect();
    assert_eq!(dead, ["work.old", "work.new"]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_is_not_stored_leaves_its_message_until_it_is() {
    let bus = bus().await;
    store(&bus, &["work.a"]).await;
    let _consumer =
        consumer(&bus).max_deliver(1).spawn(async |_| Err(HandlerError::new("no"))).await.unwrap();
    // Somebody takes the name for other subjects, so that the built-in stream cannot be made anew.
    let streams = bus.backend().streams().unwrap();
    streams.remove("dead-nachos").await.unwrap();
    streams.ensure(StreamConfig::new("dead-nachos", vec!["other".parse().unwrap()])).await.unwrap();
    sleep(10 * SECOND).await;
    assert_eq!(pending(&bus).await, (1, 0));
    assert!(bus.status().counters.dead_letter_errors > 0);
    streams.remove("dead-nachos").await.unwrap();
    sleep(60 * SECOND).await;
    assert_eq!(dead_letters(&bus).await.len(), 1);
    assert_eq!(pending(&bus).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_long_handler_keeps_its_lease_up_to_the_maximum() {
    let bus = bus().await;
    store(&bus, &["work.a"]).await;
    let (log, start) = (Log::default(), Instant::now());
    let _consumer = {
        let log = log.clone();
        consumer(&bus)
            .ack_wait(SECOND)
            .max_handling(60 * SECOND)
            .backoff([SECOND])
            .spawn(move |delivered| {
                log.note(format!("{} attempt {}", start.elapsed().as_secs(), delivered.attempt()));
                async move {
                    sleep(if delivered.attempt() == 1 { 3600 * SECOND } else { 10 * SECOND }).await;
                    Ok(())
                }
            })
            .await
            .unwrap()
    };
    sleep(100 * SECOND).await;
    assert_eq!(log.take(), ["0 attempt 1", "61 attempt 2"]);
    assert_eq!(pending(&bus).await, (0, 0));
    assert_eq!(bus.status().counters.leases_lost, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_cancels_the_handler_and_settles_nothing() {
    let bus = bus().await;
    store(&bus, &["work.a"]).await;
    let cancelled = Arc::new(AtomicUsize::new(0));
    let consumer = {
        let cancelled = cancelled.clone();
        consumer(&bus)
            .ack_wait(SECOND)
            .spawn(move |delivered| {
                let cancelled = cancelled.clone();
                let token = delivered.cancellation().clone();
                tokio::spawn(async move {
                    token.cancelled().await;
                    cancelled.fetch_add(1, Ordering::SeqCst);
                });
                std::future::pending::<Result<(), HandlerError>>()
            })
            .await
            .unwrap()
    };
    settle().await;
    assert!(bus.stream("work").unwrap().remove_consumer("c").await.unwrap());
    let ended = consumer.wait().await.unwrap_err();
    assert!(matches!(ended, ConsumerError::Ended(ConsumeError::Gone { .. })), "{ended}");
    settle().await;
    assert_eq!((cancelled.load(Ordering::SeqCst), bus.status().counters.handled), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_stopped_member_had_not_finished_goes_to_another_at_once() {
    let bus = bus().await;
    store(&bus, &["work.a", "work.b"]).await;
    let stuck = consumer(&bus).spawn(|_| std::future::pending::<Result<(), HandlerError>>()).await.unwrap();
    settle().await;
    assert_eq!(pending(&bus).await, (2, 0));
    stuck.stop().await.unwrap();
    let log = Log::default();
    let _other = {
        let log = log.clone();
        consumer(&bus)
            .spawn(move |delivered| {
                log.note(format!("{} {}", delivered.subject(), delivered.attempt()));
                async { Ok(()) }
            })
            .await
            .unwrap()
    };
    settle().await;
    let mut seen = log.take();
    seen.sort();
    assert_eq!(seen, ["work.a 2", "work.b 2"]);
}

#[tokio::test(start_paused = true)]
async fn a_drained_member_finishes_what_runs_and_starts_nothing() {
    let bus = bus().await;
    store(&bus, &["work.a", "work.b"]).await;
    let log = Log::default();
    let member = {
        let log = log.clone();
        consumer(&bus)
            .concurrency(1)
            .spawn(move |delivered| {
                let log = log.clone();
                async move {
                    sleep(SECOND).await;
                    log.note(delivered.subject().as_str());
                    Ok(())
                }
            })
            .await
            .unwrap()
    };
    settle().await;
    assert!(member.drain(10 * SECOND).await.unwrap());
    assert_eq!(log.take(), ["work.a"]);
    assert_eq!(pending(&bus).await, (0, 1));
}

#[tokio::test(start_paused = true)]
async fn no_more_is_fetched_than_may_run() {
    let bus = bus().await;
    store(&bus, &["work.a"; 10]).await;
    let _stuck = consumer(&bus)
        .concurrency(3)
        .spawn(|_| std::future::pending::<Result<(), HandlerError>>())
        .await
        .unwrap();
    sleep(SECOND).await;
    assert_eq!(pending(&bus).await, (3, 7));
}

/// A keyed consumer that orders by the last token of the subject; `none` has no key. It notes begin and end.
async fn by_key(bus: &Bus, log: &Log, took: Duration, fail_first: &'static str) -> Consumer {
    let log = log.clone();
    let key = |received: &Received| {
        let last = received.subject().tokens().last()?.to_owned();
        (last != "none").then_some(last)
    };
    consumer(bus)
        .ordered_by(Key::with(key))
        .concurrency(2)
        .backoff([10 * SECOND])
        .spawn(move |delivered| {
            let log = log.clone();
            async move {
                let name = String::from_utf8_lossy(delivered.received().payload()).into_owned();
                log.note(format!("+{name}"));
                sleep(took).await;
                if name == fail_first && delivered.attempt() == 1 {
                    log.note(format!("!{name}"));
                    return Err(HandlerError::new("no"));
                }
                log.note(format!("-{name}"));
                Ok(())
            }
        })
        .await
        .unwrap()
}

async fn store_named(bus: &Bus, messages: &[(&str, &str)]) {
    for (key, name) in messages {
        bus.publish_bytes(subject(&format!("work.{key}")), name.to_string()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_is_sequential_and_keys_are_parallel() {
    let bus = bus().await;
    store_named(&bus, &[("a", "a1"), ("a", "a2"), ("b", "b1"), ("a", "a3")]).await;
    let log = Log::default();
    let _consumer = by_key(&bus, &log, SECOND, "").await;
    sleep(10 * SECOND).await;
    assert_eq!(log.take(), ["+a1", "+b1", "-a1", "-b1", "+a2", "-a2", "+a3", "-a3"]);
    assert_eq!(pending(&bus).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_key_stays_blocked_while_its_failed_message_waits_and_others_go_on() {
    let bus = bus().await;
    store_named(&bus, &[("a", "a1"), ("a", "a2"), ("b", "b1")]).await;
    let log = Log::default();
    let _consumer = by_key(&bus, &log, MS(10), "a1").await;
    sleep(5 * SECOND).await;
    assert_eq!(log.take(), ["+a1", "+b1", "!a1", "-b1"]);
    store_named(&bus, &[("b", "b2"), ("a", "a3")]).await;
    sleep(SECOND).await;
    assert_eq!(log.take(), ["+b2", "-b2"]);
    sleep(60 * SECOND).await;
    assert_eq!(log.take(), ["+a1", "-a1", "+a2", "-a2", "+a3", "-a3"]);
}

#[tokio::test(start_paused = true)]
async fn a_message_without_key_is_never_queued_behind_anything() {
    let bus = bus().await;
    let log = Log::default();
    let _consumer = by_key(&bus, &log, 3600 * SECOND, "").await;
    store_named(&bus, &[("a", "a1"), ("b", "b1"), ("c", "c1"), ("a", "a2")]).await;
    settle().await;
    assert_eq!(log.take(), ["+a1", "+b1"], "all handlers are busy");
    store_named(&bus, &[("none", "approval")]).await;
    settle().await;
    assert_eq!(log.take(), ["+approval"]);
}

#[tokio::test(start_paused = true)]
async fn one_member_of_a_keyed_consumer_is_active_and_another_takes_over() {
    let hub = Arc::new(Hub::new(HubOptions::default()));
    let first = Bus::on_hub(&hub, BusOptions::default());
    let second = Bus::on_hub(&hub, BusOptions::default());
    first.stream("work").unwrap().ensure(vec!["work.*".parse().unwrap()]).await.unwrap();
    let (first_log, second_log) = (Log::default(), Log::default());
    let active = by_key(&first, &first_log, 3600 * SECOND, "").await;
    settle().await;
    let _standby = by_key(&second, &second_log, MS(1), "").await;
    store_named(&first, &[("a", "a1"), ("a", "a2"), ("b", "b1")]).await;
    sleep(60 * SECOND).await;
    assert_eq!((first_log.take(), second_log.take().len()), (vec!["+a1".to_owned(), "+b1".to_owned()], 0));
    active.stop().await.unwrap();
    sleep(30 * SECOND).await;
    let seen = second_log.take();
    assert_eq!(seen, ["+a1", "+b1", "-a1", "-b1", "+a2", "-a2"]);
}

#[tokio::test(start_paused = true)]
async fn parked_messages_keep_their_leases_and_are_bounded() {
    let bus = bus().await;
    store(&bus, &["work.a"; 20]).await;
    let running = Arc::new(AtomicUsize::new(0));
    let _consumer = {
        let running = running.clone();
        consumer(&bus)
            .ordered_by(Key::Subject)
            .concurrency(2)
            .max_parked(5)
            .ack_wait(SECOND)
            .spawn(move |_| {
                running.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<Result<(), HandlerError>>()
            })
            .await
            .unwrap()
    };
    sleep(60 * SECOND).await;
    assert_eq!(running.load(Ordering::SeqCst), 1);
    assert_eq!(pending(&bus).await, (7, 13));
    assert_eq!(bus.status().counters.redelivered, 0);
}

#[tokio::test(start_paused = true)]
async fn a_message_on_which_the_key_function_panics_fails_alone() {
    let bus = bus().await;
    store(&bus, &["work.poison", "work.a", "work.b"]).await;
    let log = Log::default();
    let consumer = {
        let log = log.clone();
        consumer(&bus)
            .ordered_by(Key::with(|received| {
                assert!(received.subject().as_str() != "work.poison", "a key function of the tests panics");
                Some(received.subject().to_string())
            }))
            .max_deliver(2)
            .backoff([SECOND])
            .spawn(move |delivered| {
                log.note(delivered.subject().as_str());
                async { Ok(()) }
            })
            .await
            .unwrap()
    };
    sleep(10 * SECOND).await;
    assert!(!consumer.has_ended());
    assert_eq!(log.take(), ["work.a", "work.b"]);
    assert_eq!(pending(&bus).await, (0, 0));
    let dead = dead_letters(&bus).await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].headers.get("Trunkline-Dead-Attempts"), Some("2"));
}

/// Room for parked deliveries that is full must not keep out the message that all of them wait for.
#[tokio::test(start_paused = true)]
async fn a_failed_message_comes_again_although_its_key_fills_all_room() {
    let bus = bus().await;
    let order: Vec<String> = (0..30).map(|n| n.to_string()).collect();
    for text in &order {
        bus.publish_bytes(subject("work.a"), text.clone()).await.unwrap();
    }
    let (log, start) = (Log::default(), Instant::now());
    let _consumer = {
        let log = log.clone();
        consumer(&bus)
            .ordered_by(Key::Subject)
            .concurrency(2)
            .max_parked(4)
            .backoff([SECOND])
            .spawn(move |delivered| {
                let text = String::from_utf8_lossy(delivered.received().payload()).into_owned();
                let fails = matches!(&*text, "0" | "1" | "12") && delivered.attempt() < 3;
                if !fails {
                    log.note(text);
                }
                async move { if fails { Err(HandlerError::new("no")) } else { Ok(()) } }
            })
            .await
            .unwrap()
    };
    while pending(&bus).await != (0, 0) {
        assert!(start.elapsed() < 20 * SECOND, "stuck: {:?}, handled {:?}", pending(&bus).await, log.take());
        assert!(pending(&bus).await.0 <= 2 + 4 + 1, "{:?}", pending(&bus).await);
        sleep(MS(50)).await;
    }
    assert_eq!(log.take(), order);
    assert!(start.elapsed() < 7 * SECOND, "each comes again when its backoff is over: {:?}", start.elapsed());
    assert_eq!(bus.status().counters.redelivered, 6);
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_publishes_belongs_to_the_chain_of_its_message() {
    let bus = bus().await;
    let mut live = bus.subscribe("out".parse().unwrap()).await.unwrap();
    let topic: Topic<Value> = Topic::new(subject("work.a"));
    bus.publish(topic, &json!(1)).conversation("c-1").correlation_id("chain").await.unwrap();
    let _consumer = consumer(&bus)
        .spawn(async |delivered: Delivered| {
            assert_eq!(
                Context::current().and_then(|it| it.correlation_id().map(str::to_owned)).as_deref(),
                Some("chain")
            );
            delivered.bus().publish(Topic::<Value>::new("out".parse()?), &json!(2)).await?;
            Ok(())
        })
        .await
        .unwrap();
    let received = live.next().await.and_then(crate::Event::into_message).unwrap();
    let envelope = received.envelope().unwrap();
    assert_eq!(envelope.correlation_id.as_deref(), Some("chain"));
    assert_eq!(envelope.trace.conversation_id.as_deref(), Some("c-1"));
}

#[tokio::test(start_paused = true)]
async fn fetching_by_hand_settles_by_hand_and_still_dead_letters() {
    let bus = bus().await;
    store(&bus, &["work.a", "work.b", "work.c"]).await;
    let puller = consumer(&bus).max_deliver(2).backoff([SECOND]).pull().await.unwrap();
    let mut pulled = puller.fetch(10, SECOND).await.unwrap().into_iter();
    pulled.next().unwrap().ack().await.unwrap();
    pulled.next().unwrap().nak(None).await.unwrap();
    pulled.next().unwrap().reject().await.unwrap();
    assert_eq!(puller.fetch(10, MS(500)).await.unwrap().len(), 0);
    let again = puller.fetch(10, SECOND).await.unwrap().pop().unwrap();
    assert_eq!((again.received().subject().as_str(), again.attempt()), ("work.b", 2));
    again.nak(None).await.unwrap();
    assert_eq!(puller.fetch(10, 5 * SECOND).await.unwrap().len(), 0, "it was delivered often enough");
    assert_eq!(dead_letters(&bus).await.len(), 2);
    assert_eq!(pending(&bus).await, (0, 0));
    puller.leave().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn draining_the_bus_lets_handlers_finish_and_acknowledge() {
    let hub = Arc::new(Hub::new(HubOptions::default()));
    let (bus, observer) =
        (Bus::on_hub(&hub, BusOptions::default()), Bus::on_hub(&hub, BusOptions::default()));
    bus.stream("work").unwrap().ensure(vec!["work.*".parse().unwrap()]).await.unwrap();
    store(&bus, &["work.a"]).await;
    let member = consumer(&bus)
        .spawn(async |_| {
            sleep(SECOND).await;
            Ok(())
        })
        .await
        .unwrap();
    settle().await;
    bus.drain(10 * SECOND).await.unwrap();
    member.wait().await.unwrap();
    assert_eq!(pending(&observer).await, (0, 0));
    let refused = consumer(&bus).spawn(async |_| Ok(())).await.unwrap_err();
    assert!(matches!(refused, ConsumerError::Join(StreamError::Closed)), "{refused}");
}

#[tokio::test]
async fn a_thousand_messages_are_each_handled_once() {
    let bus = bus().await;
    let (sender, mut handled) = mpsc::unbounded_channel();
    let _consumer = consumer(&bus)
        .spawn(move |delivered| {
            let sender = sender.clone();
            async move {
                sender.send(delivered.offset())?;
                Ok(())
            }
        })
        .await
        .unwrap();
    for _ in 0..1000 {
        let sent = bus.publish_with(Message::new(subject("work.a"), "x"), PublishOptions::default()).await;
        sent.unwrap();
    }
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..1000 {
        assert!(seen.insert(handled.recv().await.unwrap()));
    }
    bus.drain(10 * SECOND).await.unwrap();
    assert_eq!(handled.recv().await, None);
}
