//! The session's part in authentication: lets the client in or sends it away, and considers both again after a reload.

use std::sync::Arc;
use std::time::Instant;

use trunkline::Pattern;
use trunkline_protocol::{ConnectOptions, ServerError};

use super::{Session, Stop};
use crate::auth::{Answer, Failure, Identity, Permissions, Replies, Verification};
use crate::closed::Closed;
use crate::staging::Staging;
use crate::subscription::{Guard, Subscription};
use crate::trace::about;

/// So many bytes of a subject are logged.
const SUBJECT_SHOWN_MAX: usize = 128;

/// What a session knows of the rights of its client.
pub(super) struct Access {
    /// It is known who the client is, as far as anybody asks.
    admitted: bool,
    /// `None` allows everything.
    permissions: Option<Arc<Permissions>>,
    /// What the client may answer, where it has to be known.
    replies: Option<Arc<Replies>>,
    /// The generation of users that all of this comes from.
    generation: u64,
    /// Waits for a password to be checked.
    pending: Option<Box<Pending>>,
    /// The log has been told of a violation: one line a connection is enough.
    told: bool,
}

/// What a client did that it may not do.
pub(super) enum Violation<'a> {
    Publish,
    /// To name this reply subject.
    Reply,
    Subscribe {
        queue: Option<&'a [u8]>,
        sid: &'a [u8],
    },
    /// A subject with so many tokens.
    Tokens {
        sid: &'a [u8],
    },
}

/// A CONNECT that is not answered yet.
struct Pending {
    options: ConnectOptions,
    /// What is to be checked; taken by who has it done.
    verification: Option<Verification>,
    /// The client was let in before.
    again: bool,
}

impl Access {
    pub(super) fn new() -> Self {
        Self { admitted: false, permissions: None, replies: None, generation: 0, pending: None, told: false }
    }

    /// Whether the permissions say something about where to publish.
    #[inline]
    pub(super) fn permissions(&self) -> Option<&Arc<Permissions>> {
        self.permissions.as_ref()
    }

    /// Whether the client may publish on `subject` because somebody has asked it to answer there.
    pub(super) fn may_answer(&self, subject: &[u8]) -> bool {
        self.replies.as_ref().is_some_and(|replies| replies.take(subject, Instant::now()))
    }
}

impl Session {
    /// Lets the client in where nobody is asked who they are.
    pub(super) fn open(&mut self) {
        self.access.generation = self.server.auth.generation();
        self.limits = self.server.limits();
        if !self.server.auth.is_configured()
            && let Some(identity) = self.server.auth.anonymous(self.client.connection())
        {
            self.adopt(identity);
        }
    }

    pub(crate) fn is_admitted(&self) -> bool {
        self.access.admitted
    }

    /// Whether users and permissions have been replaced since the session last looked.
    #[inline]
    pub(crate) fn is_outdated(&self) -> bool {
        self.access.generation != self.server.auth.generation() && self.access.pending.is_none()
    }

    /// Before an operation that begins with `first`: only CONNECT is carried out for somebody unknown.
    #[inline]
    pub(super) fn knock(&mut self, first: u8, staging: &mut Staging) -> Result<(), Stop> {
        if self.access.admitted || matches!(first, b'C' | b'c') {
            return Ok(());
        }
        match self.server.auth.anonymous(self.client.connection()) {
            Some(identity) => {
                self.adopt(identity);
                Ok(())
            }
            None => self.turn_away(Failure::Credentials, "", staging),
        }
    }

    /// Acts on CONNECT as far as it says who the client is.
    pub(super) fn authenticate(
        &mut self,
        options: ConnectOptions,
        staging: &mut Staging,
    ) -> Result<(), Stop> {
        // Read first: what is replaced in between is considered again.
        self.access.generation = self.server.auth.generation();
        self.limits = self.server.limits();
        if options.account.as_ref().is_some_and(|account| !account.is_empty()) {
            return self.turn_stranger_away(Failure::Credentials, options, staging);
        }
        let auth = &self.server.auth;
        match auth.check(&options, self.client.connection(), self.client.address.ip()) {
            Answer::Granted(identity) => self.admit(options, identity, staging),
            Answer::Refused(why) => self.turn_stranger_away(why, options, staging),
            Answer::Verify(verification) => {
                let verification = Some(verification);
                self.access.pending = Some(Box::new(Pending { options, verification, again: false }));
                Err(Stop::Wait)
            }
        }
    }

