//! Whether the user of the bus may do on Redis what the bus needs, tried without doing any of it.
//!
//! Between MULTI and EXEC a server looks at the permissions of each command and carries none out. There is no EXEC: the
//! connection is closed, and with it the transaction is forgotten.

use trunkline::backend::redis::{ACL_RULES, RedisAskError, RedisInspection, RedisOptions};
use trunkline::config::RedisTopology;

use super::Finding;

const CHECK: &str = "permissions";

/// An example of each rule; `KEY` stands for a key below the prefix.
const EXAMPLES: [(&str, &str); 57] = [
    ("ping", "PING"),
    ("client|id", "CLIENT ID"),
    ("client|reply", "CLIENT REPLY ON"),
    ("client|unblock", "CLIENT UNBLOCK 1"),
    ("eval", "EVAL return 1 KEY"),
    ("evalsha", "EVALSHA ffffffffffffffffffffffffffffffffffffffff 1 KEY"),
    ("multi", "MULTI"),
    ("exec", "EXEC"),
    ("wait", "WAIT 0 1"),
    ("exists", "EXISTS KEY"),
    ("del", "DEL KEY"),
    ("rename", "RENAME KEY KEY"),
    ("pexpire", "PEXPIRE KEY 1"),
    ("time", "TIME"),
    ("memory|usage", "MEMORY USAGE KEY"),
    ("get", "GET KEY"),
    ("set", "SET KEY 1"),
    ("incrby", "INCRBY KEY 1"),
    ("hget", "HGET KEY f"),
    ("hgetall", "HGETALL KEY"),
    ("hexists", "HEXISTS KEY f"),
    ("hset", "HSET KEY f 1"),
    ("hdel", "HDEL KEY f"),
    ("hkeys", "HKEYS KEY"),
    ("hmget", "HMGET KEY f"),
    ("hincrby", "HINCRBY KEY f 1"),
    ("sadd", "SADD KEY m"),
    ("srem", "SREM KEY m"),
    ("smembers", "SMEMBERS KEY"),
    ("zadd", "ZADD KEY 1 m"),
    ("zrem", "ZREM KEY m"),
    ("zcard", "ZCARD KEY"),
    ("zcount", "ZCOUNT KEY 0 1"),
    ("zrange", "ZRANGE KEY 0 1"),
    ("zrangebyscore", "ZRANGEBYSCORE KEY 0 1"),
    ("zremrangebyrank", "ZREMRANGEBYRANK KEY 0 1"),
    ("zremrangebyscore", "ZREMRANGEBYSCORE KEY 0 1"),
    ("xadd", "XADD KEY * m 1"),
    ("xdel", "XDEL KEY 1-1"),
    ("xtrim", "XTRIM KEY MAXLEN 1"),
    ("xlen", "XLEN KEY"),
    ("xrange", "XRANGE KEY - +"),
    ("xrevrange", "XREVRANGE KEY + -"),
    ("xinfo|stream", "XINFO STREAM KEY"),
    ("xinfo|groups", "XINFO GROUPS KEY"),
    ("xread", "XREAD STREAMS KEY 0-0"),
    ("xreadgroup", "XREADGROUP GROUP g c STREAMS KEY >"),
    ("xgroup|create", "XGROUP CREATE KEY g $"),
    ("xgroup|destroy", "XGROUP DESTROY KEY g"),
    ("xgroup|delconsumer", "XGROUP DELCONSUMER KEY g c"),
    ("xack", "XACK KEY g 1-1"),
    ("xclaim", "XCLAIM KEY g c 1 1-1"),
    ("xpending", "XPENDING KEY g"),
    ("role", "ROLE"),
    ("cluster|slots", "CLUSTER SLOTS"),
    ("cluster|info", "CLUSTER INFO"),
    ("asking", "ASKING"),
];

/// What a refusal is about.
#[derive(Debug, PartialEq, Eq)]
enum Missing {
    Command,
    Keys,
}

