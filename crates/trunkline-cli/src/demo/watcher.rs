//! The watcher: subscribes to everything below the root, takes no part, and prints each conversation as it flows.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anstyle::{Ansi256Color, AnsiColor, Color, Style};
use serde_json::Value;
use trunkline::topics::payload::{
    AnalyticsEvent, ChannelInbound, ChannelOutbound, LlmChunk, LlmRequest, ToolCall, ToolResult,
};
use trunkline::{Bus, Event, Received, Subscription};

use super::DemoError;
use crate::duration;
use crate::output;

/// Conversations that are remembered; a conversation that never ends must not be remembered for ever.
const CONVERSATIONS_MAX: usize = 256;
/// Longest text of a payload in a line, in characters.
const TEXT_CHARS_MAX: usize = 72;
/// Colours to tell conversations apart.
const COLOURS: [u8; 8] = [39, 214, 84, 205, 141, 220, 51, 203];

const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();
const BAD: Style = AnsiColor::Red.on_default();

/// What is known about a conversation that is not over.
struct Conversation {
    started: Instant,
    /// What the model has said of its present answer.
    words: String,
}

/// Prints what happens.
pub(super) struct Watcher {
    /// Subscriptions end with the last handle of their bus.
    _bus: Bus,
    events: Subscription,
    conversations: HashMap<String, Conversation>,
    finished: u64,
}

impl Watcher {
    /// Starts to watch: everything published after this returned is seen.
    pub(super) async fn start(bus: Bus) -> Result<Self, DemoError> {
        let events = bus.subscribe(bus.topics().pattern(">")?).await?;
        Ok(Self { _bus: bus, events, conversations: HashMap::new(), finished: 0 })
    }

    /// Prints until `enough` conversations are over.
    pub(super) async fn watch(mut self, enough: Option<u64>) -> Result<(), DemoError> {
        while enough.is_none_or(|enough| self.finished < enough) {
            match self.events.next().await.ok_or(DemoError::Ended)? {
                Event::Message(message) => self.see(&message)?,
                Event::Gap(gap) => {
                    let missed = gap.missed.map_or_else(|| "some".to_owned(), |missed| missed.to_string());
                    output::line(&format!("{BAD}{missed} messages went by unseen{BAD:#}"))?;
                }
            }
        }
        Ok(())
    }

    fn see(&mut self, message: &Received) -> Result<(), DemoError> {
        let Some(envelope) = message.envelope() else { return Ok(()) };
        let Some(id) = envelope.trace.conversation_id.as_deref() else { return Ok(()) };
        let is_first = !self.conversations.contains_key(id);
        let conversation = self.conversation(id);
        let elapsed = (!is_first).then(|| conversation.started.elapsed());
        let text = match envelope.kind.as_str() {
            "llm.chunk" => match conversation.hear(message) {
                Some(text) => text,
                // One of many words; they are printed together.
                None => return Ok(()),
            },
            kind => describe(kind, message),
        };
        let source = envelope.source.as_deref().unwrap_or("?");
        output::line(&flow(id, source, message.subject().as_str(), &text, elapsed))?;
        if envelope.kind == "analytics.event" {
            self.conversations.remove(id);
            self.finished += 1;
            output::line(&closing(id, message))?;
        }
        Ok(())
    }

    fn conversation(&mut self, id: &str) -> &mut Conversation {
        if self.conversations.len() >= CONVERSATIONS_MAX && !self.conversations.contains_key(id) {
            let oldest = self.conversations.iter().min_by_key(|(_, it)| it.started).map(|(id, _)| id.clone());
            if let Some(oldest) = oldest {
                self.conversations.remove(&oldest);
            }
        }
        let new = || Conversation { started: Instant::now(), words: String::new() };
        self.conversations.entry(id.to_owned()).or_insert_with(new)
    }
}

