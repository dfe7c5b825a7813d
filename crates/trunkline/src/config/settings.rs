//! The schema: what a key is, and how a value of each shape is read, checked and shown.
//!
//! Sections declare their keys with the macros of `declare`. What a type accepts stands in `values` and `urls`; what
//! several keys must fulfil together, in `check`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::error::ConfigError;
use super::tree::{Node, Origin, Value};
use super::{Entry, keys, yaml};

/// Longest piece of a value that an error repeats, in characters.
const SHOWN_CHARS_MAX: usize = 120;

/// How the value of a key is built up; sources are merged and environment values are read along it.
#[derive(Debug)]
pub(crate) enum Shape {
    Leaf { secret: bool },
    List(&'static Shape),
    Map(&'static Shape),
    Section(Section),
}

impl Shape {
    /// Whether what is written in the place of such a value may be a secret: where there is a password in it, or a list of
    /// what has one, a text that stands there by mistake may be that password.
    fn may_be_secret(&self) -> bool {
        match self {
            Shape::Leaf { secret } => *secret,
            Shape::List(of) | Shape::Map(of) => of.may_be_secret(),
            Shape::Section(section) => may_be_secret(section.fields),
        }
    }
}

/// As [`Shape::may_be_secret`], of a section; what its sections have is told to stand there.
fn may_be_secret(fields: &[Field]) -> bool {
    fields.iter().any(|field| !matches!(field.shape, Shape::Section(_)) && field.shape.may_be_secret())
}

/// A fixed set of keys.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) fields: &'static [Field],
    /// Writes a short form out, `None` if the value is not one: `publish: a.>` for `publish: {allow: [a.>]}`.
    pub(crate) shorthand: Option<fn(&Node) -> Option<Node>>,
}

impl Section {
    pub(crate) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// A key in its section.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) doc: &'static [&'static str],
    pub(crate) rule: Rule,
    pub(crate) shape: Shape,
}

/// What a key adds to its type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    /// The default as it would be written in a file.
    pub(crate) default: Option<&'static str>,
    /// Smallest and largest value, as they would be written.
    pub(crate) range: Option<(&'static str, &'static str)>,
    pub(crate) secret: bool,
    pub(crate) format: Format,
}

/// Which texts or numbers a key takes where the type alone does not say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Any,
    /// A number of bytes: `512MB`, `64MiB`.
    Bytes,
    /// `[A-Za-z0-9_-]+`.
    Name,
    /// `[A-Za-z0-9_:-]+`: legal in a Redis key outside of a hash tag and in a JetStream name.
    Prefix,
    /// One token of a subject.
    Token,
    /// A public user key of the nkeys scheme.
    Nkey,
}

impl Rule {
    pub(crate) const fn new() -> Rule {
        Rule { default: None, range: None, secret: false, format: Format::Any }
    }

    pub(crate) const fn default(mut self, text: &'static str) -> Rule {
        self.default = Some(text);
        self
    }

    pub(crate) const fn range(mut self, min: &'static str, max: &'static str) -> Rule {
        self.range = Some((min, max));
        self
    }

    pub(crate) const fn secret(mut self) -> Rule {
        self.secret = true;
        self
    }

    pub(crate) const fn format(mut self, format: Format) -> Rule {
        self.format = format;
        self
    }

    /// The rule of the elements of a list or map: the same, but an element that is absent has no default.
    const fn element(mut self) -> Rule {
        self.default = None;
        self
    }
}

/// A key during reading: its printed path and what the sources say about it.
pub(crate) struct Place<'a> {
    pub(crate) key: String,
    node: Option<&'a Node>,
    /// Origin of the nearest enclosing value that exists; errors about absent keys point there.
    near: &'a Origin,
}

impl<'a> Place<'a> {
    pub(crate) fn root(node: &'a Node) -> Place<'a> {
        Place { key: String::new(), node: Some(node), near: &node.origin }
    }

    /// The value, unless it is absent or empty.
    pub(crate) fn given(&self) -> Option<&'a Node> {
        self.node.filter(|node| !matches!(node.value, Value::Null))
    }

    pub(crate) fn origin(&self) -> Origin {
        self.given().map_or(Origin::Default, |node| node.origin.clone())
    }

    pub(crate) fn near(&self) -> Origin {
        self.node.map_or(self.near, |node| &node.origin).clone()
    }

