//! TOML: a parsed document in, one [`Node`] out, with the positions that the parser kept.

use std::ops::Range;

use toml_edit::{Document, Item, TableLike, Value as TomlValue};

use super::error::ConfigError;
use super::tree::{Name, Node, Origin, Value};

/// Reads one document. `source` is the origin of the text as a whole; every node gets its own position in it.
pub(super) fn parse(text: &str, source: &Origin, errors: &mut Vec<ConfigError>) -> Option<Node> {
    let line_starts =
        std::iter::once(0).chain(text.match_indices('\n').map(|(newline, _)| newline + 1)).collect();
    let reader = Reader { text, line_starts, source };
    match Document::parse(text) {
        Ok(document) => Some(reader.table(document.as_table(), source.clone())),
        Err(error) => {
            errors.push(ConfigError::Syntax {
                origin: reader.origin(error.span(), source),
                // The parser's message may span lines; the first says it.
                reason: format!("not valid TOML: {}", error.message().lines().next().unwrap_or_default()),
            });
            None
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    /// Byte offset of every line, so that a position costs a binary search and not a scan of the file.
    line_starts: Vec<usize>,
    source: &'a Origin,
}

impl Reader<'_> {
    fn table(&self, table: &dyn TableLike, origin: Origin) -> Node {
        let pairs = table
            .iter()
            .map(|(text, item)| {
                let key_span = table.key(text).and_then(toml_edit::Key::span);
                let name = Name { text: text.to_owned(), origin: self.origin(key_span, &origin) };
                let node = self.item(item, &name.origin);
                (name, node)
            })
            .collect();
        Node { value: Value::Map(pairs), origin }
    }

    fn item(&self, item: &Item, near: &Origin) -> Node {
        let origin = self.origin(item.span(), near);
        match item {
            Item::None => Node { value: Value::Null, origin },
            Item::Value(value) => self.value(value, near),
            Item::Table(table) => self.table(table, origin),
            Item::ArrayOfTables(tables) => Node {
                value: Value::List(
                    tables
                        .iter()
                        .map(|table| self.table(table, self.origin(table.span(), &origin)))
                        .collect(),
                ),
                origin,
            },
        }
    }

    fn value(&self, value: &TomlValue, near: &Origin) -> Node {
        let origin = self.origin(value.span(), near);
        let value = match value {
            TomlValue::String(text) => Value::Text(text.value().clone()),
            TomlValue::Integer(number) => Value::Text(number.value().to_string()),
            TomlValue::Float(number) => Value::Text(number.value().to_string()),
            TomlValue::Boolean(flag) => Value::Text(flag.value().to_string()),
            TomlValue::Datetime(time) => Value::Text(time.value().to_string()),
            TomlValue::Array(items) => {
                Value::List(items.iter().map(|item| self.value(item, &origin)).collect())
            }
            TomlValue::InlineTable(table) => return self.table(table, origin),
        };
        Node { value, origin }
    }

    fn origin(&self, span: Option<Range<usize>>, near: &Origin) -> Origin {
        let Some(span) = span else {
            return near.clone();
        };
        let line = self.line_starts.partition_point(|&start| start <= span.start);
        let line_start = self.line_starts[line.saturating_sub(1)];
        let column = self.text.get(line_start..span.start).map_or(1, |before| before.chars().count() + 1);
        self.source.at(line, column)
    }
}
