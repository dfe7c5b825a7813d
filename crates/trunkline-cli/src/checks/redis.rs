//! A Redis server behind the bus: version, persistence, eviction, clock, permissions, certificate, disk. What each of them is
//! about stands in `docs/redis.md`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use trunkline::backend::redis::{RedisAskError, RedisInspection, RedisOptions};
use trunkline::config::{Config, Fallback};

use super::certificates::{self, Dialect};
use super::{Finding, Findings, Verdict, clock, disk, processes, redis_permissions};
use crate::failure::chain;
use crate::output::OutputError;

/// Nothing newer is needed.
const VERSION_MIN: (u64, u64) = (6, 0);
/// Beyond this part of a limit it is time to look.
const NEARLY: f64 = 0.8;

const PERSISTENCE: &str = "persistence";
const EVICTION: &str = "eviction";

/// What to do when the server does not tell its time.
const TIME: &str = "allow the user `+time`, which the bus needs, too";

/// What to do when the server cannot write.
const FULL: &str = "make room on its disk, and see its log";

/// See [`super::backend::check`].
pub(super) async fn check(
    config: &Config,
    limit: Duration,
    findings: &mut Findings,
) -> Result<bool, OutputError> {
    let mut options = RedisOptions::from(config);
    options.connect_timeout = limit;
    options.publish_timeout = limit;
    let servers = match RedisInspection::connect(&options).await {
        Ok(servers) => servers,
        Err(error) => {
            let mut text = chain(&error);
            if config.messaging.fallback() == Fallback::InMemory {
                text.push_str("; `trunkline up` would run on the fallback, in memory");
            }
            // A server that cannot write its log does not even answer PING, but it is there.
            findings.add([match text.contains("MISCONF") {
                true => Finding::fail(PERSISTENCE, text, FULL),
                false => Finding::fail("backend", text, error.hint()),
            }])?;
            // An expired certificate shows here as TLS that fails.
            for (host, port) in options.url.hosts.iter().filter(|_| options.url.tls) {
                let what = format!("{host}:{port}");
                findings.add(certificates::peer(&what, host, *port, Dialect::AtOnce, limit).await)?;
            }
            return Ok(false);
        }
    };
    for server in servers {
        one(config, &options, server, limit, findings).await?;
    }
    Ok(true)
}

/// One server, or one node of a cluster.
async fn one(
    config: &Config,
    options: &RedisOptions,
    mut server: RedisInspection,
    limit: Duration,
    findings: &mut Findings,
) -> Result<(), OutputError> {
    let name = format!("Redis at {}", server.address());
    let must_survive = config.messaging.fallback() == Fallback::Fail;
    match Info::ask(&mut server).await {
        Ok(info) => {
            let fsync = setting(&mut server, "appendfsync").await;
            findings.add(version(&name, &info))?;
            findings.add(persistence(&name, &info, fsync.as_deref(), must_survive))?;
            findings.add(eviction(&name, &info))?;
        }
        Err(error) => {
            findings.add([Finding::ok("backend", format!("{name} answers"))])?;
            let (text, fix) = (
                format!("persistence and eviction of {name} cannot be seen: {error}"),
                "look as an operator with `redis-cli INFO`, or allow this user `+info +config|get`",
            );
            findings.add([Finding::warn(PERSISTENCE, text, fix)])?;
        }
    }
    findings.looking_at("the clock of Redis");
    findings.add([time(&name, &mut server).await])?;
    if options.url.tls {
        findings.looking_at("the certificate of Redis");
        let (host, port) = (server.host(), server.port());
        findings.add(certificates::peer(&name, host, port, Dialect::AtOnce, limit).await)?;
    }
    findings.add(store(&name, &mut server).await)?;
    findings.looking_at("permissions on Redis");
    findings.add(redis_permissions::check(&name, options, server).await)
}

/// What `INFO` says.
struct Info(HashMap<String, String>);

impl Info {
    async fn ask(server: &mut RedisInspection) -> Result<Self, RedisAskError> {
        let answer = server.ask(&["INFO"]).await?;
        Ok(Self::read(answer.as_text().unwrap_or_default()))
    }

    fn read(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.trim().split_once(':'));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or(0)
    }
}

/// A setting, of a server that tells this user.
async fn setting(server: &mut RedisInspection, name: &str) -> Option<String> {
    let answer = server.ask(&["CONFIG", "GET", name]).await.ok()?;
    answer.as_list().get(1)?.as_text().map(str::to_owned)
}

/// Which server it is, and whether it serves.
fn version(name: &str, info: &Info) -> Vec<Finding> {
    let check = "backend";
    let (product, version) = match info.text("valkey_version") {
        "" => ("Redis", info.text("redis_version")),
        version => ("Valkey", version),
    };
    let mut numbers = version.split('.').map(|part| part.parse::<u64>().unwrap_or(0));
    let numbers = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let mut findings = vec![match numbers >= VERSION_MIN {
        true => Finding::ok(check, format!("{name} answers, {product} {version}")),
        false => Finding::fail(
            check,
            format!("{name} is {product} {version}, and the bus needs 6.0"),
            "run Redis 6.0 or later, or Valkey",
        ),
    }];
    if info.text("loading") == "1" {
        findings.push(Finding::warn(check, format!("{name} is loading its data"), "wait until it has"));
    }
    if info.text("role") == "slave" {
        findings.push(Finding::fail(
            check,
            format!("{name} is a replica and takes no writes"),
            "name the primary in messaging.redis_url, or the sentinels (redis-sentinel://)",
        ));
    }
    let (clients, most) = (info.number("connected_clients"), info.number("maxclients"));
    if most > 0 && clients as f64 > most as f64 * NEARLY {
        findings.push(Finding::warn(
            check,
            format!("{name} has {clients} of at most {most} clients"),
            "raise maxclients, and the file descriptors of the server with it",
        ));
    }
    findings
}

