//! Every rule has a history that keeps it and one that breaks it: a checker that finds nothing proves nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use trunkline::StreamOffset;
use trunkline::backend::{Settle, Settled};
use trunkline::redelivery::DeadReason;

use super::{Answer, Entry, Event, Expectations, MessageId, Told, Violation, check};

const ACK_WAIT: Duration = Duration::from_millis(100);

/// A history in the writing, one event a millisecond unless told to wait.
#[derive(Clone, Default)]
struct Script {
    entries: Vec<Entry>,
    now: Duration,
}

impl Script {
    fn event(mut self, event: Event) -> Self {
        self.now += Duration::from_millis(1);
        self.entries.push(Entry { at: self.now, event });
        self
    }

    fn wait(mut self, time: Duration) -> Self {
        self.now += time;
        self
    }

    fn publishing(self, number: u32) -> Self {
        self.event(Event::Publishing { id: id(number), subject: "a.b".parse().unwrap() })
    }

    fn publish(self, number: u32, told: Told) -> Self {
        self.publishing(number).event(Event::Published { id: id(number), told })
    }

    fn store(self, number: u32) -> Self {
        self.publish(number, Told::Stored(offset(number)))
    }

    fn subscribe(self, reader: u32, group: Option<u32>) -> Self {
        self.event(Event::Subscribed { reader, pattern: "a.*".parse().unwrap(), group })
    }

    fn receive(self, reader: u32, number: u32) -> Self {
        self.event(Event::Received { reader, id: id(number) })
    }

    fn deliver(self, member: u32, number: u32, attempt: u32) -> Self {
        let delivered = Event::Delivered { member, id: id(number), offset: offset(number), attempt };
        self.event(Event::Fetching { member }).event(delivered)
    }

    fn settling(self, member: u32, number: u32, attempt: u32, how: Settle) -> Self {
        self.event(Event::Settling { member, offset: offset(number), attempt, how })
    }

    fn settled(self, member: u32, number: u32, attempt: u32, how: Settle, answer: Answer) -> Self {
        self.event(Event::Settled { member, offset: offset(number), attempt, how, answer })
    }

    fn settle(self, member: u32, number: u32, attempt: u32, how: Settle) -> Self {
        self.settling(member, number, attempt, how).settled(member, number, attempt, how, DONE)
    }

    /// What a live subscription's history amounts to.
    fn live(&self) -> Vec<Violation> {
        check(&self.entries, &Expectations::default())
    }

    /// What a consumer's history amounts to.
    fn consumer(&self) -> Vec<Violation> {
        check(&self.entries, &Expectations { ack_wait: Some(ACK_WAIT), ..Expectations::default() })
    }

    /// What a history of handlers amounts to; message 9 is doomed to be rejected.
    fn handled(&self) -> Vec<Violation> {
        let doomed = BTreeMap::from([(id(9), DeadReason::Rejected)]);
        check(&self.entries, &Expectations { doomed: Some(doomed), ..Expectations::default() })
    }
}

const DONE: Answer = Answer::Known(Settled::Done);
const NAK: Settle = Settle::Nak(Duration::from_millis(50));

fn start() -> Script {
    Script::default()
}

fn id(number: u32) -> MessageId {
    MessageId { publisher: 1, number }
}

fn offset(number: u32) -> StreamOffset {
    StreamOffset::Sequence(u64::from(number) + 1)
}

#[track_caller]
fn only(violations: Vec<Violation>, expected: impl Fn(&Violation) -> bool) {
    assert!(
        !violations.is_empty() && violations.iter().all(expected),
        "expected one kind of violation, found {violations:?}"
    );
}

#[test]
fn ids_pass_through_payloads() {
    let id = MessageId { publisher: 3, number: 77 };
    assert_eq!(MessageId::from_payload(id.to_payload().as_bytes()), Some(id));
    assert_eq!(MessageId::from_payload(b"x"), None);
    assert_eq!(MessageId::from_payload(b"\xff:1"), None);
}

