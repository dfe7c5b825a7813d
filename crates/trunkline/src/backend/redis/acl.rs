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
/// their own, who need `+sentinel|master +ping`. Database numbers other than 0 need `+select`.
pub const ACL_RULES: &str = "\
    +ping +client|id +client|reply +client|unblock +eval +evalsha +multi +exec +wait \
    +exists +del +rename +pexpire +time +memory|usage \
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::ACL_RULES;

    /// What stands right behind each of these words, up to the quote.
    fn words_after<'a>(text: &'a str, marks: &[&str], quote: char) -> Vec<&'a str> {
        let behind = |mark: &&str| -> Vec<&'a str> {
            text.split(*mark).skip(1).filter_map(|rest| rest.split(quote).next()).collect()
        };
        marks.iter().flat_map(behind).collect()
    }

    /// Adds the commands that the files in `folder` send.
    fn collect(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).expect("the sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(&path, found);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a text");
            let words = match path.extension().and_then(|extension| extension.to_str()) {
                Some("lua") => words_after(&text, &["redis.call('", "redis.pcall('"], '\''),
                _ => words_after(&text, &["cmd(\""], '"'),
            };
            found.extend(words.into_iter().map(str::to_lowercase));
        }
    }

    #[test]
    fn every_command_that_is_sent_is_in_the_rules() {
        let mut sent = BTreeSet::new();
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/backend/redis"), &mut sent);
        assert!(sent.contains("xadd") && sent.contains("evalsha"), "{sent:?}");
        // Sentinels have users of their own.
        sent.remove("sentinel");
        sent.retain(|command| command.bytes().all(|byte| byte.is_ascii_lowercase()) && !command.is_empty());
        let allowed: BTreeSet<&str> = ACL_RULES
            .split_whitespace()
            .map(|rule| rule.trim_start_matches('+').split('|').next().unwrap_or(rule))
            .collect();
        let missing: Vec<_> = sent.iter().filter(|command| !allowed.contains(command.as_str())).collect();
        assert!(missing.is_empty(), "the bus sends {missing:?}, which ACL_RULES does not allow");
    }
}
