//! What there is too much of: messages for who reads slowly, bytes in one message, connections, subscriptions.

use async_nats::{ConnectOptions, Event, PublishErrorKind};
use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use serde_json::json;

use super::life::is_back;
use super::{Stage, next, publish, settle, subscribe, within, works};

pub(crate) async fn a_slow_subscription_drops_in_the_client(stage: &mut Stage) {
    let (client, story) = stage.enter(ConnectOptions::new().subscription_capacity(10)).await;
    let (publisher, _) = stage.enter(ConnectOptions::new()).await;
    let mut busy = subscribe(&client, "busy").await;
    for number in 0..100 {
        publish(&publisher, "busy", &number.to_string()).await;
    }
    settle(&publisher).await;
    let slow = |event: &Event| matches!(event, Event::SlowConsumer(_));
    story.until("the slow consumer", |events| events.iter().any(slow)).await;
    settle(&client).await;
    let mut kept = 0;
    while let Some(Some(_)) = busy.next().now_or_never() {
        kept += 1;
    }
    assert_eq!(kept, 10);
    // The connection is none the worse for it.
    works(&client, "open.door").await;
    assert!(!story.events().contains(&Event::Disconnected));
    stage.report(json!({"kept": kept}));
}

pub(crate) async fn a_slow_client_is_cut_off(stage: &mut Stage) {
    let (client, story) = stage.enter(ConnectOptions::new()).await;
    let _flood = subscribe(&client, "flood").await;
    let mut received = subscribe(&client, "still").await;
    stage.cue("freeze-until-slow");
    is_back(&client, &story, &mut received).await;
    // What this client cannot keep of the flood it drops, and says so.
    let slow = |event: &Event| matches!(event, Event::SlowConsumer(_));
    let events: Vec<String> =
        story.events().iter().filter(|event| !slow(event)).map(ToString::to_string).collect();
    stage.report(json!({"events": events}));
}

pub(crate) async fn too_large_a_payload_is_refused_in_the_client(stage: &mut Stage) {
    let (client, _) = stage.enter(ConnectOptions::new()).await;
    assert_eq!(client.server_info().max_payload, 1024);
    let mut received = subscribe(&client, "size").await;
    let error = client.publish("size", vec![b'x'; 1025].into()).await.expect_err("one byte too many");
    assert_eq!(error.kind(), PublishErrorKind::MaxPayloadExceeded);
    publish(&client, "size", &"x".repeat(1024)).await;
    assert_eq!(next(&mut received).await.len(), 1024);
}

pub(crate) async fn too_large_a_payload_ends_the_connection(stage: &mut Stage) {
    let proxy = stage.variable("BEHAVIOUR_PROXY");
    let (client, story) = stage.connect_to(&proxy, ConnectOptions::new()).await.expect("let in");
    assert!(client.server_info().max_payload > 1024);
    publish(&client, "size", &"x".repeat(1025)).await;
    let error = story.server_error("maximum payload violation").await;
    story.until("the end of the connection", |events| events.contains(&Event::Disconnected)).await;
    stage.report(json!({"error": error}));
}

pub(crate) async fn one_connection_too_many_is_refused(stage: &mut Stage) {
    let (first, story) = stage.enter(ConnectOptions::new()).await;
    let (second, _) = stage.enter(ConnectOptions::new()).await;
    assert!(stage.connect(ConnectOptions::new()).await.is_err(), "a third connection");
    works(&second, "open.door").await;
    first.drain().await.expect("a connection");
    story.until("the first to close", |events| events.contains(&Event::Closed)).await;
    let third = within("room for a third", async {
        loop {
            // The server may not yet know that there is room.
            if let Ok((third, _)) = stage.connect(ConnectOptions::new()).await {
                return third;
            }
        }
    });
    works(&third.await, "open.door").await;
}

pub(crate) async fn one_subscription_too_many_is_refused(stage: &mut Stage) {
    let (client, story) = stage.enter(ConnectOptions::new()).await;
    let (mut one, _two) = (subscribe(&client, "one").await, subscribe(&client, "two").await);
    let _three = client.subscribe("three").await.expect("the client knows no better");
    let error = story.server_error("maximum subscriptions exceeded").await;
    publish(&client, "one", "x").await;
    assert_eq!(next(&mut one).await, "x");
    stage.report(json!({"error": error, "events": story.texts()}));
}
