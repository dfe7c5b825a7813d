//! What the conformance suite does not see: the edges of single spans. That a conversation is one trace is held there.

use std::time::Duration;

use opentelemetry::trace::{FutureExt as _, SpanKind, TraceContextExt as _, Tracer as _};
use opentelemetry_sdk::trace::{Sampler, SpanData};
use serde_json::{Value, json};
use trunkline_testkit::spans::{Spans, assert_one_trace, attribute, operations};

use super::Tracer;
use crate::{Bus, BusOptions, Event, HandlerError, Message, Received, Reply, Start, Subscription, Topic};

fn traced(spans: &Spans) -> Bus {
    let options = BusOptions { tracer: Some(Tracer::new(spans.raw())), ..BusOptions::default() };
    Bus::on_hub(&Default::default(), options)
}

async fn next(live: &mut Subscription) -> Received {
    live.next().await.and_then(Event::into_message).expect("a message")
}

fn topic(subject: &str) -> Topic<Value, Value> {
    Topic::new(subject.parse().unwrap())
}

fn one<'a>(spans: &'a [SpanData], operation: &str) -> &'a SpanData {
    let mut found = spans.iter().filter(|span| span.name.starts_with(operation));
    let (Some(span), None) = (found.next(), found.next()) else {
        panic!("{operation}: {:?}", operations(spans))
    };
    span
}

#[tokio::test]
async fn a_bus_without_a_tracer_touches_no_header() {
    let bus = Bus::in_memory();
    assert!(bus.options().tracer.is_none());
    let mut live = bus.subscribe("a.>".parse().unwrap()).await.unwrap();
    bus.publish_bytes("a.raw".parse().unwrap(), "x").await.unwrap();
    assert!(next(&mut live).await.headers().is_empty());
    let hostile = "ff-not a parent";
    bus.publish(topic("a.typed"), &json!(1)).header("traceparent", hostile).await.unwrap();
    let came = next(&mut live).await;
    assert_eq!(came.headers().iter().collect::<Vec<_>>(), [("traceparent", hostile)]);
    assert_eq!(came.context().trace_id(), None);
}

