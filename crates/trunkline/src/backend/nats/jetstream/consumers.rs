//! Durable consumers: making them, joining them, how they stand.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};
use trunkline_core::{Pattern, StreamOffset};

use super::JetStream;
use super::api::{Failure, Refusal, codes, is_at_least};
use super::member::NatsMember;
use super::names::{StartAt, check_name, nanos, parse_time, print_time, start_at};
use super::streams::Found;
use crate::backend::nats::unsupported;
use crate::backend::{ConsumerConfig, ConsumerInfo, Start, StreamError, Unsupported};

/// Most messages that may be unsettled at once. Those that wait for their redelivery count, too, and must never hold up
/// others; beyond this number the server's memory matters more.
const ACK_PENDING_MAX: u64 = 1_000_000;
/// Most fetches that may wait at once, of all members together.
const WAITING_MAX: u64 = 8192;
/// Says in a consumer's metadata that only one member is active.
const KEYED: &str = "trunkline.keyed";
/// Before this version the server gives the newest delivery out once more, under its old number, when a redelivery is due and only
/// requests wait whose time is over: then messages of a key overtake each other.
const ORDER_SINCE: (u64, u64, u64) = (2, 10, 15);
/// How often joining is tried when others make or remove the consumer at the same time.
const RETRIES: u32 = 4;

/// A consumer as the server describes it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct State {
    config: Value,
    pub(super) delivered: Position,
    pub(super) ack_floor: Position,
    num_ack_pending: u64,
    num_redelivered: u64,
    num_pending: u64,
    #[serde(default)]
    ts: String,
    #[serde(default)]
    cluster: Leadership,
}

/// Which server leads a consumer, and since when, as far as servers tell: not on their own, and the time from 2.12 on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Leadership {
    #[serde(default)]
    leader: String,
    #[serde(default)]
    leader_since: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Position {
    pub(super) consumer_seq: u64,
    pub(super) stream_seq: u64,
    #[serde(default)]
    last_active: Option<String>,
}

impl Leadership {
    /// The name of the server.
    pub(super) fn leader(&self) -> &str {
        &self.leader
    }
}

impl State {
    pub(super) fn read(answer: Value) -> Result<Self, Failure> {
        // Servers before 2.10 describe one that is being removed in this moment by nothing at all.
        if answer["config"].is_null() {
            return Err(Failure::Refused(Refusal {
                code: 404,
                err_code: codes::CONSUMER_NOT_FOUND,
                description: "consumer not found".to_owned(),
            }));
        }
        serde_json::from_value(answer)
            .map_err(|error| Failure::unexpected("the description of a consumer", error))
    }

    /// Whether everything that was handed out is settled.
    pub(super) fn is_idle(&self) -> bool {
        self.num_ack_pending == 0
    }

    /// How many deliveries are not settled.
    pub(super) fn unsettled(&self) -> u64 {
        self.num_ack_pending
    }

    pub(super) fn leadership(&self) -> &Leadership {
        &self.cluster
    }

    /// Whether the same server leads the consumer all along, and nothing was handed out or settled in between.
    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        let stand =
            |state: &Self| (state.delivered.consumer_seq, state.delivered.stream_seq, state.num_ack_pending);
        self.cluster == other.cluster && stand(self) == stand(other)
    }

    fn text(&self, key: &str) -> &str {
        self.config[key].as_str().unwrap_or_default()
    }

    fn filter(&self) -> Option<Pattern> {
        Pattern::new(self.text("filter_subject").to_owned()).ok()
    }

    fn keyed(&self) -> bool {
        self.config["metadata"][KEYED] == "true"
    }

    fn ack_wait(&self) -> u64 {
        self.config["ack_wait"].as_u64().unwrap_or(0)
    }

    /// What makes it work in another way than consumers of the bus, if anything does.
    fn foreign(&self) -> Option<&'static str> {
        let set = |key: &str| !matches!(&self.config[key], Value::Null | Value::Bool(false));
        let some = |key: &str| self.config[key].as_array().is_some_and(|list| !list.is_empty());
        match () {
            () if set("deliver_subject") => Some("it pushes"),
            () if self.text("ack_policy") != "explicit" => Some("its acks are not explicit"),
            () if self.config["max_deliver"].as_i64().is_some_and(|max| max > 0) => {
                Some("it sets max_deliver")
            }
            () if some("backoff") => Some("it sets backoff"),
            () if some("filter_subjects") => Some("it has several filters"),
            () => None,
        }
    }

    fn start(&self) -> Start {
        let sequence = || self.config["opt_start_seq"].as_u64().unwrap_or(1);
        match self.text("deliver_policy") {
            "all" => Start::Beginning,
            "by_start_sequence" if sequence() > 1 => Start::After(StreamOffset::Sequence(sequence() - 1)),
            "by_start_sequence" => Start::Beginning,
            "by_start_time" => parse_time(self.text("opt_start_time")).map_or(Start::Beginning, Start::At),
            _ => Start::New,
        }
    }
}

