//! A keyed consumer whose member and whose server are both taken over: nothing overtakes what was called back.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::block_in_place as here;
use trunkline::backend::nats::NatsBackend;
use trunkline::backend::{
    Backend, ConsumeError, ConsumerConfig, Delivery, Lease, Member, PublishOptions, Receipt, Settle,
};
use trunkline::{Message, Subject};
use trunkline_testkit::NatsCluster;

use super::{
    ON_SERVERS, PATIENCE, STREAM, connect, consumer, ensure, options, options_of, soon, streams,
    unless_leaderless,
};

/// Nothing comes again by itself while the test runs.
const ACK_WAIT: Duration = Duration::from_secs(600);
/// How long a member may be missed.
const TTL: Duration = Duration::from_secs(2);
const OLD: u64 = 60;
const NEW: u64 = 20;

async fn publish(backend: &NatsBackend, count: u64) {
    for _ in 0..count {
        let subject: Subject = "work.x".parse().expect("a subject");
        let publishing = backend.publish(Message::new(subject, "x"), PublishOptions::default());
        let receipt = soon("a publish", publishing.outcome()).await;
        assert!(matches!(receipt, Ok(Receipt::Stored { .. })), "{receipt:?}");
    }
}

async fn join(backend: &NatsBackend) -> Arc<dyn Member> {
    let config = || ConsumerConfig { keyed: true, ..consumer("keyed", ACK_WAIT) };
    soon("joining", async {
        loop {
            if let Some(member) = unless_leaderless(streams(backend).join(STREAM, config()).await).await {
                return member;
            }
        }
    })
    .await
}

/// What servers without a leader could not do, if anything.
fn done<T>(outcome: Result<T, ConsumeError>) -> Option<T> {
    match outcome {
        Ok(value) => Some(value),
        Err(error) => {
            assert!(error.is_retryable(), "nobody provoked {error:?}");
            None
        }
    }
}

/// What comes next to the active member, or nothing.
async fn next(member: &dyn Member, max: usize) -> Vec<Delivery> {
    match done(soon("the lease", member.lease(TTL)).await) {
        Some(Lease::Held { .. }) => {
            let fetched = soon("a fetch", member.fetch(max, Duration::from_millis(500))).await;
            done(fetched).unwrap_or_default().deliveries
        }
        _ => Vec::new(),
    }
}

/// A member dies with work in hand, parts of which it has renewed. Another one has everything called back, and before
/// all of it has come the server that leads the consumer dies: the one that takes over was never told what the dead one
/// had queued, and yet gives it out before what is new, and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_overtakes_what_was_called_back_when_the_server_changes_too() {
    let mut cluster = here(NatsCluster::start);
    let backend = connect(options(&cluster)).await;
    ensure(&backend).await;
    publish(&backend, OLD).await;
    let dead = join(&backend).await;
    let mut given = Vec::new();
    let giving = async {
        while given.len() < OLD as usize {
            given.extend(next(&*dead, 100).await);
        }
        for (n, how) in
            [(0, Settle::Ack), (1, Settle::Progress), (2, Settle::Progress), (5, Settle::Progress)]
        {
            let token = given[n].token.clone();
            while done(soon("a settlement", dead.settle(vec![(token.clone(), how)])).await).is_none() {}
        }
    };
    tokio::time::timeout(PATIENCE, giving).await.expect("the consumer gives what is there");
    drop(dead);

    // Its connection does not end with the server that leads the consumer, and while nobody leads it nothing is fetched: so no
    // request fails, and nothing tells the member that another server answers.
    let leader = here(|| cluster.consumer_leader(ON_SERVERS, "keyed"));
    let elsewhere = connect(options_of(&cluster, (leader + 1) % 3)).await;
    let member = join(&elsewhere).await;
    let mut newest = 1;
    let mut killed = None;
    let taking_over = async {
        while newest < OLD + NEW {
            for delivery in next(&*member, 7).await {
                let offset = delivery.offset.sequence().expect("a number");
                assert!(offset <= newest + 1, "{offset} overtook {}", newest + 1);
                newest = newest.max(offset);
                // What is not acknowledged now comes again, with everything behind it.
                done(soon("a settlement", member.settle(vec![(delivery.token, Settle::Ack)])).await);
            }
            if newest > 10 && killed.is_none() {
                publish(&backend, NEW).await;
                let leader = here(|| cluster.consumer_leader(ON_SERVERS, "keyed"));
                here(|| cluster.kill(leader));
                assert_ne!(here(|| cluster.consumer_leader(ON_SERVERS, "keyed")), leader);
                killed = Some(leader);
            }
        }
    };
    tokio::time::timeout(PATIENCE, taking_over).await.expect("everything comes");
    assert!(killed.is_some());
}
