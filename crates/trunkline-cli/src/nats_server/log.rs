//! The log in nats-server's format, on stderr or in a file: `[PID] 2026/11/22 10:00:00.000000 [INF] Server is ready`.
//!
//! What the server itself has to tell comes through `tracing` and is written in the same format: an event about a client
//! begins with its address and number, as there.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use jiff::Zoned;
use jiff::tz::TimeZone;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, reload};
use trunkline_server::PROTOCOL_TRACE;

use super::settings::LogSettings;

/// Where lines go.
enum Output {
    Stderr,
    File { path: PathBuf, file: File },
}

impl Output {
    fn open(file: Option<&Path>) -> io::Result<Self> {
        Ok(match file {
            None => Self::Stderr,
            Some(path) => Self::File { path: path.to_owned(), file: append_to(path)? },
        })
    }
}

/// The log; one a process.
pub(crate) struct Log {
    pid: u32,
    time: AtomicBool,
    utc: AtomicBool,
    debug: AtomicBool,
    trace: AtomicBool,
    /// Guards the file, and keeps lines whole. Held while one line is written.
    output: Mutex<Output>,
    /// By which those who tell something are made to ask again whether anybody listens.
    levels: OnceLock<reload::Handle<Events, Registry>>,
}

impl Log {
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn open(settings: &LogSettings) -> io::Result<Arc<Self>> {
        let output = Output::open(settings.file.as_deref())?;
        Ok(Arc::new(Self {
            pid: std::process::id(),
            time: settings.time.into(),
            utc: settings.utc.into(),
            debug: settings.debug.into(),
            trace: settings.trace.into(),
            output: Mutex::new(output),
            levels: OnceLock::new(),
        }))
    }

    /// Has what the server tells written here from now on.
    pub(crate) fn listen(self: &Arc<Self>) {
        // An error means that somebody listens already, which only tests in one process could do.
        let (events, levels) = reload::Layer::new(Events(self.clone()));
        let _ = self.levels.set(levels);
        let _ = tracing_subscriber::registry().with(events).try_init();
    }

    /// Changes what is told, and where.
    ///
    /// # Errors
    /// The file cannot be opened; lines go where they went before, and everything else is as it should be.
    pub(crate) fn change(&self, settings: &LogSettings) -> io::Result<()> {
        self.time.store(settings.time, Ordering::Relaxed);
        self.utc.store(settings.utc, Ordering::Relaxed);
        self.debug.store(settings.debug, Ordering::Relaxed);
        self.trace.store(settings.trace, Ordering::Relaxed);
        if let Some(levels) = self.levels.get() {
            // Nothing but the answer to who wants what has changed, and that is asked again after it.
            let _ = levels.modify(|_| {});
        }
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let former = match &*output {
            Output::Stderr => None,
            Output::File { path, .. } => Some(path),
        };
        if former != settings.file.as_ref() {
            *output = Output::open(settings.file.as_deref())?;
        }
        Ok(())
    }

    /// Opens the file again, which somebody may have moved away.
    ///
    /// # Errors
    /// It cannot be opened; the former one is kept.
    pub(crate) fn reopen(&self) -> io::Result<()> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        if let Output::File { path, file } = &mut *output {
            *file = append_to(path)?;
        }
        Ok(())
    }

    pub(crate) fn info(&self, text: &str) {
        self.line("INF", text);
    }

    pub(crate) fn warn(&self, text: &str) {
        self.line("WRN", text);
    }

    pub(crate) fn error(&self, text: &str) {
        self.line("ERR", text);
    }

    pub(crate) fn fatal(&self, text: &str) {
        self.line("FTL", text);
    }

    fn line(&self, level: &str, text: &str) {
        let mut line = format!("[{}] ", self.pid);
        if self.time.load(Ordering::Relaxed) {
            let now = if self.utc.load(Ordering::Relaxed) {
                Zoned::now().with_time_zone(TimeZone::UTC)
            } else {
                Zoned::now()
            };
            let _ = write!(line, "{} ", now.strftime("%Y/%m/%d %H:%M:%S%.6f"));
        }
        let text = plain(text);
        let _ = writeln!(line, "[{level}] {text}");
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        // Where the log cannot be written there is nowhere left to say so.
        let _ = match &mut *output {
            Output::Stderr => io::stderr().write_all(line.as_bytes()),
            Output::File { file, .. } => file.write_all(line.as_bytes()),
        };
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries underneath tell of things that are not the server's.
        if !metadata.target().starts_with("trunkline") {
            return false;
        }
        match *metadata.level() {
            Level::TRACE => metadata.target() == PROTOCOL_TRACE && self.trace.load(Ordering::Relaxed),
            Level::DEBUG => self.debug.load(Ordering::Relaxed),
            _ => true,
        }
    }
}

