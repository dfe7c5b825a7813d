//! Work that does not get done: consumers that nobody works for or that hang, and dead letters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use trunkline::backend::nats::{NatsBackend, NatsOptions};
use trunkline::backend::redis::{RedisAskError, RedisBackend, RedisInspection, RedisOptions};
use trunkline::backend::{Backend as _, ConsumerInfo, StreamError};
use trunkline::config::{Backend, Config};
use trunkline::{Bus, BusOptions, DeadLetterFilter, Start};

use crate::admin::AdminArgs;
use crate::checks::Finding;
use crate::duration;
use crate::failure::chain;
use crate::settings::GlobalArgs;

const CONSUMERS: &str = "consumers";
const DEAD_LETTERS: &str = "dead-letters";

/// Time between two looks at what nobody works on: it shows whether that grows.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// Dead letters read at a time, and at most.
const PAGE: usize = 256;
const LETTERS_MAX: usize = 10_000;

/// Looks at streams, where they can be reached. `is_up` says that the bus of this configuration runs here.
pub(super) async fn check(
    global: &GlobalArgs,
    config: &Config,
    reachable: bool,
    is_up: bool,
    limit: Duration,
) -> Vec<Finding> {
    if config.messaging.backend == Backend::InMemory && !is_up {
        return vec![Finding::ok(CONSUMERS, "no bus is running here, so there is nothing to look at")];
    }
    if !reachable {
        return vec![Finding::warn(
            CONSUMERS,
            "consumers and dead letters cannot be looked at while the backend is away",
            "see the line about the backend",
        )];
    }
    // Long enough for all answers together, each of which has its own limit.
    let patience = limit.saturating_mul(10).saturating_add(BETWEEN_LOOKS);
    let looked = tokio::time::timeout(patience, look(global, config, limit)).await;
    let cannot = |why: String| {
        let text = format!("consumers and dead letters cannot be looked at: {why}");
        vec![Finding::warn(CONSUMERS, text, "look with `trunkline consumer ls` and `trunkline dlq ls`")]
    };
    match looked {
        Ok(Ok(findings)) => findings,
        Ok(Err(why)) => cannot(why),
        Err(_) => cannot(format!("it took longer than {}", duration::show(patience))),
    }
}

async fn look(global: &GlobalArgs, config: &Config, limit: Duration) -> Result<Vec<Finding>, String> {
    let bus = connect(global, config, limit).await?;
    let Some(bus) = bus else {
        return Ok(vec![
            Finding::ok(CONSUMERS, "there are no streams, so there are no consumers"),
            Finding::ok(DEAD_LETTERS, "there are no dead letters"),
        ]);
    };
    let consumers = consumers(&bus, config).await;
    let letters = dead_letters(&bus).await;
    // What was asked was answered: how the connection closes says nothing more.
    let _ = bus.drain(limit).await;
    let mut findings = consumers.map_err(|error| chain(&error))?;
    findings.extend(letters.map_err(|error| chain(&error))?);
    Ok(findings)
}

/// Whether a bus has ever been on this Redis with this prefix. One that connects enters its prefix there, and looking must not.
async fn is_in_use(options: &RedisOptions) -> bool {
    let key = format!("{}:{{bus}}:routes", options.prefix);
    let Ok(servers) = RedisInspection::connect(options).await else { return true };
    for mut server in servers {
        match server.ask(&["EXISTS", &key]).await {
            Ok(answer) if answer.as_number() == Some(0) => {}
            // The key of a cluster is on another node, which is asked, too.
            Err(RedisAskError::Refused { reason }) if reason.contains("MOVED") => {}
            _ => return true,
        }
    }
    false
}

/// A bus that makes no streams; `None` where there are none.
async fn connect(global: &GlobalArgs, config: &Config, limit: Duration) -> Result<Option<Bus>, String> {
    let options = || BusOptions::try_from(&config.messaging).map_err(|error| chain(&error));
    match config.messaging.backend {
        Backend::InMemory => {
            let connected = AdminArgs::as_configured(limit).connect(global).await;
            connected.map(|client| Some(client.bus)).map_err(|failure| failure.text())
        }
        Backend::Redis => {
            let mut wanted = RedisOptions::from(config);
            wanted.connect_timeout = limit;
            wanted.publish_timeout = limit;
            if !is_in_use(&wanted).await {
                return Ok(None);
            }
            let backend = RedisBackend::connect(wanted).await.map_err(|error| chain(&error))?;
            Ok(Some(Bus::with_backend(Arc::new(backend), options()?)))
        }
        Backend::Nats => {
            let wanted = NatsOptions {
                connect_timeout: limit,
                publish_timeout: limit,
                ..NatsOptions::from(&config.messaging)
            };
            let backend = NatsBackend::connect(wanted).await.map_err(|error| chain(&error))?;
            let has_streams = backend.capabilities().streams;
            Ok(has_streams.then_some(Bus::with_backend(Arc::new(backend), options()?)))
        }
    }
}

