//! The Lua scripts: whatever must look and act in one step on the server.

use std::sync::LazyLock;

use redis::Cmd;

/// Functions that several scripts share.
const PRELUDE: &str = include_str!("scripts/prelude.lua");

/// Leads a transaction that appends messages; sent with its text, so it goes without the prelude.
pub(super) const LEAD: &str = include_str!("scripts/lead.lua");

/// Leads a transaction that acknowledges deliveries; likewise.
pub(super) const LEAD_ACK: &str = include_str!("scripts/lead_ack.lua");

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

    /// The same command for a server that does not know the script, with its text: it knows it from then on.
    pub(super) fn in_full(&self, command: &Cmd) -> Cmd {
        let mut full = redis::cmd("EVAL");
        full.arg(&self.source);
        for argument in command.args_iter().skip(2) {
            if let redis::Arg::Simple(argument) = argument {
                full.arg(argument);
            }
        }
        full
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
    /// Whether requests are answered by anybody.
    ANSWERED = "answered.lua";
    /// Where streams stand.
    TIPS = "tips.lua";
    /// The routes, made where there are none.
    ROUTES = "routes.lua";
    /// Changes the routes.
    CHANGE_ROUTES = "change_routes.lua";
    /// Has nobody act at a stream by older routes.
    RAISE = "raise.lua";
    /// Takes a stream away that was removed from the routes.
    DROP = "drop.lua";
    /// Takes single messages out of a stream.
    DELETE = "delete.lua";
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
    /// Claims messages for queue groups.
    CLAIM = "claim.lua";
    /// Leaves a queue group.
    GROUP_LEAVE = "group_leave.lua";
    /// Forgets queue groups and members that are gone.
    GROUP_SWEEP = "group_sweep.lua";
    /// Who is listed at a stream as answering requests.
    LISTED = "listed.lua";
    /// Renews the entries of responders and members of queue groups.
    HEARTBEAT = "heartbeat.lua";
}
