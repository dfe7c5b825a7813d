//! What a user of Redis must be allowed so that the bus works, and nothing more.

use redis::ServerError;

use super::refusal;

/// Commands that the bus sends or its scripts run, as rules of a Redis ACL. To them come the keys: all of the bus start
/// with the prefix (`messaging.stream_prefix`), those of inboxes included.
///
/// ```text
/// ACL SETUSER bus on >password resetkeys ~atlas_bus:* resetchannels -@all RULES
/// ```
///
/// The last line is for what watches a topology: `role` with Sentinel, the others in a cluster. Sentinels have users of
/// their own, who need `+sentinel|master +ping`. Database numbers other than 0 need `+select`, and
/// `messaging.wait_replicas` needs `+wait`.
pub const ACL_RULES: &str = "\
    +ping +client|id +client|unblock +eval +evalsha +multi +exec \
    +exists +del +pexpire +time +memory|usage \
    +get +set +incrby \
    +hget +hgetall +hexists +hset +hdel +hkeys +hmget +hincrby \
    +sadd +srem +smembers \
    +zadd +zrem +zcard +zcount +zrange +zrangebyscore +zremrangebyrank +zremrangebyscore \
    +xadd +xdel +xtrim +xlen +xrange +xrevrange +xinfo|stream +xinfo|groups \
    +xread +xreadgroup +xgroup|create +xgroup|destroy +xgroup|delconsumer +xack +xclaim +xpending \
    +role +cluster|slots +cluster|info +asking";

/// Whether the server refused something because the user may not do it. Within a script it says so in words.
pub(super) fn is_denied(error: &ServerError) -> bool {
    let in_words = |text: &str| {
        text.contains("ACL failure in script")
            || text.contains("executing the script can't")
            || text.contains("NOPERM")
    };
    matches!(refusal::code(error), "NOPERM" | "NOAUTH") || error.details().is_some_and(in_words)
}

/// The refusal as it is shown: Redis does not say which command of a script it was.
pub(super) fn denied(error: &ServerError) -> String {
    format!("{error} (ACL LOG on the server names the command or key; the bus needs the rules in ACL_RULES)")
}
