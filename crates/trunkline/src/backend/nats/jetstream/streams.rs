//! Streams: making and changing them, listing and removing them.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use trunkline_core::{Pattern, StreamOffset};

use super::JetStream;
use super::api::{Api, Failure, codes};
use super::names::{check_name, minimal, nanos};
use crate::backend::{StreamConfig, StreamError, StreamInfo};

/// Most pages of a list: past it the account has more streams than a bus can look through.
const PAGES_MAX: usize = 1000;
/// How often making or changing a stream is tried when others do the same at the same time.
const RETRIES: u32 = 4;
/// Says in a stream's metadata of which prefix it is: one prefix may begin with another.
const PREFIX: &str = "trunkline.prefix";
/// The same, followed by the prefix, in a stream's description: servers before 2.10 know no metadata.
const DESCRIPTION: &str = "a stream of Trunkline with the prefix ";
/// Shortest age that JetStream takes, where there is one: a shorter one becomes this.
const AGE_MIN: Duration = Duration::from_millis(100);

/// A stream of the account, as the server describes it.
#[derive(Debug)]
pub(super) struct Found {
    /// Its name on the server.
    pub(super) name: String,
    pub(super) patterns: Vec<Pattern>,
    pub(super) config: Map<String, Value>,
    pub(super) state: State,
    /// When it was made, as the server writes it.
    pub(super) created: String,
    /// The servers that keep it besides the one that leads it; none on a server of its own.
    copies: Vec<Copy>,
}

/// A server that keeps a copy of a stream.
#[derive(Debug, Deserialize)]
struct Copy {
    name: String,
    current: bool,
    #[serde(default)]
    lag: u64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct State {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    /// Messages that were removed from between others.
    #[serde(default)]
    num_deleted: u64,
    #[serde(default)]
    consumer_count: u64,
}

impl State {
    /// How many messages behind this one may have been removed, at most.
    pub(super) fn removed_behind(&self, sequence: u64) -> u64 {
        self.first_seq.saturating_sub(sequence + 1) + self.num_deleted
    }
}

impl Found {
    pub(super) fn read(answer: &mut Value) -> Result<Self, Failure> {
        let unexpected =
            |error: &dyn std::fmt::Display| Failure::unexpected("the description of a stream", error);
        let state: State =
            serde_json::from_value(answer["state"].take()).map_err(|error| unexpected(&error))?;
        let Value::Object(config) = answer["config"].take() else { return Err(unexpected(&"no config")) };
        let name =
            config.get("name").and_then(Value::as_str).ok_or_else(|| unexpected(&"no name"))?.to_owned();
        // A mirror has none, and one that the bus cannot write, it cannot publish to either.
        let subjects = config.get("subjects").and_then(Value::as_array).into_iter().flatten();
        let patterns =
            subjects.filter_map(|subject| Pattern::new(subject.as_str()?.to_owned()).ok()).collect();
        let created = answer["created"].as_str().unwrap_or_default().to_owned();
        let copies = answer["cluster"]["replicas"].as_array_mut().map(std::mem::take).unwrap_or_default();
        let copies = copies.into_iter().map(serde_json::from_value).collect::<Result<_, _>>();
        let copies = copies.map_err(|error| unexpected(&error))?;
        Ok(Self { name, patterns, config, state, created, copies })
    }

    /// Whether a server has all that is stored, as far as the one that leads the stream knows.
    pub(super) fn is_current_on(&self, server: &str) -> bool {
        self.copies.iter().all(|copy| copy.name != server || (copy.current && copy.lag == 0))
    }

    fn number(&self, key: &str) -> Option<u64> {
        // No limit is -1 or 0.
        self.config.get(key).and_then(Value::as_i64).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0)
    }