impl Conversation {
    /// Collects the words of the model; the whole of them at the last one.
    fn hear(&mut self, message: &Received) -> Option<String> {
        let chunk: LlmChunk = message.decode().ok()?;
        self.words.push_str(&chunk.text);
        chunk.finish_reason?;
        let words = std::mem::take(&mut self.words);
        Some(match chunk.tool_call {
            Value::Null => format!("streamed {} words: {words}", words.split_whitespace().count()),
            call => format!("wants {} {}", call["name"].as_str().unwrap_or("a tool"), call["arguments"]),
        })
    }
}

/// The payload in few words.
fn describe(kind: &str, message: &Received) -> String {
    let described = match kind {
        "channel.inbound" => message.decode().map(|it: ChannelInbound| format!("{}: {}", it.sender, it.text)),
        "channel.outbound" => {
            message.decode().map(|it: ChannelOutbound| format!("to {}: {}", it.recipient, it.text))
        }
        "llm.request" => message.decode().map(|it: LlmRequest| {
            format!("asks the model, {} so far", count(it.messages.len() as u64, "message"))
        }),
        "tool.result" => message.decode().map(|it: ToolResult| match it.is_error {
            true => format!("failed: {}", plain(&it.output)),
            false => plain(&it.output),
        }),
        "tool.call" => message.decode().map(|it: ToolCall| it.arguments.to_string()),
        "analytics.event" => message.decode().map(|it: AnalyticsEvent| plain(&it.properties["outcome"])),
        _ => message.decode().map(|it: Value| it.to_string()),
    };
    described.unwrap_or_else(|error| error.to_string())
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// One message: when, of which conversation, from whom to where, what, and how long after its beginning.
fn flow(id: &str, source: &str, subject: &str, text: &str, elapsed: Option<Duration>) -> String {
    let colour = colour(id);
    let time = jiff::Zoned::now().strftime("%H:%M:%S%.3f");
    let text = shorten(text);
    let text_style = if text.starts_with("failed") { BAD } else { Style::new() };
    let after = elapsed.map(|elapsed| format!("+{}", duration::show(elapsed))).unwrap_or_default();
    format!(
        "{DIM}{time}{DIM:#} {colour}{id}{colour:#} {BOLD}{source:>10}{BOLD:#} → {subject:<32} \
         {text_style}{text}{text_style:#} {DIM}{after}{DIM:#}"
    )
}

/// The line below a conversation.
fn closing(id: &str, message: &Received) -> String {
    let event: AnalyticsEvent = message.decode().unwrap_or_default();
    let number = |key: &str| event.properties[key].as_u64().unwrap_or_default();
    let colour = colour(id);
    let outcome = event.properties["outcome"].as_str().unwrap_or("over");
    let took = duration::show(Duration::from_millis(number("millis")));
    let models = count(number("modelCalls"), "model call");
    let tools = count(number("toolCalls"), "tool call");
    let retries = count_of(number("retries"), "retry", "retries");
    format!("{colour}──── {id} {outcome} in {took}: {models}, {tools}, {retries} ────{colour:#}\n")
}

fn count(number: u64, noun: &str) -> String {
    count_of(number, noun, &format!("{noun}s"))
}

fn count_of(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn colour(id: &str) -> Style {
    let sum: usize = id.bytes().map(usize::from).sum();
    Style::new().fg_color(Some(Color::Ansi256(Ansi256Color(COLOURS[sum % COLOURS.len()]))))
}

/// One line of bounded length that cannot steer the terminal.
fn shorten(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut short: String = text.chars().map(clean).take(TEXT_CHARS_MAX).collect();
    if text.chars().nth(TEXT_CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_fit_a_line_and_cannot_steer_the_terminal() {
        assert_eq!(shorten("a\nb\x1b[2J"), "a b [2J");
        assert_eq!(shorten(&"ä".repeat(100)).chars().count(), TEXT_CHARS_MAX + 1);
    }

    #[test]
    fn a_conversation_keeps_its_colour() {
        assert_eq!(colour("c-1234"), colour("c-1234"));
        assert_ne!(colour("c-1234"), colour("c-1235"));
    }
}
