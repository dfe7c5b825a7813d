//! The rules, by name, and what they are checked against.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use trunkline::redelivery::DeadReason;
use trunkline::{StreamOffset, Subject};

use super::{Entry, Event, MessageId, Told, consumer, handled, live};

/// What the history is held to, besides the rules that hold always.
#[derive(Debug, Clone, Default)]
pub struct Expectations {
    /// The consumer's `ack_wait`, where members took part: every stored message has to end settled.
    pub ack_wait: Option<Duration>,
    /// Where handlers of the bus took part: which messages have to end as dead letters, and why. All others have
    /// to succeed.
    pub doomed: Option<BTreeMap<MessageId, DeadReason>>,
    /// The server is known to give a delivery out again under its old number, while somebody has it or after it was settled.
    /// Of messages to which it did that, no more is expected than that they end settled.
    pub repeats_deliveries: bool,
}

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It was confirmed, and did not reach a subscription that was there.
    #[error(
        "{missing} confirmed messages did not reach {reader}, gaps account for {counted}; the first is {first:?}"
    )]
    Lost {
        /// The subscription or the queue group.
        reader: String,
        /// How many are missing.
        missing: u64,
        /// How many of them gaps count.
        counted: u64,
        /// The first of them.
        first: MessageId,
    },
    /// Nobody published it.
    #[error("{0:?} came, and nobody had published it")]
    Invented(MessageId),
    /// It came although its publisher was told that it was not published.
    #[error("{0:?} came, although its publisher was told that it was not published")]
    RefusedYetCame(MessageId),
    /// A live subscription or a queue group got it twice.
    #[error("{id:?} came twice to {reader}")]
    Repeated {
        /// The subscription or the queue group.
        reader: String,
        /// The message.
        id: MessageId,
    },
    /// A later message of the same publisher on the same subject came before it.
    #[error("{id:?} came to {reader} after number {after} of the same publisher and subject")]
    OutOfOrder {
        /// The subscription or member.
        reader: String,
        /// The message that came too late.
        id: MessageId,
        /// The number that came before it.
        after: u32,
    },
    /// It is stored before an earlier message of the same publisher on the same subject.
    #[error("{id:?} is stored at {offset}, not behind number {after} of the same publisher and subject")]
    StoredOutOfOrder {
        /// The message.
        id: MessageId,
        /// Where it is stored.
        offset: StreamOffset,
        /// The number published before it.
        after: u32,
    },
    /// It was delivered with another offset than its receipt said.
    #[error("{id:?} was delivered at {delivered}, its receipt says {receipt}")]
    AnotherOffset {
        /// The message.
        id: MessageId,
        /// In the receipt.
        receipt: StreamOffset,
        /// In the delivery.
        delivered: StreamOffset,
    },
    /// One delivery was given out twice.
    #[error("attempt {attempt} at {offset} was given out twice")]
    AttemptRepeated {
        /// The message.
        offset: StreamOffset,
        /// The attempt.
        attempt: u32,
    },
    /// Attempts do not count up by one, and no lost fetch explains it.
    #[error(
        "{skipped} attempts were never given out, {abandoned} fetches were abandoned; the first is {attempt} at {offset}"
    )]
    AttemptSkipped {
        /// The message.
        offset: StreamOffset,
        /// The first attempt that is missing.
        attempt: u32,
        /// How many are missing altogether.
        skipped: usize,
        /// How many fetches were abandoned.
        abandoned: usize,
    },
    /// It was delivered while another delivery's lease was running.
    #[error("attempt {attempt} at {offset} was given out while the lease of attempt {former} was running")]
    TwoLeases {
        /// The message.
        offset: StreamOffset,
        /// The later attempt.
        attempt: u32,
        /// The earlier one.
        former: u32,
    },
    /// It came before the delay of its nak had passed.
    #[error("attempt {attempt} at {offset} came {early:?} before the delay of its nak was over")]
    NakTooEarly {
        /// The message.
        offset: StreamOffset,
        /// The later attempt.
        attempt: u32,
        /// How much too early.
        early: Duration,
    },
    /// It was delivered again although its ack or term had counted.
    #[error("attempt {attempt} at {offset} was given out, although attempt {settled} was settled for good")]
    SettledYetDelivered {
        /// The message.
        offset: StreamOffset,
        /// The later attempt.
        attempt: u32,
        /// The attempt that was settled.
        settled: u32,
    },
    /// It was settled for good twice, or after its nak.
    #[error("attempt {attempt} at {offset} was settled, and settled again")]
    SettledTwice {
        /// The message.
        offset: StreamOffset,
        /// The attempt whose second settlement counted.
        attempt: u32,
    },
    /// A settlement counted although a later delivery was out already.
    #[error("a late settlement of attempt {attempt} at {offset} counted, although attempt {later} was out")]
    LateSettlement {
        /// The message.
        offset: StreamOffset,
        /// The attempt that was late.
        attempt: u32,
        /// The attempt that owned the message.
        later: u32,
    },
    /// All is quiet, and it is neither settled nor on its way.
    #[error("{id:?} was stored and never settled; it was given out {deliveries} times")]
    Unfinished {
        /// The message.
        id: MessageId,
        /// How often it was given out.
        deliveries: usize,
    },
    /// All is quiet, and no handler succeeded with it, nor is it a dead letter.
    #[error("{0:?} was confirmed, no handler succeeded with it, and there is no dead letter")]
    Dropped(MessageId),
    /// It is a dead letter for another reason than it should be, or should be none.
    #[error("{id:?} is a dead letter because of {found}, expected {expected:?}")]
    WrongDeadLetter {
        /// The message.
        id: MessageId,
        /// The reason on the dead letter.
        found: DeadReason,
        /// The reason it should have; none when it should have succeeded.
        expected: Option<DeadReason>,
    },
    /// It can never succeed, and a success was recorded.
    #[error("{0:?} succeeded, although it never can")]
    SucceededYetDoomed(MessageId),
}

