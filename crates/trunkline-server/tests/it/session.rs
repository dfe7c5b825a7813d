//! What a session owes its client, operation by operation.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use trunkline::Message;
use trunkline::backend::memory::MemoryBackend;
use trunkline::backend::{Backend as _, PublishOptions};

use super::client::{PATIENCE, Raw, within};
use super::fixture::Fixture;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verbose_client_is_answered_once_for_each_operation() {
    let mut fixture = Fixture::start().await;
    let mut raw = Raw::connect(fixture.nats()).await;
    raw.send(
        "CONNECT {}\r\nSUB a.b 1\r\nUNSUB 7\r\nPUB a.c 1\r\nx\r\nSUB a..b 2\r\nPUB a.* 1\r\nx\r\nPING\r\n",
    )
    .await;
    raw.expect("+OK\r\n+OK\r\n+OK\r\n+OK\r\n").await;
    // A message has its `+OK` behind what is said of its subject.
    raw.expect("-ERR 'Invalid Subject'\r\n-ERR 'Invalid Publish Subject'\r\n+OK\r\nPONG\r\n").await;
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pedantic_client_is_told_of_bad_subjects_and_nobody_gets_them() {
    let mut fixture = Fixture::start().await;
    let mut raw = Raw::connect(fixture.nats()).await;
    raw.send("CONNECT {\"verbose\":false}\r\nSUB bad.> 1\r\n").await;
    for subject in ["bad.*", "bad.>", "bad..x", "bad."] {
        raw.send(format!("PUB {subject} 1\r\nx\r\n")).await;
        assert_eq!(raw.flush().await, "-ERR 'Invalid Publish Subject'\r\n", "{subject}");
    }
    raw.send("PUB bad.not 1\r\nx\r\n").await;
    assert_eq!(raw.flush().await, "MSG bad.not 1 1\r\nx\r\n");
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsub_with_max_counts_what_was_delivered_before() {
    let mut fixture = Fixture::start().await;
    let mut raw = fixture.client().await;
    let publish = "PUB a 1\r\nx\r\n";
    raw.send(format!("SUB a 1\r\n{publish}{publish}UNSUB 1 3\r\n{publish}{publish}{publish}")).await;
    assert_eq!(raw.flush().await, "MSG a 1 1\r\nx\r\n".repeat(3));
    // A limit that was reached before it was set ends the subscription at once.
    raw.send(format!("SUB a 2\r\n{publish}{publish}UNSUB 2 1\r\n{publish}")).await;
    assert_eq!(raw.flush().await, "MSG a 2 1\r\nx\r\n".repeat(2));
    // Also where it is reached exactly: nothing more has to come for its name to be free.
    raw.send(format!("SUB a 3\r\n{publish}{publish}UNSUB 3 2\r\nSUB b 3\r\nPUB b 1\r\ny\r\nUNSUB 3\r\n"))
        .await;
    assert_eq!(raw.flush().await, "MSG a 3 1\r\nx\r\n".repeat(2) + "MSG b 3 1\r\ny\r\n");
    // Another client's messages count too, and a name is free again once its subscription ended.
    raw.send("SUB a 1\r\nUNSUB 1 1\r\nPING\r\n").await;
    raw.expect("PONG\r\n").await;
    let mut other = fixture.client().await;
    other.send(publish.repeat(3)).await;
    other.flush().await;
    assert_eq!(raw.flush().await, "MSG a 1 1\r\nx\r\n");
    fixture.varz_becomes("subscriptions", 1).await;
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_does_not_want_a_message_leaves_it_to_the_others() {
    const MESSAGES: usize = 40;
    let mut fixture = Fixture::start().await;
    let mut own = Raw::ready(fixture.nats(), "\"echo\":false,\"headers\":true").await;
    let mut other = Raw::ready(fixture.nats(), "\"headers\":true").await;
    for raw in [&mut own, &mut other] {
        raw.send("SUB a workers 1\r\n").await;
        assert_eq!(raw.flush().await, "");
    }
    // With a header, and so one by one; and without, many in one run.
    for (publish, message) in [
        ("HPUB a 12 13\r\nNATS/1.0\r\n\r\nx\r\n", "HMSG a 1 12 13\r\nNATS/1.0\r\n\r\nx\r\n"),
        ("PUB a 1\r\nx\r\n", "MSG a 1 1\r\nx\r\n"),
    ] {
        own.send(publish.repeat(MESSAGES)).await;
        assert_eq!(own.flush().await, "");
        assert_eq!(other.flush().await, message.repeat(MESSAGES), "whoever was drawn");
    }
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_come_together_reach_subscriptions_with_names_of_any_length() {
    let mut fixture = Fixture::start().await;
    let mut publisher = fixture.client().await;
    let mut clients = Vec::new();
    for sid in ["1", "22", "2", "longer-than-most", "33"] {
        let mut raw = fixture.client().await;
        raw.send(format!("SUB a {sid}\r\n")).await;
        assert_eq!(raw.flush().await, "");
        clients.push((sid, raw));
    }
    publisher.send("PUB a 1\r\nx\r\nPUB a 2\r\nyy\r\nPUB a 0\r\n\r\n").await;
    assert_eq!(publisher.flush().await, "");
    for (sid, raw) in &mut clients {
        let expected = format!("MSG a {sid} 1\r\nx\r\nMSG a {sid} 2\r\nyy\r\nMSG a {sid} 0\r\n\r\n");
        assert_eq!(raw.flush().await, expected);
    }
    fixture.bystander_is_fine().await;
}

/// As one that drains does: what came behind the PONG would be nobody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_leaves_its_group_has_all_that_it_was_given_before_the_pong() {
    const BURST: usize = 3000;
    const ROUNDS: usize = 40;
    let messages = |seen: &str| seen.matches("MSG a ").count();
    let mut fixture = Fixture::start().await;
    let mut stays = fixture.client().await;
    stays.send("SUB a workers 1\r\nPING\r\n").await;
    stays.expect("PONG\r\n").await;
    let mut publisher = fixture.client().await;
    let (counter, mut bursts) = tokio::sync::watch::channel(0);
    let publishing = tokio::spawn(async move {
        for burst in 1.. {
            publisher.send("PUB a 1\r\nx\r\n".repeat(BURST)).await;
            assert_eq!(publisher.flush().await, "");
            if counter.send(burst).is_err() {
                return burst;
            }
        }
        0
    });
    let reading = CancellationToken::new();
    let read = tokio::spawn({
        let reading = reading.clone();
        async move {
            let mut seen = 0;
            while !reading.is_cancelled() {
                stays.send("PING\r\n").await;
                seen += messages(&stays.until_pong().await);
            }
            stays.send("PING\r\n").await;
            seen + messages(&stays.until_pong().await)
        }
    });
    let mut leaves = fixture.client().await;
    let mut had = 0;
    for round in 0..ROUNDS {
        leaves.send(format!("SUB a workers {round}\r\n")).await;
        let seen = *bursts.borrow();
        within("a burst", bursts.wait_for(|bursts| *bursts > seen)).await.expect("it goes on");
        leaves.send(format!("UNSUB {round}\r\nPING\r\n")).await;
        let before = leaves.until_pong().await;
        // Whatever was under way has gone out by the end of the next one.
        let seen = *bursts.borrow();
        within("two bursts", bursts.wait_for(|bursts| *bursts > seen + 1)).await.expect("it goes on");
        leaves.send("PING\r\n").await;
        assert_eq!(leaves.until_pong().await, "PONG\r\n", "round {round}");
        had += messages(&before);
    }
    drop(bursts);
    let published = publishing.await.expect("nothing went wrong") * BURST;
    reading.cancel();
    assert_eq!(read.await.expect("nothing went wrong") + had, published, "some were nobody's");
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echo_false_keeps_a_clients_own_messages_from_it_alone() {
    let mut fixture = Fixture::start().await;
    let mut raw = Raw::ready(fixture.nats(), "\"echo\":false").await;
    let mut other = fixture.client().await;
    raw.send("SUB a 1\r\n").await;
    other.send("SUB a 1\r\nPING\r\n").await;
    other.expect("PONG\r\n").await;
    raw.send("PUB a 1\r\nx\r\n").await;
    assert_eq!(raw.flush().await, "");
    assert_eq!(other.flush().await, "MSG a 1 1\r\nx\r\n");
    other.send("PUB a 1\r\ny\r\n").await;
    other.flush().await;
    assert_eq!(raw.flush().await, "MSG a 1 1\r\ny\r\n");
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_ping_brings_a_second_info_to_clients_that_understand_it() {
    let mut fixture = Fixture::start().await;
    let mut raw = Raw::connect(fixture.nats()).await;
    raw.send("CONNECT {\"verbose\":false,\"protocol\":1}\r\nPING\r\n").await;
    raw.expect("PONG\r\n").await;
    let info = raw.line().await;
    let info: serde_json::Value =
        serde_json::from_str(info.strip_prefix("INFO ").expect("INFO")).expect("JSON");
    assert_eq!(info["connect_info"], true);
    assert_eq!(raw.flush().await, "", "only the first PING does");
    let mut old = Raw::ready(fixture.nats(), "\"protocol\":0").await;
    assert_eq!(old.flush().await, "");
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_nobody_listens_for_is_answered_at_once() {
    let mut fixture = Fixture::start().await;
    let mut raw = Raw::ready(fixture.nats(), "\"headers\":true,\"no_responders\":true").await;
    raw.send("SUB inbox.* 1\r\nPUB nobody inbox.7 2\r\nhi\r\n").await;
    let answer = raw.flush().await;
    assert!(answer.starts_with("HMSG inbox.7 1 ") && answer.contains("NATS/1.0 503"), "{answer:?}");
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_is_hung_up_on_although_its_subscription_is_remembered() {
    let mut fixture = Fixture::start().await;
    let (mut raw, mut publisher) = (fixture.client().await, fixture.client().await);
    raw.send("SUB a 1\r\nPING\r\n").await;
    raw.expect("PONG\r\n").await;
    // From now on the publisher's cache and the shared one lead to the subscription, until somebody publishes again.
    publisher.send("PUB a 1\r\nx\r\n").await;
    publisher.flush().await;
    raw.expect("MSG a 1 1\r\nx\r\n").await;
    raw.finish_sending().await;
    assert_eq!(raw.until_closed().await, "");
    assert_eq!(publisher.flush().await, "");
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_the_bus_publishes_dead_letters() {
    let mut fixture = Fixture::with(|options| options.subject_root = "acme".to_owned()).await;
    let mut raw = fixture.client().await;
    raw.send("SUB acme.dead.> 1\r\nPUB acme.dead.audit.siem 1\r\nx\r\n").await;
    let refused = "-ERR 'Permissions Violation for Publish to \"acme.dead.audit.siem\"'\r\n";
    assert_eq!(raw.flush().await, refused);
    raw.send("PUB nachos.dead.audit.siem 1\r\nx\r\nPUB acme.deadline 1\r\nx\r\n").await;
    assert_eq!(raw.flush().await, "", "other subjects are free");
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_of_this_process_is_answered_for_by_a_status_line() {
    let mut fixture = Fixture::start().await;
    let backend = MemoryBackend::connect_to(&fixture.hub);
    let mut told = Raw::ready(fixture.nats(), "\"headers\":true,\"no_responders\":true").await;
    let mut untold = Raw::ready(fixture.nats(), "\"headers\":true").await;
    for client in [&mut told, &mut untold] {
        client.send("SUB answers 1\r\nUNSUB 1 1\r\nPING\r\n").await;
        client.expect("PONG\r\n").await;
    }
    // Somebody else asks in their name, and nobody listens there.
    let mut request = Message::new("nobody.here".parse().unwrap(), "?");
    request.reply = Some("answers".parse().unwrap());
    backend.publish(request, PublishOptions::default()).outcome().await.unwrap();
    assert_eq!(told.flush().await, "HMSG answers 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n");
    assert_eq!(untold.flush().await, "");
    // That was none of the messages that the limit counts.
    let reply = Message::new("answers".parse().unwrap(), "!");
    backend.publish(reply, PublishOptions::default()).outcome().await.unwrap();
    for client in [&mut told, &mut untold] {
        assert_eq!(client.flush().await, "MSG answers 1 1\r\n!\r\n");
    }
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_mistakes_in_a_subscription_the_one_is_told_that_nats_server_tells() {
    let mut fixture = Fixture::with(|options| options.limits.max_subscriptions = 2).await;
    let mut raw = fixture.client().await;
    let (invalid, too_many) = ("-ERR 'Invalid Subject'\r\n", "-ERR 'maximum subscriptions exceeded'\r\n");
    raw.send("SUB a 1\r\nSUB a..b 2\r\n").await;
    assert_eq!(raw.flush().await, invalid);
    raw.send("SUB a..b 1\r\n").await;
    assert_eq!(raw.flush().await, "", "a name in use keeps its subscription");
    raw.send("SUB b 2\r\nSUB a..b 3\r\nSUB b 1\r\n").await;
    assert_eq!(raw.flush().await, too_many.repeat(2), "at the limit nothing else matters");
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_keeps_the_subjects_of_a_server_that_is_gone() {
    let mut fixture = Fixture::start().await;
    fixture.without_bystander();
    let (mut raw, mut publisher) = (fixture.client().await, fixture.client().await);
    raw.send("SUB a 1\r\nPING\r\n").await;
    raw.expect("PONG\r\n").await;
    // From now on the routing table's caches remember the subscription, and it its client.
    publisher.send("PUB a 1\r\nx\r\n").await;
    publisher.flush().await;
    let hub = Arc::downgrade(&fixture.hub);
    fixture.server.shutdown(PATIENCE).await;
    drop(fixture);
    assert_eq!(hub.strong_count(), 0);
}
