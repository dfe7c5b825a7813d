//! `$SYS.REQ.USER.INFO`, by which any client may ask the server who it is to it: `nats account info` begins with that.
//!
//! The answer has nats-server's shape and says nothing of anybody else. The client gets it itself, on those of its own
//! subscriptions that listen to the reply subject: a server that published it would publish for clients where they may not.

use std::time::SystemTime;

use jiff::Timestamp;
use serde::Serialize;
use trunkline::backend::memory::Target;

use super::Session;
use super::delivery::subscription_of;
use crate::auth::ShownPermissions;
use crate::health::timestamp;
use crate::staging::Staging;
use crate::subscription::Subscription;

/// Where clients ask.
const SUBJECT: &[u8] = b"$SYS.REQ.USER.INFO";

#[derive(Serialize)]
struct Answer<'a> {
    server: ServerShown<'a>,
    data: UserShown<'a>,
}

#[derive(Serialize)]
struct ServerShown<'a> {
    name: &'a str,
    host: &'a str,
    id: &'a str,
    ver: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tags: &'a [String],
    jetstream: bool,
    /// Of JetStream and its relatives, which there are not here.
    flags: u64,
    /// Answers so far, this one included.
    seq: u64,
    time: Timestamp,
}

#[derive(Serialize)]
struct UserShown<'a> {
    user: &'a str,
    account: &'a str,
    account_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    permissions: Option<&'a ShownPermissions>,
}

/// Whether a message on `subject` asks who its sender is.
#[inline]
pub(super) fn is_asked_for(subject: &[u8]) -> bool {
    subject == SUBJECT
}

impl Session {
    /// Tells the client who it is, where it listens on `reply`.
    #[cold]
    pub(super) fn answer_user_info(&self, reply: &[u8], staging: &mut Staging) {
        let targets = self.hub.router().matches(reply);
        let own = |target: &Target| subscription_of(target).is_some_and(|it| it.client.id == self.client.id);
        let members = targets.queues.iter().filter_map(|queue| queue.members.iter().find(|it| own(it)));
        staging.looked_at(targets.targets());
        let asking = targets.subscribers.iter().filter(|target| own(target)).chain(members);
        let asking: Vec<&Subscription> = asking.filter_map(subscription_of).collect();
        let Some(answer) = (!asking.is_empty()).then(|| self.user_info()).flatten() else { return };
        for subscription in asking {
            if subscription.admits(reply, None) && subscription.take_delivery() {
                staging.answer(&self.client, &subscription.sid, reply, &answer);
            }
        }
    }

    fn user_info(&self) -> Option<Vec<u8>> {
        let identity = self.client.identity()?;
        let info = self.server.info(&self.client);
        let account = &*identity.account.name;
        serde_json::to_vec(&Answer {
            server: ServerShown {
                name: &info.server_name,
                host: &info.host,
                id: &info.server_id,
                ver: &info.version,
                tags: &self.server.tags.read(),
                jetstream: false,
                flags: 0,
                seq: self.server.next_answer(),
                time: timestamp(SystemTime::now()),
            },
            data: UserShown {
                user: identity.name.as_deref().unwrap_or_default(),
                account,
                account_name: account,
                permissions: identity.permissions.as_ref().map(|permissions| &permissions.shown),
            },
        })
        .ok()
    }
}
