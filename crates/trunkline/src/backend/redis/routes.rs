//! Which stream keeps the messages of a subject.
//!
//! Configured streams are entered in one hash, `PREFIX:{bus}:routes`, with a version that grows with each change.
//! Everybody routes by a copy of it. In a cluster each stream may lie on another server than the hash, so each has beside
//! it the newest version that is known there: who appends compares it, and who changes the routes raises it wherever
//! messages would still land by the old ones. Subjects that no configured stream matches go to the built-in stream of
//! their family.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use trunkline_core::{Pattern, Subject};

use crate::backend::StreamConfig;

/// Families of built-in streams by the second token of the platform's subjects. Dead letters are kept until operators
/// take them, so their family has no age.
const FAMILIES: [(&str, bool); 9] = [
    ("channel", true),
    ("gateway", true),
    ("tool", true),
    ("skill", true),
    ("llm", true),
    ("analytics", true),
    ("audit", true),
    ("system", true),
    ("dead", false),
];
/// The family of all other subjects.
const OTHER: &str = "other";
/// A name with a dot: no configured stream can have it.
const FAMILY_PREFIX: &str = "family.";
const FAMILY_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
const FAMILY_MESSAGES_MAX: u64 = 100_000;
/// Most replies that wait in the inbox of a process, and how long nobody has to read them until they are forgotten.
const INBOX_MESSAGES_MAX: u64 = 65_536;
const INBOX_EXPIRY: Duration = Duration::from_secs(120);

/// Slots over which the inboxes are spread: few enough that one read takes all inboxes of one slot.
const INBOX_SHARDS: u32 = 16;

/// First token of all inboxes.
pub(super) const INBOX: &str = "_INBOX";

/// What limits remove.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) max_messages: Option<u64>,
    pub(super) max_age: Option<Duration>,
    pub(super) max_bytes: Option<u64>,
    /// Whether exactly `max_messages` are kept, or a node of entries more.
    pub(super) exact: bool,
    /// The whole stream goes when nobody has written to it for so long.
    pub(super) expiry: Option<Duration>,
}

/// A stream on the server.
#[derive(Debug)]
pub(super) struct Home {
    /// Its name; with a dot for those that are built in.
    pub(super) name: String,
    /// `None` for those that are built in.
    pub(super) config: Option<StreamConfig>,
    pub(super) limits: Limits,
    /// Key of the stream.
    pub(super) key: String,
    /// Whether messages are stored there as far as publishers are concerned: inboxes are not.
    pub(super) stores: bool,
}

impl Home {
    /// Key of the newest version of the routes that is known here.
    pub(super) fn version_key(&self) -> String {
        self.beside("version")
    }

    /// Key of who answers on a subject, or with wildcards where there is none.
    pub(super) fn responders_key(&self, subject: Option<&str>) -> String {
        match subject {
            Some(subject) => format!("{}:responders:{subject}", self.key),
            None => self.beside("responders"),
        }
    }

    /// A key beside the stream's, in the same slot of a cluster.
    pub(super) fn beside(&self, what: &str) -> String {
        format!("{}:{what}", self.key)
    }

    /// What keys share that lie in the same slot of a cluster: the part in braces.
    pub(super) fn tag(&self) -> &str {
        let tag = self.key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
        tag.map_or(&self.key, |(tag, _)| tag)
    }

    /// A key of one of its consumers.
    pub(super) fn of_consumer(&self, what: &str, consumer: &str) -> String {
        format!("{}:{what}:{consumer}", self.key)
    }
}

/// A change of the routes that is about to happen: the name of a stream, and what it will be.
pub(super) type Pending = (String, Option<StreamConfig>);

/// A copy of the routes.
#[derive(Debug, Clone)]
pub(super) struct Routes {
    pub(super) version: u64,
    /// When the hash was made; another one means that the server lost its data since. 0 before the first look.
    pub(super) era: u64,
    /// The next change, while it is prepared.
    pub(super) pending: Option<Pending>,
    prefix: String,
    /// Configured streams by name.
    pub(super) streams: BTreeMap<String, Arc<Home>>,
    families: Vec<(Pattern, Arc<Home>)>,
    other: Arc<Home>,
}

