//! What a user may publish and subscribe to: compiled once, decided without a look at any connection.
//!
//! See <https://docs.nats.io/running-a-nats-service/configuration/securing_nats/authorization>.

use std::time::Duration;

use bytestring::ByteString;
use hashbrown::HashSet;
use trunkline::Pattern;
use trunkline::config::{Permissions as Config, SubjectRule};

use super::shown::ShownPermissions;

/// How a responder may answer requests that it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Responses {
    /// So many messages for each request.
    pub(crate) max: u32,
    /// So long after the request.
    pub(crate) expires: Duration,
}

/// What a user may do.
#[derive(Debug)]
pub(crate) struct Permissions {
    publish_allow: Option<PatternSet>,
    publish_deny: PatternSet,
    subscribe_allow: Option<Vec<SubjectRule>>,
    subscribe_deny: Vec<SubjectRule>,
    pub(crate) responses: Option<Responses>,
    /// For its user to see.
    pub(crate) shown: ShownPermissions,
}

impl Permissions {
    pub(crate) fn new(config: &Config) -> Self {
        let patterns = |rules: &[SubjectRule]| PatternSet::new(rules.iter().map(|rule| rule.pattern.clone()));
        let responses = config.allow_responses.as_ref();
        let responses = responses.map(|it| Responses { max: it.max, expires: it.expires });
        let publish = &config.publish;
        let publish_allow = match &publish.allow {
            Some(allowed) => Some(patterns(allowed)),
            // Whoever is allowed to answer, and told nothing else, may only answer; as on nats-server.
            None => responses.map(|_| PatternSet::default()),
        };
        Self {
            publish_allow,
            publish_deny: patterns(&publish.deny),
            subscribe_allow: config.subscribe.allow.clone(),
            subscribe_deny: config.subscribe.deny.clone(),
            responses,
            shown: ShownPermissions::new(config),
        }
    }

    /// Whether a message may go to `subject`, answers to requests aside.
    pub(crate) fn may_publish(&self, subject: &[u8]) -> bool {
        // A subject that is none is in no pattern, so it is neither allowed nor denied by name.
        let Some(subject) = text_of(subject) else { return self.publish_allow.is_none() };
        self.publish_allow.as_ref().is_none_or(|allowed| allowed.matches(subject))
            && !self.publish_deny.matches(subject)
    }

    /// Whether a client is told of what is no pattern that it is none, and not that it may not have it. There is never such
    /// a subscription; this decides as nats-server does, which looks at permissions first.
    pub(crate) fn may_ask_for(&self, subject: &[u8], queue: Option<&[u8]>) -> bool {
        let queue = queue.map(|queue| std::str::from_utf8(queue).unwrap_or_default());
        let subject = text_of(subject);
        let named = |pattern: &Pattern| subject.is_some_and(|subject| pattern.matches_str(subject));
        let allowed = match &self.subscribe_allow {
            None => true,
            Some(rules) => decide(rules, queue, named).unwrap_or(false),
        };
        let mut denied = self.subscribe_deny.iter().filter(|rule| named(&rule.pattern));
        allowed && !denied.any(|rule| is_meant(rule, queue))
    }

    /// Whether there may be a subscription of this pattern and group. A part of it may still be withheld.
    pub(crate) fn may_subscribe(&self, pattern: &Pattern, queue: Option<&str>) -> bool {
        let allowed = match &self.subscribe_allow {
            None => true,
            // The whole pattern has to be inside of what is allowed, or it would lead out of it.
            Some(rules) => decide(rules, queue, |allowed| allowed.covers(pattern)).unwrap_or(false),
        };
        // As nats-server compares: wildcards of the subscription are tokens like others.
        let named = |denied: &Pattern| denied.matches_str(pattern.as_str());
        let mut denied = self.subscribe_deny.iter().filter(|rule| named(&rule.pattern));
        allowed && !denied.any(|rule| is_meant(rule, queue))
    }