/// Tries every rule that this configuration needs, and closes the connection.
pub(super) async fn check(name: &str, options: &RedisOptions, mut server: RedisInspection) -> Vec<Finding> {
    let user = options.url.username.as_deref().unwrap_or("default");
    let (mut commands, mut keys) = (Vec::new(), false);
    // Outside of a transaction EXEC does nothing.
    let mut rules: Vec<&str> =
        ACL_RULES.split_whitespace().map(|rule| rule.trim_start_matches('+')).collect();
    rules.retain(|rule| is_needed(rule, options));
    for first in ["exec", "multi"] {
        rules.retain(|rule| *rule != first);
        if denied(&mut server, &[&first.to_uppercase()]).await.is_some() {
            commands.push(first);
        }
    }
    let mut lost = None;
    if !commands.contains(&"multi") {
        for rule in rules {
            let Some((_, example)) = EXAMPLES.iter().find(|(known, _)| *known == rule) else { continue };
            let key = format!("{}:{{doctor}}", options.prefix);
            let words = words(example, &key);
            match server.ask(&words.iter().map(String::as_str).collect::<Vec<_>>()).await {
                Ok(_) => {}
                Err(error @ RedisAskError::Lost { .. }) => {
                    lost = Some(error.to_string());
                    break;
                }
                Err(error) => match missing(&error.to_string()) {
                    Some(Missing::Command) => commands.push(rule),
                    Some(Missing::Keys) => keys = true,
                    None => {}
                },
            }
        }
    }
    let mut findings = Vec::new();
    // Without it long batches are answered command by command, and all else stays the same.
    if commands.contains(&"client|reply") {
        commands.retain(|rule| *rule != "client|reply");
        findings.push(Finding::warn(
            CHECK,
            format!("user {user} of {name} may not CLIENT REPLY: publishing many messages is slower"),
            format!("redis-cli ACL SETUSER {user} +client|reply"),
        ));
    }
    if !commands.is_empty() {
        let rules = commands.iter().map(|rule| format!("+{rule}")).collect::<Vec<_>>().join(" ");
        let text = format!("user {user} of {name} may not do all that the bus needs: {rules} is missing");
        findings.push(Finding::fail(CHECK, text, format!("redis-cli ACL SETUSER {user} {rules}")));
    }
    if keys {
        let prefix = &options.prefix;
        findings.push(Finding::fail(
            CHECK,
            format!("user {user} of {name} may not use keys that begin with {prefix}:"),
            format!("redis-cli ACL SETUSER {user} '~{prefix}:*', or set messaging.stream_prefix to what it may use"),
        ));
    }
    if let Some(reason) = lost {
        let fix = "see the log of the server, and give it longer with --timeout";
        findings.push(Finding::warn(CHECK, format!("{name} stopped to answer: {reason}"), fix));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("user {user} of {name} may do what the bus needs")));
    }
    findings
}

/// Some rules are for certain topologies and settings only.
fn is_needed(rule: &str, options: &RedisOptions) -> bool {
    match rule {
        "role" => matches!(options.url.topology, RedisTopology::Sentinel { .. }),
        "cluster|slots" | "cluster|info" | "asking" => options.url.topology == RedisTopology::Cluster,
        "wait" => options.wait_replicas > 0,
        _ => true,
    }
}

fn words(example: &str, key: &str) -> Vec<String> {
    if example.starts_with("EVAL ") {
        return ["EVAL", "return 1", "1", key].map(str::to_owned).to_vec();
    }
    example.split(' ').map(|word| if word == "KEY" { key } else { word }.to_owned()).collect()
}

async fn denied(server: &mut RedisInspection, words: &[&str]) -> Option<Missing> {
    missing(&server.ask(words).await.err()?.to_string())
}

/// What a refusal says is missing; `None` for a refusal for another reason.
fn missing(refusal: &str) -> Option<Missing> {
    if !refusal.starts_with("NOPERM") {
        return None;
    }
    // Redis 6: "access one of the keys used as arguments"; 7: "No permissions to access a key".
    match refusal.contains("access one of the keys") || refusal.contains("access a key") {
        true => Some(Missing::Keys),
        false => Some(Missing::Command),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_an_example() {
        for rule in ACL_RULES.split_whitespace().map(|rule| rule.trim_start_matches('+')) {
            assert!(EXAMPLES.iter().any(|(known, _)| *known == rule), "{rule}");
        }
    }

    #[test]
    fn refusals_are_told_apart() {
        for (text, expected) in [
            ("NOPERM User bus has no permissions to run the 'xadd' command", Some(Missing::Command)),
            (
                "NOPERM this user has no permissions to access one of the keys used as arguments",
                Some(Missing::Keys),
            ),
            ("NOPERM No permissions to access a key", Some(Missing::Keys)),
            ("ERR EXEC without MULTI", None),
        ] {
            assert_eq!(missing(text), expected, "{text}");
        }
    }
}
