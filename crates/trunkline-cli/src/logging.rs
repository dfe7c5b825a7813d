//! Logs on stderr: which lines, and how they look.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use trunkline::Context;

use crate::failure::{Explain, Kind};

/// The environment variable that is asked when `--log-level` is not given.
const VARIABLE: &str = "TRUNKLINE_LOG";

/// The spans that the library has around handlers, for subscribers that know no other way to tell whose a line is.
const HANDLERS_OFF: &str = "trunkline::handler=off";

/// What the client library of NATS says of a connection that it cannot make it also returns, and that is told.
const CONNECTING_OFF: &str = "async_nats::connector=off";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for programs.
    Json,
}

/// Who gave the filter, where nobody did.
const DEFAULT: &str = "default";

/// Set once, when logging starts.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Whether everything on stderr is to be JSON, one object a line.
pub(crate) fn is_json() -> bool {
    FORMAT.get() == Some(&LogFormat::Json)
}

/// A filter that is not one.
#[derive(Debug, thiserror::Error)]
#[error("{origin} is {given:?}, which is not a log filter")]
pub(crate) struct LogFilterError {
    origin: &'static str,
    given: String,
    source: ParseError,
}

impl Explain for LogFilterError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hint(&self) -> Option<Cow<'static, str>> {
        Some(
            "give error, warn, info, debug or trace, or pairs such as trunkline=debug,async_nats=warn".into(),
        )
    }
}

/// Starts to log what `flag`, else the environment, else `default` lets through.
///
/// # Errors
/// [`LogFilterError`] when the filter cannot be read.
pub(crate) fn start(flag: Option<&str>, default: &str, format: LogFormat) -> Result<(), LogFilterError> {
    let from_env = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let (origin, given) = match (flag, from_env) {
        (Some(flag), _) => ("--log-level", flag.to_owned()),
        (None, Some(text)) => (VARIABLE, text),
        (None, None) => (DEFAULT, default.to_owned()),
    };
    let filter =
        EnvFilter::builder().parse(&given).map_err(|source| LogFilterError { origin, given, source })?;
    // What it would tell of each handled message stands in the lines themselves, and only where there is a line.
    let mut filter = filter.add_directive(HANDLERS_OFF.parse().expect("a literal directive"));
    if origin == DEFAULT {
        filter = filter.add_directive(CONNECTING_OFF.parse().expect("a literal directive"));
    }
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    // Errors here and below mean that logging was started before, which only tests in one process could do; it keeps
    // working then.
    let _ = FORMAT.set(format);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = match format {
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal() && !no_color;
            let look = Format::default().with_target(false).with_ansi(ansi);
            lines.with_ansi(ansi).event_format(WithIds { lines: look, json: false }).try_init()
        }
        LogFormat::Json => {
            let look = Format::default().json().with_target(false).flatten_event(true);
            let look = look.with_current_span(false).with_span_list(false);
            lines
                .fmt_fields(tracing_subscriber::fmt::format::JsonFields::new())
                .event_format(WithIds { lines: look, json: true })
                .try_init()
        }
    };
    Ok(())
}

/// Lines that end with trace and conversation of the message being handled, where one is.
struct WithIds<F> {
    lines: F,
    json: bool,
}

impl<S, N, F> FormatEvent<S, N> for WithIds<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let Some(message) = Context::current() else {
            return self.lines.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.lines.format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(&with_ids(line, &message, self.json))
    }
}

/// A line with the ids of the message being handled at its end.
fn with_ids(mut line: String, message: &Context, json: bool) -> String {
    let tail = if json { "}\n" } else { "\n" };
    let Some(end) = line.strip_suffix(tail).map(str::len) else { return line };
    line.truncate(end);
    let ids = [
        ("trace_id", message.trace_id()),
        ("span_id", message.span_id()),
        ("conversation_id", message.trace().conversation_id.as_deref()),
    ];
    for (name, id) in ids {
        let Some(id) = id else { continue };
        // An id may be anything that a client has sent.
        let _ = match json {
            true => write!(line, ",\"{name}\":{}", serde_json::Value::from(id)),
            false if id.chars().all(|c| c.is_ascii_graphic() && c != '"') => write!(line, " {name}={id}"),
            false => write!(line, " {name}={id:?}"),
        };
    }
    line + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stand_at_the_end_of_a_line_whatever_they_are() {
        let bus = trunkline::Bus::in_memory();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let context = |conversation: &str| {
            let conversation = conversation.to_owned();
            runtime.block_on(async {
                let mut live = bus.subscribe("a".parse().unwrap()).await.unwrap();
                let topic: trunkline::Topic<u8> = trunkline::Topic::new("a".parse().unwrap());
                let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
                let publish = bus.publish(topic, &1).conversation(conversation).header("traceparent", header);
                publish.await.unwrap();
                live.next().await.and_then(trunkline::Event::into_message).unwrap().context()
            })
        };
        let (plain, odd) = (context("c-1"), context("a \"b\"\n{"));
        const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
        const SPAN: &str = "00f067aa0ba902b7";
        let text = with_ids("INFO said\n".to_owned(), &plain, false);
        assert_eq!(text, format!("INFO said trace_id={TRACE} span_id={SPAN} conversation_id=c-1\n"));
        let text = with_ids("INFO said\n".to_owned(), &odd, false);
        assert_eq!(
            text,
            format!("INFO said trace_id={TRACE} span_id={SPAN} conversation_id={:?}\n", "a \"b\"\n{")
        );
        let json = with_ids("{\"a\":{\"b\":1}}\n".to_owned(), &odd, true);
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        let expected = serde_json::json!({"a": {"b": 1}, "trace_id": TRACE, "span_id": SPAN, "conversation_id": "a \"b\"\n{"});
        assert_eq!(read, expected);
        assert_eq!(json.matches('\n').count(), 1);
    }
}
