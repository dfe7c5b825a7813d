//! Both ends of reply streams over the in-memory backend.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use tokio::sync::oneshot;
use trunkline_core::Pattern;

use super::*;
use crate::bus::handler::HandlerError;
use crate::bus::subscribe::Event;
use crate::{Responder, Subscription};

fn topic() -> Topic<u32, u32> {
    Topic::new("nachos.test.count".parse().unwrap())
}

/// Counts up to the number asked for, and notes how many it has sent.
async fn counter(bus: &Bus, sent: &Arc<AtomicU32>) -> Responder {
    let sent = sent.clone();
    bus.respond_stream(topic(), move |_, to: u32, mut sink| {
        let sent = sent.clone();
        async move {
            for n in 0..to {
                sink.send(&n).await?;
                sent.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        }
    })
    .start()
    .await
    .unwrap()
}

/// A responder of the test's own, which writes frames by hand.
async fn by_hand(bus: &Bus) -> (Subscription, RawReplyStream, Subject) {
    let mut requests = bus.subscribe(topic().pattern()).await.unwrap();
    let message = Message::new(topic().subject().clone(), "7");
    let stream = bus.request_stream_message(message, Duration::from_secs(9)).await.unwrap();
    let Some(Event::Message(request)) = requests.next().await else { panic!("no request") };
    assert_eq!(frame::window_of(request.headers()), Some(bus.options().stream_window));
    let reply = request.reply().unwrap().clone();
    (requests, stream, reply)
}

async fn reply_subject(requests: &mut Subscription) -> Subject {
    let Some(Event::Message(request)) = requests.next().await else { panic!("no request") };
    request.reply().unwrap().clone()
}

async fn send(bus: &Bus, to: &Subject, kind: FrameKind, seq: u64, control: Option<&Subject>) {
    let mut message = Message::new(to.clone(), seq.to_string());
    frame::mark(&mut message.headers, kind, seq, control);
    bus.publish_message(message).await.unwrap();
}

async fn control(subscription: &mut Subscription) -> frame::Control {
    let next = tokio::time::timeout(Duration::from_secs(10), subscription.next()).await;
    let Ok(Some(Event::Message(message))) = next else { panic!("no control message") };
    frame::parse_control(message.payload()).unwrap()
}

#[tokio::test]
async fn all_chunks_come_in_order_and_then_the_end() {
    let bus = Bus::in_memory();
    let _responder = counter(&bus, &Arc::default()).await;
    for count in [0, 1, 3, 200] {
        let mut chunks = bus.request_stream(topic(), &count).window(4).await.unwrap();
        for n in 0..count {
            assert_eq!(chunks.next().await.unwrap().unwrap(), n);
        }
        assert!(chunks.next().await.is_none());
        assert!(chunks.next().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_chunks_than_the_window_are_under_way() {
    let bus = Bus::in_memory();
    let sent = Arc::new(AtomicU32::new(0));
    let _responder = counter(&bus, &sent).await;
    let mut chunks = bus.request_stream(topic(), &100).window(8).await.unwrap();
    // On the paused clock a sleep ends when nothing else can run.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(sent.load(Ordering::SeqCst), 8);
    for _ in 0..4 {
        chunks.next().await.unwrap().unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(sent.load(Ordering::SeqCst), 12);
}

#[tokio::test(start_paused = true)]
async fn a_requester_that_takes_nothing_ends_the_handler() {
    let bus = Bus::in_memory();
    let _responder = counter(&bus, &Arc::default()).await;
    let mut chunks = bus.request_stream(topic(), &3).window(1).await.unwrap();
    tokio::time::sleep(bus.options().stream_idle_timeout * 2).await;
    assert_eq!(chunks.next().await.unwrap().unwrap(), 0);
    let error = chunks.next().await.unwrap().unwrap_err();
    assert!(matches!(error, StreamReplyError::Service { code: 500, .. }), "{error}");
}

#[tokio::test]
async fn a_stream_that_nobody_reads_or_opens_is_cancelled_by_its_first_frame() {
    let bus = Bus::in_memory();
    let mut requests = bus.subscribe(topic().pattern()).await.unwrap();
    let control_subject: Subject = "control.here".parse().unwrap();
    let mut controls = bus.subscribe((&control_subject).into()).await.unwrap();
    let message = || Message::new(topic().subject().clone(), "1");

    // The first frame has arrived, and nobody has looked at it.
    let unread = bus.request_stream_message(message(), Duration::from_secs(600)).await.unwrap();
    let to = reply_subject(&mut requests).await;
    send(&bus, &to, FrameKind::Chunk, 0, Some(&control_subject)).await;
    while unread.waiter.messages.is_empty() {
        tokio::task::yield_now().await;
    }
    drop(unread);
    assert_eq!(control(&mut controls).await, frame::Control::Cancel);

    // A plain request is over when its reply turns out to be a stream.
    let timeout = Duration::from_millis(1);
    assert!(matches!(bus.request_message(message(), timeout).await, Err(RequestError::Timeout { .. })));
    let to = reply_subject(&mut requests).await;
    send(&bus, &to, FrameKind::Chunk, 0, Some(&control_subject)).await;
    assert_eq!(control(&mut controls).await, frame::Control::Cancel);
}

#[tokio::test]
async fn dropping_the_stream_cancels_the_handler_before_and_after_the_first_chunk() {
    struct Dropped(Option<oneshot::Sender<()>>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.take().unwrap().send(());
        }
    }
    for read_first in [true, false] {
        let bus = Bus::in_memory();
        let (started, wait_start) = oneshot::channel();
        let (ended, wait_end) = oneshot::channel();
        let signals = parking_lot::Mutex::new(Some((started, Dropped(Some(ended)))));
        let _responder = bus
            .respond_stream(topic(), move |request, _: u32, mut sink| {
                let signals = signals.lock().take();
                async move {
                    let (started, dropped) = signals.ok_or_else(|| HandlerError::new("asked twice"))?;
                    let token = request.cancellation().clone();
                    tokio::spawn(async move {
                        token.cancelled().await;
                        drop(dropped);
                    });
                    let _ = started.send(());
                    sink.send(&1).await?;
                    std::future::pending().await
                }
            })
            .start()
            .await
            .unwrap();
        let mut chunks = bus.request_stream(topic(), &1).await.unwrap();
        if read_first {
            assert_eq!(chunks.next().await.unwrap().unwrap(), 1);
            wait_start.await.unwrap();
        }
        drop(chunks);
        wait_end.await.unwrap();
    }
}

#[tokio::test]
async fn errors_of_the_responder_end_the_stream() {
    let bus = Bus::in_memory();
    let _responder = bus
        .respond_stream(topic(), async |_, n: u32, mut sink| {
            sink.send(&n).await?;
            match n {
                1 => panic!("boom"),
                _ => Err(HandlerError::new("out of words").code(507)),
            }
        })
        .start()
        .await
        .unwrap();
    for (n, expected) in [(1, (500, "handler panicked: boom")), (2, (507, "out of words"))] {
        let mut chunks = bus.request_stream(topic(), &n).await.unwrap();
        assert_eq!(chunks.next().await.unwrap().unwrap(), n);
        match chunks.next().await {
            Some(Err(StreamReplyError::Service { code, message, .. })) => {
                assert_eq!((code, &*message), expected)
            }
            other => panic!("{other:?}"),
        }
        assert!(chunks.next().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_responder_that_dies_is_a_timeout_and_never_an_end() {
    let bus = Bus::in_memory();
    let (_requests, mut stream, reply) = by_hand(&bus).await;
    send(&bus, &reply, FrameKind::Chunk, 0, None).await;
    assert_eq!(stream.next().await.unwrap().unwrap().payload(), "0");
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(
        matches!(error, StreamReplyError::Timeout { waited, .. } if waited == Duration::from_secs(9)),
        "{error}"
    );
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn missing_chunks_are_reported_and_repeats_passed_over() {
    let bus = Bus::in_memory();
    let (_requests, mut stream, reply) = by_hand(&bus).await;
    for seq in [0, 0, 3, 2, 4] {
        send(&bus, &reply, FrameKind::Chunk, seq, None).await;
    }
    send(&bus, &reply, FrameKind::End, 6, None).await;
    let mut seen = Vec::new();
    while let Some(item) = stream.next().await {
        seen.push(match item {
            Ok(chunk) => String::from_utf8(chunk.payload().to_vec()).unwrap(),
            Err(StreamReplyError::Missing { from, to }) => format!("{from}-{to} missing"),
            Err(other) => panic!("{other}"),
        });
    }
    assert_eq!(seen, ["0", "1-2 missing", "3", "4", "5-5 missing"]);
}

#[tokio::test]
async fn credit_and_cancellation_go_to_the_control_subject() {
    let bus = Bus::in_memory();
    let (_requests, mut stream, reply) = by_hand(&bus).await;
    let subject: Subject = "my.control".parse().unwrap();
    let mut controls = bus.subscribe(Pattern::from(&subject)).await.unwrap();
    for seq in 0..32 {
        send(&bus, &reply, FrameKind::Chunk, seq, (seq == 0).then_some(&subject)).await;
    }
    for _ in 0..32 {
        stream.next().await.unwrap().unwrap();
    }
    assert_eq!(control(&mut controls).await, frame::Control::Credit(32));
    drop(stream);
    assert_eq!(control(&mut controls).await, frame::Control::Cancel);
}

#[tokio::test]
async fn a_plain_reply_is_a_stream_of_one_and_nobody_is_no_responders() {
    let bus = Bus::in_memory();
    let mut none = bus.request_stream(topic(), &1).await.unwrap();
    assert!(matches!(none.next().await, Some(Err(StreamReplyError::NoResponders { .. }))));
    assert!(none.next().await.is_none());
    let _responder = bus.respond(topic(), async |_, n: u32| Ok(n + 1)).start().await.unwrap();
    let mut one = bus.request_stream(topic(), &1).await.unwrap();
    assert_eq!(one.next().await.unwrap().unwrap(), 2);
    assert!(one.next().await.is_none());
}

#[tokio::test]
async fn a_plain_request_to_a_reply_stream_is_an_error_and_never_a_part() {
    let bus = Bus::in_memory();
    let _responder = counter(&bus, &Arc::default()).await;
    let error = bus.request(topic(), &3).await.unwrap_err();
    assert!(matches!(error, RequestError::ReplyStream { .. }), "{error}");
}

#[tokio::test]
async fn a_requester_without_a_window_gets_the_frames_as_they_come() {
    let bus = Bus::in_memory();
    let _responder = counter(&bus, &Arc::default()).await;
    let mut inbox = bus.subscribe("my.inbox".parse().unwrap()).await.unwrap();
    let mut message = Message::new(topic().subject().clone(), "100");
    message.reply = Some("my.inbox".parse().unwrap());
    bus.publish_message(message).await.unwrap();
    for seq in 0..=100 {
        let Some(Event::Message(frame)) = inbox.next().await else { panic!("frame {seq} is missing") };
        let kind = if seq == 100 { FrameKind::End } else { FrameKind::Chunk };
        assert_eq!(frame::parse(frame.message()), Some((kind, Some(seq))));
        assert_eq!(frame::control_of(frame.message()).is_some(), seq == 0);
    }
}

#[tokio::test]
async fn a_chunk_of_another_shape_concerns_that_chunk_alone() {
    let bus = Bus::in_memory();
    let words: Topic<u32, Value> = Topic::new(topic().subject().clone());
    let _responder = bus
        .respond_stream(words, async |_, _: u32, mut sink| {
            for chunk in [json!(1), json!("two"), json!(3)] {
                sink.send(&chunk).await?;
            }
            Ok(())
        })
        .start()
        .await
        .unwrap();
    let mut chunks = bus.request_stream(topic(), &1).await.unwrap();
    assert_eq!(chunks.next().await.unwrap().unwrap(), 1);
    assert!(matches!(chunks.next().await, Some(Err(StreamReplyError::Decode { seq: 1, .. }))));
    assert_eq!(chunks.next().await.unwrap().unwrap(), 3);
    assert!(chunks.next().await.is_none());
}