impl Routes {
    pub(super) fn new(
        prefix: &str,
        root: &str,
        (version, era): (u64, u64),
        configs: impl IntoIterator<Item = StreamConfig>,
    ) -> Self {
        let family = |name: &str, ages: bool| {
            let name = format!("{FAMILY_PREFIX}{name}");
            let limits = Limits {
                max_messages: Some(FAMILY_MESSAGES_MAX),
                max_age: ages.then_some(FAMILY_AGE_MAX),
                ..Limits::default()
            };
            Arc::new(Home { limits, key: stream_key(prefix, &name), stores: true, config: None, name })
        };
        let families = FAMILIES
            .iter()
            .filter_map(|(name, ages)| {
                let pattern = Pattern::new(format!("{root}.{name}.>")).ok()?;
                Some((pattern, family(name, *ages)))
            })
            .collect();
        Self {
            version,
            era,
            pending: None,
            prefix: prefix.to_owned(),
            streams: configs
                .into_iter()
                .map(|config| (config.name.clone(), configured(prefix, config)))
                .collect(),
            families,
            other: family(OTHER, true),
        }
    }

    /// The routes as they are after a change of one stream.
    pub(super) fn after(&self, name: &str, config: Option<StreamConfig>) -> Self {
        let mut routes = Self { pending: None, ..self.clone() };
        match config {
            Some(config) => routes.streams.insert(name.to_owned(), configured(&self.prefix, config)),
            None => routes.streams.remove(name),
        };
        routes
    }

    /// Where else messages of this stream's subjects would go, or have gone: where a change of the stream has to be
    /// known before it counts.
    pub(super) fn concerned(&self, name: &str, subjects: &[Pattern]) -> Vec<Arc<Home>> {
        let others = self.after(name, None);
        let mut homes: Vec<Arc<Home>> = Vec::new();
        for home in subjects.iter().flat_map(|pattern| others.touched(pattern)) {
            if homes.iter().all(|known| known.key != home.key) {
                homes.push(home);
            }
        }
        homes
    }

    /// Where those who answer on `pattern` are listed: wherever a request may ask for them, also after the change that
    /// is about to happen.
    pub(super) fn listing(&self, pattern: &Pattern) -> Vec<Arc<Home>> {
        let now = |routes: &Self| match pattern.has_wildcard() {
            true => routes.touched(pattern),
            false => {
                Subject::new(pattern.to_string()).map(|subject| routes.home(&subject)).into_iter().collect()
            }
        };
        let mut homes = now(self);
        if let Some((name, config)) = &self.pending {
            for home in now(&self.after(name, config.clone())) {
                if homes.iter().all(|known| known.key != home.key) {
                    homes.push(home);
                }
            }
        }
        homes.retain(|home| home.stores);
        homes
    }

    /// A key of each slot in which there is anything of the bus.
    pub(super) fn keys(&self) -> impl Iterator<Item = String> {
        let homes =
            self.streams.values().chain(self.families.iter().map(|(_, home)| home)).chain([&self.other]);
        let inboxes = (0..INBOX_SHARDS).map(|shard| inbox_key(&self.prefix, shard, ""));
        homes.map(|home| home.key.clone()).chain(inboxes).chain([routes_key(&self.prefix)])
    }

    /// Where messages of this subject go.
    pub(super) fn home(&self, subject: &Subject) -> Arc<Home> {
        let mut tokens = subject.tokens();
        let first = tokens.next();
        if first == Some(INBOX)
            && let Some(process) = tokens.next()
        {
            return self.inbox(process);
        }
        let configured = self.streams.values().find(|home| {
            home.config.as_ref().is_some_and(|config| config.subjects.iter().any(|p| p.matches(subject)))
        });
        if let Some(home) = configured {
            return home.clone();
        }
        let family = self.families.iter().find(|(pattern, _)| pattern.matches(subject));
        family.map_or(&self.other, |(_, home)| home).clone()
    }

    /// Every stream that may keep messages that match. Inboxes are only found by who names their process.
    pub(super) fn touched(&self, pattern: &Pattern) -> Vec<Arc<Home>> {
        let tokens: Vec<&str> = pattern.tokens().take(3).collect();
        let literal = |at: usize| tokens.get(at).filter(|token| !matches!(**token, "*" | ">")).copied();
        if literal(0) == Some(INBOX) {
            return literal(1).map(|process| self.inbox(process)).into_iter().collect();
        }
        let overlaps = |home: &&Arc<Home>| {
            home.config.as_ref().is_some_and(|config| config.subjects.iter().any(|p| p.overlaps(pattern)))
        };
        let mut homes: Vec<_> = self.streams.values().filter(overlaps).cloned().collect();
        homes.extend(self.families.iter().filter(|(p, _)| p.overlaps(pattern)).map(|(_, home)| home.clone()));
        let in_one_family = self.families.iter().any(|(family, _)| family.covers(pattern));
        if !in_one_family {
            homes.push(self.other.clone());
        }
        homes
    }

