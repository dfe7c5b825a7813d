//! Every key with its path, environment variable, default and documentation, derived from the schema.

use std::sync::LazyLock;

use super::settings::{Field, Shape};

/// What all variables of Trunkline begin with.
pub(crate) const ENV_PREFIX: &str = "TRUNKLINE_";

/// A key of the configuration, as reference pages and shell completion list it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Key {
    /// Path of the key; `[]` and `{name}` stand for the items of a list and of a map.
    pub path: String,
    /// Its environment variable; `None` inside lists and maps, which are given as a whole.
    pub env: Option<String>,
    /// The default as it would be written in a file; `None` when nothing is set.
    pub default: Option<&'static str>,
    /// Smallest and largest value allowed.
    pub range: Option<(&'static str, &'static str)>,
    /// What it means.
    pub doc: String,
    /// Whether its value is hidden wherever values are shown.
    pub secret: bool,
    pub(crate) shape: &'static Shape,
}

impl Key {
    /// Whether it only groups other keys.
    pub fn is_section(&self) -> bool {
        matches!(self.shape, Shape::Section(_))
    }

    /// Whether its value is text as it stands, and not a list, map or section written as inline YAML.
    pub(crate) fn is_text(&self) -> bool {
        matches!(self.shape, Shape::Leaf { .. })
    }
}

static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| {
    let mut keys = Vec::new();
    if let Shape::Section(section) = &super::SHAPE {
        list(section.fields, "", true, &mut keys);
    }
    keys
});

/// All keys in the order of the documentation, sections before what is in them.
pub fn keys() -> &'static [Key] {
    &KEYS
}

/// The name of the variable that sets `path`.
///
/// `TRUNKLINE_` and the path in capitals with `_` for `.`; the section `messaging`, whose keys are the everyday ones,
/// is left out: `messaging.consumer.ack_wait` is `TRUNKLINE_CONSUMER_ACK_WAIT`, `server.limits.max_payload` is
/// `TRUNKLINE_SERVER_LIMITS_MAX_PAYLOAD`. The long form, `TRUNKLINE_MESSAGING_CONSUMER_ACK_WAIT`, is accepted too.
pub fn env_name(path: &str) -> String {
    long_env_name(path.strip_prefix("messaging.").unwrap_or(path))
}

fn long_env_name(path: &str) -> String {
    format!("{ENV_PREFIX}{}", path.replace('.', "_").to_uppercase())
}

/// The key that a variable sets, by its short or its long name.
pub(crate) fn by_env(name: &str) -> Option<&'static Key> {
    keys()
        .iter()
        .filter(|key| key.env.is_some())
        .find(|key| key.env.as_deref() == Some(name) || long_env_name(&key.path) == name)
}

/// The key with this path, outside of lists and maps.
pub(crate) fn by_path(path: &str) -> Option<&'static Key> {
    keys().iter().find(|key| key.env.is_some() && key.path == path)
}

/// The variable that comes closest to an unknown one, with the number of edits between them.
pub(crate) fn nearest_env(name: &str) -> Option<(&'static str, usize)> {
    keys()
        .iter()
        .filter_map(|key| key.env.as_deref())
        .map(|env| (env, strsim::damerau_levenshtein(env, name)))
        .min_by_key(|&(_, distance)| distance)
}

/// The key that was probably meant by `name` in `section`: one of its keys with a similar name, else the key of another
/// section with the same name.
pub(crate) fn nearest(section: &str, name: &str, fields: &[Field]) -> Option<String> {
    let written = name.to_lowercase().replace('-', "_");
    let sibling = closest(&written, fields.iter().map(|field| field.name)).map(|found| match section {
        "" => found.to_owned(),
        _ => format!("{section}.{found}"),
    });
    sibling.or_else(|| {
        keys()
            .iter()
            .filter(|key| key.env.is_some())
            .find(|key| key.path.rsplit('.').next() == Some(&written))
            .map(|key| key.path.clone())
    })
}

/// The key that was probably meant by the unknown `path`.
pub(crate) fn nearest_path(path: &str) -> Option<String> {
    let paths = keys().iter().filter(|key| key.env.is_some()).map(|key| key.path.as_str());
    closest(path, paths).map(str::to_owned)
}

/// The candidate that differs from `name` in at most a third of its letters.
pub(crate) fn closest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let edits_max = (name.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (candidate, strsim::damerau_levenshtein(candidate, name)))
        .filter(|&(_, edits)| edits <= edits_max)
        .min_by_key(|&(_, edits)| edits)
        .map(|(candidate, _)| candidate)
}

fn list(fields: &'static [Field], prefix: &str, outside: bool, keys: &mut Vec<Key>) {
    for field in fields {
        let path = format!("{prefix}{}", field.name);
        keys.push(Key {
            env: outside.then(|| env_name(&path)),
            default: field.rule.default,
            range: field.rule.range,
            doc: field.doc.concat().trim().to_owned(),
            secret: field.rule.secret || matches!(field.shape, Shape::Leaf { secret: true }),
            shape: &field.shape,
            path: path.clone(),
        });
        descend(&field.shape, &path, outside, keys);
    }
}

fn descend(shape: &'static Shape, path: &str, outside: bool, keys: &mut Vec<Key>) {
    match shape {
        Shape::Leaf { .. } => {}
        Shape::List(item) => descend(item, &format!("{path}[]"), false, keys),
        Shape::Map(item) => descend(item, &format!("{path}.{{name}}"), false, keys),
        Shape::Section(section) => list(section.fields, &format!("{path}."), outside, keys),
    }
}
