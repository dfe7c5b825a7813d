//! A stand-in for an LLM: it understands just enough to want a tool now and then, and streams its answer word by word.

use std::time::Duration;

use serde_json::{Value, json};
use trunkline::topics::payload::{LlmChunk, LlmMessage, LlmRequest};
use trunkline::{Bus, HandlerError, ReplySink, Request, Responder};

use super::{DemoError, calculator};

/// Pause before each word, as models have them.
const WORD_PAUSE: Duration = Duration::from_millis(25);

/// A call of a tool that the model wants.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ToolWish {
    /// Which tool.
    pub(super) name: String,
    /// What to call it with.
    pub(super) arguments: Value,
}

impl ToolWish {
    /// As a chunk carries it.
    pub(super) fn to_json(&self) -> Value {
        json!({"name": self.name, "arguments": self.arguments})
    }

    /// Out of a chunk, if there is one in it.
    pub(super) fn from_json(value: &Value) -> Option<Self> {
        let name = value.get("name")?.as_str()?.to_owned();
        let arguments = value.get("arguments").cloned().unwrap_or_default();
        Some(Self { name, arguments })
    }
}

/// What the model makes of a dialogue.
#[derive(Debug, PartialEq)]
enum Thought {
    Say(String),
    Call(ToolWish),
}

/// Starts the proxy in front of the model.
pub(super) async fn start(bus: &Bus) -> Result<Responder, DemoError> {
    let responder =
        bus.respond_stream(bus.topics().llm().request(), speak).queue("llm").concurrency(16).start().await?;
    Ok(responder)
}

/// Streams the answer to who asked, and a copy of every chunk to those who watch the session.
async fn speak(
    request: Request,
    prompt: LlmRequest,
    mut sink: ReplySink<LlmChunk>,
) -> Result<(), HandlerError> {
    let bus = request.bus();
    let session = prompt.session_id.as_deref().unwrap_or("anonymous");
    let watched = bus.topics().llm().stream(session)?;
    let chunks = match think(&prompt.messages) {
        Thought::Say(text) => words(&text),
        Thought::Call(wish) => vec![LlmChunk { tool_call: wish.to_json(), ..LlmChunk::default() }],
    };
    let last = chunks.len().saturating_sub(1);
    for (index, mut chunk) in chunks.into_iter().enumerate() {
        tokio::time::sleep(WORD_PAUSE).await;
        if index == last {
            let reason = if chunk.tool_call.is_null() { "stop" } else { "tool_call" };
            chunk.finish_reason = Some(reason.to_owned());
        }
        sink.send(&chunk).await?;
        bus.publish(watched.clone(), &chunk).await?;
    }
    Ok(())
}

fn words(text: &str) -> Vec<LlmChunk> {
    let chunk = |text: &str| LlmChunk { text: text.to_owned(), ..LlmChunk::default() };
    text.split_inclusive(' ').map(chunk).collect()
}

/// The whole intelligence.
fn think(dialogue: &[LlmMessage]) -> Thought {
    let Some(last) = dialogue.last() else {
        return Thought::Say("I was told nothing.".to_owned());
    };
    let wish = dialogue.iter().rev().find_map(|message| ToolWish::from_json(&message.content));
    match (last.role.as_str(), wish) {
        ("tool", Some(wish)) => Thought::Say(phrase(&wish, &last.content)),
        _ => consider(last.content.as_str().unwrap_or_default()),
    }
}

/// Puts what a tool brought into a sentence.
fn phrase(wish: &ToolWish, result: &Value) -> String {
    let output = match &result["output"] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match (result["isError"].as_bool(), wish.name.as_str()) {
        (Some(true), name) => format!("The {name} tool failed: {output}."),
        (_, "weather") => {
            format!("In {} it is {output}.", wish.arguments["city"].as_str().unwrap_or("there"))
        }
        (_, "calculator") => {
            format!("{} makes {output}.", wish.arguments["expression"].as_str().unwrap_or("That"))
        }
        (_, name) => format!("The {name} tool says {output}."),
    }
}

/// What to make of something a person says.
fn consider(text: &str) -> Thought {
    let lower = text.to_lowercase();
    if let Some(expression) = calculator::find_expression(text) {
        let arguments = json!({"expression": expression});
        return Thought::Call(ToolWish { name: "calculator".to_owned(), arguments });
    }
    if ["weather", "rain", "sun", "cold", "warm", "umbrella"].iter().any(|word| lower.contains(word)) {
        let arguments = json!({"city": find_city(text).unwrap_or("Oslo")});
        return Thought::Call(ToolWish { name: "weather".to_owned(), arguments });
    }
    if ["hello", "hi", "hey"].iter().any(|word| lower.split(|c: char| !c.is_alphabetic()).any(|w| w == *word))
    {
        return Thought::Say("Hello! I know about the weather and I can calculate. Ask me.".to_owned());
    }
    Thought::Say(
        "I am only a stand-in: ask me about the weather in a city, or to calculate something.".to_owned(),
    )
}

/// The capitalised words after `in`.
fn find_city(text: &str) -> Option<&str> {
    let (start, _) = text.match_indices(" in ").next()?;
    let rest = &text[start + 4..];
    let is_part = |word: &&str| word.starts_with(char::is_uppercase);
    let length: usize = rest.split_inclusive(' ').take_while(is_part).map(str::len).sum();
    let city = rest[..length].trim_end().trim_end_matches(|c: char| !c.is_alphanumeric());
    (!city.is_empty()).then_some(city)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str) -> LlmMessage {
        LlmMessage { role: "user".to_owned(), content: text.into() }
    }

    fn wish(name: &str, arguments: Value) -> ToolWish {
        ToolWish { name: name.to_owned(), arguments }
    }

    #[test]
    fn questions_lead_to_tools() {
        let cases = [
            ("What is the weather in New York today?", wish("weather", json!({"city": "New York"}))),
            ("do I need an umbrella", wish("weather", json!({"city": "Oslo"}))),
            ("What is 6 * (3 + 4)?", wish("calculator", json!({"expression": "6 * (3 + 4)"}))),
        ];
        for (text, expected) in cases {
            assert_eq!(think(&[user(text)]), Thought::Call(expected), "{text}");
        }
        assert!(matches!(think(&[user("hi there")]), Thought::Say(text) if text.starts_with("Hello")));
        assert!(
            matches!(think(&[user("tell me a joke about this")]), Thought::Say(text) if text.contains("stand-in"))
        );
    }

    #[test]
    fn what_a_tool_brought_is_put_into_a_sentence() {
        let call = wish("calculator", json!({"expression": "1 + 2"}));
        let assistant = LlmMessage { role: "assistant".to_owned(), content: call.to_json() };
        let tool = |content| LlmMessage { role: "tool".to_owned(), content };
        let said = |content| think(&[user("1 + 2"), assistant.clone(), tool(content)]);
        assert_eq!(said(json!({"output": 3, "isError": false})), Thought::Say("1 + 2 makes 3.".to_owned()));
        let failed = said(json!({"output": "timeout", "isError": true}));
        assert!(matches!(failed, Thought::Say(text) if text.contains("failed: timeout")));
    }
}