    /// The configured stream that keeps all that can match.
    pub(super) fn covering(&self, pattern: &Pattern) -> Option<Arc<Home>> {
        let covers = |home: &&Arc<Home>| {
            home.config.as_ref().is_some_and(|config| config.subjects.iter().any(|p| p.covers(pattern)))
        };
        self.streams.values().find(covers).cloned()
    }

    /// A stream by name, built-in ones included.
    pub(super) fn stream(&self, name: &str) -> Option<Arc<Home>> {
        let built_in = self.families.iter().map(|(_, home)| home).chain([&self.other]);
        self.streams.get(name).or_else(|| built_in.into_iter().find(|home| home.name == name)).cloned()
    }

    fn inbox(&self, process: &str) -> Arc<Home> {
        Arc::new(Home {
            name: format!("inbox.{process}"),
            config: None,
            limits: Limits {
                max_messages: Some(INBOX_MESSAGES_MAX),
                expiry: Some(INBOX_EXPIRY),
                ..Limits::default()
            },
            key: inbox_key(&self.prefix, shard_of(process), process),
            stores: false,
        })
    }
}

fn configured(prefix: &str, config: StreamConfig) -> Arc<Home> {
    let limits = Limits {
        max_messages: config.max_messages,
        max_age: config.max_age,
        max_bytes: config.max_bytes,
        exact: true,
        expiry: None,
    };
    Arc::new(Home {
        name: config.name.clone(),
        limits,
        key: stream_key(prefix, &config.name),
        stores: true,
        config: Some(config),
    })
}

/// Key of the hash in which the configured streams are entered.
pub(super) fn routes_key(prefix: &str) -> String {
    format!("{prefix}:{{bus}}:routes")
}

/// Key of the stream that tells of changes of the routes.
pub(super) fn control_key(prefix: &str) -> String {
    format!("{prefix}:{{bus}}:control")
}

fn inbox_key(prefix: &str, shard: u32, process: &str) -> String {
    format!("{prefix}:inbox:{{inbox.{shard}}}:{process}")
}

/// The shard of an inbox, the same for everybody: FNV-1a of the process's token.
fn shard_of(process: &str) -> u32 {
    let hash = process
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash % INBOX_SHARDS
}

fn stream_key(prefix: &str, name: &str) -> String {
    format!("{prefix}:{{{name}}}")
}

/// A stream as it is entered on the server, in JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StreamRecord {
    subjects: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_age_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_messages: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_bytes: Option<u64>,
    #[serde(default)]
    replicas: u8,
}

impl StreamRecord {
    pub(super) fn of(config: &StreamConfig) -> Self {
        Self {
            subjects: config.subjects.iter().map(ToString::to_string).collect(),
            max_age_ms: config.max_age.map(millis),
            max_messages: config.max_messages,
            max_bytes: config.max_bytes,
            replicas: config.replicas,
        }
    }

    /// The configuration; `None` when a newer version of the bus wrote what this one cannot read.
    pub(super) fn config(self, name: &str) -> Option<StreamConfig> {
        let subjects: Result<Vec<Pattern>, _> = self.subjects.into_iter().map(Pattern::new).collect();
        Some(StreamConfig {
            name: name.to_owned(),
            subjects: subjects.ok()?,
            max_age: self.max_age_ms.map(Duration::from_millis),
            max_messages: self.max_messages,
            max_bytes: self.max_bytes,
            replicas: self.replicas,
        })
    }
}