/// What a crash of the server costs. Whoever asks for `fallback: fail` wants nothing lost.
fn persistence(name: &str, info: &Info, fsync: Option<&str>, must_survive: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let worse = if must_survive { Verdict::Fail } else { Verdict::Warn };
    findings.push(match (info.text("aof_enabled"), fsync) {
        ("1", Some("no")) => Finding::warn(
            PERSISTENCE,
            format!("{name} has appendfsync no: a power failure loses what the system had not written"),
            "redis-cli CONFIG SET appendfsync everysec, and the same in redis.conf",
        ),
        ("1", Some(fsync)) => {
            Finding::ok(PERSISTENCE, format!("{name} has appendonly yes, appendfsync {fsync}"))
        }
        ("1", None) => {
            Finding::ok(PERSISTENCE, format!("{name} has appendonly yes; appendfsync is not told to this user"))
        }
        _ => Finding::bad(
            worse,
            PERSISTENCE,
            format!("{name} has appendonly no: a crash loses what was stored since the last snapshot, if there is any"),
            "redis-cli CONFIG SET appendonly yes, and the same in redis.conf",
        ),
    });
    for (field, what) in
        [("aof_last_write_status", "write to the append-only file"), ("rdb_last_bgsave_status", "snapshot")]
    {
        if info.text(field) == "err" {
            findings.push(Finding::fail(
                PERSISTENCE,
                format!("the last {what} of {name} failed: it refuses writes, or soon will"),
                FULL,
            ));
        }
    }
    findings
}

/// Whether the server takes away keys of the bus to make room.
fn eviction(name: &str, info: &Info) -> Vec<Finding> {
    let fix = "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in redis.conf";
    let policy = info.text("maxmemory_policy");
    let (used, most) = (info.number("used_memory"), info.number("maxmemory"));
    let mut findings = vec![match policy {
        "noeviction" => Finding::ok(EVICTION, format!("{name} has maxmemory-policy noeviction")),
        "" => Finding::warn(EVICTION, format!("{name} does not tell its maxmemory-policy"), fix),
        policy => Finding::fail(
            EVICTION,
            format!("{name} has maxmemory-policy {policy}: when memory is full, whole streams and leases go"),
            fix,
        ),
    }];
    let evicted = info.number("evicted_keys");
    if evicted > 0 {
        findings.push(Finding::fail(
            EVICTION,
            format!("{name} has evicted {evicted} keys since it started: messages were lost"),
            fix,
        ));
    }
    if most > 0 && used as f64 > most as f64 * NEARLY {
        let text = format!("{name} uses {} of maxmemory {}", disk::bytes(used), disk::bytes(most));
        let fix = "raise maxmemory, or bound the streams (messaging.streams[].max_messages, max_age)";
        findings.push(Finding::warn(EVICTION, text, fix));
    }
    findings
}

async fn time(name: &str, server: &mut RedisInspection) -> Finding {
    let before = SystemTime::now();
    let answer = server.ask(&["TIME"]).await;
    let after = SystemTime::now();
    match answer {
        Ok(answer) => match answer.as_list() {
            [seconds, micros] => {
                let (seconds, micros) = (seconds.as_number().unwrap_or(0), micros.as_number().unwrap_or(0));
                let told = seconds.saturating_mul(1_000_000).saturating_add(micros);
                clock::judge(name, clock::ahead_millis(before, after, told))
            }
            _ => clock::unknown(name, "TIME has no answer that is a time", TIME),
        },
        Err(error) => clock::unknown(name, &error.to_string(), TIME),
    }
}

/// The disk of a server on this machine: where it says, else where its process works.
async fn store(name: &str, server: &mut RedisInspection) -> Option<Finding> {
    let address: SocketAddr = match server.host() {
        "localhost" => ([127, 0, 0, 1], server.port()).into(),
        host => (host.parse::<std::net::IpAddr>().ok()?, server.port()).into(),
    };
    if !address.ip().is_loopback() {
        return None;
    }
    let told = setting(server, "dir").await.map(PathBuf::from);
    let path = match told {
        Some(path) => path,
        None => processes::working_directory(processes::listener(address)?.pid)?,
    };
    // A server in a container names a path of its own.
    path.is_dir().then(|| disk::check(&format!("the data of {name}"), &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(findings: Vec<Finding>) -> Vec<Verdict> {
        findings.into_iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn old_servers_and_replicas_are_refused() {
        use Verdict::{Fail, Ok, Warn};
        for (text, expected) in [
            ("redis_version:7.0.15", &[Ok][..]),
            ("redis_version:6.0.9\r\nrole:master", &[Ok]),
            ("redis_version:5.0.14", &[Fail]),
            ("redis_version:7.2.4\r\nvalkey_version:9.1.2", &[Ok]),
            ("redis_version:7.0.15\r\nrole:slave\r\nloading:1", &[Ok, Warn, Fail]),
            ("redis_version:7.0.15\r\nconnected_clients:81\r\nmaxclients:100", &[Ok, Warn]),
        ] {
            assert_eq!(verdicts(version("Redis", &Info::read(text))), expected, "{text}");
        }
    }

    #[test]
    fn memory_that_is_nearly_full_is_told() {
        let info =
            Info::read("maxmemory_policy:noeviction\r\nused_memory:90\r\nmaxmemory:100\r\nevicted_keys:3");
        assert_eq!(verdicts(eviction("Redis", &info)), [Verdict::Ok, Verdict::Fail, Verdict::Warn]);
    }
}