#[test]
fn good_histories_pass() {
    let live = start().publish(0, Told::Received).subscribe(1, None).publish(1, Told::Received);
    let live =
        live.receive(1, 1).publish(2, Told::Unknown).publish(3, Told::Refused).publish(4, Told::Received);
    assert_eq!(live.receive(1, 4).live(), []);

    let consumer =
        start().store(0).store(1).deliver(1, 0, 1).settle(1, 0, 1, Settle::Progress).wait(ACK_WAIT);
    let consumer =
        consumer.deliver(2, 0, 2).settle(2, 0, 2, NAK).deliver(1, 1, 1).settle(1, 1, 1, Settle::Term);
    let consumer = consumer.wait(ACK_WAIT).deliver(1, 0, 3).settle(1, 0, 3, Settle::Ack);
    let lost = Answer::Known(Settled::LeaseLost);
    let consumer = consumer.settling(2, 0, 2, Settle::Ack).settled(2, 0, 2, Settle::Ack, lost);
    assert_eq!(consumer.consumer(), []);

    let handled = start().store(1).store(9).event(Event::Succeeded { id: id(1) });
    let reason = DeadReason::Rejected;
    assert_eq!(handled.event(Event::DeadLettered { id: id(9), reason }).handled(), []);
}

#[test]
fn lost_message_is_found() {
    let sent = start().subscribe(1, None).publish(0, Told::Received).publish(1, Told::Received);
    only(
        sent.clone().receive(1, 0).live(),
        |v| matches!(v, Violation::Lost { missing: 1, first, .. } if *first == id(1)),
    );
    only(sent.live(), |v| matches!(v, Violation::Lost { missing: 2, counted: 0, .. }));
}

#[test]
fn gap_excuses_as_many_as_it_counts() {
    let sent = start().subscribe(1, None).publish(0, Told::Received).publish(1, Told::Received);
    let gap = |count| sent.clone().event(Event::Missed { reader: 1, count }).live();
    assert_eq!(gap(Some(2)), []);
    assert_eq!(gap(None), []);
    only(gap(Some(1)), |v| matches!(v, Violation::Lost { missing: 2, counted: 1, .. }));
}

#[test]
fn message_before_or_after_a_subscription_is_not_missed() {
    let early = start().publishing(0).subscribe(1, None);
    assert_eq!(early.event(Event::Published { id: id(0), told: Told::Received }).live(), []);
    let late = start().subscribe(1, None).event(Event::Stopping { reader: 1 }).publish(0, Told::Received);
    assert_eq!(late.live(), []);
}

#[test]
fn dropped_subscription_may_keep_its_rest_but_has_no_holes() {
    let sent = start().subscribe(1, None).publish(0, Told::Received).publish(1, Told::Received);
    let dropped = |script: Script| script.event(Event::Stopping { reader: 1 }).live();
    assert_eq!(dropped(sent.clone()), []);
    assert_eq!(dropped(sent.clone().receive(1, 0)), []);
    only(dropped(sent.receive(1, 1)), |v| matches!(v, Violation::Lost { missing: 1, .. }));
}

#[test]
fn invented_message_is_found() {
    only(start().subscribe(1, None).receive(1, 5).live(), |v| *v == Violation::Invented(id(5)));
    // Published, but only after it came.
    let early = start().subscribe(1, None).receive(1, 5).publish(5, Told::Received);
    only(early.live(), |v| *v == Violation::Invented(id(5)));
}

#[test]
fn refused_message_that_comes_is_found() {
    let lie = start().subscribe(1, None).publish(0, Told::Refused).receive(1, 0);
    only(lie.live(), |v| *v == Violation::RefusedYetCame(id(0)));
}

#[test]
fn repeated_message_is_found() {
    let twice = start().subscribe(1, None).publish(0, Told::Received).receive(1, 0).receive(1, 0);
    only(twice.live(), |v| matches!(v, Violation::Repeated { .. }));
}

#[test]
fn message_in_the_wrong_order_is_found() {
    let sent = start().subscribe(1, None).publish(0, Told::Received).publish(1, Told::Received);
    only(sent.receive(1, 1).receive(1, 0).live(), |v| matches!(v, Violation::OutOfOrder { after: 1, .. }));
}