/// What clients sent may be in a text: a line stays a line, and steers no terminal.
fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    Cow::Owned(shown)
}

fn append_to(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// What the server tells, on its way to the log.
struct Events(Arc<Log>);

impl<S: Subscriber> Layer<S> for Events {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> tracing::subscriber::Interest {
        // Decided once and asked again only when the levels change: a publisher must not pay for what is not written.
        match self.0.wants(metadata) {
            true => tracing::subscriber::Interest::always(),
            false => tracing::subscriber::Interest::never(),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.0.wants(metadata)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let level = match *event.metadata().level() {
            Level::ERROR => "ERR",
            Level::WARN => "WRN",
            Level::INFO => "INF",
            Level::DEBUG => "DBG",
            Level::TRACE => "TRC",
        };
        match text.of_nats_server() {
            Some(words) if level == "WRN" => self.0.line("ERR", &text.about_client(&words)),
            _ => self.0.line(level, &text.finish()),
        }
    }
}

/// The fields of an event.
#[derive(Default)]
struct Text {
    client: Option<u64>,
    address: Option<String>,
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Text {
    fn finish(&self) -> String {
        let mut text = self.message.clone();
        for (name, value) in &self.others {
            let _ = write!(text, ", {name} {value}");
        }
        self.about_client(&text)
    }

    /// With the client before it that it is about, where it is about one.
    fn about_client(&self, text: &str) -> String {
        match (&self.address, self.client) {
            (Some(address), Some(client)) => format!("{address} - cid:{client} - {text}"),
            (Some(address), None) => format!("{address} - {text}"),
            (None, Some(client)) => format!("cid:{client} - {text}"),
            (None, None) => text.to_owned(),
        }
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.others.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// The same in the words of nats-server, which those who watch its log for attacks look for; `None` where it has none. It
    /// takes all of these for errors.
    fn of_nats_server(&self) -> Option<String> {
        let user = self.field("user");
        let by = user.map_or_else(|| "User \"N/A\"".to_owned(), |user| format!("User {user:?}"));
        let subject = || self.field("subject").unwrap_or_default();
        match (self.message.as_str(), self.field("reason").or_else(|| self.field("what"))?) {
            ("not authorized", "timeout") => Some("authentication timeout".to_owned()),
            ("not authorized", _) if user.is_none() => Some("authentication error".to_owned()),
            ("not authorized", _) => Some(format!("authentication error - {by}")),
            ("not permitted", "publish") => Some(format!("Publish Violation - {by}, Subject {}", subject())),
            ("not permitted", "reply") => Some(format!("Publish Violation - {by}, Reply {}", subject())),
            ("not permitted", "subscribe") => {
                Some(format!("Subscription Violation - {by}, Subject {}", subject()))
            }
            _ => None,
        }
    }
}

impl Visit for Text {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "client" => self.client = Some(value),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            "address" => self.address = Some(format!("{value:?}")),
            name => self.others.push((name, format!("{value:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_a_line_and_steers_no_terminal() {
        assert_eq!(plain("Jörg's client, \"x\""), "Jörg's client, \"x\"");
        assert_eq!(
            plain("user \u{1b}[2J\r\n[1] [INF] \u{9b}m\u{7f}"),
            r"user \u{1b}[2J\r\n[1] [INF] \u{9b}m\u{7f}"
        );
    }

    #[test]
    fn refusals_are_told_in_the_words_of_nats_server() {
        let check = |message: &str, fields: &[(&'static str, &str)], expected: Option<&str>| {
            let others = fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            let address = Some("127.0.0.1:5".to_owned());
            let text = Text { client: Some(7), address, message: message.to_owned(), others };
            let told = text.of_nats_server().map(|words| text.about_client(&words));
            assert_eq!(told.as_deref(), expected, "{message} {fields:?}");
        };
        let (ann, secret) = (("user", "ann"), ("subject", "\"secret.>\""));
        check(
            "not authorized",
            &[ann, ("reason", "credentials")],
            Some("127.0.0.1:5 - cid:7 - authentication error - User \"ann\""),
        );
        let error = "127.0.0.1:5 - cid:7 - authentication error";
        check("not authorized", &[("reason", "credentials")], Some(error));
        let timeout = "127.0.0.1:5 - cid:7 - authentication timeout";
        check("not authorized", &[("reason", "timeout")], Some(timeout));
        check(
            "not permitted",
            &[ann, secret, ("what", "publish")],
            Some("127.0.0.1:5 - cid:7 - Publish Violation - User \"ann\", Subject \"secret.>\""),
        );
        check(
            "not permitted",
            &[ann, secret, ("what", "subscribe")],
            Some("127.0.0.1:5 - cid:7 - Subscription Violation - User \"ann\", Subject \"secret.>\""),
        );
        check("no session", &[("error", "x")], None);
    }
}
