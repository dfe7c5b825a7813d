//! Queue groups of live subscriptions: of every message that a group matches, one member is given it.
//!
//! A group has no reader. Every process follows the stream anyway, sees in it what its groups match, and *claims* it: a
//! cursor on the server, one for each group, says up to where everything has been given to somebody. Who moves the
//! cursor from one id to a later one has all that matches between the two. So it costs one short script for a batch, no
//! connection, and nothing for messages that the group does not match. The server remembers the last claim of each
//! process: who does not hear the answer asks again, and is told the same. What a process that died had not claimed, the
//! next claim of another one covers: what that one has not seen itself it reads.
//!
//! Among the members of one process it is decided here who is given a message.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OnceCell};
use tokio::time::Instant;
use trunkline_core::{Message, Pattern, StreamOffset};

use super::entry::{EntryId, array, entry_id, number};
use super::link::Failure;
use super::presence::{EXPIRY, Presence};
use super::routes::{Home, millis};
use super::scripts::{GROUP_JOIN, GROUP_LEAVE};
use super::shared::Shared;
use crate::backend::inbox::Inbox;
use crate::backend::{Gap, LiveEvent};

/// Most messages of one claim, unless more than twice as many wait: what one process takes, the others cannot have.
const CLAIM_MESSAGES: usize = 64;
/// Most messages that wait to be claimed. Past it they are forgotten here, and read again once they are claimed.
const WAITING_MAX: usize = 8192;
/// How long a process whose members have no room leaves messages to others before it claims and drops them.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long a claim that is another's turn waits until it is anybody's.
const TURN: Duration = Duration::from_millis(4);

/// How long the server remembers what a member has claimed at least, once the member is not heard of any more, and where
/// a group of which nobody is heard stands.
pub(super) const CLAIM_MEMORY: Duration = Duration::from_secs(3600);

/// This process's share of one queue group on one stream.
pub(super) struct Group {
    shared: Arc<Shared>,
    presence: Arc<Presence>,
    pub(super) home: Arc<Home>,
    pattern: Pattern,
    /// Pattern and name: what tells groups apart.
    pub(super) name: String,
    /// Name of this share in the group.
    pub(super) member: String,
    /// Whether this process is in the group.
    joined: OnceCell<Joined>,
    dropped: Arc<AtomicU64>,
    /// Held for a few instructions; an inbox's lock is taken inside.
    state: Mutex<State>,
    /// Nothing waits to be claimed.
    settled: Notify,
}

struct Joined {
    /// Number of its entry among the members.
    entry: u64,
    start: (EntryId, u64),
}

#[derive(Default)]
struct State {
    members: Vec<Arc<Inbox>>,
    /// The last member leaves: nobody can join any more.
    closing: bool,
    /// Last id that was looked at.
    given: EntryId,
    /// What matches and was not claimed yet, in order: all of it that comes after `covered`.
    waiting: VecDeque<(EntryId, Arc<Message>)>,
    covered: EntryId,
    /// Since when the first of them waits.
    since: Option<Instant>,
    /// Limits removed messages before the entry with this id, before they were read.
    trimmed: Option<(EntryId, Gap)>,
    /// Up to where everything was given to somebody, as far as is known.
    cursor: EntryId,
    /// A claim whose outcome is not known, and when it was sent first.
    attempted: Option<(EntryId, Instant)>,
    /// It is another's turn until then.
    not_before: Option<Instant>,
}

/// What a process claims.
pub(super) struct Claim {
    pub(super) group: Arc<Group>,
    /// Everything up to this id.
    pub(super) upto: EntryId,
    /// The first message that it would bring.
    pub(super) first: Option<EntryId>,
    /// When it was sent first: it is sent again until its outcome is known.
    since: Instant,
}

/// What the server says of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claimed {
    /// Everything after this id is ours.
    After(EntryId),
    /// Others were given everything up to this id.
    Taken(EntryId),
    /// It is another's turn.
    Wait,
    /// The server has lost the cursor: everything is ours that was not claimed before, as far as is known here.
    Lost,
}

/// What is to be done after a member has taken its seat.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seated {
    /// Nothing.
    Beside,
    /// The group is closing: another one is needed.
    Closing,
}