    /// What is to be checked before the session goes on.
    pub(crate) fn take_verification(&mut self) -> Option<Verification> {
        self.access.pending.as_mut()?.verification.take()
    }

    /// The password was checked; `identity` is whose it is, or why nobody is let in by it.
    pub(crate) fn settle(
        &mut self,
        identity: Result<Arc<Identity>, Failure>,
        staging: &mut Staging,
    ) -> Option<Closed> {
        let pending = self.access.pending.take()?;
        let outcome = match identity {
            Ok(identity) if pending.again => self.admit_again(identity, staging),
            Ok(identity) => self.admit(pending.options, identity, staging).map(|()| self.say_ok(staging)),
            Err(why) => {
                let why = if pending.again { Failure::Revoked } else { why };
                self.turn_stranger_away(why, pending.options, staging)
            }
        };
        self.finish_orders();
        match outcome {
            Err(Stop::Close(why)) => Some(why),
            _ => None,
        }
    }

    /// Considers anew whether the client may be here, and what it may do.
    pub(super) fn reconsider(&mut self, staging: &mut Staging) -> Result<(), Stop> {
        self.access.generation = self.server.auth.generation();
        self.limits = self.server.limits();
        if !self.access.admitted {
            return Ok(());
        }
        match self.server.auth.check_again(&self.options, self.client.connection()) {
            Answer::Granted(identity) => self.admit_again(identity, staging),
            Answer::Refused(why) => self.turn_away(why, "", staging),
            Answer::Verify(verification) => {
                let (options, verification) = ((*self.options).clone(), Some(verification));
                self.access.pending = Some(Box::new(Pending { options, verification, again: true }));
                Err(Stop::Wait)
            }
        }
    }

    fn admit(
        &mut self,
        options: ConnectOptions,
        identity: Arc<Identity>,
        staging: &mut Staging,
    ) -> Result<(), Stop> {
        if !self.is_of_same_account(&identity) {
            return self.turn_away(Failure::Credentials, self.server.auth.name_of(&options), staging);
        }
        self.adopt(identity);
        self.accept(options, staging)
    }

    fn admit_again(&mut self, identity: Arc<Identity>, staging: &mut Staging) -> Result<(), Stop> {
        if !self.is_of_same_account(&identity) {
            return self.turn_away(Failure::Revoked, "", staging);
        }
        self.adopt(identity);
        self.review_subscriptions(staging);
        Ok(())
    }

    /// A connection stays in the account that it first came to: its subscriptions are there.
    fn is_of_same_account(&self, identity: &Identity) -> bool {
        self.client.identity().is_none_or(|former| Arc::ptr_eq(&former.account, &identity.account))
    }

    /// The client is this from here on.
    fn adopt(&mut self, identity: Arc<Identity>) {
        let permissions = identity.permissions.clone();
        self.hub = identity.account.hub.clone();
        self.observer = self.server.observer(&self.hub);
        let responses = permissions.as_ref().and_then(|permissions| permissions.responses);
        let replies = self.access.replies.take().filter(|replies| responses == Some(replies.limits()));
        self.access.replies = replies.or_else(|| responses.map(|limits| Arc::new(Replies::new(limits))));
        self.access.permissions = permissions;
        self.access.admitted = true;
        // With the answers of another table, perhaps, and verdicts of other permissions.
        self.cache.clear();
        self.client.set_identity(identity);
    }

    /// Ends the subscriptions that the client may not have any more, and tells it which.
    fn review_subscriptions(&mut self, staging: &mut Staging) {
        let mut all: Vec<Arc<Subscription>> = self.client.table.lock().iter().cloned().collect();
        all.sort_unstable_by(|a, b| (a.sid.len(), &a.sid).cmp(&(b.sid.len(), &b.sid)));
        for subscription in all {
            if self.may_subscribe(&subscription.pattern, subscription.queue.as_deref()) {
                self.guard(&subscription);
                continue;
            }
            // Before it leaves the table: nothing that is under way may still reach it.
            subscription.end();
            self.forget(&subscription.sid);
            self.server.count_denied_subscription(&self.client);
            self.note_revoked(&subscription);
            let (subject, sid) = (subscription.pattern.as_bytes(), &subscription.sid[..]);
            let queue = subscription.queue.as_ref().map(|queue| &queue.as_bytes()[..]);
            ServerError::SubscriptionRevoked { subject, queue, sid }.write(self.line(staging));
        }
    }

