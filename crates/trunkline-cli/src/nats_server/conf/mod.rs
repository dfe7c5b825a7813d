//! The syntax of nats-server's configuration files: text in, a tree of values with their places out.
//!
//! What a key means is not known here, and nothing here opens a file or asks for a variable: that is what [`Surroundings`]
//! are for. The syntax is described on
//! <https://docs.nats.io/running-a-nats-service/configuration#configuration-syntax>.

mod bare;
mod parser;

use std::sync::Arc;

pub(crate) use parser::parse;

/// Deepest nesting of maps and lists, and of files that include each other.
const DEPTH_MAX: usize = 64;

/// A place in a file, as nats-server counts: lines from 1; columns from 0 on the first line and from 1 on all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: Arc<str>,
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A value and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) place: Place,
}

/// What may stand behind a key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// In quotes, or bare.
    Text(String),
    /// With its unit multiplied in.
    Integer(i64),
    Float(f64),
    Bool(bool),
    List(Vec<Node>),
    Map(Map),
}

impl Value {
    /// What messages call a value of this kind.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "string",
            Self::Integer(_) => "integer",
            Self::Float(_) => "float",
            Self::Bool(_) => "boolean",
            Self::List(_) => "list",
            Self::Map(_) => "map",
        }
    }
}

/// Keys and their values in the order of the file; of two with one name the later one counts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Map {
    pub(crate) entries: Vec<Entry>,
}

impl Map {
    /// The value that counts.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entries.iter().rev().find(|entry| entry.key == key).map(|entry| &entry.node)
    }
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// Where the key stands.
    pub(crate) place: Place,
    pub(crate) node: Node,
    /// A variable refers to it, so that it may have any name.
    pub(crate) is_variable: bool,
}

/// What a file refers to.
pub(crate) trait Surroundings {
    /// The text of the file `name` that `from` includes, and the name to call it by.
    fn include(&self, from: &str, name: &str) -> std::io::Result<(Arc<str>, String)>;

    /// The value of a variable of the environment.
    fn variable(&self, name: &str) -> Option<String>;
}

/// A file that cannot be read as a configuration; the texts are nats-server's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyntaxError {
    #[error("Parse error on line {line}: '{message}'")]
    Text { line: usize, message: String },
    #[error("variable reference for '{name}' on line {line} can not be found")]
    Variable { name: String, line: usize },
    #[error("variable reference cycle for '{name}'")]
    VariableCycle { name: String },
    #[error("error parsing include file '{name}', {cause}")]
    Include { name: String, cause: String },
    #[error("error parsing include file '{name}', {source}")]
    Included { name: String, source: Box<SyntaxError> },
}

#[cfg(test)]
mod tests;
