//! Taking out of payloads what nobody is to see.

use serde_json::Value;

/// What stands in the place of a value.
const HIDDEN: &str = "***";

/// The fields whose values are hidden.
#[derive(Debug, Clone, Default)]
pub(super) struct Redaction {
    names: Vec<String>,
}

impl Redaction {
    pub(super) fn new(names: &[String]) -> Self {
        Self { names: names.to_vec() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Hides the values of the named fields, at any depth.
    pub(super) fn apply(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields.iter_mut() {
                    if self.names.iter().any(|hidden| hidden.eq_ignore_ascii_case(name)) {
                        *value = HIDDEN.into();
                    } else {
                        self.apply(value);
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.apply(item)),
            // A tool's arguments travel as JSON within a text, as models write them.
            Value::String(text) if text.trim_start().starts_with(['{', '[']) => {
                if let Ok(mut inner) = serde_json::from_str::<Value>(text) {
                    self.apply(&mut inner);
                    *text = inner.to_string();
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn named_fields_are_hidden_at_any_depth_and_in_any_case() {
        let redaction = Redaction::new(&["password".to_owned(), "apiKey".to_owned()]);
        let mut value = json!({
            "user": "ann", "Password": "a", "deep": [{"apikey": {"inner": 1}}, 7],
            "arguments": "{\"password\": \"b\", \"city\": \"Oslo\"}", "text": "{no json password b",
        });
        redaction.apply(&mut value);
        let expected = json!({
            "user": "ann", "Password": "***", "deep": [{"apikey": "***"}, 7],
            "arguments": "{\"password\":\"***\",\"city\":\"Oslo\"}", "text": "{no json password b",
        });
        assert_eq!(value, expected);
    }
}