    pub(crate) fn field(&self, name: &str) -> Place<'a> {
        let key = match self.key.as_str() {
            "" => name.to_owned(),
            parent => format!("{parent}.{name}"),
        };
        self.child(key, self.node.and_then(|node| node.get(name)))
    }

    pub(crate) fn index(&self, index: usize) -> Place<'a> {
        let node = self.node.and_then(|node| node.item(index));
        self.child(format!("{}[{index}]", self.key), node)
    }

    fn child(&self, key: String, node: Option<&'a Node>) -> Place<'a> {
        Place { key, node, near: self.node.map_or(self.near, |node| &node.origin) }
    }

    /// The same key with another value in the place of the written one.
    pub(crate) fn with<'b>(&self, node: &'b Node) -> Place<'b> {
        Place { key: self.key.clone(), node: Some(node), near: &node.origin }
    }

    /// The error for a value that `node` is and that is not `expected`.
    pub(crate) fn unexpected(&self, node: &Node, secret: bool, expected: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            origin: node.origin.clone(),
            key: match self.key.as_str() {
                "" => "the configuration".to_owned(),
                key => key.to_owned(),
            },
            value: describe(node, secret),
            expected: expected.into(),
        }
    }
}

/// A value as an error shows it.
pub(crate) fn describe(node: &Node, secret: bool) -> String {
    match &node.value {
        Value::Null => "empty".to_owned(),
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a map".to_owned(),
        Value::Text(_) if secret => "***".to_owned(),
        Value::Text(text) => {
            // A URL may stand where none is expected, so its credentials are cut out of any text.
            let text = super::urls::redact(text);
            match text.char_indices().nth(SHOWN_CHARS_MAX) {
                Some((end, _)) => format!("{:?}…", &text[..end]),
                None => format!("{text:?}"),
            }
        }
    }
}

/// Whether it is, or was meant to be, the secret half of an nkey, which is easily taken for the other one.
fn is_seed(text: &str) -> bool {
    text.trim_start().starts_with(['S', 's'])
}

/// A type that a key can have: a leaf, an optional value, a list, a map or a section.
pub(crate) trait Setting: Sized {
    const SHAPE: Shape;
    /// Whether `off` stands for "none" where the key is optional.
    const CAN_BE_OFF: bool = false;

    /// Reads the value and reports every mistake in it; `None` only after at least one was reported.
    fn read(place: &Place<'_>, rule: &Rule, errors: &mut Vec<ConfigError>) -> Option<Self>;

    /// Adds the line, or for a collection the lines, that `config show` prints for it.
    fn show(&self, place: &Place<'_>, rule: &Rule, entries: &mut Vec<Entry>);
}

/// A type whose value is one text.
pub(crate) trait Leaf: Sized {
    const SECRET: bool = false;
    const CAN_BE_OFF: bool = false;

    /// What the key takes, to complete "expected …".
    fn expected(rule: &Rule) -> Cow<'static, str>;
    fn parse(text: &str, rule: &Rule) -> Result<Self, Fault>;
    /// The value as `config show` prints it, without secrets.
    fn render(&self, rule: &Rule) -> Json;
}

/// Why a text is not a value of a [`Leaf`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Not of the type at all.
    Type,
    /// Outside of the rule's range.
    Range,
    /// Not a URL that can be used.
    Url(String),
    /// Not a subject or pattern.
    Subject(String),
}

impl<T: Leaf> Setting for T {
    const SHAPE: Shape = Shape::Leaf { secret: T::SECRET };
    const CAN_BE_OFF: bool = <T as Leaf>::CAN_BE_OFF;

    fn read(place: &Place<'_>, rule: &Rule, errors: &mut Vec<ConfigError>) -> Option<T> {
        let default = rule.default.map(|text| Node::text(text, Origin::Default));
        let Some(node) = place.given().or(default.as_ref()) else {
            errors.push(ConfigError::Missing { origin: place.near(), key: place.key.clone() });
            return None;
        };
        let secret = T::SECRET || rule.secret;
        let Value::Text(text) = &node.value else {
            errors.push(place.unexpected(node, secret, T::expected(rule)));
            return None;
        };
        let fault = match T::parse(text, rule) {
            Ok(value) => return Some(value),
            Err(fault) => fault,
        };
        let secret = secret || (rule.format == Format::Nkey && is_seed(text));
        let (origin, key) = (node.origin.clone(), place.key.clone());
        let value = describe(node, secret);
        errors.push(match (fault, rule.range) {
            (Fault::Range, Some((min, max))) => ConfigError::OutOfRange { origin, key, value, min, max },
            (Fault::Url(reason), _) => ConfigError::Url { origin, key, value, reason },
            (Fault::Subject(reason), _) => ConfigError::Subject { origin, key, value, reason },
            (Fault::Type | Fault::Range, _) => place.unexpected(node, secret, T::expected(rule)),
        });
        None
    }

    fn show(&self, place: &Place<'_>, rule: &Rule, entries: &mut Vec<Entry>) {
        let secret = T::SECRET || rule.secret;
        entries.push(Entry {
            key: place.key.clone(),
            value: match secret {
                true => Json::from("***"),
                false => self.render(rule),
            },
            origin: place.origin(),
            secret,
        });
    }
}

impl<T: Setting> Setting for Option<T> {
    const SHAPE: Shape = T::SHAPE;

