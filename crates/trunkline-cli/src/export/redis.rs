//! The Redis of a deployment: its settings, its users and how it is asked whether it is well.

use std::fmt::Write as _;

use super::error::ExportError;
use super::secrets::{Reader, SecretFile, password};

/// The user of the bus.
const USER: &str = "bus";
/// The user of health checks, who may do nothing but ask for a sign of life.
const PROBE: &str = "probe";

/// Everything that the bus does on one Redis server, as docs/redis.md has it, without what is for Sentinel and Cluster.
const COMMANDS: &str = "+ping +client|id +client|reply +client|unblock +eval +evalsha +multi +exec +wait +exists +del +rename +pexpire +time +memory|usage +get +set +incrby +hget +hgetall +hexists +hset +hdel +hkeys +hmget +hincrby +sadd +srem +smembers +zadd +zrem +zcard +zcount +zrange +zrangebyscore +zremrangebyrank +zremrangebyscore +xadd +xdel +xtrim +xlen +xrange +xrevrange +xinfo|stream +xinfo|groups +xread +xreadgroup +xgroup|create +xgroup|destroy +xgroup|delconsumer +xack +xclaim +xpending";

/// The Redis of a deployment.
pub(crate) struct RedisPlan {
    pub(crate) port: u16,
    /// Memory for data: half of what the service has, since a rewrite of the log may need as much again.
    pub(crate) max_memory: u64,
}

/// Its secrets: users by hashes of their passwords, the password of health checks, and the URL for the bus.
pub(super) fn secrets(host: &str, port: u16, prefix: &str) -> Result<Vec<SecretFile>, ExportError> {
    let (bus, probe) = (password()?, password()?);
    let acl = format!(
        "user default off\nuser {USER} on #{} resetkeys ~{prefix}:* resetchannels -@all {COMMANDS}\nuser {PROBE} on #{} resetkeys resetchannels -@all +ping\n",
        sha256(&bus),
        sha256(&probe),
    );
    let file = |name: &str, content: String, reader| SecretFile { name: name.to_owned(), content, reader };
    Ok(vec![
        file("redis_users", acl, Reader::Redis),
        file("redis_probe", probe, Reader::Redis),
        file(
            "redis_url",
            format!("redis://{USER}:{bus}@{host}:{port}/0\n"),
            Reader::Bus(Some("TRUNKLINE_REDIS_URL_FILE".to_owned())),
        ),
    ])
}

/// The digest by which Redis keeps passwords.
fn sha256(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_the_bus_has_the_rules_of_the_page_on_redis() {
        let page = include_str!("../../../../docs/redis.md");
        let rules = page.lines().find(|line| line.contains("ACL SETUSER bus")).expect("the page has them");
        let rules: Vec<String> = rules
            .split(' ')
            .map(|word| word.replace('\'', ""))
            .filter(|word| word.starts_with('+'))
            .filter(|word| !["+role", "+cluster|slots", "+cluster|info", "+asking"].contains(&word.as_str()))
            .collect();
        assert_eq!(rules, COMMANDS.split(' ').collect::<Vec<_>>());
    }

    #[test]
    fn passwords_are_nowhere_but_in_the_url() {
        let secrets = secrets("redis", 6379, "bus-1").unwrap();
        let of = |name| &secrets.iter().find(|secret| secret.name == name).unwrap().content;
        let (acl, url) = (of("redis_users"), of("redis_url"));
        let password = url.split([':', '@']).nth(2).unwrap();
        assert!(password.len() >= 32 && !acl.contains(password));
        assert!(acl.contains(&sha256(password)) && acl.contains(" ~bus-1:* "));
    }
}
