//! What a message passes on to the messages that it causes.

use std::time::Duration;

use serde_json::{Value, json};
use trunkline::{Context, HandlerError};

use super::{bus, next, topic};
use crate::conformance::Harness;
use crate::conformance::probe::soon;

/// Correlation, trace and W3C headers pass from request to what its handler publishes and requests, through spawned
/// tasks that ask for it, and on to the next hop; the cause is always the message just handled. Only requests
/// inherit the deadline.
pub async fn context_passes_on_through_every_hop(harness: &Harness) {
    let (asking, middle, last) = (bus(harness).await, bus(harness).await, bus(harness).await);
    let (outer, inner) = (topic(harness, "gateway.outer"), topic(harness, "tool.inner.call"));
    let event = topic(harness, "analytics.hop");
    let mut events = soon("subscribe", asking.subscribe(event.pattern()).into_future()).await.expect("live");
    let mut outers = soon("subscribe", asking.subscribe(outer.pattern()).into_future()).await.expect("live");

    let responder = last.respond(inner.clone(), async |request, _: Value| {
        let context = request.context();
        Ok(json!({
            "correlation": context.correlation_id(),
            "conversation": context.trace().conversation_id,
            "deadline": context.deadline().map(|at| at.as_millisecond()),
        }))
    });
    let _last = soon("start", responder.start()).await.expect("a live connection");
    let (calling, publishing) = (inner, event);
    let responder = middle.respond(outer.clone(), move |request, value: Value| {
        let (inner, event) = (calling.clone(), publishing.clone());
        async move {
            let bus = request.bus().clone();
            bus.publish(event.clone(), &json!("handler")).await?;
            let context = Context::current().ok_or_else(|| HandlerError::new("a handler has a context"))?;
            let spawned = bus.clone();
            tokio::spawn(context.scope(async move { spawned.publish(event, &json!("task")).await }))
                .await??;
            Ok(bus.request(inner, &value).timeout(Duration::from_secs(3600)).await?)
        }
    });
    let _middle = soon("start", responder.start()).await.expect("a live connection");

    let request = asking.request(outer, &json!(1)).conversation("c-1").correlation_id("chain");
    let request = request.header("traceparent", "00-1-2-01").timeout(Duration::from_secs(9));
    let answer: Value = soon("the reply", request.into_future()).await.expect("an answer");
    let cause = next(&mut outers).await;
    let cause = cause.envelope().expect("a typed request");
    let wanted_by = cause.deadline.expect("a request says until when its reply is wanted").as_millisecond();
    assert_eq!((&answer["correlation"], &answer["conversation"]), (&json!("chain"), &json!("c-1")));
    let inherited = answer["deadline"].as_i64().expect("a request inherits the deadline");
    assert!(inherited <= wanted_by, "the inner request may take no longer than the outer one");
    for _ in 0..2 {
        let event = next(&mut events).await;
        let envelope = event.envelope().expect("a typed payload");
        assert_eq!(envelope.correlation_id.as_deref(), Some("chain"));
        assert_eq!(envelope.trace.conversation_id.as_deref(), Some("c-1"));
        assert_eq!(envelope.trace.causation_id.as_ref(), Some(&cause.id));
        assert_eq!(event.headers().get("traceparent"), Some("00-1-2-01"));
        assert_eq!(envelope.deadline, None, "only requests inherit the deadline");
    }
}

/// Two requests at once do not see each other's context.
pub async fn contexts_of_concurrent_handlers_do_not_mix(harness: &Harness) {
    let (asking, answering) = (bus(harness).await, bus(harness).await);
    let topic = topic(harness, "tool.who.call");
    let responder = answering.respond(topic.clone(), async |_, _: Value| {
        let before = Context::current().and_then(|context| context.trace().conversation_id.clone());
        tokio::task::yield_now().await;
        let after = Context::current().and_then(|context| context.trace().conversation_id.clone());
        Ok(json!([before, after]))
    });
    let _responder = soon("start", responder.start()).await.expect("a live connection");
    let asked = (0..100).map(|n| {
        let conversation = format!("c-{n}");
        let request = asking.request(topic.clone(), &json!(n)).conversation(conversation.clone());
        async move {
            let answer = soon("the reply", request.into_future()).await.expect("an answer");
            assert_eq!(answer, json!([conversation, conversation]));
        }
    });
    futures_util::future::join_all(asked).await;
    assert!(Context::current().is_none(), "outside of handlers there is none");
}
