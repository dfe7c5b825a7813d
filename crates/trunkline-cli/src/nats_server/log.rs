//! The log in nats-server's format, on stderr or in a file: `[PID] 2026/11/22 10:00:00.000000 [INF] Server is ready`.
//!
//! What the server itself has to tell comes through `tracing` ([`events`]) and is written in the same format and, where
//! nats-server has something of the kind to say, in its words. [`mod@file`] is the file, and the files before it.

mod events;
mod file;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use jiff::Zoned;
use jiff::tz::TimeZone;
use tracing::{Level, Metadata};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, reload};
use trunkline_server::PROTOCOL_TRACE;

use super::settings::LogSettings;
use events::Events;
use file::LogFile;

pub(crate) use file::Rotation;

/// Where lines go.
enum Output {
    Stderr,
    File(LogFile),
}

impl Output {
    fn open(settings: &LogSettings) -> io::Result<Self> {
        Ok(match &settings.file {
            None => Self::Stderr,
            Some(path) => Self::File(LogFile::open(path, settings.rotation)?),
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
    /// Of messages, traces show the headers alone.
    trace_headers: AtomicBool,
    /// So many bytes of a message are shown; 0 is all of them.
    traced_bytes_max: AtomicUsize,
    /// Guards the file, and keeps lines whole. Held while one line is written.
    output: Mutex<Output>,
    /// By which those who tell something are made to ask again whether anybody listens.
    levels: OnceLock<reload::Handle<Events, Registry>>,
}

impl Log {
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn open(settings: &LogSettings) -> io::Result<Arc<Self>> {
        let output = Output::open(settings)?;
        Ok(Arc::new(Self {
            pid: std::process::id(),
            time: settings.time.into(),
            utc: settings.utc.into(),
            debug: settings.debug.into(),
            trace: settings.trace.into(),
            trace_headers: settings.trace_headers.into(),
            traced_bytes_max: settings.traced_bytes_max.into(),
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
        self.trace_headers.store(settings.trace_headers, Ordering::Relaxed);
        self.traced_bytes_max.store(settings.traced_bytes_max, Ordering::Relaxed);
        if let Some(levels) = self.levels.get() {
            // Nothing but the answer to who wants what has changed, and that is asked again after it.
            let _ = levels.modify(|_| {});
        }
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let former = match &*output {
            Output::Stderr => None,
            Output::File(file) => Some(file.path()),
        };
        if former != settings.file.as_deref() {
            *output = Output::open(settings)?;
        }
        Ok(())
    }

    /// Opens the file again, which somebody may have moved away; says whether there is one.
    ///
    /// # Errors
    /// It cannot be opened; the former one is kept.
    pub(crate) fn reopen(&self) -> io::Result<bool> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *output {
            Output::Stderr => Ok(false),
            Output::File(file) => file.reopen().map(|()| true),
        }
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
        let line = self.formatted(level, text);
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *output {
            // Where the log cannot be written there is nowhere left to say so.
            Output::Stderr => {
                let _ = io::stderr().write_all(line.as_bytes());
            }
            Output::File(file) => file.write(&line, |level, text| self.formatted(level, text)),
        }
    }

    fn formatted(&self, level: &str, text: &str) -> String {
        let mut line = format!("[{}] ", self.pid);
        if self.time.load(Ordering::Relaxed) {
            let now = if self.utc.load(Ordering::Relaxed) {
                Zoned::now().with_time_zone(TimeZone::UTC)
            } else {
                Zoned::now()
            };
            let _ = write!(line, "{} ", now.strftime("%Y/%m/%d %H:%M:%S%.6f"));
        }
        let _ = writeln!(line, "[{level}] {}", plain(text));
        line
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
}