async fn consumers(bus: &Bus, config: &Config) -> Result<Vec<Finding>, StreamError> {
    let max_deliver = config.messaging.consumer.max_deliver;
    let first = all(bus).await?;
    let alone = |info: &ConsumerInfo| info.members == 0 && info.lag > 0;
    let second = match first.iter().any(|(_, info)| alone(info)) {
        true => {
            tokio::time::sleep(BETWEEN_LOOKS).await;
            all(bus).await?
        }
        false => Vec::new(),
    };
    let mut findings = Vec::new();
    for (stream, info) in &first {
        let later =
            second.iter().find(|(name, later)| name == stream && later.config.name == info.config.name);
        findings.extend(judge(stream, info, later.map(|(_, later)| later), max_deliver));
    }
    if findings.is_empty() {
        let text = match first.len() {
            0 => "there are no consumers".to_owned(),
            1 => "one consumer, and it keeps up".to_owned(),
            count => format!("{count} consumers, and all keep up"),
        };
        findings.push(Finding::ok(CONSUMERS, text));
    }
    Ok(findings)
}

async fn all(bus: &Bus) -> Result<Vec<(String, ConsumerInfo)>, StreamError> {
    let mut all = Vec::new();
    for stream in bus.streams().await? {
        let handle = bus.stream(&stream.config.name)?;
        for consumer in &stream.consumers {
            // One that was removed in this moment is not there any more.
            if let Some(info) = handle.consumer_info(consumer).await? {
                all.push((stream.config.name.clone(), info));
            }
        }
    }
    Ok(all)
}

/// What to say of a consumer, which was looked at a second time where nobody works for it.
fn judge(
    stream: &str,
    info: &ConsumerInfo,
    later: Option<&ConsumerInfo>,
    max_deliver: u32,
) -> Option<Finding> {
    let name = &info.config.name;
    let patience = info.config.ack_wait.saturating_mul(max_deliver);
    let oldest = info.oldest_pending.filter(|oldest| info.pending > 0 && *oldest > patience);
    let waiting = info.lag + info.pending;
    if info.members == 0 && waiting > 0 {
        let grown = later.map_or(0, |later| later.lag.saturating_sub(info.lag));
        let text = format!("nobody works for consumer {name} of stream {stream}: {waiting} messages wait");
        let fix = format!("start its workers, or remove it: `trunkline consumer rm {stream} {name} --yes`");
        return Some(match grown {
            0 => Finding::warn(CONSUMERS, text, fix),
            grown => Finding::fail(CONSUMERS, format!("{text}, {grown} more since a second ago"), fix),
        });
    }
    let oldest = oldest?;
    let text = format!(
        "consumer {name} of stream {stream} is stuck: {} messages pending, the oldest for {}, longer than ack_wait × max_deliver",
        info.pending,
        duration::show(oldest)
    );
    Some(Finding::fail(
        CONSUMERS,
        text,
        format!("see the log of its workers, and `trunkline consumer info {stream} {name}`"),
    ))
}

async fn dead_letters(bus: &Bus) -> Result<Vec<Finding>, StreamError> {
    let letters = bus.dead_letters()?;
    if letters.stream().await?.is_none_or(|stream| stream.messages == 0) {
        return Ok(vec![Finding::ok(DEAD_LETTERS, "there are no dead letters")]);
    }
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    let (mut read, mut from, mut end) = (0, Start::Beginning, false);
    while !end && read < LETTERS_MAX {
        let page = letters.page(&DeadLetterFilter::default(), from, PAGE).await?;
        read += page.letters.len();
        for letter in page.letters {
            *counts.entry((letter.stream, letter.consumer)).or_default() += 1;
        }
        (from, end) = (page.next, page.end);
    }
    let more = if end { "" } else { " at least" };
    let findings = counts.into_iter().map(|((stream, consumer), count)| {
        Finding::warn(
            DEAD_LETTERS,
            format!("{count}{more} dead letters of consumer {consumer} of stream {stream}"),
            format!(
                "trunkline dlq ls --stream {stream} --consumer {consumer}; then dlq redrive or dlq purge"
            ),
        )
    });
    let findings: Vec<Finding> = findings.collect();
    Ok(match findings.is_empty() {
        true => vec![Finding::ok(DEAD_LETTERS, "there are no dead letters")],
        false => findings,
    })
}

#[cfg(test)]
mod tests {
    use trunkline::backend::ConsumerConfig;

    use super::*;
    use crate::checks::Verdict;

    fn info(members: u64, pending: u64, lag: u64, oldest: u64) -> ConsumerInfo {
        let mut config = ConsumerConfig::new("workers");
        config.ack_wait = Duration::from_secs(30);
        ConsumerInfo {
            config,
            delivered: None,
            ack_floor: None,
            pending,
            lag,
            redelivered: 0,
            missed: 0,
            members,
            oldest_pending: Some(Duration::from_secs(oldest)),
        }
    }

    #[test]
    fn consumers_are_judged_by_who_works_and_how_long_it_takes() {
        for (first, later, expected) in [
            (info(1, 3, 7, 20), None, None),
            (info(0, 0, 0, 0), None, None),
            (info(1, 3, 0, 151), None, Some(Verdict::Fail)),
            (info(0, 0, 7, 0), Some(info(0, 0, 7, 0)), Some(Verdict::Warn)),
            (info(0, 0, 7, 0), Some(info(0, 0, 8, 0)), Some(Verdict::Fail)),
            (info(0, 2, 0, 3), None, Some(Verdict::Warn)),
        ] {
            let found = judge("tasks", &first, later.as_ref(), 5).map(|finding| finding.verdict);
            assert_eq!(found, expected, "{first:?}");
        }
    }
}
