//! One conversation is one trace, whatever hops it takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use trunkline::redelivery::RetryPolicy;
use trunkline::{Bus, BusOptions, DeadLetterFilter, Delivered, HandlerError, ReplySink, Start};

use super::jobs::{settled, work};
use super::{bus, next, options, topic};
use crate::conformance::Harness;
use crate::conformance::probe::soon;
use crate::spans::{Spans, assert_one_trace, attribute, operations};

/// The header of a span elsewhere.
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A bus on a connection of its own that makes spans.
async fn traced(harness: &Harness, spans: &Spans) -> Bus {
    let retry = RetryPolicy { max_deliver: 5, backoff: vec![Duration::from_millis(50)] };
    let options = BusOptions { tracer: Some(spans.tracer()), retry, ..options(harness) };
    Bus::with_backend(harness.backend().await, options)
}

/// A message that is tried again, becomes a dead letter and is sent back to work, the request and the reply stream of its
/// handler, and what that publishes in the end: all are one trace, and every span of a message knows whose it is.
pub async fn stored_conversation_is_one_trace_through_retry_and_redrive(harness: &Harness) {
    let spans = Spans::default();
    let (people, worker) = (traced(harness, &spans).await, traced(harness, &spans).await);
    let tools = traced(harness, &spans).await;
    let (call, words) = (topic(harness, "tool.search.call"), topic(harness, "llm.request"));
    let done = topic(harness, "analytics.done");
    let mut events = soon("subscribe", people.subscribe(done.pattern()).into_future()).await.expect("live");
    let tool = tools.respond(call.clone(), async |_, value: Value| Ok(value));
    let _tool = soon("start", tool.start()).await.expect("a live connection");
    let model = tools.respond_stream(words.clone(), async |_, _: Value, mut sink: ReplySink<Value>| {
        sink.send(&json!("word")).await?;
        Ok(())
    });
    let _model = soon("start", model.start()).await.expect("a live connection");

    let stream = work(harness).await;
    let runs = Arc::new(AtomicU32::new(0));
    let handler = move |delivered: Delivered| {
        let (call, words, done) = (call.clone(), words.clone(), done.clone());
        let run = runs.fetch_add(1, Ordering::SeqCst);
        async move {
            match run {
                0 => return Err(HandlerError::new("not yet")),
                1 => return Err(HandlerError::reject("never")),
                _ => {}
            }
            let bus = delivered.bus();
            let _: Value = bus.request(call, &json!(1)).tool("search").await?;
            let mut chunks = bus.request_stream(words, &json!(1)).await?;
            while let Some(chunk) = chunks.next().await {
                chunk?;
            }
            bus.publish(done, &json!("done")).await?;
            Ok(())
        }
    };
    let consumer = worker.stream(&stream).expect("streams").consumer("c").expect("a valid name");
    let _consumer = soon("spawn", consumer.start(Start::Beginning).concurrency(1).spawn(handler)).await;
    let publish = people.publish(topic(harness, "work.x"), &json!("a task"));
    let publish = publish.conversation("c-1").correlation_id("chain").persona("ada").skill("sums");
    soon("publish", publish.into_future()).await.expect("stored");

    spans.wait_for(&[("term", 1)]).await;
    let letters = people.dead_letters().expect("streams");
    let page = soon("page", letters.page(&DeadLetterFilter::default(), Start::Beginning, 10)).await;
    let page = page.expect("dead letters");
    assert_eq!(page.letters.len(), 1, "{page:?}");
    soon("redrive", letters.redrive(&page.letters[0], None)).await.expect("it goes back to work");
    let event = next(&mut events).await;
    settled(&*harness.backend().await, &stream).await;

    let all = spans.wait_for(&[("ack", 1), ("respond", 2), ("receive", 1)]).await;
    assert_one_trace(&all);
    let handled = "publish > process > dead_letter > redrive > process";
    let mut expected = vec![
        "publish".to_owned(),
        "publish > process".to_owned(),
        "publish > process".to_owned(),
        "publish > process > dead_letter".to_owned(),
        "publish > process > nak".to_owned(),
        "publish > process > term".to_owned(),
        "publish > process > dead_letter > redrive".to_owned(),
        handled.to_owned(),
    ];
    for below in [
        "ack",
        "publish",
        "publish > receive",
        "request",
        "request",
        "request > respond",
        "request > respond",
    ] {
        expected.push(format!("{handled} > {below}"));
    }
    expected.sort();
    assert_eq!(operations(&all), expected);

    let (trace, context) = (all[0].span_context.trace_id().to_string(), event.context());
    assert_eq!(context.trace_id(), Some(&*trace), "what comes out is in the trace as well");
    let mut attempts = Vec::new();
    for span in all.iter().filter(|span| attribute(span, "messaging.message.id").is_some()) {
        for (name, value) in [
            ("messaging.system", "trunkline"),
            ("messaging.message.conversation_id", "chain"),
            ("gen_ai.conversation.id", "c-1"),
            ("gen_ai.agent.id", "ada"),
            ("trunkline.skill.id", "sums"),
        ] {
            assert_eq!(attribute(span, name).as_deref(), Some(value), "{name} of {}", span.name);
        }
        attempts.extend(attribute(span, "trunkline.delivery.attempt"));
    }
    attempts.sort();
    assert_eq!(attempts, ["1", "1", "2"], "the redriven message is a new one");
}