    fn read(place: &Place<'_>, rule: &Rule, errors: &mut Vec<ConfigError>) -> Option<Self> {
        match place.given().map(|node| &node.value) {
            None if rule.default.is_none() => Some(None),
            Some(Value::Text(text)) if T::CAN_BE_OFF && matches!(text.as_str(), "off" | "false") => {
                Some(None)
            }
            _ => T::read(place, rule, errors).map(Some),
        }
    }

    fn show(&self, place: &Place<'_>, rule: &Rule, entries: &mut Vec<Entry>) {
        match self {
            Some(value) => value.show(place, rule, entries),
            None => entries.push(Entry {
                key: place.key.clone(),
                value: Json::Null,
                origin: place.origin(),
                secret: rule.secret || matches!(T::SHAPE, Shape::Leaf { secret: true }),
            }),
        }
    }
}

impl<T: Setting> Setting for Vec<T> {
    const SHAPE: Shape = Shape::List(&T::SHAPE);

    fn read(place: &Place<'_>, rule: &Rule, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let default = match (place.given(), rule.default) {
            (None, Some(text)) => inline(text, &Origin::Default, errors),
            _ => None,
        };
        let place = match &default {
            Some(node) => &place.with(node),
            None => place,
        };
        let Some(node) = place.given() else {
            return Some(Vec::new());
        };
        let Value::List(items) = &node.value else {
            let secret = rule.secret || T::SHAPE.may_be_secret();
            errors.push(place.unexpected(node, secret, "a list such as [a, b]"));
            return None;
        };
        // Every item is read before the first bad one counts, so that all of them are reported.
        let read: Vec<Option<T>> =
            (0..items.len()).map(|index| T::read(&place.index(index), &rule.element(), errors)).collect();
        read.into_iter().collect()
    }

    fn show(&self, place: &Place<'_>, rule: &Rule, entries: &mut Vec<Entry>) {
        let mut items = Vec::new();
        for (index, item) in self.iter().enumerate() {
            item.show(&place.index(index), &rule.element(), &mut items);
        }
        match T::SHAPE {
            // A list of plain values is one line; a list of sections is a line for every key of each.
            Shape::Leaf { .. } => entries.push(Entry {
                key: place.key.clone(),
                value: items.into_iter().map(|item| item.value).collect(),
                origin: place.origin(),
                secret: rule.secret,
            }),
            _ if self.is_empty() => entries.push(Entry {
                key: place.key.clone(),
                value: Json::Array(Vec::new()),
                origin: place.origin(),
                secret: false,
            }),
            _ => entries.append(&mut items),
        }
    }
}

impl<T: Setting> Setting for BTreeMap<String, T> {
    const SHAPE: Shape = Shape::Map(&T::SHAPE);

    fn read(place: &Place<'_>, rule: &Rule, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let Some(node) = place.given() else {
            return Some(BTreeMap::new());
        };
        let Value::Map(pairs) = &node.value else {
            let secret = rule.secret || T::SHAPE.may_be_secret();
            errors.push(place.unexpected(node, secret, "a map such as {name: value}"));
            return None;
        };
        let read: Vec<Option<(String, T)>> = pairs
            .iter()
            .map(|(name, _)| {
                let value = T::read(&place.field(&name.text), &rule.element(), errors)?;
                Some((name.text.clone(), value))
            })
            .collect();
        read.into_iter().collect()
    }

    fn show(&self, place: &Place<'_>, rule: &Rule, entries: &mut Vec<Entry>) {
        if self.is_empty() {
            entries.push(Entry {
                key: place.key.clone(),
                value: Json::Object(serde_json::Map::new()),
                origin: place.origin(),
                secret: false,
            });
        }
        for (name, value) in self {
            value.show(&place.field(name), &rule.element(), entries);
        }
    }
}

/// Reads a value given outside of a file as YAML, for keys that are not plain text.
pub(crate) fn inline(text: &str, origin: &Origin, errors: &mut Vec<ConfigError>) -> Option<Node> {
    yaml::parse(text, origin, errors)
}

/// Reports what in a section is not a key of it; `false` if it is not a section at all.
pub(crate) fn check_section(
    place: &Place<'_>,
    fields: &'static [Field],
    errors: &mut Vec<ConfigError>,
) -> bool {
    let Some(node) = place.given() else {
        return true;
    };
    let Value::Map(pairs) = &node.value else {
        let known: Vec<&str> = fields.iter().map(|field| field.name).collect();
        let expected = format!("a section with the keys {}", known.join(", "));
        errors.push(place.unexpected(node, may_be_secret(fields), expected));
        return false;
    };
    for (name, _) in pairs {
        if fields.iter().all(|field| field.name != name.text) {
            errors.push(ConfigError::UnknownKey {
                origin: name.origin.clone(),
                key: place.field(&name.text).key,
                nearest: keys::nearest(&place.key, &name.text, fields),
            });
        }
    }
    true
}
