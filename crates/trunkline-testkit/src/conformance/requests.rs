//! What the bus builds requests on: replies, inboxes, and the answer when nobody is there.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use trunkline::backend::SubscribeOptions;
use trunkline::{Message, Subject};

use super::Harness;
use super::probe::{Listener, PATIENCE, flush, number, numbered, publish, token};

/// Subscribes as who answers requests.
fn responder(queue: Option<&str>) -> SubscribeOptions {
    SubscribeOptions { responder: true, queue: queue.map(token), ..SubscribeOptions::default() }
}

/// A numbered message that wants an answer at `reply`.
fn request(subject: &Subject, n: u64, reply: &Subject) -> Message {
    Message { reply: Some(reply.clone()), ..numbered(subject, n) }
}

/// A request carries its reply subject, and the reply comes back to the inbox it names.
pub async fn request_reaches_a_responder_and_the_reply_comes_back(harness: &Harness) {
    let (asking, answering) = (harness.backend().await, harness.backend().await);
    let subject = harness.subject("call");
    let mut calls = Listener::start(&*answering, &subject, responder(None)).await;
    let inbox = asking.new_inbox();
    let mut replies = Listener::plain(&*asking, &inbox).await;
    for n in 0..20 {
        publish(&*asking, request(&subject, n, &inbox)).await;
        let call = calls.message().await;
        assert_eq!(call.reply.as_ref(), Some(&inbox));
        publish(&*answering, numbered(&inbox, number(&call) + 1000)).await;
        assert_eq!(replies.numbers(1).await, [n + 1000]);
    }
}

/// With nobody listening, a message with `Status: 503` comes to the reply subject well within a second.
pub async fn request_to_nobody_gets_503_at_once(harness: &Harness) {
    let backend = harness.backend().await;
    let inbox = backend.new_inbox();
    let mut replies = Listener::plain(&*backend, &inbox).await;
    for n in 0..10 {
        let asked = Instant::now();
        publish(&*backend, request(&harness.subject("nobody"), n, &inbox)).await;
        let answer = replies.message().await;
        assert_eq!(answer.headers.get("Status"), Some("503"), "{answer:?}");
        assert!(answer.payload.is_empty());
        assert!(asked.elapsed() < Duration::from_secs(1), "it took {:?}", asked.elapsed());
    }
    // Without a reply subject nobody is told, and nothing fails.
    publish(&*backend, numbered(&harness.subject("nobody"), 0)).await;
    flush(&*backend).await;
}

/// One member of a queue group answers, and no 503 comes beside it.
pub async fn request_to_a_queue_group_has_one_answer(harness: &Harness) {
    let (asking, answering) = (harness.backend().await, harness.backend().await);
    let subject = harness.subject("call");
    let mut one = Listener::start(&*answering, &subject, responder(Some("tools"))).await;
    let mut two = Listener::start(&*asking, &subject, responder(Some("tools"))).await;
    let inbox = asking.new_inbox();
    let mut replies = Listener::plain(&*asking, &inbox).await;
    for n in 0..50 {
        publish(&*asking, request(&subject, n, &inbox)).await;
        let (call, backend) = tokio::select! {
            call = one.message() => (call, &answering),
            call = two.message() => (call, &asking),
        };
        publish(&**backend, numbered(&inbox, number(&call))).await;
        assert_eq!(replies.numbers(1).await, [n], "the answer to this request, and only one");
    }
}

/// Once a responder is dropped, requests learn that nobody is there.
pub async fn dropped_responder_is_no_responder(harness: &Harness) {
    let (asking, answering) = (harness.backend().await, harness.backend().await);
    let subject = harness.subject("call");
    let calls = Listener::start(&*answering, &subject, responder(None)).await;
    let inbox = asking.new_inbox();
    let mut replies = Listener::plain(&*asking, &inbox).await;
    drop(calls);
    // The server hears of a dropped subscription a moment later; until then a request may fall on it.
    let give_up = Instant::now() + PATIENCE;
    loop {
        publish(&*asking, request(&subject, 1, &inbox)).await;
        match tokio::time::timeout(Duration::from_millis(50), replies.message()).await {
            Ok(answer) => return assert_eq!(answer.headers.get("Status"), Some("503")),
            Err(_) => assert!(Instant::now() < give_up, "a dropped subscription still counts as a responder"),
        }
    }
}

/// Every inbox is another subject, below which only its owner needs to listen.
pub async fn inboxes_differ_and_are_private(harness: &Harness) {
    let (one, two) = (harness.backend().await, harness.backend().await);
    let inboxes: Vec<Subject> = (0..50).flat_map(|_| [one.new_inbox(), two.new_inbox()]).collect();
    assert_eq!(inboxes.iter().collect::<HashSet<_>>().len(), 100);
    // Replies come in below an inbox: one subscription serves many requests.
    let below =
        |inbox: &Subject, n: u64| inbox.child(&token(&n.to_string())).expect("an inbox has room below it");
    let all = format!("{}.*", inboxes[0]).parse::<trunkline::Pattern>().expect("an inbox is a subject");
    let mut replies = Listener::plain(&*one, all).await;
    publish(&*two, numbered(&below(&inboxes[1], 1), 1)).await;
    publish(&*two, numbered(&below(&inboxes[0], 2), 2)).await;
    let reply = replies.message().await;
    assert_eq!((number(&reply), reply.subject.clone()), (2, below(&inboxes[0], 2)));
}
