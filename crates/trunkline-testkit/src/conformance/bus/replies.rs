//! Reply streams: chunks, then an explicit end or error.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Notify;
use trunkline::{HandlerError, ReplySink, ReplyStream, StreamReplyError, Topic};

use super::{bus, topic};
use crate::conformance::Harness;
use crate::conformance::probe::soon;

/// The next item of a reply stream.
async fn next(stream: &mut ReplyStream<Value>) -> Option<Result<Value, StreamReplyError>> {
    soon("the next chunk", stream.next()).await
}

/// Sends the numbers below the payload, then ends; fails after them when the payload is odd.
async fn count(sink: &mut ReplySink<Value>, upto: u64) -> Result<(), HandlerError> {
    for n in 0..upto {
        sink.send(&json!(n)).await?;
    }
    match upto % 2 {
        0 => Ok(()),
        _ => Err(HandlerError::new("odd").code(418)),
    }
}

/// Chunks come in order and complete, many more than the window, then the end; several streams at once do not mix.
pub async fn reply_stream_gives_its_chunks_in_order_then_ends(harness: &Harness) {
    let (asking, answering) = (bus(harness).await, bus(harness).await);
    let topic: Topic<u64, Value> = Topic::new(harness.subject("llm.request"));
    let responder = answering
        .respond_stream(topic.clone(), async |_, upto: u64, mut sink: ReplySink<Value>| {
            count(&mut sink, upto).await
        });
    let _responder = soon("start", responder.start()).await.expect("a live connection");
    let streams = [0u64, 2, 64, 500].map(|upto| {
        let request = asking.request_stream(topic.clone(), &upto).window(8);
        async move {
            let mut stream = soon("the stream", request.into_future()).await.expect("somebody answers");
            for n in 0..upto {
                assert_eq!(next(&mut stream).await.expect("a chunk").expect("no error"), json!(n));
            }
            assert!(next(&mut stream).await.is_none(), "then comes the end");
            assert!(next(&mut stream).await.is_none(), "and it stays");
        }
    });
    futures_util::future::join_all(streams).await;
}

/// A handler that fails ends its stream with its error, after all chunks; never with a plain end.
pub async fn failing_reply_stream_ends_with_its_error(harness: &Harness) {
    let (asking, answering) = (bus(harness).await, bus(harness).await);
    let topic: Topic<u64, Value> = Topic::new(harness.subject("llm.request"));
    let responder = answering.respond_stream(
        topic.clone(),
        async |_, upto: u64, mut sink: ReplySink<Value>| match upto {
            7 => {
                sink.send(&json!(0)).await?;
                panic!("a handler of the suite panics on purpose")
            }
            upto => count(&mut sink, upto).await,
        },
    );
    let _responder = soon("start", responder.start()).await.expect("a live connection");
    for (upto, chunks, expected) in [(3, 3, 418), (7, 1, 500)] {
        let request = asking.request_stream(topic.clone(), &upto);
        let mut stream = soon("the stream", request.into_future()).await.expect("somebody answers");
        for n in 0..chunks {
            assert_eq!(next(&mut stream).await.expect("a chunk").expect("no error"), json!(n));
        }
        match next(&mut stream).await {
            Some(Err(StreamReplyError::Service { code, .. })) => assert_eq!(code, expected),
            other => panic!("the stream ends with an error, not {other:?}"),
        }
        assert!(next(&mut stream).await.is_none(), "nothing comes after it");
    }
}

/// A requester that does not read stops its responder at the window: nothing piles up.
pub async fn unread_reply_stream_stops_its_responder_at_the_window(harness: &Harness) {
    const WINDOW: u32 = 8;
    let (asking, answering) = (bus(harness).await, bus(harness).await);
    let topic: Topic<u64, Value> = Topic::new(harness.subject("llm.request"));
    let (sent, full) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let responder = {
        let (sent, full) = (sent.clone(), full.clone());
        answering.respond_stream(topic.clone(), move |_, upto: u64, mut sink: ReplySink<Value>| {
            let (sent, full) = (sent.clone(), full.clone());
            async move {
                for n in 0..upto {
                    sink.send(&json!(n)).await?;
                    if sent.fetch_add(1, Ordering::SeqCst) + 1 == u64::from(WINDOW) {
                        full.notify_one();
                    }
                }
                Ok(())
            }
        })
    };
    let _responder = soon("start", responder.start()).await.expect("a live connection");
    let request = asking.request_stream(topic, &500).window(WINDOW);
    let mut stream = soon("the stream", request.into_future()).await.expect("somebody answers");
    soon("the window is full", full.notified()).await;
    for n in 0..500 {
        let ahead = sent.load(Ordering::SeqCst);
        assert!(ahead <= n + u64::from(WINDOW), "{ahead} chunks sent, {n} read, the window is {WINDOW}");
        assert_eq!(next(&mut stream).await.expect("a chunk").expect("no error"), json!(n));
    }
    assert!(next(&mut stream).await.is_none());
}

