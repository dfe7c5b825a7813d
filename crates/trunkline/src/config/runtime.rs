//! The sections `runtime`, what the process may use, and `components`, what `up` starts beside the bus.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value as Json;
use url::Url;

use trunkline_core::Subject;

use super::Entry;
use super::declare::{choices, settings};
use super::error::ConfigError;
use super::settings::{Fault, Format, Leaf, Place, Rule, Setting, Shape};
use super::tree::Value;

settings! {
    /// What the process may use.
    pub struct Runtime in "runtime." {
        /// Bounds of memory and processors.
        pub resources: Resources;
    }
}

settings! {
    /// Bounds of memory and processors.
    pub struct Resources in "runtime.resources." {
        /// Bound of all buffers together; none unless set, and 512MB in generated deployments.
        pub memory: Option<u64> => format(Format::Bytes), range("16MiB", "16TiB");
        /// Processors, of which worker threads are made, rounded up; all unless set, and 0.5 in generated deployments.
        pub cpus: Option<f64> => range("0.01", "1024");
    }
}

settings! {
    /// A program that `up` starts beside the bus.
    pub struct Component in "components.{name}." {
        /// What to run: a command line, or a list of the program and its arguments.
        pub command: Command;
        /// Variables of its environment, besides those that lead it to the bus.
        pub env: BTreeMap<String, String> => secret();
        /// A file of further variables, one `NAME=value` a line; those of `env` win. It is read at every start of the component.
        pub env_file: Option<PathBuf>;
        /// Directory it runs in; that of `up` unless set.
        pub cwd: Option<PathBuf>;
        /// Components that must be ready before it starts.
        pub depends_on: Vec<String>;
        /// When it counts as ready: `started`, `responder:SUBJECT`, `http://…`, `https://…`, `tcp://HOST:PORT` or `log:TEXT`.
        pub ready: Ready => default("started");
        /// How long it may take to become ready; past it, it is stopped, which counts as a failure.
        pub ready_timeout: Duration => default("60s"), range("100ms", "24h");
        /// When it is started again: `no`, `on-failure` or `always`.
        pub restart: Restart => default("on-failure");
        /// How long it may take to end once it is asked to; past it, it is killed.
        pub stop_timeout: Duration => default("10s"), range("0s", "1h");
        /// Container image in which `export` runs it; of no meaning to `up`.
        pub image: Option<String>;
    }
}

choices! {
    /// When a component is started again after it has ended.
    pub enum Restart {
        /// Never.
        No = "no",
        /// When it ended with an error.
        OnFailure = "on-failure",
        /// Whenever it ended.
        Always = "always",
    }
}

/// What a component runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A command line, split by the rules of a shell but run without one.
    Line(String),
    /// The program and its arguments, never empty.
    Args(Vec<String>),
}

impl Setting for Command {
    const SHAPE: Shape = Shape::Leaf { secret: false };

    fn read(place: &Place<'_>, rule: &Rule, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let command = match place.given().map(|node| &node.value) {
            Some(Value::List(_)) => Command::Args(Vec::read(place, rule, errors)?),
            _ => Command::Line(String::read(place, rule, errors)?),
        };
        let is_empty = match &command {
            Command::Line(line) => line.trim().is_empty(),
            Command::Args(args) => args.first().is_none_or(String::is_empty),
        };
        match place.given() {
            Some(node) if is_empty => {
                errors.push(place.unexpected(node, false, "a program with its arguments"));
                None
            }
            _ => Some(command),
        }
    }

    fn show(&self, place: &Place<'_>, rule: &Rule, entries: &mut Vec<Entry>) {
        match self {
            Command::Line(line) => line.show(place, rule, entries),
            Command::Args(args) => args.show(place, rule, entries),
        }
    }
}

/// When a component counts as ready, so that those that depend on it may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// As soon as it runs.
    Started,
    /// When this URL, of scheme `http` or `https`, answers with a status of 2xx.
    Http(Url),
    /// When this `host:port` accepts a connection.
    Tcp(String),
    /// When somebody answers requests on this subject.
    Responder(Subject),
    /// When a line that it wrote to stdout or stderr contains this text.
    Log(String),
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ready::Started => f.write_str("started"),
            Ready::Http(url) => f.write_str(&super::urls::redact(url.as_str())),
            Ready::Tcp(address) => write!(f, "tcp://{address}"),
            Ready::Responder(subject) => write!(f, "responder:{subject}"),
            Ready::Log(text) => write!(f, "log:{text}"),
        }
    }
}

impl Leaf for Ready {
    fn expected(_: &Rule) -> Cow<'static, str> {
        "started, responder:SUBJECT, http://HOST:PORT/PATH, https://HOST:PORT/PATH, tcp://HOST:PORT or log:TEXT".into()
    }

    fn parse(text: &str, _: &Rule) -> Result<Self, Fault> {
        if text == "started" {
            return Ok(Ready::Started);
        }
        if let Some(subject) = text.strip_prefix("responder:") {
            let subject =
                Subject::new(subject.to_owned()).map_err(|error| Fault::Subject(error.to_string()))?;
            return Ok(Ready::Responder(subject));
        }
        if let Some(text) = text.strip_prefix("log:") {
            // Every line contains the empty text.
            return match text.is_empty() {
                true => Err(Fault::Type),
                false => Ok(Ready::Log(text.to_owned())),
            };
        }
        if !text.contains("://") {
            return Err(Fault::Type);
        }
        let url = Url::parse(text).map_err(|error| Fault::Url(error.to_string()))?;
        match (url.scheme(), url.host_str(), url.port()) {
            ("http" | "https", Some(_), _) => Ok(Ready::Http(url)),
            ("tcp", Some(host), Some(port)) if matches!(url.path(), "" | "/") => {
                Ok(Ready::Tcp(format!("{host}:{port}")))
            }
            ("tcp", ..) => Err(Fault::Url("expected tcp://HOST:PORT".to_owned())),
            // In the words of a URL alone, those that are none would be missing.
            _ => Err(Fault::Type),
        }
    }

    fn render(&self, _: &Rule) -> Json {
        self.to_string().into()
    }
}