impl Violation {
    /// The stored message whose deliveries broke the rule, if it is one of them.
    pub fn offset(&self) -> Option<StreamOffset> {
        match self {
            Self::AttemptRepeated { offset, .. }
            | Self::AttemptSkipped { offset, .. }
            | Self::TwoLeases { offset, .. }
            | Self::NakTooEarly { offset, .. }
            | Self::SettledYetDelivered { offset, .. }
            | Self::SettledTwice { offset, .. }
            | Self::LateSettlement { offset, .. } => Some(*offset),
            _ => None,
        }
    }
}

/// A published message.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) id: MessageId,
    pub(super) subject: Subject,
    pub(super) from: usize,
    /// What its publisher was told, and when; `None` when the publisher never heard.
    pub(super) told: Option<(usize, Told)>,
}

impl Published {
    /// When and that it was confirmed.
    pub(super) fn confirmed(&self) -> Option<usize> {
        match self.told {
            Some((tick, Told::Stored(_) | Told::Received)) => Some(tick),
            _ => None,
        }
    }
}

/// Everything that was published, by id and in the order of publishing.
#[derive(Debug, Default)]
pub(super) struct Publications {
    pub(super) by_id: HashMap<MessageId, usize>,
    pub(super) all: Vec<Published>,
}

impl Publications {
    fn of(entries: &[Entry]) -> Self {
        let mut published = Self::default();
        for (tick, entry) in entries.iter().enumerate() {
            match &entry.event {
                Event::Publishing { id, subject } => {
                    published.by_id.insert(*id, published.all.len());
                    published.all.push(Published {
                        id: *id,
                        subject: subject.clone(),
                        from: tick,
                        told: None,
                    });
                }
                Event::Published { id, told } => {
                    if let Some(&at) = published.by_id.get(id) {
                        published.all[at].told = Some((tick, *told));
                    }
                }
                _ => {}
            }
        }
        published
    }

    pub(super) fn get(&self, id: MessageId) -> Option<&Published> {
        self.by_id.get(&id).map(|&at| &self.all[at])
    }
}

/// Checks a finished history against all rules and gives every violation.
pub fn check(entries: &[Entry], expected: &Expectations) -> Vec<Violation> {
    let published = Publications::of(entries);
    let mut violations = Vec::new();
    check_origin(entries, &published, &mut violations);
    check_stored_order(&published, &mut violations);
    live::check(entries, &published, &mut violations);
    if let Some(ack_wait) = expected.ack_wait {
        consumer::check(entries, &published, ack_wait, expected.repeats_deliveries, &mut violations);
    }
    if let Some(doomed) = &expected.doomed {
        handled::check(entries, &published, doomed, &mut violations);
    }
    violations
}

/// Whatever came was published before, and was not refused.
fn check_origin(entries: &[Entry], published: &Publications, violations: &mut Vec<Violation>) {
    for (tick, entry) in entries.iter().enumerate() {
        let (Event::Received { id, .. }
        | Event::Delivered { id, .. }
        | Event::Succeeded { id }
        | Event::DeadLettered { id, .. }) = &entry.event
        else {
            continue;
        };
        match published.get(*id) {
            Some(message) if message.from < tick => {
                if matches!(message.told, Some((_, Told::Refused))) {
                    violations.push(Violation::RefusedYetCame(*id));
                }
            }
            _ => violations.push(Violation::Invented(*id)),
        }
    }
}

/// What one publisher publishes to one subject, one after the other, is stored in that order.
fn check_stored_order(published: &Publications, violations: &mut Vec<Violation>) {
    let mut newest: HashMap<(u32, &Subject), (StreamOffset, u32)> = HashMap::new();
    for message in &published.all {
        let Some((_, Told::Stored(offset))) = message.told else { continue };
        let key = (message.id.publisher, &message.subject);
        match newest.get(&key) {
            Some((before, after)) if *before >= offset => {
                violations.push(Violation::StoredOutOfOrder { id: message.id, offset, after: *after });
            }
            _ => {
                newest.insert(key, (offset, message.id.number));
            }
        }
    }
}
