//! Nobody leads the cluster for a while: what the bus does all the same, and what it answers meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::task::block_in_place as here;
use trunkline::backend::nats::{NatsBackend, NatsOptions};
use trunkline::backend::{Backend, PublishError, PublishOptions, Receipt, StreamConfig, StreamError};
use trunkline::{Message, Subject};
use trunkline_testkit::NatsCluster;

use super::{
    ON_SERVERS, PATIENCE, PUBLISH_TIMEOUT, STREAM, again, connect, ensure, info, members, options, soon,
    streams,
};

/// How much later than its timeout an outcome may come on a busy machine.
const GRACE: Duration = Duration::from_secs(3);
/// Publishes of one publisher that are under way at once.
const WINDOW: usize = 16;

/// What publishers to one subject were told while nobody led the cluster.
#[derive(Default)]
struct Told {
    stored: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
}

async fn publish(backend: &NatsBackend, subject: &str) -> Result<Receipt, PublishError> {
    let subject: Subject = subject.parse().expect("a subject");
    let options = PublishOptions { timeout: Some(PUBLISH_TIMEOUT), ..PublishOptions::default() };
    let began = Instant::now();
    let outcome = soon("a publish", backend.publish(Message::new(subject, "x"), options).outcome()).await;
    assert!(began.elapsed() < PUBLISH_TIMEOUT + GRACE, "it took {:?}: {outcome:?}", began.elapsed());
    outcome
}

/// Publishes to what `subject` says until `over`, many at a time, and counts what it is told.
async fn keep_publishing(backend: &NatsBackend, subject: impl Fn(u64) -> String, over: &AtomicBool) -> Told {
    let told = Told::default();
    let mut under_way = FuturesUnordered::new();
    let mut number = 0;
    while !over.load(Ordering::Acquire) || !under_way.is_empty() {
        while !over.load(Ordering::Acquire) && under_way.len() < WINDOW {
            let subject = subject(number);
            number += 1;
            under_way.push(async move { publish(backend, &subject).await });
        }
        let counter = match under_way.next().await {
            None => continue,
            Some(Ok(Receipt::Stored { stream, .. })) if stream == STREAM => &told.stored,
            Some(Ok(Receipt::Accepted)) => &told.accepted,
            Some(Err(PublishError::NotConnected { .. })) => &told.refused,
            Some(other) => panic!("nobody provoked {other:?}"),
        };
        counter.fetch_add(1, Ordering::AcqRel);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    told
}

/// Sees to it that the stream under test is led by another server than the whole cluster, and returns who leads the latter.
async fn part_leaders(cluster: &NatsCluster) -> usize {
    let raw = async_nats::connect(cluster.url(0)).await.expect("a server is up");
    let parting = async {
        loop {
            let all = here(|| cluster.meta_leader()).expect("all agree");
            if here(|| cluster.stream_leader(ON_SERVERS)) != all {
                return all;
            }
            let step_down = format!("$JS.API.STREAM.LEADER.STEPDOWN.{ON_SERVERS}");
            raw.request(step_down, "".into()).await.expect("an answer");
        }
    };
    soon("a stream that another server leads", parting).await
}

/// The server that leads the cluster dies. While the others elect another one, nobody answers which streams there are: what
/// was published before goes on as it was known to be, at its pace; what is published to a subject for the first time is
/// stored or refused, and never taken for what is not stored; streams and consumers answer in time, as of a connection that is
/// not there. Afterwards everything goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn bus_goes_on_while_the_cluster_elects_its_leader() {
    let mut cluster = here(NatsCluster::start);
    let setup = connect(options(&cluster)).await;
    ensure(&setup).await;
    let _member = members::join(&setup).await;
    let leader = part_leaders(&cluster).await;
    let others = (0..3).filter(|node| *node != leader).map(|node| cluster.url(node).to_owned());
    let others = NatsOptions { servers: others.collect(), ..options(&cluster) };
    let backend = Arc::new(connect(others).await);
    soon("the first message of each", async {
        while !matches!(publish(&backend, "work.known").await, Ok(Receipt::Stored { .. })) {}
        while publish(&backend, "elsewhere.known").await != Ok(Receipt::Accepted) {}
    })
    .await;

    here(|| cluster.kill(leader));
    let over = AtomicBool::new(false);
    let electing = async {
        while here(|| cluster.meta_leader()).is_none_or(|now| now == leader) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        over.store(true, Ordering::Release);
    };
    let asking = async {
        let (mut answered, mut put_off) = (0, 0);
        while !over.load(Ordering::Acquire) {
            let began = Instant::now();
            let fresh = || StreamConfig::new("fresh", vec!["fresh.>".parse().expect("a pattern")]);
            let outcomes = [
                soon("the list", streams(&backend).list()).await.map(drop),
                soon("how a consumer stands", streams(&backend).consumer_info(STREAM, "plain"))
                    .await
                    .map(drop),
                soon("a stream", streams(&backend).ensure(fresh())).await.map(drop),
            ];
            for outcome in outcomes {
                match outcome {
                    Ok(()) => answered += 1,
                    Err(StreamError::NotConnected { .. }) => put_off += 1,
                    Err(error) => panic!("nobody provoked {error:?}"),
                }
            }
            // Each of them makes a few requests, the first of which that has no answer ends it.
            assert!(began.elapsed() < 9 * PUBLISH_TIMEOUT + GRACE, "it took {:?}", began.elapsed());
        }
        (answered, put_off)
    };
    let (known, live, new, (answered, put_off), ()) = soon("an election", async {
        tokio::join!(
            keep_publishing(&backend, |_| "work.known".to_owned(), &over),
            keep_publishing(&backend, |_| "elsewhere.known".to_owned(), &over),
            keep_publishing(&backend, |n| format!("work.new-{n}"), &over),
            asking,
            electing,
        )
    })
    .await;
    let count = |counter: &AtomicU64| counter.load(Ordering::Acquire);
    println!(
        "known: {} stored, {} refused; live: {} accepted, {} refused; new: {} stored, {} refused; API: {answered} answered, {put_off} put off",
        count(&known.stored),
        count(&known.refused),
        count(&live.accepted),
        count(&live.refused),
        count(&new.stored),
        count(&new.refused)
    );
    assert_eq!((count(&known.accepted), count(&live.stored), count(&new.accepted)), (0, 0, 0));
    assert_eq!((count(&known.refused), count(&live.refused)), (0, 0), "what was known goes on");
    assert!(count(&known.stored) > 100 && count(&live.accepted) > 100, "it goes on at its pace");
    assert!(put_off > 0, "nobody was there to ask");

    // Everything is answered again, with the killed server still away.
    let listed = again("the list", async || streams(&backend).list().await).await;
    assert!(listed.iter().any(|info| info.config.name == STREAM), "{listed:?}");
    assert!(info(&backend, "plain").await.lag > 0);
    let mut later = StreamConfig::new("later", vec!["later.>".parse().expect("a pattern")]);
    later.replicas = 1;
    again("a stream", async || streams(&backend).ensure(later.clone()).await).await;
    soon("a stored publish to a new subject", async {
        while !matches!(publish(&backend, "work.afterwards").await, Ok(Receipt::Stored { .. })) {}
    })
    .await;
    let joined = soon("a member", members::join(&backend)).await;
    let fetched = soon("a fetch", joined.fetch(1, PATIENCE)).await.expect("a live consumer");
    assert_eq!(fetched.deliveries.len(), 1);
}