impl Group {
    pub(super) fn new(
        shared: &Arc<Shared>,
        presence: &Arc<Presence>,
        dropped: &Arc<AtomicU64>,
        home: Arc<Home>,
        pattern: &Pattern,
        queue: &str,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            name: group_name(pattern, queue),
            member: format!("{}-{}", shared.process, NEXT.fetch_add(1, Ordering::Relaxed)),
            shared: shared.clone(),
            presence: presence.clone(),
            home,
            pattern: pattern.clone(),
            joined: OnceCell::new(),
            dropped: dropped.clone(),
            state: Mutex::default(),
            settled: Notify::new(),
        })
    }

    pub(super) fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    pub(super) fn given(&self) -> EntryId {
        self.state.lock().given
    }

    /// Enters this process into the group, once; from then on the group keeps messages for it. Says where the stream stood
    /// then, and the running number of the message there.
    pub(super) async fn join(&self) -> Result<(EntryId, u64), Failure> {
        let joining = self.joined.get_or_try_init(|| async {
            let keys = self.keys();
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            let entering = self.shared.link.run_script(&GROUP_JOIN, &keys, |command| {
                command.arg(&self.name).arg(&self.member).arg(millis(EXPIRY));
            });
            let [last, index] = array::<2>(entering.await?)?;
            let (last, index) = (entry_id(&last)?, number(&index)?);
            let mut state = self.state.lock();
            (state.given, state.covered) = (last, last);
            drop(state);
            let entry = self.presence.keep_member(&self.home, &self.name, &self.member);
            Ok::<_, Failure>(Joined { entry, start: (last, index) })
        });
        Ok(joining.await?.start)
    }

    fn keys(&self) -> Vec<String> {
        self.shared.keys_of(&self.home, &["queues", "added"], &["queue"], &self.name)
    }

    /// Adds a member in this process.
    pub(super) fn seat(&self, inbox: &Arc<Inbox>) -> Seated {
        let mut state = self.state.lock();
        if state.closing {
            return Seated::Closing;
        }
        state.members.push(inbox.clone());
        Seated::Beside
    }

    /// Removes a member. Says whether it was the last: then the group is to be left, after what waits was claimed.
    pub(super) fn unseat(&self, inbox: &Arc<Inbox>) -> bool {
        let mut state = self.state.lock();
        let others = state.members.iter().any(|member| !Arc::ptr_eq(member, inbox));
        if others {
            state.members.retain(|member| !Arc::ptr_eq(member, inbox));
            return false;
        }
        !std::mem::replace(&mut state.closing, true)
    }

    /// Waits until nothing waits to be claimed.
    pub(super) async fn settled(&self) {
        loop {
            let settled = self.settled.notified();
            if self.state.lock().waiting.is_empty() {
                return;
            }
            settled.await;
        }
    }

    /// Leaves the group on the server: others are given what comes.
    pub(super) async fn leave(&self) {
        {
            let mut state = self.state.lock();
            state.members.clear();
            state.waiting.clear();
        }
        self.settled.notify_waiters();
        if let Some(joined) = self.joined.get() {
            self.presence.unlist(joined.entry).await;
        }
        let keys = self.keys();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let leaving = self.shared.link.run_script(&GROUP_LEAVE, &keys, |command| {
            command.arg(&self.name).arg(&self.member);
        });
        if let Err(failure) = leaving.await {
            tracing::debug!(group = self.name, ?failure, "a queue group is left by expiry");
        }
    }

    /// Takes note of a message that matches. Says whether there is something to claim.
    pub(super) fn hold(&self, id: EntryId, message: &Arc<Message>) -> bool {
        let mut state = self.state.lock();
        if id <= state.given {
            return false;
        }
        state.given = id;
        if state.members.is_empty() {
            return false;
        }
        if state.waiting.len() >= WAITING_MAX {
            state.waiting.clear();
            // What waited is read from the server again, when it is claimed.
            state.covered = id;
            return true;
        }
        state.waiting.push_back((id, message.clone()));
        state.since.get_or_insert_with(Instant::now);
        true
    }

    /// Limits removed messages before `id`, which nobody here has read.
    pub(super) fn note_trimmed(&self, id: EntryId, gap: Gap) {
        let mut state = self.state.lock();
        if id > state.given {
            let gap = match state.trimmed {
                Some((_, former)) => {
                    Gap { missed: former.missed.zip(gap.missed).map(|(former, missed)| former + missed) }
                }
                None => gap,
            };
            state.trimmed = Some((id, gap));
        }
    }

    /// What to claim now; `read` is up to where the stream was handed out. With `idle` also when nothing waits, so that
    /// the cursor does not fall far behind; else the time until it is worth looking again.
    pub(super) fn wants(
        self: &Arc<Self>,
        read: EntryId,
        idle: bool,
        now: Instant,
    ) -> Result<Claim, Option<Duration>> {
        let mut state = self.state.lock();
        let claim = |upto, first, since| Ok(Claim { group: self.clone(), upto, first, since });
        if let Some((attempted, since)) = state.attempted {
            return claim(attempted, None, since);
        }
        let Some(first) = state.waiting.front().map(|(id, _)| *id) else {
            let upto = read.max(state.given);
            if !idle || state.members.is_empty() || upto <= state.cursor {
                return Err(None);
            }
            state.attempted = Some((upto, now));
            return claim(upto, None, now);
        };
        if let Some(at) = state.not_before.filter(|at| *at > now) {
            return Err(Some(at - now));
        }
        let full = !state.members.iter().any(|member| member.has_room());
        let waited = state.since.map_or(Duration::ZERO, |since| now - since);
        if full && waited < PATIENCE {
            return Err(Some(PATIENCE - waited));
        }
        // Of many a half, so that claims that take turns keep up with whatever comes.
        let waiting = state.waiting.len();
        let (upto, _) = state.waiting[waiting.min(CLAIM_MESSAGES.max(waiting / 2)) - 1];
        state.attempted = Some((upto, now));
        claim(upto, Some(first), now)
    }

    /// Acts on the answer to a claim. Says from where to where messages are ours that were not seen here; they are to be
    /// given out with [`Group::give_unseen`] before the next claim.
    pub(super) fn claimed(&self, claim: &Claim, answer: Claimed, now: Instant) -> Option<Unseen> {
        let upto = claim.upto;
        let mut state = self.state.lock();
        state.attempted = None;
        match answer {
            Claimed::Wait => {
                state.not_before = Some(now + TURN);
                return None;
            }
            Claimed::Taken(cursor) => {
                state.cursor = state.cursor.max(cursor);
                state.forget_waiting(cursor);
                state.trimmed = state.trimmed.filter(|(id, _)| *id > cursor);
                // The server knows what this member has claimed, so this was claimed by others, unless it was so long ago
                // that it has forgotten.
                if now.saturating_duration_since(claim.since) > CLAIM_MEMORY / 2 {
                    state.tell(Gap { missed: None });
                }
            }
            Claimed::Lost => {
                state.tell(Gap { missed: None });
                state.cursor = upto;
                self.give_waiting(&mut state, upto);
            }
            Claimed::After(cursor) => {
                if let Some((_, gap)) = state.trimmed.take_if(|(id, _)| *id <= upto && cursor < *id) {
                    state.tell(gap);
                }
                state.cursor = upto;
                // Others were given these.
                state.forget_waiting(cursor);
                if cursor < state.covered {
                    let to = upto.min(state.covered);
                    return Some(Unseen { after: cursor, to, upto });
                }
                self.give_waiting(&mut state, upto);
            }
        }
        self.note_settled(&mut state);
        None
    }

    /// Gives out messages that were read for [`Group::claimed`], and after them what waits.
    pub(super) fn give_unseen(&self, unseen: &Unseen, messages: Vec<(EntryId, Arc<Message>)>, whole: bool) {
        let mut state = self.state.lock();
        for (id, message) in messages {
            if self.pattern.matches(&message.subject) {
                self.give(&state, id, message);
            }
        }
        if whole {
            state.covered = state.covered.max(unseen.to);
            self.give_waiting(&mut state, unseen.upto);
            self.note_settled(&mut state);
        }
    }

    fn give_waiting(&self, state: &mut State, upto: EntryId) {
        while let Some((id, message)) = state.take_waiting(upto) {
            self.give(state, id, message);
        }
    }

    fn note_settled(&self, state: &mut State) {
        state.not_before = None;
        state.since = (!state.waiting.is_empty()).then(Instant::now);
        if state.waiting.is_empty() {
            self.settled.notify_waiters();
        }
    }

    fn give(&self, state: &State, id: EntryId, message: Arc<Message>) {
        let Some(last) = state.members.len().checked_sub(1) else { return };
        let offset = self.home.stores.then_some(StreamOffset::Entry(id.0, id.1));
        let mut event = LiveEvent::Message { message, offset };
        let first = fastrand::usize(..=last);
        for n in 0..=last {
            match state.members[(first + n) % (last + 1)].offer(event) {
                Ok(()) => return,
                Err(refused) => event = refused,
            }
        }
        // Nobody has room: it is missing where it would have gone first.
        state.members[first].push(&mut vec![event], &self.dropped);
    }
}

impl State {
    /// The first message that waits, if it comes no later than `upto`.
    fn take_waiting(&mut self, upto: EntryId) -> Option<(EntryId, Arc<Message>)> {
        let (id, _) = self.waiting.front()?;
        if *id <= upto { self.waiting.pop_front() } else { None }
    }

    fn forget_waiting(&mut self, upto: EntryId) {
        while self.take_waiting(upto).is_some() {}
    }

    /// Tells one member that messages are missing: it might have been given them.
    fn tell(&self, gap: Gap) {
        if let Some(member) = self.members.first() {
            match gap.missed {
                Some(_) => member.push(&mut vec![LiveEvent::Gap(gap)], &AtomicU64::new(0)),
                None => member.push_unknown_gap(),
            }
        }
    }
}

/// The name of a queue group on the server: one name on two patterns is two groups.
pub(super) fn group_name(pattern: &Pattern, queue: &str) -> String {
    format!("{pattern} {queue}")
}

/// Messages that are ours and were not seen here: those after one id, up to another.
#[derive(Debug)]
pub(super) struct Unseen {
    pub(super) after: EntryId,
    pub(super) to: EntryId,
    upto: EntryId,
}
