//! The one shape that every source of configuration is read into: nested maps, lists and texts, each with its origin.
//!
//! Scalars stay text as written: their type is the schema's business, so `no` in an environment map stays `no` and
//! `1.10` stays `1.10`. Nothing here knows a key by name.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::settings::{Section, Shape};

/// Where a value came from; it stands at the head of every error about the value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Nothing set it: the default that the key documents.
    Default,
    /// An environment variable, by name.
    Env(Arc<str>),
    /// A place in the configuration file.
    File {
        /// The path as it was given.
        path: Arc<Path>,
        /// Line, counted from 1; 0 stands for the file as a whole.
        line: usize,
        /// Column in characters, counted from 1.
        column: usize,
    },
    /// A command-line flag, by the name the caller gave it.
    Flag(Arc<str>),
}

impl Origin {
    /// The same source at another position; only files have positions.
    pub(crate) fn at(&self, line: usize, column: usize) -> Origin {
        match self {
            Origin::File { path, .. } => Origin::File { path: path.clone(), line, column },
            other => other.clone(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Env(name) | Origin::Flag(name) => f.write_str(name),
            Origin::File { path, line: 0, .. } => write!(f, "{}", path.display()),
            Origin::File { path, line, column } => {
                write!(f, "{}:{line}:{column}", path.display())
            }
        }
    }
}

impl serde::Serialize for Origin {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A value as written, with its origin. Deliberately without `Debug`: it holds secrets before anyone knows that they are.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

#[derive(Clone)]
pub(crate) enum Value {
    /// Written but empty (`key:` or `null`), which means the same as not written.
    Null,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Name, Node)>),
}

/// The key of a map, with its own position: errors about a key point at the key and not at its value.
#[derive(Clone)]
pub(crate) struct Name {
    pub(crate) text: String,
    pub(crate) origin: Origin,
}

impl Node {
    pub(crate) fn text(text: impl Into<String>, origin: Origin) -> Node {
        Node { value: Value::Text(text.into()), origin }
    }

    pub(crate) fn empty_map(origin: Origin) -> Node {
        Node { value: Value::Map(Vec::new()), origin }
    }

    /// `self` wrapped into the maps that lead to `path`.
    pub(crate) fn nested(self, path: &str) -> Node {
        path.rsplit('.').fold(self, |node, segment| {
            let origin = node.origin.clone();
            let name = Name { text: segment.to_owned(), origin: origin.clone() };
            Node { value: Value::Map(vec![(name, node)]), origin }
        })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        self.entry(name).map(|(_, node)| node)
    }

    pub(crate) fn entry(&self, name: &str) -> Option<(&Name, &Node)> {
        match &self.value {
            Value::Map(pairs) => {
                pairs.iter().find(|(key, _)| key.text == name).map(|(key, node)| (key, node))
            }
            _ => None,
        }
    }

    pub(crate) fn item(&self, index: usize) -> Option<&Node> {
        match &self.value {
            Value::List(items) => items.get(index),
            _ => None,
        }
    }

    /// The node that a printed key such as `messaging.streams[1].name` stands for.
    pub(crate) fn find(&self, key: &str) -> Option<&Node> {
        key.split('.').try_fold(self, |node, segment| {
            let (name, indexes) = segment.split_once('[').unwrap_or((segment, ""));
            indexes
                .split('[')
                .filter(|index| !index.is_empty())
                .try_fold(node.get(name)?, |node, index| node.item(index.trim_end_matches(']').parse().ok()?))
        })
    }

    /// Writes out every short form that `shape` allows, so that whoever reads the tree meets one form only.
    fn expand(&mut self, shape: &Shape) {
        if let Shape::Section(Section { shorthand: Some(shorthand), .. }) = shape
            && let Some(long) = shorthand(self)
        {
            *self = long;
        }
        match (&mut self.value, shape) {
            (Value::Map(pairs), Shape::Section(section)) => {
                for (name, node) in pairs {
                    if let Some(field) = section.field(&name.text) {
                        node.expand(&field.shape);
                    }
                }
            }
            (Value::Map(pairs), Shape::Map(item)) => pairs.iter_mut().for_each(|(_, node)| node.expand(item)),
            (Value::List(items), Shape::List(item)) => items.iter_mut().for_each(|node| node.expand(item)),
            _ => {}
        }
    }

    /// Forgets a section of which the file has set some key, and returns where the first one of them was.
    pub(crate) fn forget_from_file(&mut self, path: &str) -> Option<Origin> {
        let (parents, last) = path.rsplit_once('.').unwrap_or(("", path));
        let parent =
            parents.split('.').filter(|segment| !segment.is_empty()).try_fold(self, |node, segment| {
                let Value::Map(pairs) = &mut node.value else { return None };
                pairs.iter_mut().find(|(name, _)| name.text == segment).map(|(_, node)| node)
            })?;
        let Value::Map(siblings) = &mut parent.value else { return None };
        let at = siblings.iter().position(|(name, _)| name.text == last)?;
        let Value::Map(keys) = &siblings[at].1.value else { return None };
        let of_file = |origin: &Origin| matches!(origin, Origin::File { .. });
        let origin = keys.iter().map(|(_, node)| &node.origin).find(|origin| of_file(origin))?.clone();
        siblings.remove(at);
        Some(origin)
    }

    /// Lays `over` on top. Sections are joined key by key; everything else, lists and free maps included, is replaced as
    /// a whole, because half a list from one source and half from another is what nobody meant.
    pub(crate) fn overlay(&mut self, mut over: Node, shape: &Shape) {
        over.expand(shape);
        self.join(over, shape);
    }

    fn join(&mut self, over: Node, shape: &Shape) {
        match (&mut self.value, over.value, shape) {
            (_, Value::Null, _) => {}
            (Value::Map(low), Value::Map(high), Shape::Section(section)) => {
                for (name, node) in high {
                    let field = section.field(&name.text);
                    match (low.iter_mut().find(|(key, _)| key.text == name.text), field) {
                        (Some((_, existing)), Some(field)) => existing.join(node, &field.shape),
                        // A name the schema does not know stays, so that every source's mistake is reported.
                        _ => low.push((name, node)),
                    }
                }
            }
            // What should be a section and is not stays too: keys of another source must not hide the mistake.
            (Value::Text(_) | Value::List(_), Value::Map(_), Shape::Section(_)) => {}
            (_, value, _) => {
                *self = Node { value, origin: over.origin };
            }
        }
    }
}
