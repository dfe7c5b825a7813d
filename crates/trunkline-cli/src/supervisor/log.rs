//! The logs of components: each line with the name of who wrote it, on stderr, in the order in which they came.
//!
//! A thread writes, because a terminal that stands still must not keep the bus waiting. The way to it is bounded: a
//! component that writes faster than its lines are shown is slowed down by its own pipe.

use std::io::{self, Write as _};
use std::thread::{self, JoinHandle};

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

use crate::logging;

/// Lines that wait to be written.
const WAITING_MAX: usize = 1024;

/// Colours of components, one after the other.
const COLOURS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::Yellow,
    AnsiColor::BrightCyan,
];

/// Where a component wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// A line of a component.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) index: usize,
    pub(super) stream: Stream,
    pub(super) text: String,
}

/// What the thread is sent.
#[derive(Debug)]
pub(super) enum Item {
    Line(Entry),
    /// Answered when everything sent before it is written.
    Written(oneshot::Sender<()>),
}

/// The thread that writes.
pub(super) struct Log {
    lines: Sender<Item>,
    /// Ends when every sender of lines is gone.
    thread: JoinHandle<()>,
}

impl Log {
    /// Starts it for components of these names.
    pub(super) fn start(names: Vec<String>) -> io::Result<Self> {
        let (lines, waiting) = channel(WAITING_MAX);
        let thread = thread::Builder::new()
            .name("components' logs".to_owned())
            .spawn(move || write_all(waiting, &Layout::new(names, logging::is_json())))?;
        Ok(Self { lines, thread })
    }

    /// Where lines go.
    pub(super) fn lines(&self) -> Sender<Item> {
        self.lines.clone()
    }

    /// Waits until all lines are written.
    pub(super) async fn finish(self) {
        drop(self.lines);
        let thread = self.thread;
        // It does not panic, and there would be nothing left to do about it.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
}

fn write_all(mut items: Receiver<Item>, layout: &Layout) {
    while let Some(item) = items.blocking_recv() {
        match item {
            // Nobody may read it any more, or wait for it, which is no reason for the component to stop.
            Item::Line(entry) => drop(anstream::stderr().lock().write_all(layout.line(&entry).as_bytes())),
            Item::Written(done) => drop(done.send(())),
        }
    }
}

/// How a line looks.
struct Layout {
    names: Vec<String>,
    /// Characters of the longest name.
    width: usize,
    is_json: bool,
}

/// A line in JSON, in the shape of the process's own log.
#[derive(Serialize)]
struct Record<'a> {
    timestamp: String,
    level: &'static str,
    component: &'a str,
    stream: Stream,
    message: &'a str,
}

impl Layout {
    fn new(names: Vec<String>, is_json: bool) -> Self {
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or_default();
        Self { names, width, is_json }
    }

    fn line(&self, entry: &Entry) -> String {
        let name = self.names.get(entry.index).map_or("", String::as_str);
        if self.is_json {
            let record = Record {
                timestamp: jiff::Timestamp::now().to_string(),
                level: "INFO",
                component: name,
                stream: entry.stream,
                message: &entry.text,
            };
            // Text alone: it always has a form in JSON.
            return serde_json::to_string(&record).unwrap_or_default() + "\n";
        }
        let colour: Style = COLOURS[entry.index % COLOURS.len()].on_default();
        // A component may leave its own colour switched on.
        let reset = if entry.text.contains('\u{1b}') { "\u{1b}[0m" } else { "" };
        format!("{colour}{name:<width$} |{colour:#} {}{reset}\n", entry.text, width = self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(is_json: bool, text: &str) -> String {
        let layout = Layout::new(vec!["web".to_owned(), "gateway".to_owned()], is_json);
        layout.line(&Entry { index: 0, stream: Stream::Stderr, text: text.to_owned() })
    }

    #[test]
    fn names_stand_in_a_column_of_their_own() {
        let plain = anstream::adapter::strip_str(&line(false, "\u{1b}[31mred")).to_string();
        assert_eq!(plain, "web     | red\n");
    }

    #[test]
    fn json_is_one_object_a_line_whatever_the_text() {
        let text = line(true, "a \"b\"\u{7}\u{1b}[0m");
        assert_eq!(text.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["component"], "web");
        assert_eq!(value["stream"], "stderr");
        assert_eq!(value["message"], "a \"b\"\u{7}\u{1b}[0m");
        assert!(value["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')));
    }
}