    /// What is denied of a subscription that is allowed; `None` when nothing is.
    pub(crate) fn withheld(&self, pattern: &Pattern, queue: Option<&str>) -> Option<PatternSet> {
        let denied = self.subscribe_deny.iter();
        let denied = denied.filter(|rule| is_meant(rule, queue) && rule.pattern.overlaps(pattern));
        let withheld = PatternSet::new(denied.map(|rule| rule.pattern.clone()));
        (!withheld.is_empty()).then_some(withheld)
    }
}

/// A subject as text; `None` where it is not UTF-8 or has an empty token, which is in no pattern at all.
fn text_of(subject: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(subject).ok()?;
    (!text.split('.').any(str::is_empty)).then_some(text)
}

/// Whether a rule for queue groups is about this group; one for none is about every subscription.
fn is_meant(rule: &SubjectRule, queue: Option<&str>) -> bool {
    match (&rule.queue, queue) {
        (None, _) => true,
        (Some(groups), Some(queue)) => groups.as_str() == queue || groups.matches_str(queue),
        (Some(_), None) => false,
    }
}

/// What the allowing rules whose pattern `fits` say of a subscription in `queue`; `None` when there is none.
///
/// - `foo`: any subscription to foo, in any group
/// - `foo v1`: only in group v1
/// - `foo` and `foo v1`: without a group or in v1, in no other
fn decide(rules: &[SubjectRule], queue: Option<&str>, fits: impl Fn(&Pattern) -> bool) -> Option<bool> {
    let (mut plain, mut grouped) = (None, None);
    for rule in rules.iter().filter(|rule| fits(&rule.pattern)) {
        match (&rule.queue, queue) {
            (None, _) => plain = Some(true),
            (Some(_), Some(_)) => grouped = Some(grouped.unwrap_or(false) || is_meant(rule, queue)),
            (Some(_), None) => {}
        }
    }
    grouped.or(plain)
}

/// Patterns, of which those without wildcards are found by one look.
#[derive(Debug, Default)]
pub(crate) struct PatternSet {
    literals: HashSet<ByteString, foldhash::quality::RandomState>,
    wildcards: Vec<Pattern>,
}

impl PatternSet {
    fn new(patterns: impl IntoIterator<Item = Pattern>) -> Self {
        let mut set = Self::default();
        for pattern in patterns {
            match pattern.has_wildcard() {
                true => set.wildcards.push(pattern),
                false => {
                    set.literals.insert(pattern.as_str().into());
                }
            }
        }
        set
    }

    fn is_empty(&self) -> bool {
        self.literals.is_empty() && self.wildcards.is_empty()
    }