    fn text(&self, key: &str) -> &str {
        self.config.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether single messages are served by whoever has them.
    pub(super) fn replicas(&self) -> u64 {
        self.number("num_replicas").unwrap_or(1)
    }

    fn config(&self, name: &str) -> StreamConfig {
        StreamConfig {
            max_age: self.number("max_age").map(Duration::from_nanos),
            max_messages: self.number("max_msgs"),
            max_bytes: self.number("max_bytes"),
            replicas: u8::try_from(self.replicas()).unwrap_or(u8::MAX),
            ..StreamConfig::new(name, self.patterns.clone())
        }
    }

    /// For people.
    fn show(&self) -> String {
        let patterns: Vec<&str> = self.patterns.iter().map(Pattern::as_str).collect();
        format!(
            "{} storage, {} retention, subjects {patterns:?}, {} replicas",
            self.text("storage"),
            self.text("retention"),
            self.replicas()
        )
    }
}

/// All streams of the account, those of others included. In a cluster each is described by its leader: as long as one of
/// them has none, the servers answer late and without it, and that is a failure here.
pub(super) async fn all(api: &Api) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::new();
    for _ in 0..PAGES_MAX {
        let mut answer = api.call("STREAM.LIST", &json!({ "offset": found.len() })).await?;
        if let Some(missing) = answer["missing"].as_array().filter(|missing| !missing.is_empty()) {
            let names: Vec<&str> = missing.iter().filter_map(Value::as_str).collect();
            return Err(Failure::NotConnected(format!("no server leads {}", names.join(", "))));
        }
        let Value::Array(page) = answer["streams"].take() else { break };
        let empty = page.is_empty();
        for mut stream in page {
            found.push(Found::read(&mut stream)?);
        }
        let total = answer["total"].as_u64().unwrap_or(0);
        if empty || found.len() as u64 >= total {
            break;
        }
    }
    Ok(found)
}

/// Names on the server of the streams whose patterns overlap this one. The leader of a cluster knows them by itself, also
/// those that nobody leads at the moment.
pub(super) async fn names_of(api: &Api, pattern: &str) -> Result<Vec<String>, Failure> {
    let answer = api.look("STREAM.NAMES", &json!({ "subject": pattern })).await?;
    let names = answer["streams"].as_array().into_iter().flatten();
    Ok(names.filter_map(|name| name.as_str().map(str::to_owned)).collect())
}

/// Names on the server of all streams of the account.
async fn all_names(api: &Api) -> Result<Vec<String>, Failure> {
    let mut names: Vec<String> = Vec::new();
    for _ in 0..PAGES_MAX {
        let answer = api.look("STREAM.NAMES", &json!({ "offset": names.len() })).await?;
        let page = answer["streams"].as_array().map_or(&[][..], Vec::as_slice);
        names.extend(page.iter().filter_map(|name| name.as_str().map(str::to_owned)));
        if page.is_empty() || names.len() as u64 >= answer["total"].as_u64().unwrap_or(0) {
            break;
        }
    }
    Ok(names)
}

/// A stream by its name on the server; `None` when it is not there.
pub(super) async fn named(api: &Api, on_server: &str) -> Result<Option<Found>, Failure> {
    match api.look(&format!("STREAM.INFO.{on_server}"), &json!({})).await {
        Ok(mut answer) => Found::read(&mut answer).map(Some),
        Err(failure) if failure.is(&[codes::STREAM_NOT_FOUND]) => Ok(None),
        Err(failure) => Err(failure),
    }
}

impl JetStream {
    /// A stream of this prefix by its name.
    pub(super) async fn find(&self, name: &str) -> Result<Found, StreamError> {
        self.refuse_when_closed()?;
        if check_name(name).is_err() {
            return Err(StreamError::NoStream(name.to_owned()));
        }
        let found = self.look_up(name).await.map_err(|failure| self.api.stream_error(name, failure))?;
        match self.own(&found) {
            Some(_) => Ok(found),
            None => Err(StreamError::NoStream(name.to_owned())),
        }
    }

    /// What the server says of a stream, whosever it is.
    pub(super) async fn look_up(&self, name: &str) -> Result<Found, Failure> {
        let what = format!("STREAM.INFO.{}", self.names.of_stream(name));
        Found::read(&mut self.api.look(&what, &json!({})).await?)
    }

