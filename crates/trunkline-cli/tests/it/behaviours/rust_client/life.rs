//! How connections end and come back.

use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ClientError, ConnectOptions, Event, Subscriber};
use futures_util::StreamExt as _;
use serde_json::json;

use super::{Stage, Story, next, publish, settle, subscribe, within};

/// The connection has come back, and what it subscribed to before still arrives.
pub(super) async fn is_back(client: &Client, story: &Story, received: &mut Subscriber) {
    let connected = |events: &[Event]| events.iter().filter(|event| **event == Event::Connected).count();
    story.until("the connection to come back", |events| connected(events) >= 2).await;
    settle(client).await;
    publish(client, "still", "here").await;
    assert_eq!(next(received).await, "here");
}

pub(crate) async fn subscriptions_and_callbacks_live_through_a_restart(stage: &mut Stage) {
    let (client, story) = stage.enter(ConnectOptions::new()).await;
    let mut plain = subscribe(&client, "still").await;
    let mut grouped = client.queue_subscribe("still", "workers".into()).await.expect("a subscription");
    let mut limited = subscribe(&client, "limited").await;
    limited.unsubscribe_after(3).await.expect("a connection");
    publish(&client, "limited", "1").await;
    assert_eq!(next(&mut limited).await, "1");
    stage.cue("restart-server");
    is_back(&client, &story, &mut plain).await;
    assert_eq!(next(&mut grouped).await, "here");
    // Of the three messages one had come before.
    for payload in ["2", "3", "4"] {
        publish(&client, "limited", payload).await;
    }
    assert_eq!([next(&mut limited).await, next(&mut limited).await], ["2", "3"]);
    assert!(within("the end of the subscription", limited.next()).await.is_none());
    stage.report(json!({"events": story.texts()}));
}

pub(crate) async fn a_drained_subscription_loses_nothing(stage: &mut Stage) {
    let (publisher, _) = stage.enter(ConnectOptions::new()).await;
    let (subscribing, _) = stage.enter(ConnectOptions::new()).await;
    let mut subscriber = subscribe(&subscribing, "work").await;
    for number in 0..1000 {
        publish(&publisher, "work", &number.to_string()).await;
    }
    settle(&publisher).await;
    // This client ends a subscription once its UNSUB is written: it hands out what has arrived by then.
    settle(&subscribing).await;
    subscriber.drain().await.expect("a connection");
    let handled: Vec<String> = within("the end of the subscription", async {
        let handled = subscriber.map(|message| String::from_utf8_lossy(&message.payload).into_owned());
        handled.collect().await
    })
    .await;
    assert_eq!(handled, (0..1000).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!(subscribing.connection_state(), State::Connected);
    stage.report(json!({"handled": handled.len()}));
}

pub(crate) async fn a_drained_connection_loses_nothing(stage: &mut Stage) {
    let (publisher, _) = stage.enter(ConnectOptions::new()).await;
    let (observer, _) = stage.enter(ConnectOptions::new()).await;
    let (draining, story) = stage.enter(ConnectOptions::new()).await;
    let mut done = subscribe(&observer, "done").await;
    let mut work = subscribe(&draining, "work").await;
    for number in 0..500 {
        publish(&publisher, "work", &number.to_string()).await;
    }
    settle(&publisher).await;
    // What this client has handled before it drains is sent; what it handles afterwards it may not publish.
    for _ in 0..500 {
        let message = next(&mut work).await;
        publish(&draining, "done", &message).await;
    }
    draining.drain().await.expect("a connection");
    story.until("the connection to close", |events| events.contains(&Event::Closed)).await;
    for number in 0..500 {
        assert_eq!(next(&mut done).await, number.to_string());
    }
    stage.report(json!({"events": story.texts()}));
}

pub(crate) async fn lame_duck_mode_is_told(stage: &mut Stage) {
    let (client, story) = stage.enter(ConnectOptions::new()).await;
    let mut received = subscribe(&client, "still").await;
    stage.cue("lame-duck");
    story.until("the client to be told", |events| events.contains(&Event::LameDuckMode)).await;
    // It is served until it is closed.
    publish(&client, "still", "here").await;
    assert_eq!(next(&mut received).await, "here");
    let closed = |events: &[Event]| events.contains(&Event::Disconnected);
    story.until("the server to close the connection", closed).await;
    stage.report(json!({"events": story.texts()[..3]}));
}

pub(crate) async fn shutdown_closes_the_connection(stage: &mut Stage) {
    let (client, story) = stage.enter(ConnectOptions::new().max_reconnects(1)).await;
    let _last = subscribe(&client, "last").await;
    stage.cue("stop-server");
    let given_up = Event::ClientError(ClientError::MaxReconnects);
    story.until("the client to give up", |events| events.contains(&given_up)).await;
    stage.report(json!({"events": story.texts()[..2]}));
}

pub(crate) async fn a_silent_client_is_cut_off(stage: &mut Stage) {
    let (client, story) = stage.enter(ConnectOptions::new()).await;
    let mut received = subscribe(&client, "still").await;
    stage.cue("freeze-until-gone");
    is_back(&client, &story, &mut received).await;
    stage.report(json!({"events": story.texts()}));
}

pub(crate) async fn a_silent_server_is_left(stage: &mut Stage) {
    let options = ConnectOptions::new()
        .ping_interval(Duration::from_millis(250))
        .connection_timeout(Duration::from_secs(1));
    let (client, story) = stage.enter(options).await;
    let mut received = subscribe(&client, "still").await;
    stage.cue("pause-server");
    story.until("the client to notice", |events| events.contains(&Event::Disconnected)).await;
    stage.cue("resume-server");
    is_back(&client, &story, &mut received).await;
    // While nobody answers, attempts to connect may fail as well, and each of those is told.
    let ends = [story.events().first().cloned(), story.events().last().cloned()];
    assert_eq!(ends, [Some(Event::Connected), Some(Event::Connected)]);
}
