//! Queue groups.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::select_all;
use trunkline::Message;
use trunkline::backend::LiveEvent;

use super::Harness;
use super::probe::{Listener, flush, number, numbered, publish, publish_numbers, soon};

/// The next message of any of the listeners, and which one had it.
async fn next_of(listeners: &mut [Listener]) -> (usize, Arc<Message>) {
    let receiving = listeners.iter_mut().map(|listener| Box::pin(listener.recv()));
    let (event, index, _) = soon("the next message of a queue group", select_all(receiving)).await;
    match event.expect("the subscription goes on") {
        LiveEvent::Message { message, .. } => (index, message),
        LiveEvent::Gap(gap) => panic!("nothing was too slow here, yet there is {gap:?}"),
    }
}

/// Which member got each of the next `count` numbers; a number that comes twice is a failure.
async fn share(listeners: &mut [Listener], count: usize) -> HashMap<u64, usize> {
    let mut taken = HashMap::new();
    for _ in 0..count {
        let (index, message) = next_of(listeners).await;
        let earlier = taken.insert(number(&message), index);
        assert_eq!(earlier, None, "message {} went to two members", number(&message));
    }
    taken
}

/// Each message goes to exactly one member, wherever the members are connected, and all of them get work.
pub async fn queue_group_gives_each_message_to_exactly_one_member(harness: &Harness) {
    let (one, two) = (harness.backend().await, harness.backend().await);
    let subject = harness.subject("work");
    let mut members = Vec::new();
    for backend in [&one, &two, &two] {
        members.push(Listener::queue(&**backend, &subject, "workers").await);
    }
    publish_numbers(&*one, &subject, 0..300).await;
    let taken = share(&mut members, 300).await;
    assert_eq!(taken.len(), 300);
    for member in 0..3 {
        assert!(taken.values().any(|&index| index == member), "member {member} got no work of 300 messages");
    }
    for member in members {
        let rest = member.stop().await;
        assert!(rest.is_empty(), "{rest:?} went to a second member");
    }
}

/// Two groups and a plain subscription on one subject are three receivers, each of everything.
pub async fn queue_groups_and_plain_subscriptions_each_get_everything(harness: &Harness) {
    let (one, two) = (harness.backend().await, harness.backend().await);
    let subject = harness.subject("work");
    let mut reds =
        [Listener::queue(&*one, &subject, "red").await, Listener::queue(&*two, &subject, "red").await];
    let mut blues =
        [Listener::queue(&*one, &subject, "blue").await, Listener::queue(&*two, &subject, "blue").await];
    let mut plain = Listener::plain(&*two, &subject).await;
    publish_numbers(&*one, &subject, 0..100).await;
    assert_eq!(share(&mut reds, 100).await.len(), 100);
    assert_eq!(share(&mut blues, 100).await.len(), 100);
    assert_eq!(plain.numbers(100).await, (0..100).collect::<Vec<_>>());
}

/// When a member stops, the others get everything that comes after, and nothing that it took is lost.
pub async fn queue_group_goes_on_when_a_member_leaves(harness: &Harness) {
    let (one, two) = (harness.backend().await, harness.backend().await);
    let subject = harness.subject("work");
    let leaving = Listener::queue(&*one, &subject, "workers").await;
    let mut staying = [Listener::queue(&*two, &subject, "workers").await];
    publish_numbers(&*one, &subject, 0..100).await;
    let taken: Vec<u64> = leaving.stop().await.iter().map(|message| number(message)).collect();
    let others = share(&mut staying, 100 - taken.len()).await;
    assert!(taken.iter().all(|n| !others.contains_key(n)), "a message went to both");
    publish_numbers(&*one, &subject, 100..200).await;
    assert_eq!(share(&mut staying, 100).await.len(), 100);
}

/// A group is its name and its pattern: equal names on two patterns do not take from each other.
pub async fn queue_group_of_one_name_on_two_patterns_is_two_groups(harness: &Harness) {
    let backend = harness.backend().await;
    let mut left = Listener::queue(&*backend, harness.pattern("left.*"), "workers").await;
    let mut right = Listener::queue(&*backend, harness.pattern("right.*"), "workers").await;
    for n in 0..50 {
        publish(&*backend, numbered(&harness.subject("left.x"), n)).await;
        publish(&*backend, numbered(&harness.subject("right.x"), 100 + n)).await;
    }
    flush(&*backend).await;
    assert_eq!(left.numbers(50).await, (0..50).collect::<Vec<_>>());
    assert_eq!(right.numbers(50).await, (100..150).collect::<Vec<_>>());
}
