//! Taking out of payloads what nobody is to see.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
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
            Value::String(text) => match serde_json::from_str::<Value>(text) {
                Ok(mut inner @ (Value::Object(_) | Value::Array(_) | Value::String(_))) => {
                    self.apply(&mut inner);
                    *text = inner.to_string();
                }
                Ok(_) => {}
                Err(_) if self.may_be_in(text.as_bytes()) => HIDDEN.clone_into(text),
                Err(_) => {}
            },
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// A message's body without the values of named fields, for who looks at the message itself.
    pub(super) fn of_body(&self, body: &Bytes) -> Bytes {
        if self.is_empty() {
            return body.clone();
        }
        let Ok(mut value) = serde_json::from_slice::<Value>(body) else {
            return if self.may_be_in(body) { HIDDEN.into() } else { body.clone() };
        };
        self.apply(&mut value);
        if let Some(Value::String(bytes)) = value.get_mut("payloadBase64")
            && let Ok(decoded) = BASE64.decode(&*bytes)
        {
            *bytes = BASE64.encode(self.of_body(&decoded.into()));
        }
        value.to_string().into()
    }

    /// A text of somebody else's, such as an error: as it is, unless it shows a field that is to be hidden.
    pub(super) fn apply_to_text(&self, text: &mut String) {
        if !self.is_empty() && self.may_be_in(text.as_bytes()) {
            HIDDEN.clone_into(text);
        }
    }

    /// Whether bytes that are no JSON as a whole show a named field: in a part that is JSON, or anywhere in what is no text.
    pub(super) fn may_be_in(&self, bytes: &[u8]) -> bool {
        let is_text = std::str::from_utf8(bytes).is_ok();
        let begins_as_json = bytes.trim_ascii_start().first().is_some_and(|first| b"{[".contains(first));
        // A name may be written with escapes, which only who reads it all would see.
        if begins_as_json && bytes.windows(2).any(|pair| pair == b"\\u") {
            return true;
        }
        self.names.iter().map(String::as_bytes).any(|name| {
            let mut places = bytes.windows(name.len().max(1)).enumerate();
            places.any(|(at, part)| {
                part.eq_ignore_ascii_case(name) && (!is_text || is_key(bytes, at, at + name.len()))
            })
        })
    }
}

/// Whether what lies there stands in quotes and before a colon, perhaps within a text of a text.
fn is_key(bytes: &[u8], from: usize, to: usize) -> bool {
    let is_quote = |byte: u8| byte == b'"' || byte == b'\'';
    let mut behind = bytes[to..].iter().copied().skip_while(|byte| *byte == b'\\');
    let in_quotes = from.checked_sub(1).is_some_and(|before| is_quote(bytes[before]))
        && behind.next().is_some_and(is_quote);
    in_quotes && behind.find(|byte| !byte.is_ascii_whitespace()) == Some(b':')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whoever_looks_at_a_message_itself_does_not_see_them_either() {
        let redaction = Redaction::new(&["pin".to_owned()]);
        for (body, expected) in [
            (r#"{"id":"1","payload":{"pin":1234}}"#, r#"{"id":"1","payload":{"pin":"***"}}"#),
            // {"pin":"1234"} and {"pin":"***"}
            (r#"{"payloadBase64":"eyJwaW4iOiIxMjM0In0="}"#, r#"{"payloadBase64":"eyJwaW4iOiIqKioifQ=="}"#),
            (r#"{"pin":1234"#, "***"),
            ("plain", "plain"),
        ] {
            assert_eq!(redaction.of_body(&Bytes::from_static(body.as_bytes())), expected);
        }
    }

    #[test]
    fn named_fields_are_hidden_at_any_depth_and_in_any_case() {
        let redaction = Redaction::new(&["password".to_owned(), "apiKey".to_owned()]);
        let mut value = json!({
            "user": "ann", "Password": "a", "deep": [{"apikey": {"inner": 1}}, 7],
            "arguments": "{\"password\": \"b\", \"city\": \"Oslo\"}", "text": "{no json password b",
            "said": "calling it with {\"password\": \"b\"}", "cut": "{\"apikey\": \"c", "number": "12",
            "twice": "\"{\\\"password\\\": \\\"b\\\"}\"",
        });
        redaction.apply(&mut value);
        let mut reason = "refused: {'password': 'b'}".to_owned();
        redaction.apply_to_text(&mut reason);
        assert_eq!(reason, HIDDEN);
        let expected = json!({
            "user": "ann", "Password": "***", "deep": [{"apikey": "***"}, 7],
            "arguments": "{\"password\":\"***\",\"city\":\"Oslo\"}", "text": "{no json password b",
            "said": "***", "cut": "***", "number": "12", "twice": "\"{\\\"password\\\":\\\"***\\\"}\"",
        });
        assert_eq!(value, expected);
    }
}