/// A duration as Redis counts it; one that is not nothing stays at least 1 ms.
pub(super) fn millis(duration: Duration) -> u64 {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    // Lua counts in floating point: past 2^53 it would not be exact.
    if duration.is_zero() { 0 } else { millis.clamp(1, 1 << 52) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes() -> Routes {
        let config = StreamConfig::new("hot", vec!["nachos.tool.hot.>".parse().unwrap()]);
        Routes::new("p", "nachos", (1, 1), [config])
    }

    #[test]
    fn every_subject_has_one_home() {
        for (subject, key) in [
            ("nachos.tool.hot.call", "p:{hot}"),
            ("nachos.tool.search.call", "p:{family.tool}"),
            ("nachos.tool", "p:{family.other}"),
            ("nachos.dead.s.c", "p:{family.dead}"),
            ("other.tool.x", "p:{family.other}"),
            ("_INBOX.abc.1.2", "p:inbox:{inbox.11}:abc"),
            ("_INBOX", "p:{family.other}"),
        ] {
            assert_eq!(routes().home(&subject.parse().unwrap()).key, key, "{subject}");
        }
    }

    #[test]
    fn a_pattern_touches_every_home_of_what_it_matches() {
        let routes = routes();
        for pattern in
            ["nachos.tool.*.call", "nachos.>", ">", "*.tool.>", "nachos.tool.hot.call", "a.b", "nachos.*"]
        {
            let pattern: Pattern = pattern.parse().unwrap();
            let touched: Vec<_> = routes.touched(&pattern).iter().map(|home| home.key.clone()).collect();
            for subject in
                ["nachos.tool.hot.call", "nachos.tool.x.call", "nachos.tool", "a.b", "nachos.llm.x"]
            {
                let subject: Subject = subject.parse().unwrap();
                if pattern.matches(&subject) {
                    assert!(
                        touched.contains(&routes.home(&subject).key),
                        "{pattern} and {subject}: {touched:?}"
                    );
                }
            }
        }
        let only: Vec<_> = routes.touched(&"nachos.llm.*".parse().unwrap());
        assert_eq!(only.len(), 1, "one family, one reader");
        assert_eq!(routes.touched(&"_INBOX.abc.>".parse().unwrap())[0].key, "p:inbox:{inbox.11}:abc");
    }

    #[test]
    fn who_answers_is_listed_wherever_a_request_may_go_now_and_next() {
        let keys = |routes: &Routes, pattern: &str| -> Vec<String> {
            let homes = routes.listing(&pattern.parse().unwrap());
            homes.iter().map(|home| home.key.clone()).collect()
        };
        let mut routes = routes();
        assert_eq!(keys(&routes, "nachos.tool.hot.call"), ["p:{hot}"]);
        assert_eq!(keys(&routes, "nachos.tool.cold.call"), ["p:{family.tool}"]);
        let cold = StreamConfig::new("cold", vec!["nachos.tool.cold.>".parse().unwrap()]);
        routes.pending = Some(("cold".to_owned(), Some(cold.clone())));
        assert_eq!(keys(&routes, "nachos.tool.cold.call"), ["p:{family.tool}", "p:{cold}"]);
        routes.pending = Some(("hot".to_owned(), None));
        assert_eq!(keys(&routes, "nachos.tool.hot.call"), ["p:{hot}", "p:{family.tool}"]);
        assert_eq!(keys(&routes, "nachos.tool.*.call"), ["p:{hot}", "p:{family.tool}"]);
        assert!(keys(&routes, "_INBOX.abc.1").is_empty());
        let concerned = routes.concerned("hot", &cold.subjects);
        assert_eq!(concerned[0].key, "p:{family.tool}");
    }

    #[test]
    fn slots_that_are_needed_are_few() {
        use super::super::slots::slot;
        let keys: Vec<String> = routes().keys().collect();
        let slots: std::collections::BTreeSet<u16> = keys.iter().map(|key| slot(key)).collect();
        assert_eq!(slots.len(), 1 + FAMILIES.len() + 1 + 16 + 1);
        assert!(slots.contains(&slot("p:{bus}:control")) && slots.contains(&slot("p:{hot}:version")));
        assert!(slots.contains(&slot(&routes().inbox("abc").key)));
    }

    #[test]
    fn stream_records_round_trip() {
        let mut config = StreamConfig::new("s", vec!["a.>".parse().unwrap()]);
        config.max_age = Some(Duration::from_secs(5));
        config.max_bytes = Some(7);
        let text = serde_json::to_string(&StreamRecord::of(&config)).unwrap();
        let read: StreamRecord = serde_json::from_str(&text).unwrap();
        assert_eq!(read.config("s").unwrap(), config);
    }
}