#[test]
fn queue_group_gets_each_message_exactly_once() {
    let group = start().subscribe(1, Some(7)).subscribe(2, Some(7)).publish(0, Told::Received);
    assert_eq!(group.clone().receive(2, 0).live(), []);
    only(group.clone().receive(1, 0).receive(2, 0).live(), |v| matches!(v, Violation::Repeated { .. }));
    only(group.clone().live(), |v| matches!(v, Violation::Lost { .. }));
    // A member that was stopped and read to the end took nothing with it; one that was dropped may have.
    let stopping = group.event(Event::Stopping { reader: 1 });
    assert_eq!(stopping.live(), []);
    only(stopping.event(Event::Ended { reader: 1 }).live(), |v| matches!(v, Violation::Lost { .. }));
    // Until it is gone it may be given more; after that it may not.
    let two = || start().subscribe(1, Some(7)).subscribe(2, Some(7)).event(Event::Stopping { reader: 1 });
    let dropped = Event::Dropped { reader: 1 };
    assert_eq!(two().publish(0, Told::Received).event(dropped.clone()).live(), []);
    only(two().event(dropped).publish(0, Told::Received).live(), |v| matches!(v, Violation::Lost { .. }));
}

#[test]
fn offsets_follow_the_publisher() {
    let swapped = start().publish(0, Told::Stored(offset(5))).publish(1, Told::Stored(offset(4)));
    only(swapped.live(), |v| matches!(v, Violation::StoredOutOfOrder { after: 0, .. }));
    let elsewhere = start().publish(0, Told::Stored(offset(5))).deliver(1, 0, 1).settle(1, 0, 1, Settle::Ack);
    only(elsewhere.consumer(), |v| matches!(v, Violation::AnotherOffset { .. }));
}

#[test]
fn first_deliveries_in_the_wrong_order_are_found() {
    let swapped = start().store(0).store(1).deliver(1, 1, 1).deliver(1, 0, 1);
    let settled = swapped.settle(1, 1, 1, Settle::Ack).settle(1, 0, 1, Settle::Ack);
    only(settled.consumer(), |v| matches!(v, Violation::OutOfOrder { .. }));
}

#[test]
fn repeated_attempt_is_found() {
    let twice =
        start().store(0).deliver(1, 0, 1).wait(ACK_WAIT).deliver(2, 0, 1).settle(2, 0, 1, Settle::Ack);
    only(twice.consumer(), |v| matches!(v, Violation::AttemptRepeated { attempt: 1, .. }));
}

#[test]
fn repeated_attempt_is_forgiven_where_the_server_repeats_them() {
    let expected =
        Expectations { ack_wait: Some(ACK_WAIT), repeats_deliveries: true, ..Expectations::default() };
    let settled = start().store(0).deliver(1, 0, 1).settle(1, 0, 1, Settle::Ack).deliver(2, 0, 1);
    assert!(check(&settled.entries, &expected).is_empty());
    // That it has to end settled, and what is said of other messages, stays.
    let unsettled = start().store(0).deliver(1, 0, 1).deliver(2, 0, 1);
    only(check(&unsettled.entries, &expected), |v| matches!(v, Violation::Unfinished { .. }));
    let other = settled.store(1).deliver(1, 1, 1).deliver(2, 1, 2).settle(2, 1, 2, Settle::Ack);
    only(check(&other.entries, &expected), |v| matches!(v, Violation::TwoLeases { .. }));
}

#[test]
fn skipped_attempt_needs_an_abandoned_fetch() {
    let skipping = start().store(0).deliver(1, 0, 2).settle(1, 0, 2, Settle::Ack);
    only(skipping.consumer(), |v| matches!(v, Violation::AttemptSkipped { attempt: 1, skipped: 1, .. }));
    assert_eq!(skipping.event(Event::FetchAbandoned { member: 2 }).consumer(), []);
}

