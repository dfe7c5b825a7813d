//! The Lua scripts: whatever must look and act in one step on the server.

use std::sync::LazyLock;

use redis::Cmd;

/// Functions that several scripts share.
const PRELUDE: &str = include_str!("scripts/prelude.lua");

/// Leads a transaction that appends messages; sent with its text, so it goes without the prelude.
pub(super) const LEAD: &str = include_str!("scripts/lead.lua");

/// A script as the server knows it.
pub(super) struct Script {
    source: String,
    hash: String,
}

impl Script {
    fn new(source: &str) -> Self {
        let source = format!("{PRELUDE}\n{source}");
        let hash = redis::Script::new(&source).get_hash().to_owned();
        Self { source, hash }
    }

    /// The command that runs it; arguments follow.
    pub(super) fn command(&self, keys: &[&str]) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.hash).arg(keys.len());
        for key in keys {
            command.arg(*key);
        }
        command
    }

    /// The text, to give it to the server.
    pub(super) fn source(&self) -> &str {
        &self.source
    }
}

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $file:literal;)*) => {$(
        $(#[$doc])*
        pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(include_str!(concat!("scripts/", $file))));
    )*};
}

scripts! {
    /// Appends messages to a stream.
    APPEND = "append.lua";
    /// The same where some may be duplicates, or ask for responders.
    PUBLISH = "publish.lua";
    /// Where streams stand.
    TIPS = "tips.lua";
    /// Changes which streams there are.
    ROUTES = "routes.lua";
    /// Applies the limits of a stream and tells how it stands.
    STREAM = "stream.lua";
    /// Joins a consumer, creating it where it is not there.
    JOIN = "join.lua";
    /// Hands out deliveries that come again.
    LOOK = "look.lua";
    /// Acknowledges deliveries while nobody has lost one.
    ACK = "ack.lua";
    /// Settles deliveries.
    SETTLE = "settle.lua";
    /// Takes or renews the lease of a keyed consumer.
    LEASE = "lease.lua";
    /// Leaves a consumer.
    LEAVE = "leave.lua";
    /// How a consumer stands.
    CONSUMER = "consumer.lua";
    /// Removes a consumer.
    REMOVE_CONSUMER = "remove_consumer.lua";
    /// Joins a queue group.
    GROUP_JOIN = "group_join.lua";
    /// Leaves a queue group.
    GROUP_LEAVE = "group_leave.lua";
    /// Renews the entries of responders and members of queue groups.
    HEARTBEAT = "heartbeat.lua";
}