    #[cold]
    fn note_revoked(&self, subscription: &Subscription) {
        let (subject, sid) = (subscription.pattern.as_str(), String::from_utf8_lossy(&subscription.sid));
        let user = self.client.shown_name();
        match self.server.refusals.may_tell(Instant::now()) {
            true => {
                about!(info, self.client, user, subject, %sid, "a subscription is not permitted any more")
            }
            false => {
                about!(debug, self.client, user, subject, %sid, "a subscription is not permitted any more")
            }
        }
    }

    pub(super) fn may_subscribe(&self, pattern: &Pattern, queue: Option<&str>) -> bool {
        let permissions = self.access.permissions.as_ref();
        permissions.is_none_or(|permissions| permissions.may_subscribe(pattern, queue))
    }

    /// Whether what is no pattern is called so, and not forbidden.
    pub(super) fn may_ask_for(&self, subject: &[u8], queue: Option<&[u8]>) -> bool {
        let permissions = self.access.permissions.as_ref();
        permissions.is_none_or(|permissions| permissions.may_ask_for(subject, queue))
    }

    /// Has a subscription look at what it delivers, as far as the permissions ask for it.
    pub(super) fn guard(&self, subscription: &Subscription) {
        let queue = subscription.queue.as_deref();
        let permissions = self.access.permissions.as_ref();
        let withheld = permissions.and_then(|permissions| permissions.withheld(&subscription.pattern, queue));
        let replies = self.access.replies.clone();
        let is_needed = withheld.is_some() || replies.is_some();
        subscription.set_guard(is_needed.then_some(Guard { withheld, replies }));
    }

    /// Sends the client away that could not show who it is; monitoring shows what it says of itself.
    fn turn_stranger_away<T>(
        &mut self,
        why: Failure,
        options: ConnectOptions,
        staging: &mut Staging,
    ) -> Result<T, Stop> {
        let options = Arc::new(options);
        self.client.set_connect(options.clone());
        self.turn_away(why, self.server.auth.name_of(&options), staging)
    }

    /// Sends the client away.
    pub(super) fn turn_away<T>(
        &mut self,
        why: Failure,
        name: &str,
        staging: &mut Staging,
    ) -> Result<T, Stop> {
        let (error, closed) = match why {
            Failure::Timeout => (ServerError::AuthenticationTimeout, Closed::AuthTimeout),
            _ => (ServerError::AuthorizationViolation, Closed::Unauthorized),
        };
        self.client.set_claimed(name);
        self.server.auth.count_failure(why);
        let user = self.client.shown_name();
        match why {
            // Told when it began; a flood would fill the log.
            Failure::TooMany => {
                about!(debug, self.client, user, "refused unchecked after too many failures");
            }
            _ if self.server.refusals.may_tell(Instant::now()) => {
                about!(warn, self.client, user, reason = why.as_str(), "not authorized");
            }
            _ => about!(debug, self.client, user, reason = why.as_str(), "not authorized"),
        }
        error.write(staging.line(&self.client));
        Err(Stop::Close(closed))
    }

    /// Sends the client away for a reason that is not in its input.
    pub(crate) fn give_up(&mut self, why: Failure, staging: &mut Staging) -> Closed {
        match self.turn_away::<()>(why, "", staging) {
            Err(Stop::Close(closed)) => closed,
            _ => Closed::Unauthorized,
        }
    }

    /// Tells the log of the first thing that the client may not do.
    pub(super) fn note_violation(&mut self, violation: Violation<'_>, subject: &[u8]) {
        let shown =
            |text: &'_ [u8]| String::from_utf8_lossy(&text[..text.len().min(SUBJECT_SHOWN_MAX)]).into_owned();
        let (subject, user) = (shown(subject), self.client.shown_name());
        let (what, queue, sid) = match violation {
            Violation::Publish => ("publish", None, None),
            Violation::Reply => ("reply", None, None),
            Violation::Tokens { sid } => ("tokens", None, Some(shown(sid))),
            Violation::Subscribe { queue, sid } => ("subscribe", queue.map(shown), Some(shown(sid))),
        };
        let is_first = !std::mem::replace(&mut self.access.told, true);
        match is_first && self.server.refusals.may_tell(Instant::now()) {
            true => about!(warn, self.client, user, ?subject, queue, sid, what, "not permitted"),
            false => about!(debug, self.client, user, ?subject, queue, sid, what, "not permitted"),
        }
    }
}
