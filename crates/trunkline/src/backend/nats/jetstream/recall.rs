//! Calling back: a member that becomes the active one of a keyed consumer has everything unsettled delivered again, by
//! offset, and sees to it that nothing overtakes it.
//!
//! What a server has queued for redelivery it keeps to itself: one that takes over the consumer knows nothing of it, and
//! goes on with newer messages, or with those of the old ones whose time is over by its own account. So the calling back
//! is written where all servers of the consumer have it, and what comes is counted: a newer message before the last one
//! that was called back, or a delivery whose number does not follow the one before, means that something was passed over.
//! Then nothing is handed out, and everything is called back again.

use std::time::Duration;

use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use bytes::Bytes;
use tokio::time::Instant;

use super::ack_subject::AckSubject;
use super::api::{Failure, Refusal, codes};
use super::consumers::State;
use super::lease::LeaseState;
use super::member::NatsMember;
use super::streams::Found;

/// Naks under way to the server before it is waited for.
const NAKS_AT_ONCE: u64 = 1024;
/// How often calling back begins anew when the consumer changes meanwhile.
const TRIES: u32 = 3;
/// Ends the lease of a delivery as if its time were over. The server tells the others of its cluster, and takes the
/// message out of its own queue, which is in no order.
const EXPIRE: &[u8] = b"-NAK {\"delay\": 1}";
/// Queues a message for redelivery, behind those that are queued.
const QUEUE: &[u8] = b"-NAK";

/// What was called back and has not come yet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outstanding {
    count: u64,
    /// The newest message that may be among them.
    to: u64,
    /// The newest one of them that has come, or the message before all of them.
    came: u64,
    /// Messages between `came` and `to` that are not among them: settled, removed, or of no interest to the consumer.
    others: u64,
}

/// Whether deliveries of a keyed consumer come one after the other, and the old ones before the new.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The number of the newest delivery; `None` before anything was called back.
    consumer_seq: Option<u64>,
    outstanding: Option<Outstanding>,
    /// Fewer came than were called back.
    short: bool,
    /// How often everything was called back: a fetch that lasts longer than that is of no use.
    pub(super) round: u64,
}

impl Watch {
    /// Everything unsettled was called back: so many messages behind `floor`, and none behind `to`.
    fn begin(&mut self, consumer_seq: u64, floor: u64, to: u64, count: u64) {
        self.consumer_seq = Some(consumer_seq);
        let others = to.saturating_sub(floor).saturating_sub(count);
        self.outstanding = (count > 0).then_some(Outstanding { count, to, came: floor, others });
        self.short = false;
    }

    /// Takes note of a delivery, and tells whether it may be the next one.
    pub(super) fn follows(&mut self, about: &AckSubject) -> bool {
        let expected = self.consumer_seq.map(|newest| newest + 1);
        self.consumer_seq = Some(about.consumer_seq);
        if expected.is_some_and(|expected| expected != about.consumer_seq) {
            return false;
        }
        let Some(outstanding) = &mut self.outstanding else { return true };
        if about.stream_seq > outstanding.to {
            self.short = true;
            return false;
        }
        // They come by offset: an older one has come before, and comes once more because it failed.
        if about.stream_seq > outstanding.came {
            let between = about.stream_seq - outstanding.came - 1;
            if between > outstanding.others {
                self.short = true;
                return false;
            }
            outstanding.others -= between;
            outstanding.came = about.stream_seq;
            outstanding.count -= 1;
            if outstanding.count == 0 {
                self.outstanding = None;
            }
        }
        true
    }

    /// Takes note that nothing more is there now, and tells whether that can be.
    pub(super) fn may_end(&mut self) -> bool {
        self.short |= self.outstanding.is_some();
        self.outstanding.is_none()
    }
}

impl NatsMember {
    /// Has everything that is unsettled delivered again, by offset.
    ///
    /// A nak is honoured whoever sends it, for any delivery that was made and is not settled; for all others it is
    /// ignored. So two are sent for each message between the ack floor and the newest delivery, first to end its lease on
    /// all servers and then to queue it: one message that waits for long while others behind it are settled makes that
    /// many. The lease of the consumer is renewed meanwhile, or another member would take over half way, and begin anew.
    ///
    /// Returns when the lease was asked for last; `None` when another member has it.
    pub(super) async fn call_back(
        &self,
        lease: &mut LeaseState,
        mut asked: Instant,
        ttl: Duration,
    ) -> Result<Option<Instant>, Failure> {
        self.watch.lock().round += 1;
        let mut state = self.state_to_recall().await?;
        for _ in 0..TRIES {
            if !state.is_idle() {
                self.check_leader_is_current(&state).await?;
                for payload in [EXPIRE, QUEUE] {
                    let Some(renewed) = self.nak_all(&state, payload, lease, asked, ttl).await? else {
                        return Ok(None);
                    };
                    asked = renewed;
                    self.prove_replicated(&state).await?;
                }
            }
            let now = self.state_to_recall().await?;
            if now.agrees_with(&state) {
                let (floor, newest) = (now.ack_floor.stream_seq, now.delivered.stream_seq);
                // The same server was asked to deliver as many and had fewer: it may count some that were removed.
                let again = self.watch.lock().short && lease.under.as_ref() == Some(now.leadership());
                let removed = match again && !now.is_idle() {
                    true => self.found().await?.state.removed_behind(floor),
                    false => 0,
                };
                let count = now.unsettled().saturating_sub(removed);
                self.watch.lock().begin(now.delivered.consumer_seq, floor, newest, count);
                lease.under = Some(now.leadership().clone());
                return Ok(Some(asked));
            }
            state = now;
        }
        Err(Failure::NotConnected("the consumer changes while it is taken over".to_owned()))
    }