/// Requests and reply streams pass the trace of their sender on, through a process in between that makes no spans, and
/// answers and errors come back with it. What a header says that is none concerns nobody.
pub async fn requests_and_reply_streams_pass_the_trace_on(harness: &Harness) {
    let spans = Spans::default();
    let (asking, answering) = (traced(harness, &spans).await, traced(harness, &spans).await);
    let between = bus(harness).await;
    let (outer, inner) = (topic(harness, "gateway.outer"), topic(harness, "tool.inner.call"));
    let last = answering.respond(inner.clone(), async |_, value: Value| match value {
        Value::Null => Err(HandlerError::new("nothing").code(422)),
        value => Ok(value),
    });
    let _last = soon("start", last.start()).await.expect("a live connection");
    let calling = inner.clone();
    let middle =
        between.respond_stream(outer.clone(), move |request, value: Value, mut sink: ReplySink<Value>| {
            let calling = calling.clone();
            async move {
                sink.send(&request.bus().request(calling, &value).await?).await?;
                Ok(())
            }
        });
    let _middle = soon("start", middle.start()).await.expect("a live connection");

    let request = asking.request_stream(outer.clone(), &json!(1)).header("traceparent", TRACEPARENT);
    let mut chunks = soon("the stream", request.into_future()).await.expect("somebody answers");
    assert_eq!(soon("a chunk", chunks.next()).await.expect("a chunk").expect("no error"), json!(1));
    assert!(soon("the end", chunks.next()).await.is_none());
    let all = spans.wait_for(&[("request", 1), ("respond", 1)]).await;
    assert_eq!(operations(&all), ["request", "request > respond"]);
    for span in &all {
        assert_eq!(span.span_context.trace_id().to_string(), &TRACEPARENT[3..35], "{}", span.name);
    }
    let root = all.iter().find(|span| span.name.starts_with("request")).expect("it is among them");
    assert_eq!(root.parent_span_id.to_string(), &TRACEPARENT[36..52], "what the application named");

    // An error comes back with the trace, and its span tells of it.
    let mut inbox = soon("subscribe", between.subscribe(topic(harness, "inbox").pattern()).into_future())
        .await
        .expect("a live connection");
    let mut message = trunkline::Message::new(harness.subject("tool.inner.call"), "null");
    message.headers.append("traceparent", TRACEPARENT).expect("a valid header");
    message.reply = Some(harness.subject("inbox"));
    soon("publish", between.publish_message(message)).await.expect("published");
    let error = next(&mut inbox).await;
    assert_eq!(error.headers().get("Nats-Service-Error-Code"), Some("422"));
    assert_eq!(error.context().trace_id(), Some(&TRACEPARENT[3..35]));
    let all = spans.wait_for(&[("respond", 2)]).await;
    let failed = all.iter().find(|span| attribute(span, "error.type").is_some()).expect("one has failed");
    assert_eq!(failed.span_context.trace_id().to_string(), &TRACEPARENT[3..35]);

    // A header that is none is neither followed nor does it harm the request.
    for hostile in ["00-1-2-01", "00-00000000000000000000000000000000-0000000000000000-01", &"z".repeat(4000)]
    {
        let before = spans.ended().len();
        let request = asking.request(inner.clone(), &json!(2)).header("traceparent", hostile);
        let answer: Value = soon("the reply", request.into_future()).await.expect("an answer");
        assert_eq!(answer, json!(2));
        let seen = &spans.ended()[before..];
        assert_one_trace(seen);
        assert_eq!(operations(seen), ["request", "request > respond"]);
    }
}
