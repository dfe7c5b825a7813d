//! NATS servers behind the bus: version, JetStream and its room, clock, permissions, certificates, disk. What each of them is
//! about stands in `docs/nats.md`.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde_json::Value;
use trunkline::backend::Backend as _;
use trunkline::backend::nats::{NatsBackend, NatsOptions, NatsServerInfo};
use trunkline::config::{Config, Fallback};

use super::certificates::{self, Dialect};
use super::{Finding, Findings, Verdict, clock, disk, nats_permissions, processes};
use crate::failure::chain;
use crate::output::OutputError;

/// Streams need this version.
const STREAMS_SINCE: (u64, u64, u64) = (2, 9, 0);
/// Order by key needs this one.
const KEYED_SINCE: (u64, u64, u64) = (2, 10, 15);
/// Beyond this part of a limit it is time to look.
const NEARLY: f64 = 0.8;

const BACKEND: &str = "backend";
const PERSISTENCE: &str = "persistence";

/// See [`super::backend::check`].
pub(super) async fn check(
    config: &Config,
    limit: Duration,
    findings: &mut Findings,
) -> Result<bool, OutputError> {
    let messaging = &config.messaging;
    let mut options = NatsOptions::from(messaging);
    options.name = Some("trunkline doctor".to_owned());
    options.connect_timeout = limit;
    options.publish_timeout = limit;
    let dialect = if messaging.nats_tls.handshake_first { Dialect::AtOnce } else { Dialect::AfterInfo };
    let connected = match NatsBackend::connect(options).await {
        Ok(backend) => Ok(backend),
        Err(error) => {
            let mut text = chain(&error);
            if messaging.fallback() == Fallback::InMemory {
                text.push_str("; `trunkline up` would run on the fallback, in memory");
            }
            findings.add([Finding::fail(BACKEND, text, error.hint())])?;
            Err(())
        }
    };
    findings.looking_at("the certificates of NATS");
    for server in messaging.nats_url.servers() {
        let (Some(host), Some(port)) = (server.host_str(), server.port()) else { continue };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        findings.add(certificates::peer(&format!("{host}:{port}"), host, port, dialect, limit).await)?;
    }
    let Ok(backend) = connected else { return Ok(false) };
    let name = format!("NATS at {}", backend.status().borrow().server);
    let info = backend.server_info();
    findings.add(version(&name, &info))?;

    findings.looking_at("JetStream");
    let looked = Look { config, backend: &backend, name: &name, limit };
    let streams = looked.jetstream(&info, findings).await?;
    findings.add([looked.time().await])?;
    findings.add(looked.stores())?;
    findings.looking_at("permissions on NATS");
    findings.add(nats_permissions::check(config, &backend, &name, streams, limit).await)?;
    Ok(true)
}

/// The server that is looked at.
struct Look<'a> {
    config: &'a Config,
    backend: &'a NatsBackend,
    name: &'a str,
    limit: Duration,
}

/// Which server it is.
fn version(name: &str, info: &NatsServerInfo) -> Vec<Finding> {
    let version = &info.version;
    let mut findings = vec![Finding::ok(BACKEND, format!("{name} answers, nats-server {version}"))];
    match numbers(version) {
        found if found < STREAMS_SINCE => findings.push(Finding::fail(
            BACKEND,
            format!("{name} is older than 2.9: no streams, no consumers"),
            "run nats-server 2.9 or later, better 2.11",
        )),
        found if found < KEYED_SINCE => findings.push(Finding::warn(
            BACKEND,
            format!("{name} is older than 2.10.15: consumers with order by key are refused there"),
            "run a later nats-server, if components ask for order by key",
        )),
        _ => {}
    }
    if info.lame_duck {
        let text = format!("{name} is about to stop, and sends its clients away");
        findings.push(Finding::warn(BACKEND, text, "name the other servers in messaging.nats_url, too"));
    }
    findings
}