    pub(crate) fn matches(&self, subject: &str) -> bool {
        self.literals.contains(subject) || self.wildcards.iter().any(|pattern| pattern.matches_str(subject))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline::config::Loader;

    fn permissions(yaml: &str) -> Permissions {
        let env = [("TRUNKLINE_SERVER_PERMISSIONS", yaml)];
        let loaded = Loader::new().env(env).working_dir("/nonexistent").load().expect(yaml);
        Permissions::new(&loaded.config.server.permissions)
    }

    #[test]
    fn publishing() {
        let cases = [
            ("{}", "a", true),
            ("{publish: [a.*]}", "a.b", true),
            ("{publish: [a.*]}", "a", false),
            ("{publish: [a, 'b.>']}", "b.c.d", true),
            ("{publish: []}", "a", false),
            ("{publish: {deny: [a.b]}}", "a.b", false),
            ("{publish: {deny: [a.b]}}", "a.c", true),
            ("{publish: {allow: ['a.>'], deny: ['a.*.secret']}}", "a.b.secret", false),
            ("{publish: {allow: ['a.>'], deny: ['a.*.secret']}}", "a.b.public", true),
            ("{allow_responses: true}", "a", false),
            ("{allow_responses: true, publish: a}", "a", true),
            ("{subscribe: b}", "a", true),
            // What is no subject is in no pattern.
            ("{publish: ['>']}", "a..b", false),
            ("{publish: {deny: ['>']}}", "a..b", true),
        ];
        for (yaml, subject, expected) in cases {
            assert_eq!(permissions(yaml).may_publish(subject.as_bytes()), expected, "{subject} with {yaml}");
        }
        assert!(!permissions("{publish: '>'}").may_publish(b"a\xff"));
        assert!(permissions("{publish: {deny: [a]}}").may_publish(b"b\xff"));
    }

    #[test]
    fn subscribing() {
        let groups = "{subscribe: [q.x v1, q.y, q.y v2, q.z v.*]}";
        let cases = [
            ("{}", "a", None, true),
            ("{subscribe: foo.*}", "foo.a", None, true),
            ("{subscribe: foo.*}", "foo.*", Some("any"), true),
            ("{subscribe: foo.*}", "foo.>", None, false),
            ("{subscribe: foo.*}", "*", None, false),
            ("{subscribe: foo.*}", ">", None, false),
            ("{subscribe: []}", "a", None, false),
            ("{subscribe: {deny: [foo.no]}}", "foo.no", None, false),
            ("{subscribe: {deny: [foo.no]}}", "foo.*", None, true),
            ("{subscribe: {deny: ['bar.>']}}", "bar.*", None, false),
            (groups, "q.x", None, false),
            (groups, "q.x", Some("v1"), true),
            (groups, "q.x", Some("v2"), false),
            (groups, "q.y", None, true),
            (groups, "q.y", Some("v1"), false),
            (groups, "q.y", Some("v2"), true),
            (groups, "q.z", Some("v.1"), true),
            (groups, "q.z", Some("v"), false),
            ("{subscribe: {deny: [foo q]}}", "foo", Some("q"), false),
            ("{subscribe: {deny: [foo q]}}", "foo", Some("r"), true),
            ("{subscribe: {deny: [foo q]}}", "foo", None, true),
        ];
        for (yaml, pattern, queue, expected) in cases {
            let allowed = permissions(yaml).may_subscribe(&pattern.parse().unwrap(), queue);
            assert_eq!(allowed, expected, "{pattern} {queue:?} with {yaml}");
        }
    }

    #[test]
    fn asking_for_what_is_no_pattern() {
        let cases = [
            ("{}", "a.>.b", true),
            ("{subscribe: [a]}", "a..b", false),
            ("{subscribe: ['>']}", "a..b", false),
            ("{subscribe: ['a.>']}", "a.>.b", true),
            ("{subscribe: {deny: ['>']}}", "a.>.b", false),
            ("{subscribe: {deny: ['>']}}", "a..b", true),
            // What is denied to a group is denied to its members alone.
            ("{subscribe: {deny: ['a.> q']}}", "a.>.b", true),
        ];
        for (yaml, subject, expected) in cases {
            let told = permissions(yaml).may_ask_for(subject.as_bytes(), None);
            assert_eq!(told, expected, "{subject} with {yaml}");
        }
    }

    #[test]
    fn what_is_denied_inside_of_a_subscription_is_withheld() {
        let permissions = permissions("{subscribe: {deny: [foo.no, '*.secret', 'bar.> q']}}");
        let withheld = |pattern: &str, queue| permissions.withheld(&pattern.parse().unwrap(), queue);
        assert!(withheld("baz.*.c", None).is_none());
        assert!(withheld("bar.x", None).is_none(), "only groups named q are denied that");
        let foo = withheld("foo.*", None).expect("two of the rules overlap");
        assert!(foo.matches("foo.no") && foo.matches("foo.secret") && !foo.matches("foo.yes"));
        let bar = withheld("bar.>", Some("q")).expect("the rule of the group overlaps");
        assert!(bar.matches("bar.x.y"));
    }
}
