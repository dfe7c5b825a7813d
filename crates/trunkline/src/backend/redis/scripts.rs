//! The Lua scripts: whatever must look and act in one step on the server.

use std::sync::LazyLock;

use redis::Cmd;

/// Functions that several scripts share. Each run of a script makes all that stand before it anew, so it gets no others
/// than it calls.
const PRELUDE: &str = include_str!("scripts/prelude.lua");

/// Leads a transaction that appends messages; sent with its text, so it goes without the prelude.
pub(super) const LEAD: &str = include_str!("scripts/lead.lua");

/// Ends such a transaction where its commands are not answered one by one: all of it is there.
pub(super) const PROOF: &str = include_str!("scripts/proof.lua");

/// What became of such a transaction.
pub(super) const TOLD: &str = include_str!("scripts/told.lua");

/// Leads a transaction that acknowledges deliveries; likewise.
pub(super) const LEAD_ACK: &str = include_str!("scripts/lead_ack.lua");

/// A script as the server knows it.
pub(super) struct Script {
    source: String,
    hash: String,
}

impl Script {
    fn new(source: &str) -> Self {
        let source = with_functions(PRELUDE, source);
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

/// The script behind those functions of the prelude that it calls, or that these call.
fn with_functions(prelude: &str, script: &str) -> String {
    let mut wanted = script.to_owned();
    // Functions call only those before them, so one pass from the end finds all.
    let mut functions: Vec<&str> = prelude.split_inclusive("\nend\n").collect();
    functions.reverse();
    let mut called = Vec::new();
    for function in functions {
        let name = function.split("local function ").nth(1).and_then(|rest| rest.split('(').next());
        if name.is_some_and(|name| wanted.contains(&format!("{name}("))) {
            wanted.push_str(function);
            called.push(function);
        }
    }
    called.into_iter().rev().chain([script]).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_come_with_the_functions_they_call_and_no_others() {
        let prelude = "-- One.\nlocal function one()\n  return 1\nend\n\nlocal function two()\n  return one() + 1\nend\n\nlocal function three()\n  return 3\nend\n";
        let script = with_functions(prelude, "return two()\n");
        assert_eq!(
            script,
            "-- One.\nlocal function one()\n  return 1\nend\n\nlocal function two()\n  return one() + 1\nend\nreturn two()\n"
        );
        assert_eq!(with_functions(prelude, "return 0\n"), "return 0\n");
    }

    #[test]
    fn no_function_of_the_prelude_is_left_over() {
        let all =
            [&*APPEND, &PUBLISH, &ANSWERED, &TIPS, &ROUTES, &CHANGE_ROUTES, &RAISE, &DROP, &DELETE, &STREAM]
                .into_iter()
                .chain([
                    &*JOIN,
                    &LOOK,
                    &ACK,
                    &SETTLE,
                    &LEASE,
                    &LEAVE,
                    &CONSUMER,
                    &REMOVE_CONSUMER,
                    &GROUP_JOIN,
                ])
                .chain([&*CLAIM, &GROUP_LEAVE, &GROUP_SWEEP, &LISTED, &HEARTBEAT]);
        let all: String = all.map(|script| script.source.as_str()).collect();
        for function in PRELUDE.split_inclusive("\nend\n") {
            assert!(all.contains(function), "no script calls\n{function}");
        }
    }
}
