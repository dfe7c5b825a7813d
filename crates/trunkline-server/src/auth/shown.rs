//! Permissions as their user is shown them, in nats-server's shape.

use serde::Serialize;
use trunkline::config::{Permissions as Config, SubjectRule, SubjectRules};

/// What a user may do, in words.
#[derive(Debug, Serialize)]
pub(crate) struct ShownPermissions {
    publish: Rules,
    subscribe: Rules,
    #[serde(skip_serializing_if = "Option::is_none")]
    responses: Option<Responses>,
}

#[derive(Debug, Serialize)]
struct Rules {
    #[serde(skip_serializing_if = "Option::is_none")]
    allow: Option<Box<[Box<str>]>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    deny: Box<[Box<str>]>,
}

#[derive(Debug, Serialize)]
struct Responses {
    max: u32,
    /// Nanoseconds.
    ttl: u128,
}

impl ShownPermissions {
    pub(super) fn new(config: &Config) -> Self {
        let responses = config.allow_responses.as_ref();
        Self {
            publish: Rules::new(&config.publish),
            subscribe: Rules::new(&config.subscribe),
            responses: responses.map(|it| Responses { max: it.max, ttl: it.expires.as_nanos() }),
        }
    }
}

impl Rules {
    fn new(rules: &SubjectRules) -> Self {
        Self { allow: rules.allow.as_deref().map(texts), deny: texts(&rules.deny) }
    }
}

/// As they are written down: `PATTERN`, or `PATTERN QUEUE`.
fn texts(rules: &[SubjectRule]) -> Box<[Box<str>]> {
    let text = |rule: &SubjectRule| match &rule.queue {
        Some(queue) => format!("{} {queue}", rule.pattern).into(),
        None => rule.pattern.as_str().into(),
    };
    rules.iter().map(text).collect()
}