    async fn state_to_recall(&self) -> Result<State, Failure> {
        let state = self.jetstream.consumer_state(&self.on_server, &self.config.name).await?;
        state.ok_or_else(|| {
            Failure::Refused(Refusal {
                code: 404,
                err_code: codes::CONSUMER_NOT_FOUND,
                description: "consumer not found".to_owned(),
            })
        })
    }

    async fn found(&self) -> Result<Found, Failure> {
        self.jetstream.look_up(&self.stream).await
    }

    /// A server that has not caught up with the stream passes over what it has not got yet, and comes back to it later.
    async fn check_leader_is_current(&self, state: &State) -> Result<(), Failure> {
        let leader = state.leadership().leader();
        if leader.is_empty() || self.found().await?.is_current_on(leader) {
            return Ok(());
        }
        Err(Failure::NotConnected(format!(
            "{leader}, which leads the consumer, has not caught up with the stream"
        )))
    }

    fn ack_subject(&self, state: &State, sequence: u64) -> String {
        let (stream, consumer) = (&self.on_server, &self.config.name);
        format!("$JS.ACK.{stream}.{consumer}.1.{sequence}.{}.0.0", state.delivered.consumer_seq)
    }

    async fn nak_all(
        &self,
        state: &State,
        payload: &'static [u8],
        lease: &mut LeaseState,
        mut asked: Instant,
        ttl: Duration,
    ) -> Result<Option<Instant>, Failure> {
        let api = &self.jetstream.api;
        let newest = state.delivered.stream_seq;
        for sequence in state.ack_floor.stream_seq + 1..=newest {
            let (subject, payload) = (self.ack_subject(state, sequence), Bytes::from_static(payload));
            // The last one of each lot is waited for: then the server has handled those before.
            if sequence == newest || sequence % NAKS_AT_ONCE == 0 {
                api.ask(subject, None, payload, api.link.publish_timeout).await?;
                if let Some(revision) = lease.mine.filter(|_| asked.elapsed() >= ttl / 3) {
                    let now = Instant::now();
                    lease.mine = self.write_lease(ttl, revision).await?;
                    if lease.mine.is_none() {
                        return Ok(None);
                    }
                    asked = now;
                }
                continue;
            }
            let nak = OutboundMessage { subject: subject.into(), reply: None, payload, headers: None };
            let sent = api.link.client.publish_message(nak).await;
            sent.map_err(|_| Failure::NotConnected(api.link.events.reason()))?;
        }
        Ok(Some(asked))
    }

    /// Waits until the other servers of the consumer have what was sent before. A nak is answered at once, an
    /// acknowledgement by a majority: so one is sent for a message that is settled.
    async fn prove_replicated(&self, state: &State) -> Result<(), Failure> {
        let settled = state.ack_floor.stream_seq;
        if settled == 0 {
            return Ok(());
        }
        let api = &self.jetstream.api;
        let payload = Bytes::from_static(b"+ACK");
        api.ask(self.ack_subject(state, settled), None, payload, api.link.publish_timeout).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Deliveries as number in the consumer and in the stream, and whether each may come.
    fn check(count: u64, to: u64, deliveries: &[(u64, u64, bool)], may_end: bool) {
        let mut watch = Watch::default();
        watch.begin(10, 3, to, count);
        for (consumer_seq, stream_seq, expected) in deliveries {
            let subject = format!("$JS.ACK.s.c.2.{stream_seq}.{consumer_seq}.0.0");
            let about = AckSubject::parse(&subject).expect("an ack subject");
            assert_eq!(watch.follows(&about), *expected, "{subject} of {deliveries:?}");
        }
        assert_eq!(watch.may_end(), may_end, "{deliveries:?}");
    }

    #[test]
    fn what_was_called_back_comes_before_what_is_new() {
        check(0, 3, &[(11, 4, true), (12, 5, true)], true);
        check(2, 9, &[(11, 4, true), (12, 9, true), (13, 10, true)], true);
        check(2, 9, &[(11, 4, true), (12, 10, false)], false);
    }

    #[test]
    fn what_fails_and_comes_again_does_not_stand_for_another() {
        check(2, 9, &[(11, 4, true), (12, 4, true), (13, 10, false)], false);
        check(2, 9, &[(11, 4, true), (12, 4, true), (13, 9, true)], true);
    }

    #[test]
    fn a_delivery_that_got_lost_is_noticed_with_the_next_one() {
        check(0, 3, &[(11, 4, true), (13, 6, false)], true);
        check(0, 3, &[(11, 4, true), (11, 4, false)], true);
    }

    #[test]
    fn what_passes_over_more_than_is_settled_is_noticed_at_once() {
        // Of 4 to 9 all but two are settled, or removed.
        check(2, 9, &[(11, 8, true), (12, 9, true)], true);
        check(2, 9, &[(11, 6, true), (12, 9, true)], true);
        check(2, 9, &[(11, 9, false)], false);
        check(5, 9, &[(11, 5, true), (12, 7, false)], false);
        check(6, 9, &[(11, 5, false)], false);
    }
}
