//! What is said at connecting, and requests: without an answer, with several, and to services that can be discovered.

use std::time::{Duration, Instant};

use async_nats::service::{ServiceExt as _, error};
use async_nats::{Client, ConnectOptions, RequestErrorKind};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::{Stage, next, publish, settle, subscribe, within};

pub(crate) async fn what_connect_asks_for_is_honoured(stage: &mut Stage) {
    let (silent, _) = stage.enter(ConnectOptions::new().name("silent").no_echo()).await;
    let (other, _) = stage.enter(ConnectOptions::new().name("other")).await;
    let mut received = subscribe(&silent, "echo").await;
    publish(&silent, "echo", "own").await;
    settle(&silent).await;
    publish(&other, "echo", "other").await;
    assert_eq!(next(&mut received).await, "other");
}

pub(crate) async fn a_request_without_responders_fails_at_once(stage: &mut Stage) {
    let (client, _) = stage.enter(ConnectOptions::new()).await;
    let started = Instant::now();
    let error = client.request("nobody", "?".into()).await.expect_err("nobody is there");
    assert_eq!(error.kind(), RequestErrorKind::NoResponders);
    assert!(started.elapsed() < Duration::from_secs(4));
    // Who only listens for the answer is told by a message with a status and no body.
    let inbox = client.new_inbox();
    let mut received = subscribe(&client, &inbox).await;
    client.publish_with_reply("nobody", inbox, "?".into()).await.expect("a connection");
    let message = within("the status", received.next()).await.expect("a message");
    stage.report(json!({
        "status": message.status.map(|status| status.as_u16()),
        "payload": message.payload.len(),
    }));
}

pub(crate) async fn a_request_has_many_replies(stage: &mut Stage) {
    let (asking, _) = stage.enter(ConnectOptions::new()).await;
    let (answering, _) = stage.enter(ConnectOptions::new()).await;
    let mut calls = Vec::new();
    for _ in 0..3 {
        calls.push(subscribe(&answering, "roll.call").await);
    }
    let inbox = asking.new_inbox();
    let mut received = subscribe(&asking, &inbox).await;
    asking.publish_with_reply("roll.call", inbox, "?".into()).await.expect("a connection");
    for (number, calls) in calls.iter_mut().enumerate() {
        let call = within("the call", calls.next()).await.expect("a message");
        let reply = call.reply.expect("it is a request");
        for part in 0..3 {
            let payload = format!("{number}{part}");
            answering.publish(reply.clone(), payload.into()).await.expect("a connection");
        }
    }
    let mut replies = Vec::new();
    while replies.len() < 9 {
        replies.push(next(&mut received).await);
    }
    replies.sort();
    stage.report(json!({"replies": replies}));
}

async fn discover(client: &Client, subject: &str) -> Value {
    let reply = client.request(subject.to_owned(), "".into()).await.expect("an answer");
    serde_json::from_slice(&reply.payload).expect("JSON")
}

pub(crate) async fn services_are_discovered(stage: &mut Stage) {
    let (asking, _) = stage.enter(ConnectOptions::new()).await;
    let (serving, _) = stage.enter(ConnectOptions::new()).await;
    let service = serving.service_builder().description("says it louder").start("shout", "1.2.3").await;
    let service = service.expect("a service");
    let mut endpoint = service.group("voice").endpoint("shout").await.expect("an endpoint");
    settle(&serving).await;
    // Ends with the endpoint, which ends with the service.
    let answering = tokio::spawn(async move {
        while let Some(request) = endpoint.next().await {
            let text = String::from_utf8_lossy(&request.message.payload).into_owned();
            let answer = match text.as_str() {
                "bad" => Err(error::Error { status: "not that".to_owned(), code: 400 }),
                text => Ok(text.to_uppercase().into()),
            };
            request.respond(answer).await.expect("a connection");
        }
    });
    let answer = asking.request("voice.shout", "hello".into()).await.expect("an answer");
    let refusal = asking.request("voice.shout", "bad".into()).await.expect("an answer");
    let headers = refusal.headers.expect("an error is told in headers");
    let header = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    let ping = discover(&asking, "$SRV.PING").await;
    let info = discover(&asking, "$SRV.INFO.shout").await;
    let id = ping["id"].as_str().expect("a service has an id");
    let stats = discover(&asking, &format!("$SRV.STATS.shout.{id}")).await;
    stage.report(json!({
        "answer": String::from_utf8_lossy(&answer.payload),
        "error": [header("Nats-Service-Error"), header("Nats-Service-Error-Code")],
        "ping": [ping["name"], ping["version"], ping["type"]],
        "info": info["endpoints"],
        "stats": [stats["endpoints"][0]["num_requests"], stats["endpoints"][0]["num_errors"]],
    }));
    service.stop().await.expect("a connection");
    settle(&serving).await;
    within("the end of the endpoint", answering).await.expect("it ends well");
    let gone = asking.request("$SRV.PING.shout", "".into()).await.expect_err("a service that is gone");
    assert_eq!(gone.kind(), RequestErrorKind::NoResponders);
}