#[tokio::test]
async fn what_is_published_is_described_by_the_conventions() {
    let spans = Spans::default();
    let bus = traced(&spans);
    let mut live = bus.subscribe("acme.user.*.mail".parse().unwrap()).await.unwrap();
    let publish = bus.publish(topic("acme.user.12345678.mail"), &json!("hello")).kind("mail");
    publish.conversation("c").persona("ada").tool("post").skill("letters").correlation_id("k").await.unwrap();
    let came = next(&mut live).await;
    let all = spans.ended();
    let span = one(&all, "publish");
    assert_eq!((&*span.name, &span.span_kind), ("publish acme.user.*.mail", &SpanKind::Producer));
    for (name, value) in [
        ("messaging.system", "trunkline"),
        ("messaging.operation.name", "publish"),
        ("messaging.operation.type", "send"),
        ("messaging.destination.name", "acme.user.12345678.mail"),
        ("messaging.destination.template", "acme.user.*.mail"),
        ("messaging.message.id", &*came.envelope().unwrap().id),
        ("messaging.message.conversation_id", "k"),
        ("messaging.message.body.size", &*came.payload().len().to_string()),
        ("gen_ai.conversation.id", "c"),
        ("gen_ai.agent.id", "ada"),
        ("gen_ai.agent.name", "ada"),
        ("gen_ai.tool.name", "post"),
        ("trunkline.skill.id", "letters"),
        ("trunkline.message.type", "mail"),
        ("trunkline.backend", "in_memory"),
    ] {
        assert_eq!(attribute(span, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(one(&all, "receive").span_kind, SpanKind::Client);
    assert_one_trace(&all);
}

#[tokio::test]
async fn what_the_sampler_leaves_out_is_left_out_everywhere_and_still_one_trace() {
    let spans = Spans::with(Sampler::AlwaysOff);
    let bus = traced(&spans);
    let _responder = bus.respond(topic("a"), async |_, value: Value| Ok(value)).start().await.unwrap();
    let mut live = bus.subscribe("b".parse().unwrap()).await.unwrap();
    let _: Value = bus.request(topic("a"), &json!(1)).await.unwrap();
    bus.publish_bytes("b".parse().unwrap(), "x").await.unwrap();
    let came = next(&mut live).await;
    let parent = came.headers().get("traceparent").expect("others shall know that it is left out");
    assert!(parent.ends_with("-00") && came.context().trace_id().is_some(), "{parent}");
    assert_eq!(operations(&spans.ended()), [""; 0]);
}

#[tokio::test]
async fn the_span_of_the_application_is_the_parent() {
    let spans = Spans::default();
    let bus = traced(&spans);
    let tracer = spans.raw();
    let responder = bus.respond_raw("a".parse().unwrap(), move |request| {
        let inner = opentelemetry::Context::current_with_span(tracer.start("inside"));
        async move {
            request.bus().publish_bytes("b".parse()?, "x").await?;
            Ok(Reply::bytes("1"))
        }
        .with_context(inner)
    });
    let _responder = responder.start().await.unwrap();
    let outer = opentelemetry::Context::current_with_span(spans.raw().start("outside"));
    let request = bus.request_message(Message::new("a".parse().unwrap(), "x"), Duration::from_secs(9));
    let reply = request.with_context(outer.clone()).await.unwrap();
    outer.span().end();
    let all = spans.wait_for(&[("outside", 1), ("inside", 1), ("publish", 1)]).await;
    let path = "outside > request > respond > inside > publish";
    assert!(operations(&all).contains(&path.to_owned()), "{:?}", operations(&all));
    assert_eq!(reply.context().trace_id(), Some(&*all[0].span_context.trace_id().to_string()));
}

#[tokio::test]
async fn a_request_that_fails_or_is_given_up_says_so() {
    let spans = Spans::default();
    let bus = traced(&spans);
    bus.request(topic("nobody"), &json!(1)).await.unwrap_err();
    let failing = async |_, _: Value| Err::<Value, _>(HandlerError::new("no").code(418));
    let _failing = bus.respond(topic("failing"), failing).start().await.unwrap();
    bus.request(topic("failing"), &json!(1)).await.unwrap_err();
    let silent = async |_, _: Value| std::future::pending::<Result<Value, HandlerError>>().await;
    let silent = bus.respond(topic("silent"), silent).start().await.unwrap();
    let request = bus.request(topic("silent"), &json!(1)).timeout(Duration::from_secs(60)).into_future();
    tokio::time::timeout(Duration::from_millis(50), request).await.unwrap_err();
    drop(bus.request_stream(topic("silent"), &json!(1)).await.unwrap());
    silent.stop().await;
    let all = spans.wait_for(&[("request", 4), ("respond", 3)]).await;
    let kinds = |name: &str| {
        let of_name = all.iter().filter(|span| span.name == name);
        of_name.map(|span| attribute(span, "error.type").unwrap_or_default()).collect::<Vec<_>>()
    };
    assert_eq!(kinds("request nobody"), ["no_responders"]);
    assert_eq!(
        (kinds("request failing"), kinds("respond failing")),
        (vec!["service".into()], vec!["handler".into()])
    );
    assert_eq!(kinds("request silent"), ["cancelled", "cancelled"]);
    assert_eq!(kinds("respond silent"), ["handler", "handler"], "the responder was stopped");
}

#[tokio::test]
async fn what_is_fetched_by_hand_is_received_processed_and_settled() {
    let spans = Spans::default();
    let bus = traced(&spans);
    bus.stream("work").unwrap().ensure(vec!["work.*".parse().unwrap()]).await.unwrap();
    bus.publish(topic("work.a"), &json!(1)).await.unwrap();
    let puller =
        bus.stream("work").unwrap().consumer("c").unwrap().start(Start::Beginning).pull().await.unwrap();
    let pulled = puller.fetch(1, Duration::from_secs(9)).await.unwrap().pop().unwrap();
    pulled.received().process(bus.publish(topic("b"), &json!(2)).into_future()).await.unwrap();
    bus.publish(topic("c"), &json!(3)).await.unwrap();
    let within = pulled.received().process(async { bus.publish(topic("d"), &json!(4)).await }).await;
    within.unwrap();
    pulled.ack().await.unwrap();
    let all = spans.ended();
    let mut expected = [
        // The envelope of `b` was made outside.
        "publish",
        "publish",
        "publish > receive",
        "publish > receive > ack",
        "publish > receive > process",
        "publish > receive > process",
        "publish > receive > process > publish",
        "publish > receive > process > publish",
    ];
    expected.sort_unstable();
    assert_eq!(operations(&all), expected);
    let receive = one(&all, "receive");
    for (name, value) in [
        ("messaging.consumer.group.name", "c"),
        ("trunkline.stream", "work"),
        ("trunkline.delivery.attempt", "1"),
    ] {
        assert_eq!(attribute(receive, name).as_deref(), Some(value), "{name}");
    }
}

#[tokio::test]
async fn reports_about_messages_are_not_reported_on() {
    let spans = Spans::default();
    let bus = traced(&spans);
    for subject in ["nachos.system.trace", "nachos.system.health"] {
        bus.publish_bytes(subject.parse().unwrap(), "x").await.unwrap();
    }
    bus.publish_bytes("nachos.system.other".parse().unwrap(), "x").await.unwrap();
    assert_eq!(operations(&spans.ended()), ["publish"]);
}