fn numbers(version: &str) -> (u64, u64, u64) {
    let number = |part: &str| {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        part[..digits].parse::<u64>().unwrap_or(0)
    };
    let mut parts = version.split('.').map(number);
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

impl Look<'_> {
    /// What the server's API answers, as JSON.
    async fn ask(&self, subject: &str) -> Option<Value> {
        let answer = self.backend.ask(subject, "", self.limit).await.ok()?;
        serde_json::from_slice(&answer).ok()
    }

    /// Whether there is JetStream, and room in it. Gives, for each configured stream, whether it is there.
    async fn jetstream(
        &self,
        info: &NatsServerInfo,
        findings: &mut Findings,
    ) -> Result<Option<Vec<bool>>, OutputError> {
        let wanted = &self.config.messaging.streams;
        let name = self.name;
        if !self.backend.capabilities().streams {
            let (why, fix) = match info.jetstream {
                false => (
                    "runs without JetStream",
                    "start it with `nats-server --jetstream`, or `jetstream {}` in its configuration",
                ),
                true => (
                    "has JetStream, but not for this user's account",
                    "enable JetStream in the account, and allow the user to publish on $JS.API.INFO",
                ),
            };
            let text = format!("{name} {why}: nothing is stored, there are no consumers and no dead letters");
            let verdict = if wanted.is_empty() { Verdict::Warn } else { Verdict::Fail };
            findings.add([Finding::bad(verdict, PERSISTENCE, text, fix)])?;
            return Ok(None);
        }
        let account = self.ask("$JS.API.INFO").await.unwrap_or_default();
        findings.add(room(name, &account))?;
        let mut there = Vec::new();
        for stream in wanted {
            let full = format!("{}_{}", self.config.messaging.stream_prefix, stream.name);
            let found = self.ask(&format!("$JS.API.STREAM.INFO.{full}")).await.unwrap_or_default();
            there.push(found.get("config").is_some());
            if let Some(kept) = found.get("config") {
                findings.add(kept_as_wanted(&full, kept, stream.replicas))?;
            }
        }
        Ok(Some(there))
    }

    async fn time(&self) -> Finding {
        let before = SystemTime::now();
        let answer = self.ask("$SYS.REQ.USER.INFO").await;
        let after = SystemTime::now();
        let told = answer.as_ref().and_then(|answer| answer.pointer("/server/time")).and_then(Value::as_str);
        match told.and_then(|text| text.parse::<Timestamp>().ok()) {
            Some(told) => clock::judge(self.name, clock::ahead_millis(before, after, told.as_microsecond())),
            None => clock::unknown(
                self.name,
                "there is no answer at $SYS.REQ.USER.INFO",
                "allow the user to publish there (nats-server 2.10 and later answer), or compare with `date`",
            ),
        }
    }

    /// The disks of those servers that run on this machine, as far as their processes can be looked at.
    fn stores(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for server in self.config.messaging.nats_url.servers() {
            let (Some(host), Some(port)) = (server.host_str(), server.port()) else { continue };
            let ip: Option<IpAddr> = match host {
                "localhost" => Some([127, 0, 0, 1].into()),
                host => host.trim_start_matches('[').trim_end_matches(']').parse().ok(),
            };
            let Some(ip) = ip.filter(IpAddr::is_loopback) else { continue };
            let Some(process) = processes::listener(SocketAddr::new(ip, port)) else { continue };
            let files = processes::open_files(process.pid);
            let store = files.iter().find_map(|file| processes::before(file, "jetstream"));
            if let Some(store) = store.filter(|store| store.is_dir()) {
                findings.push(disk::check(&format!("JetStream of {host}:{port}"), &store));
            }
        }
        findings
    }
}

