//! YAML and, as a part of it, JSON: parser events in, one [`Node`] out.
//!
//! Only what a configuration needs is accepted. Anchors, aliases, merge keys, tags and several documents are refused with
//! their position rather than half supported.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::error::ConfigError;
use super::tree::{Name, Node, Origin, Value};

/// Deeper nesting than any key of the schema has; it bounds the recursion of whoever walks the tree.
const DEPTH_MAX: usize = 32;

/// Reads one document. `source` is the origin of the text as a whole; every node gets its own position in it.
/// Duplicate keys are added to `errors` without stopping, the first one counts.
pub(super) fn parse(text: &str, source: &Origin, errors: &mut Vec<ConfigError>) -> Option<Node> {
    match Builder::new(source).build(text, errors) {
        Ok(node) => Some(node),
        Err(error) => {
            errors.push(error);
            None
        }
    }
}

struct Builder<'a> {
    source: &'a Origin,
    /// Collections that are open, outermost first.
    open: Vec<Open>,
    root: Option<Node>,
}

struct Open {
    node: Node,
    /// In a map: the key whose value comes next.
    key: Option<Name>,
}

impl<'a> Builder<'a> {
    fn new(source: &'a Origin) -> Self {
        Builder { source, open: Vec::new(), root: None }
    }

    fn build(mut self, text: &str, errors: &mut Vec<ConfigError>) -> Result<Node, ConfigError> {
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| ConfigError::Syntax {
                origin: self.source.at(error.marker().line(), error.marker().col() + 1),
                reason: format!("not valid YAML: {}", error.info()),
            })?;
            self.on_event(event, span, errors)?;
        }
        Ok(self.root.unwrap_or_else(|| Node { value: Value::Null, origin: self.source.clone() }))
    }

    fn on_event(
        &mut self,
        event: Event<'_>,
        span: Span,
        errors: &mut Vec<ConfigError>,
    ) -> Result<(), ConfigError> {
        let origin = self.source.at(span.start.line(), span.start.col() + 1);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) if self.root.is_some() => Err(refuse(origin, "a second document")),
            Event::DocumentStart(_) => Ok(()),
            Event::Alias(_) => Err(refuse(origin, "an alias")),
            Event::Scalar(_, _, _, Some(tag))
            | Event::SequenceStart(_, Some(tag))
            | Event::MappingStart(_, Some(tag))
                if !tag.is_yaml_core_schema() =>
            {
                Err(refuse(origin, "a tag"))
            }
            Event::Scalar(text, style, ..) => {
                let empty = matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = match style {
                    ScalarStyle::Plain if empty => Value::Null,
                    _ => Value::Text(text.into_owned()),
                };
                self.add(Node { value, origin }, errors)
            }
            Event::SequenceStart(..) => self.start(Value::List(Vec::new()), origin),
            Event::MappingStart(..) => self.start(Value::Map(Vec::new()), origin),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => self.add(open.node, errors),
                None => Ok(()),
            },
        }
    }

    fn start(&mut self, value: Value, origin: Origin) -> Result<(), ConfigError> {
        if self.open.len() == DEPTH_MAX {
            return Err(ConfigError::Syntax {
                origin,
                reason: format!("nested deeper than {DEPTH_MAX} levels"),
            });
        }
        self.open.push(Open { node: Node { value, origin }, key: None });
        Ok(())
    }

    fn add(&mut self, node: Node, errors: &mut Vec<ConfigError>) -> Result<(), ConfigError> {
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut open.node.value {
            Value::List(items) => items.push(node),
            Value::Map(pairs) => match open.key.take() {
                Some(name) => match pairs.iter().find(|(first, _)| first.text == name.text) {
                    Some((first, _)) => errors.push(ConfigError::DuplicateKey {
                        origin: name.origin,
                        key: format!("\"{}\"", name.text),
                        first: first.origin.clone(),
                    }),
                    None => pairs.push((name, node)),
                },
                None => {
                    open.key = Some(match node.value {
                        Value::Text(text) => Name { text, origin: node.origin },
                        // A plain `null` is a word like any other where a name is expected.
                        Value::Null => Name { text: "null".to_owned(), origin: node.origin },
                        _ => return Err(refuse(node.origin, "a key that is a list or a map")),
                    });
                }
            },
            Value::Null | Value::Text(_) => {}
        }
        Ok(())
    }
}

fn refuse(origin: Origin, what: &str) -> ConfigError {
    ConfigError::Syntax { origin, reason: format!("{what} is not supported in a configuration") }
}
