//! How a consumer stands, and its end.

use std::time::Duration;

use redis::Value;
use trunkline_core::StreamOffset;

use super::super::entry::{array, number, parse_id, text};
use super::super::link::Failure;
use super::super::routes::{Home, millis};
use super::super::scripts::{CONSUMER, REMOVE_CONSUMER};
use super::super::shared::Shared;
use super::{CONSUMER_KEYS, FORGET_AFTER, STREAM_KEYS};
use crate::backend::{ConsumerConfig, ConsumerInfo, Start};

/// How a consumer stands.
pub(in crate::backend::redis) async fn info(
    shared: &Shared,
    home: &Home,
    name: &str,
) -> Result<Option<ConsumerInfo>, Failure> {
    let keys = shared.keys_of(home, STREAM_KEYS, CONSUMER_KEYS, name);
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let asking = shared.link.run_script(&CONSUMER, &keys, |command| {
        command.arg(name).arg(millis(FORGET_AFTER));
    });
    let answer = asking.await?;
    if answer == Value::Nil {
        return Ok(None);
    }
    let [
        ack_wait,
        filter,
        keyed,
        start,
        delivered,
        floor,
        pending,
        lag,
        redelivered,
        missed,
        members,
        oldest,
    ] = array::<12>(answer)?;
    let offset = |value: &Value| -> Result<Option<StreamOffset>, Failure> {
        Ok(parse_id(&text(value)?).map(|(ms, seq)| StreamOffset::Entry(ms, seq)))
    };
    let filter = text(&filter)?;
    let config = ConsumerConfig {
        start: match offset(&start)? {
            None | Some(StreamOffset::Entry(0, 0)) => Start::Beginning,
            Some(offset) => Start::After(offset),
        },
        ack_wait: Duration::from_millis(number(&ack_wait)?),
        filter: match filter.as_str() {
            "" => None,
            filter => Some(filter.parse().map_err(|_| Failure::Unexpected(format!("filter {filter:?}")))?),
        },
        keyed: text(&keyed)? == "1",
        ..ConsumerConfig::new(name)
    };
    Ok(Some(ConsumerInfo {
        config,
        delivered: offset(&delivered)?,
        ack_floor: offset(&floor)?,
        pending: number(&pending)?,
        lag: number(&lag)?,
        redelivered: number(&redelivered)?,
        missed: number(&missed)?,
        members: number(&members)?,
        oldest_pending: match oldest {
            Value::Int(ms) => u64::try_from(ms).ok().map(Duration::from_millis),
            _ => None,
        },
    }))
}

/// Removes a consumer; `false` when there was none.
pub(in crate::backend::redis) async fn remove(
    shared: &Shared,
    home: &Home,
    name: &str,
) -> Result<bool, Failure> {
    let keys = shared.keys_of(home, STREAM_KEYS, CONSUMER_KEYS, name);
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let removing = shared.link.run_script(&REMOVE_CONSUMER, &keys, |command| {
        command.arg(name);
    });
    Ok(number(&removing.await?)? == 1)
}