    /// The name of a stream of this prefix.
    fn own<'a>(&self, found: &'a Found) -> Option<&'a str> {
        let metadata = found.config.get("metadata").and_then(|metadata| metadata.get(PREFIX)?.as_str());
        let prefix = metadata.or_else(|| found.text("description").strip_prefix(DESCRIPTION));
        let foreign = prefix.is_some_and(|prefix| prefix != self.names.prefix());
        self.names.own(&found.name).filter(|_| !foreign)
    }

    pub(super) async fn ensure_stream(&self, config: StreamConfig) -> Result<StreamInfo, StreamError> {
        self.refuse_when_closed()?;
        check_name(&config.name)?;
        if config.subjects.is_empty() {
            return Err(StreamError::NoSubjects(config.name));
        }
        self.names.check_patterns(&config.name, &config.subjects)?;
        let failed = |failure| self.api.stream_error(&config.name, failure);
        let mut last = None;
        for _ in 0..RETRIES {
            self.check_overlap(&config).await?;
            let name = self.names.of_stream(&config.name);
            let existing = named(&self.api, &name).await.map_err(failed)?;
            let changed = match existing {
                None => self.create_stream(&config).await,
                Some(existing) => {
                    let wanted = self.wanted(&config, existing.config.clone());
                    if wanted == existing.config {
                        return self.info(existing, &config.name).await.map_err(failed);
                    }
                    self.check_changeable(&config, &existing)?;
                    let found = existing.show();
                    match self.update_stream(&name, wanted).await {
                        Err(Failure::Refused(refusal)) if !refusal.is_passing() => {
                            return Err(self.conflict(&config, found, &refusal.description));
                        }
                        changed => changed,
                    }
                }
            };
            self.outgoing.forget_routes();
            match changed {
                Ok(found) => return self.info(found, &config.name).await.map_err(failed),
                // Somebody else was faster: what there is now decides.
                Err(failure) if failure.is(&[codes::STREAM_NAME_IN_USE, codes::SUBJECTS_OVERLAP]) => {
                    last = Some(failure);
                }
                Err(failure) => return Err(failed(failure)),
            }
        }
        let last = last.unwrap_or_else(|| Failure::NotConnected("the streams keep changing".to_owned()));
        Err(failed(last))
    }

    async fn create_stream(&self, config: &StreamConfig) -> Result<Found, Failure> {
        let name = self.names.of_stream(&config.name);
        let mut fresh = Map::new();
        fresh.insert("name".to_owned(), name.clone().into());
        fresh.insert("retention".to_owned(), "limits".into());
        fresh.insert("storage".to_owned(), "file".into());
        fresh.insert("metadata".to_owned(), json!({ PREFIX: self.names.prefix() }));
        fresh.insert("description".to_owned(), format!("{DESCRIPTION}{}", self.names.prefix()).into());
        let mut answer = self.api.call(&format!("STREAM.CREATE.{name}"), &self.wanted(config, fresh)).await?;
        Found::read(&mut answer)
    }

    async fn update_stream(&self, name: &str, wanted: Map<String, Value>) -> Result<Found, Failure> {
        let mut answer = self.api.call(&format!("STREAM.UPDATE.{name}"), &wanted).await?;
        Found::read(&mut answer)
    }

    /// A configuration with everything that the bus decides set in it; what it does not know of stays.
    fn wanted(&self, config: &StreamConfig, mut wanted: Map<String, Value>) -> Map<String, Value> {
        let limit = |limit: Option<u64>| limit.map_or(json!(-1), |limit| json!(limit.min(i64::MAX as u64)));
        let age = config.max_age.map(|age| age.max(AGE_MIN));
        // JetStream takes no window that is longer than messages are kept.
        let window = age.map_or(self.dedupe_window, |age| age.min(self.dedupe_window));
        let subjects: Vec<String> = minimal(&config.subjects).iter().map(ToString::to_string).collect();
        for (key, value) in [
            ("subjects", json!(subjects)),
            ("max_msgs", limit(config.max_messages)),
            ("max_bytes", limit(config.max_bytes)),
            ("max_age", json!(age.map_or(0, nanos))),
            ("num_replicas", json!(config.replicas.max(1))),
            ("discard", json!("old")),
            ("duplicate_window", json!(nanos(window))),
            ("allow_direct", json!(true)),
        ] {
            wanted.insert(key.to_owned(), value);
        }
        wanted
    }

    /// Refuses to take over a stream that works in another way.
    fn check_changeable(&self, config: &StreamConfig, existing: &Found) -> Result<(), StreamError> {
        let other = existing.text("retention") != "limits"
            || existing.text("storage") != "file"
            || existing.config.contains_key("mirror")
            || existing.config.contains_key("sources")
            || existing.config.get("sealed") == Some(&json!(true))
            || self.own(existing).is_none();
        match other {
            true => Err(self.conflict(config, existing.show(), "it is not a stream of the bus")),
            false => Ok(()),
        }
    }

    fn conflict(&self, config: &StreamConfig, found: String, why: &str) -> StreamError {
        let patterns: Vec<&str> = config.subjects.iter().map(Pattern::as_str).collect();
        StreamError::Conflict {
            what: format!("stream {:?}", config.name),
            found,
            wanted: format!(
                "file storage, limits retention, subjects {patterns:?}, {} replicas: {why}",
                config.replicas.max(1)
            ),
        }
    }

    async fn check_overlap(&self, config: &StreamConfig) -> Result<(), StreamError> {
        let name = self.names.of_stream(&config.name);
        let failed = |failure| self.api.stream_error(&config.name, failure);
        for mine in &config.subjects {
            let names = names_of(&self.api, mine.as_str()).await.map_err(failed)?;
            for other in names.into_iter().filter(|other| *other != name) {
                // Removed meanwhile, or it overlaps by a pattern that the bus cannot read: the server has the last word.
                let Some(found) = named(&self.api, &other).await.map_err(failed)? else { continue };
                if let Some(theirs) = found.patterns.iter().find(|theirs| mine.overlaps(theirs)) {
                    return Err(StreamError::Overlap {
                        stream: config.name.clone(),
                        pattern: mine.clone(),
                        other: self.own(&found).unwrap_or(&found.name).to_owned(),
                        other_pattern: theirs.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    async fn info(&self, found: Found, name: &str) -> Result<StreamInfo, Failure> {
        let consumers = match found.state.consumer_count {
            0 => Vec::new(),
            _ => self.durable_consumers(&found.name).await?,
        };
        let State { messages, bytes, first_seq, last_seq, .. } = found.state;
        Ok(StreamInfo {
            config: found.config(name),
            messages,
            bytes,
            first: (messages > 0).then_some(StreamOffset::Sequence(first_seq)),
            last: (last_seq > 0).then_some(StreamOffset::Sequence(last_seq)),
            consumers,
        })
    }

    /// Names of the durable consumers of a stream. Subscriptions that follow it have consumers, too, which are not listed.
    async fn durable_consumers(&self, on_server: &str) -> Result<Vec<String>, Failure> {
        let (mut names, mut offset) = (Vec::new(), 0);
        for _ in 0..PAGES_MAX {
            let what = format!("CONSUMER.LIST.{on_server}");
            let answer = self.api.call(&what, &json!({ "offset": offset })).await?;
            let page = answer["consumers"].as_array().map_or(&[][..], Vec::as_slice);
            let durable = page.iter().filter_map(|consumer| consumer["config"]["durable_name"].as_str());
            names.extend(durable.filter(|name| !name.is_empty()).map(str::to_owned));
            offset += page.len() as u64;
            if page.is_empty() || offset >= answer["total"].as_u64().unwrap_or(0) {
                break;
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(super) async fn list_streams(&self) -> Result<Vec<StreamInfo>, StreamError> {
        self.refuse_when_closed()?;
        let mut infos = Vec::new();
        let failed = |failure| self.api.stream_error("*", failure);
        // Streams of others count for nothing here, and neither does it whether somebody leads them.
        for on_server in all_names(&self.api).await.map_err(failed)? {
            let Some(name) = self.names.own(&on_server) else { continue };
            let failed = |failure| self.api.stream_error(name, failure);
            // Removed meanwhile, or of a prefix that begins with this one.
            let found = named(&self.api, &on_server).await.map_err(failed)?;
            let Some(found) = found.filter(|found| self.own(found).is_some()) else { continue };
            match self.info(found, name).await {
                Ok(info) => infos.push(info),
                Err(failure) if failure.is(&[codes::STREAM_NOT_FOUND]) => {}
                Err(failure) => return Err(failed(failure)),
            }
        }
        infos.sort_by(|a, b| a.config.name.cmp(&b.config.name));
        Ok(infos)
    }

    pub(super) async fn remove_stream(&self, name: &str) -> Result<bool, StreamError> {
        match self.find(name).await {
            Ok(_) => {}
            Err(StreamError::NoStream(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
        let what = format!("STREAM.DELETE.{}", self.names.of_stream(name));
        let removed = self.api.call(&what, &json!({})).await;
        self.outgoing.forget_routes();
        match removed {
            Ok(_) => {}
            Err(failure) if failure.is(&[codes::STREAM_NOT_FOUND]) => return Ok(false),
            Err(failure) => return Err(self.api.stream_error(name, failure)),
        }
        // What was remembered of its consumers must not be taken for that of later ones.
        self.bucket.forget(name, None).await;
        Ok(true)
    }
}
