//! Whether the user of the bus may do on NATS what the bus needs, tried without doing any of it.
//!
//! What would change something is asked for with a body that no server takes: one that may not be asked refuses before it
//! looks at the body. Subscriptions are made and given back. What it may publish below the root of the platform is read from
//! what the server says of the user, since a message there would be a message.

use std::time::Duration;

use serde_json::Value;
use trunkline::Pattern;
use trunkline::backend::nats::{NatsAskError, NatsBackend};
use trunkline::backend::{Backend as _, SubscribeError, SubscribeOptions};
use trunkline::config::Config;

use super::{Finding, Verdict};
use crate::supervisor::reports;

const CHECK: &str = "permissions";

/// No JSON object, so that nothing is made of it.
const NO_REQUEST: &str = "\"doctor\"";

/// Something that is tried.
struct Probe {
    subject: String,
    /// What does not work without.
    needed_for: &'static str,
    denied: Verdict,
}

/// Tries what `trunkline up` and the commands do. `streams` tells of each configured stream whether it is there, `None` without JetStream.
pub(super) async fn check(
    config: &Config,
    backend: &NatsBackend,
    name: &str,
    streams: Option<Vec<bool>>,
    limit: Duration,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for probe in streams.map(|there| probes(config, &there)).unwrap_or_default() {
        if let Err(NatsAskError::Denied { subject, .. }) =
            backend.ask(&probe.subject, NO_REQUEST, limit).await
        {
            let text = format!("the user of {name} may not publish on {subject}: {}", probe.needed_for);
            findings.push(Finding::bad(probe.denied, CHECK, text, fix("publish", &subject)));
        }
    }
    findings.extend(subjects(config, backend, name, limit).await);
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("the user of {name} may do what the bus needs")));
    }
    findings
}

fn fix(verb: &str, subject: &str) -> String {
    format!("allow the user to {verb} on {subject:?}; the roles stand in docs/nats.md, \"Access\"")
}

fn probes(config: &Config, there: &[bool]) -> Vec<Probe> {
    let (prefix, root) = (&config.messaging.stream_prefix, &config.messaging.subject_root);
    let api =
        |what: &str, needed_for, denied| Probe { subject: format!("$JS.API.{what}"), needed_for, denied };
    let mut probes = vec![
        api("STREAM.LIST", "which subjects are stored is not known, so nothing is confirmed", Verdict::Fail),
        api("STREAM.NAMES", "streams cannot be listed", Verdict::Warn),
    ];
    for (stream, there) in config.messaging.streams.iter().zip(there) {
        let full = format!("{prefix}_{}", stream.name);
        probes.push(match there {
            false => api(&format!("STREAM.CREATE.{full}"), "the stream cannot be made", Verdict::Fail),
            true => api(&format!("STREAM.UPDATE.{full}"), "its limits cannot be changed", Verdict::Warn),
        });
        for (what, needed_for) in [
            (format!("CONSUMER.CREATE.{full}.doctor"), "consumers cannot be made"),
            (format!("CONSUMER.LIST.{full}"), "consumers cannot be listed"),
            (format!("CONSUMER.INFO.{full}.doctor"), "consumers cannot be looked at"),
            (format!("STREAM.MSG.GET.{full}"), "messages cannot be read again"),
        ] {
            probes.push(api(&what, needed_for, Verdict::Warn));
        }
    }
    for (stream, needed_for) in [
        (format!("{prefix}_dead-{root}"), "dead letters have no stream unless somebody else makes it"),
        (format!("KV_{prefix}_leases"), "consumers have no leases unless somebody else makes their bucket"),
        (format!("KV_{prefix}_members"), "members are not listed unless somebody else makes their bucket"),
    ] {
        probes.push(api(&format!("STREAM.CREATE.{stream}"), needed_for, Verdict::Warn));
    }
    probes
}

/// The subjects of the platform itself.
async fn subjects(config: &Config, backend: &NatsBackend, name: &str, limit: Duration) -> Vec<Finding> {
    let text = format!("{}.>", config.messaging.subject_root);
    // The root was checked when the configuration was read.
    let Ok(all) = Pattern::new(text.clone()) else { return Vec::new() };
    let mut findings = Vec::new();
    let subscribing = backend.subscribe(all.clone(), SubscribeOptions::default());
    if let Ok(Err(SubscribeError::Denied { .. })) = tokio::time::timeout(limit, subscribing).await {
        let told =
            format!("the user of {name} may not subscribe to {text}: `trunkline sub` sees a part of it");
        findings.push(Finding::warn(CHECK, told, fix("subscribe", &text)));
    }
    let answer = backend.ask("$SYS.REQ.USER.INFO", "", limit).await.ok();
    let user: Value = answer.and_then(|answer| serde_json::from_slice(&answer).ok()).unwrap_or_default();
    let allowed = user.pointer("/data/permissions/publish/allow").and_then(Value::as_array);
    if allowed.is_some_and(|allowed| !allowed.iter().any(|pattern| meets(pattern, &all))) {
        let told = format!("the user of {name} may publish nothing below {text}");
        findings.push(Finding::warn(CHECK, told, fix("publish", &text)));
    } else if let Some(reports) = reports(config)
        && allowed.is_some_and(|allowed| !allowed.iter().any(|pattern| meets(pattern, &reports)))
    {
        let told = format!(
            "the user of {name} may not publish on {reports}: what it sees is in no record of conversations"
        );
        findings.push(Finding::warn(CHECK, told, fix("publish", reports.as_str())));
    }
    findings
}

/// Whether a pattern, as the server tells it, has subjects of another.
fn meets(pattern: &Value, other: &Pattern) -> bool {
    let pattern = pattern.as_str().and_then(|text| Pattern::new(text.to_owned()).ok());
    pattern.is_some_and(|pattern| pattern.overlaps(other))
}