#[test]
fn two_leases_at_once_are_found() {
    let early = |script: Script| script.deliver(2, 0, 2).settle(2, 0, 2, Settle::Ack).consumer();
    let held = start().store(0).deliver(1, 0, 1);
    only(early(held.clone()), |v| matches!(v, Violation::TwoLeases { attempt: 2, former: 1, .. }));
    assert_eq!(early(held.clone().wait(ACK_WAIT)), []);
    assert_eq!(early(held.clone().event(Event::Departing { member: 1 })), []);
    // Progress moves the end of the lease.
    let renewed = held.wait(ACK_WAIT / 2).settle(1, 0, 1, Settle::Progress).wait(ACK_WAIT / 2);
    only(early(renewed.clone()), |v| matches!(v, Violation::TwoLeases { .. }));
    assert_eq!(early(renewed.wait(ACK_WAIT / 2)), []);
}

#[test]
fn nak_that_comes_too_early_is_found() {
    let naked = start().store(0).deliver(1, 0, 1).settle(1, 0, 1, NAK);
    let again = |script: Script| script.deliver(1, 0, 2).settle(1, 0, 2, Settle::Ack).consumer();
    only(again(naked.clone()), |v| matches!(v, Violation::NakTooEarly { attempt: 2, .. }));
    assert_eq!(again(naked.wait(Duration::from_millis(50))), []);
}

#[test]
fn delivery_of_a_settled_message_is_found() {
    for how in [Settle::Ack, Settle::Term] {
        let over = start().store(0).deliver(1, 0, 1).settle(1, 0, 1, how).wait(ACK_WAIT).deliver(2, 0, 2);
        only(over.consumer(), |v| matches!(v, Violation::SettledYetDelivered { settled: 1, attempt: 2, .. }));
    }
}

#[test]
fn second_settlement_that_counts_is_found() {
    for first in [Settle::Ack, Settle::Term, Settle::Nak(Duration::ZERO)] {
        let twice = start().store(0).deliver(1, 0, 1).settle(1, 0, 1, first).settle(1, 0, 1, Settle::Ack);
        only(twice.consumer(), |v| matches!(v, Violation::SettledTwice { attempt: 1, .. }));
    }
}

#[test]
fn late_settlement_that_counts_is_found() {
    for how in [Settle::Progress, Settle::Nak(Duration::ZERO)] {
        let late = start().store(0).deliver(1, 0, 1).wait(ACK_WAIT).deliver(2, 0, 2).settle(1, 0, 1, how);
        let late = late.settle(2, 0, 2, Settle::Ack);
        only(late.consumer(), |v| matches!(v, Violation::LateSettlement { attempt: 1, later: 2, .. }));
    }
}

#[test]
fn unfinished_message_is_found() {
    only(start().store(0).consumer(), |v| *v == Violation::Unfinished { id: id(0), deliveries: 0 });
    let held = start().store(0).deliver(1, 0, 1);
    only(held.clone().consumer(), |v| *v == Violation::Unfinished { id: id(0), deliveries: 1 });
    only(held.clone().settle(1, 0, 1, NAK).consumer(), |v| matches!(v, Violation::Unfinished { .. }));
    // An ack without an answer may have counted.
    let unknown = held.settling(1, 0, 1, Settle::Ack).settled(1, 0, 1, Settle::Ack, Answer::Unknown);
    assert_eq!(unknown.consumer(), []);
}

#[test]
fn message_that_ends_no_way_or_the_wrong_way_is_found() {
    only(start().store(1).handled(), |v| *v == Violation::Dropped(id(1)));
    let dead = |number, reason| {
        start().store(number).event(Event::DeadLettered { id: id(number), reason }).handled()
    };
    only(dead(1, DeadReason::Rejected), |v| matches!(v, Violation::WrongDeadLetter { expected: None, .. }));
    only(dead(9, DeadReason::Expired), |v| matches!(v, Violation::WrongDeadLetter { expected: Some(_), .. }));
    let succeeded = start().store(9).event(Event::Succeeded { id: id(9) });
    only(succeeded.handled(), |v| *v == Violation::SucceededYetDoomed(id(9)));
}