/// A requester that drops its stream cancels the handler, and takes no other stream with it.
pub async fn dropped_reply_stream_cancels_its_handler(harness: &Harness) {
    struct Dropped(Arc<Notify>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let (asking, answering) = (bus(harness).await, bus(harness).await);
    let topic = topic(harness, "llm.request");
    let dropped = Arc::new(Notify::new());
    let responder = {
        let dropped = dropped.clone();
        answering.respond_stream(topic.clone(), move |_, endless: Value, mut sink: ReplySink<Value>| {
            let guard = (endless == json!("endless")).then(|| Dropped(dropped.clone()));
            async move {
                sink.send(&json!(1)).await?;
                if guard.is_some() {
                    std::future::pending::<()>().await;
                }
                sink.send(&json!(2)).await?;
                Ok(())
            }
        })
    };
    let _responder = soon("start", responder.start()).await.expect("a live connection");
    for _ in 0..3 {
        let request = asking.request_stream(topic.clone(), &json!("endless"));
        let mut endless = soon("the stream", request.into_future()).await.expect("somebody answers");
        assert_eq!(next(&mut endless).await.expect("a chunk").expect("no error"), json!(1));
        let request = asking.request_stream(topic.clone(), &json!("short"));
        let mut other = soon("the stream", request.into_future()).await.expect("somebody answers");
        assert_eq!(next(&mut other).await.expect("a chunk").expect("no error"), json!(1));
        drop(endless);
        soon("the handler is dropped", dropped.notified()).await;
        assert_eq!(next(&mut other).await.expect("a chunk").expect("no error"), json!(2));
        assert!(next(&mut other).await.is_none());
    }
}

/// A responder that goes away in the middle is an error: stopped it says so, and one that falls silent is a timeout.
pub async fn reply_stream_of_a_dead_responder_never_just_ends(harness: &Harness) {
    let (asking, answering) = (bus(harness).await, bus(harness).await);
    let topic = topic(harness, "llm.request");
    let half = async |_, _: Value, mut sink: ReplySink<Value>| -> Result<(), HandlerError> {
        sink.send(&json!(1)).await?;
        std::future::pending().await
    };
    let responder = soon("start", answering.respond_stream(topic.clone(), half).start()).await.expect("live");
    let open = async || {
        let request =
            asking.request_stream(topic.clone(), &json!(1)).idle_timeout(Duration::from_millis(300));
        let mut stream = soon("the stream", request.into_future()).await.expect("somebody answers");
        assert_eq!(next(&mut stream).await.expect("a chunk").expect("no error"), json!(1));
        stream
    };
    let mut silent = open().await;
    let error = next(&mut silent).await.expect("an error, no end").expect_err("nothing more comes");
    assert!(matches!(error, StreamReplyError::Timeout { .. }), "{error:?}");
    assert!(next(&mut silent).await.is_none());

    let mut stopped = open().await;
    soon("stop", responder.stop()).await;
    let error = next(&mut stopped).await.expect("an error, no end").expect_err("nothing more comes");
    assert!(
        matches!(error, StreamReplyError::Service { .. } | StreamReplyError::Timeout { .. }),
        "{error:?}"
    );
}

/// A streaming request to a plain responder gives one chunk and the end; to nobody, it says so at once.
pub async fn plain_reply_is_a_stream_of_one_chunk(harness: &Harness) {
    let (asking, answering) = (bus(harness).await, bus(harness).await);
    let topic = topic(harness, "llm.plain");
    let open = async || {
        let request =
            asking.request_stream(topic.clone(), &json!("x")).idle_timeout(Duration::from_secs(600));
        soon("the stream", request.into_future()).await.expect("the request is sent")
    };
    let mut nobody = open().await;
    let error = next(&mut nobody).await.expect("an error, no end").expect_err("nobody answers");
    assert!(matches!(error, StreamReplyError::NoResponders { .. }), "{error:?}");

    let responder = answering.respond(topic.clone(), async |_, value: Value| Ok(value)).start();
    let _responder = soon("start", responder).await.expect("a live connection");
    let mut stream = open().await;
    assert_eq!(next(&mut stream).await.expect("a chunk").expect("no error"), json!("x"));
    assert!(next(&mut stream).await.is_none());
}