fn show(filter: Option<&Pattern>, keyed: bool) -> String {
    match filter {
        Some(filter) => format!("filter {filter}, keyed {keyed}"),
        None => format!("no filter, keyed {keyed}"),
    }
}

impl JetStream {
    /// How a consumer stands on the server; `None` when it is not there.
    pub(super) async fn consumer_state(&self, on_server: &str, name: &str) -> Result<Option<State>, Failure> {
        let answer = self.api.look(&format!("CONSUMER.INFO.{on_server}.{name}"), &json!({})).await;
        match answer.and_then(State::read) {
            Ok(state) => Ok(Some(state)),
            Err(failure) if failure.is(&[codes::CONSUMER_NOT_FOUND]) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    pub(super) async fn join_consumer(
        self: &Arc<Self>,
        stream: &str,
        config: ConsumerConfig,
    ) -> Result<NatsMember, StreamError> {
        check_name(&config.name)?;
        let found = self.find(stream).await?;
        let failed = |failure| self.api.stream_error(stream, failure);
        let mut last = None;
        for _ in 0..RETRIES {
            let existing = self.consumer_state(&found.name, &config.name).await.map_err(failed)?;
            if let Some(state) = &existing {
                check_same(state, &config)?;
            }
            if config.keyed && !is_at_least(&self.api.link.client.server_info().version, ORDER_SINCE) {
                return Err(unsupported(Unsupported::ORDER_BY_KEY).into());
            }
            let state = match existing {
                None => {
                    let body = definition(stream, &found, &config)?;
                    self.define(&found, &config, "create", body).await
                }
                Some(state) if state.ack_wait() == nanos(config.ack_wait) => Ok(state),
                Some(state) => {
                    let mut body = state.config.clone();
                    body["ack_wait"] = json!(nanos(config.ack_wait));
                    self.define(&found, &config, "update", body).await
                }
            };
            let state = match state {
                Ok(state) => state,
                // Others have made or removed it in this moment.
                Err(failure)
                    if failure.is(&[
                        codes::CONSUMER_EXISTS,
                        codes::CONSUMER_ALREADY_EXISTS,
                        codes::CONSUMER_NOT_FOUND,
                    ]) =>
                {
                    last = Some(failure);
                    continue;
                }
                Err(failure) => return Err(failed(failure)),
            };
            self.bucket.ensure(found.replicas()).await.map_err(failed)?;
            return NatsMember::enter(self, stream, found.name, config, &state).await.map_err(failed);
        }
        let last = last.unwrap_or_else(|| Failure::NotConnected("the consumer keeps changing".to_owned()));
        Err(failed(last))
    }

    async fn define(
        &self,
        found: &Found,
        config: &ConsumerConfig,
        action: &str,
        body: Value,
    ) -> Result<State, Failure> {
        let what = format!("CONSUMER.CREATE.{}.{}", found.name, config.name);
        let request = json!({ "stream_name": found.name, "action": action, "config": body });
        State::read(self.api.call(&what, &request).await?)
    }

    pub(super) async fn stand_of_consumer(
        &self,
        stream: &str,
        name: &str,
    ) -> Result<Option<ConsumerInfo>, StreamError> {
        let found = self.find(stream).await?;
        let failed = |failure| self.api.stream_error(stream, failure);
        if check_name(name).is_err() {
            return Ok(None);
        }
        let Some(state) = self.consumer_state(&found.name, name).await.map_err(failed)? else {
            return Ok(None);
        };
        let members = self.bucket.members(stream, name).await.map_err(failed)?;
        let noticed = self.bucket.missed(stream, name).await.map_err(failed)?;
        // Limits remove the oldest: what is gone past the newest delivery is noticed with the next one.
        let gone = match state.filter() {
            None => found.state.first_seq.saturating_sub(state.delivered.stream_seq + 1),
            Some(_) => 0,
        };
        let config = ConsumerConfig {
            start: state.start(),
            ack_wait: Duration::from_nanos(state.ack_wait()),
            filter: state.filter(),
            keyed: state.keyed(),
            ..ConsumerConfig::new(name)
        };
        // The server does not tell since when each delivery is pending: the oldest is so at least since the newest.
        let newest = state.delivered.last_active.as_deref().and_then(parse_time);
        // Servers before 2.10 do not tell their time: by the clock of this machine it is near enough.
        let now = parse_time(&state.ts).unwrap_or_else(SystemTime::now);
        let oldest_pending = newest
            .filter(|_| state.num_ack_pending > 0)
            .map(|newest| now.duration_since(newest).unwrap_or_default());
        let offset = |sequence: u64| (sequence > 0).then_some(StreamOffset::Sequence(sequence));
        Ok(Some(ConsumerInfo {
            config,
            delivered: (state.delivered.consumer_seq > 0)
                .then_some(StreamOffset::Sequence(state.delivered.stream_seq)),
            ack_floor: offset(state.ack_floor.stream_seq),
            pending: state.num_ack_pending,
            lag: state.num_pending,
            redelivered: state.num_redelivered,
            missed: noticed + gone,
            members,
            oldest_pending,
        }))
    }

    pub(super) async fn remove_consumer_of(&self, stream: &str, name: &str) -> Result<bool, StreamError> {
        let found = self.find(stream).await?;
        if check_name(name).is_err() {
            return Ok(false);
        }
        match self.api.call(&format!("CONSUMER.DELETE.{}.{name}", found.name), &json!({})).await {
            Ok(_) => {
                self.bucket.forget(stream, Some(name)).await;
                Ok(true)
            }
            Err(failure) if failure.is(&[codes::CONSUMER_NOT_FOUND]) => Ok(false),
            Err(failure) => Err(self.api.stream_error(stream, failure)),
        }
    }
}

/// A new consumer. The server's own `backoff` and `max_deliver` stay unset: redelivery is the bus's.
fn definition(stream: &str, found: &Found, config: &ConsumerConfig) -> Result<Value, StreamError> {
    let mut body = json!({
        "name": config.name, "durable_name": config.name,
        "ack_policy": "explicit", "ack_wait": nanos(config.ack_wait), "max_deliver": -1,
        "max_ack_pending": ACK_PENDING_MAX, "max_waiting": WAITING_MAX, "replay_policy": "instant",
        "metadata": { KEYED: config.keyed.to_string() },
    });
    if let Some(filter) = &config.filter {
        body["filter_subject"] = json!(filter.as_str());
    }
    match start_at(stream, config.start, found.state.last_seq)? {
        StartAt::New => body["deliver_policy"] = json!("new"),
        StartAt::Sequence(1) => body["deliver_policy"] = json!("all"),
        StartAt::Sequence(n) => {
            body["deliver_policy"] = json!("by_start_sequence");
            body["opt_start_seq"] = json!(n);
        }
        StartAt::Time(time) => {
            body["deliver_policy"] = json!("by_start_time");
            body["opt_start_time"] = json!(print_time(time));
        }
    }
    Ok(body)
}

/// Refuses to join a consumer that is another one than was meant.
fn check_same(state: &State, config: &ConsumerConfig) -> Result<(), StreamError> {
    let what = || format!("consumer {:?}", config.name);
    let wanted = show(config.filter.as_ref(), config.keyed);
    if let Some(why) = state.foreign() {
        let found = format!("what is not of the bus: {why}");
        return Err(StreamError::Conflict { what: what(), found, wanted });
    }
    let found = show(state.filter().as_ref(), state.keyed());
    match found == wanted {
        true => Ok(()),
        false => Err(StreamError::Conflict { what: what(), found, wanted }),
    }
}