/// What the account may still store.
fn room(name: &str, account: &Value) -> Vec<Finding> {
    let number = |pointer: &str| account.pointer(pointer).and_then(Value::as_i64);
    let (used, most) = (number("/storage").unwrap_or(0), number("/limits/max_storage").unwrap_or(-1));
    let bytes = |number: i64| disk::bytes(u64::try_from(number).unwrap_or(0));
    let mut findings = Vec::new();
    findings.push(match most {
        0 => Finding::fail(
            PERSISTENCE,
            format!("{name} lets this account store nothing on disk (max_file 0)"),
            "raise max_file in the account's limits",
        ),
        most if most > 0 && used as f64 > most as f64 * NEARLY => Finding::warn(
            PERSISTENCE,
            format!("{name} has stored {} of at most {} for this account", bytes(used), bytes(most)),
            "raise max_file in the account's limits, or bound the streams (messaging.streams[].max_age)",
        ),
        most if most > 0 => Finding::ok(
            PERSISTENCE,
            format!("{name} has JetStream, {} of at most {} are used", bytes(used), bytes(most)),
        ),
        _ => Finding::ok(
            PERSISTENCE,
            format!("{name} has JetStream, {} are used; the account has no limit", bytes(used)),
        ),
    });
    for (used, most, what, key) in [
        ("/streams", "/limits/max_streams", "streams", "max_streams"),
        ("/consumers", "/limits/max_consumers", "consumers", "max_consumers"),
    ] {
        let (used, most) = (number(used).unwrap_or(0), number(most).unwrap_or(-1));
        if most >= 0 && used >= most {
            let text = format!("{name} has {used} {what} of this account, and no more are allowed");
            findings.push(Finding::warn(PERSISTENCE, text, format!("raise {key} in the account's limits")));
        }
    }
    findings
}

/// Whether a stream keeps what the configuration promises.
fn kept_as_wanted(stream: &str, kept: &Value, replicas: u32) -> Vec<Finding> {
    let mut findings = Vec::new();
    if kept.get("storage").and_then(Value::as_str) == Some("memory") {
        findings.push(Finding::fail(
            PERSISTENCE,
            format!("stream {stream} lies in the memory of the server: a restart loses it"),
            "remove the stream once it is read, and let `trunkline up` make it again on disk",
        ));
    }
    let copies = kept.get("num_replicas").and_then(Value::as_u64).unwrap_or(1);
    if copies < u64::from(replicas) {
        findings.push(Finding::warn(
            PERSISTENCE,
            format!("stream {stream} has {copies} copies, and {replicas} are configured"),
            "start `trunkline up` once, which raises them; the cluster needs as many servers with JetStream",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(numbers("2.9.0") == STREAMS_SINCE && numbers("2.15.1") > KEYED_SINCE);
        assert!(numbers("2.10.14") < KEYED_SINCE && numbers("2.11.0-beta.1") > KEYED_SINCE);
        assert!(numbers("2.8.4") < STREAMS_SINCE);
    }

    #[test]
    fn an_account_that_is_nearly_full_is_told() {
        let verdicts = |storage, most, streams| -> Vec<Verdict> {
            let account = json!({"storage": storage, "streams": streams, "consumers": 0,
                "limits": {"max_storage": most, "max_streams": 2, "max_consumers": -1}});
            room("NATS", &account).into_iter().map(|finding| finding.verdict).collect()
        };
        assert_eq!(verdicts(10, -1, 0), [Verdict::Ok]);
        assert_eq!(verdicts(81, 100, 1), [Verdict::Warn]);
        assert_eq!(verdicts(0, 0, 2), [Verdict::Fail, Verdict::Warn]);
    }

    #[test]
    fn streams_in_memory_and_with_too_few_copies_are_told() {
        assert_eq!(kept_as_wanted("s", &json!({"storage": "file", "num_replicas": 3}), 3), []);
        let found = kept_as_wanted("s", &json!({"storage": "memory", "num_replicas": 1}), 3);
        assert_eq!(found.len(), 2);
    }
}
