//! Everything that can end a benchmark early, what the user may do about it, and the exit code that follows.

use std::io;
use std::time::Duration;

use thiserror::Error;

use super::frames::FrameError;

/// Which of the exit codes of the command an error stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// The command line asks for something impossible (exit code 2).
    Usage,
    /// The benchmark was asked for correctly and could not be completed (exit code 1).
    Failed,
}

/// Why a benchmark has no result.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum BenchError {
    #[error("`{url}` is not an address that bench can load: {reason}")]
    Url { url: String, reason: &'static str },
    #[error("--compare `{given}` is not NAME=COMMAND: {reason}")]
    CompareSpec { given: String, reason: &'static str },
    #[error("--compare was given once, a comparison takes at least two servers")]
    CompareAlone,
    #[error("two servers of the comparison are named `{name}`")]
    CompareName { name: String },
    #[error("scenario `idle` measures the memory of a server process, and none is known")]
    IdleWithoutProcess,
    #[error("scenario `{scenario}` needs a server, --in-process measures sub and fanout")]
    NotInProcess { scenario: &'static str },
    #[error("`{subject}` is not a subject to publish to")]
    Subject { subject: String },
    #[error("{option} is {given}, allowed are {min} to {max}")]
    Range { option: &'static str, given: u64, min: u64, max: u64 },

    #[error("cannot connect to {address}")]
    Connect { address: String, source: io::Error },
    #[error("{address} wants TLS, which bench does not speak")]
    TlsRequired { address: String },
    #[error("payload is {payload_bytes} bytes, the limit of the server is {max_payload}")]
    PayloadLimit { payload_bytes: usize, max_payload: usize },
    #[error("the server answered {text}")]
    Refused { text: String },
    #[error("the server closed the connection")]
    Closed,
    #[error("cannot {doing}")]
    Socket { doing: &'static str, source: io::Error },
    #[error("the server sent something that is not the NATS protocol")]
    Frame(#[from] FrameError),
    #[error("{role} made no progress for {waited:?}: {received} of {expected} messages arrived")]
    Lost { role: String, received: u64, expected: u64, waited: Duration },
    #[error("{role} made no progress for {waited:?}")]
    Stalled { role: String, waited: Duration },
    #[error("{role} received {received} messages, {expected} were published")]
    Excess { role: String, received: u64, expected: u64 },
    #[error("{role} expected message {expected} of publisher {publisher} and received message {received}")]
    Order { role: String, publisher: usize, expected: u64, received: u64 },
    #[error("the queue group received some messages twice and others never")]
    Duplicates,
    #[error("{role} received a message that this run did not publish: {line}")]
    Foreign { role: String, line: String },
    #[error("nobody answers requests on `{subject}`")]
    NoResponders { subject: String },
    #[error("cannot start server `{name}`")]
    Spawn { name: String, source: io::Error },
    #[error("server `{name}` did not accept clients on port {port} within {waited:?}{log}")]
    NotReady { name: String, port: u16, waited: Duration, log: String },
    #[error("server `{name}` exited ({status}){log}")]
    Exited { name: String, status: String, log: String },
    #[error("cannot read the use of CPU and memory of process {pid}")]
    Process { pid: i32, source: procfs::ProcError },
    #[error("cannot read the use of CPU of this process")]
    OwnUsage { source: nix::Error },
    #[error("{wanted} connections need more open files than the limit of {limit}")]
    OpenFiles { wanted: u64, limit: u64 },
    #[error("the bus in this process refused to work")]
    Bus { source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot {doing}")]
    Redis { doing: &'static str, source: Box<redis::RedisError> },
    #[error("cannot {doing}")]
    Nats { doing: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot listen to signals")]
    Signals { source: io::Error },
    #[error("cannot print the result")]
    Print { source: io::Error },
    #[error("interrupted")]
    Interrupted,
    #[error("{scenario} on `{server}` failed")]
    Run { scenario: String, server: String, source: Box<BenchError> },
}

impl BenchError {
    /// Whether the command line or the run is to blame.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Url { .. }
            | Self::CompareSpec { .. }
            | Self::CompareAlone
            | Self::CompareName { .. }
            | Self::IdleWithoutProcess
            | Self::NotInProcess { .. }
            | Self::Subject { .. }
            | Self::Range { .. } => ErrorKind::Usage,
            Self::Run { source, .. } => source.kind(),
            _ => ErrorKind::Failed,
        }
    }

    /// What the process should exit with: 1 for a failed run, 2 for a wrong command line.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.kind() {
            ErrorKind::Failed => 1,
            ErrorKind::Usage => 2,
        }
    }

    /// What to try next, where there is something better than reading the error again.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Url { .. } => Some("give nats://[USER:PASSWORD@]HOST[:PORT]"),
            Self::CompareSpec { .. } => Some(
                "for example --compare 'nats=nats-server' --compare 'other=/path/to/server --port {port}'; {port} becomes a free port",
            ),
            Self::CompareAlone => Some("repeat --compare; the first server is the baseline of the ratios"),
            Self::IdleWithoutProcess => {
                Some("add --server-pid PID, or let bench start the servers with --compare")
            }
            Self::Spawn { name, .. } if name.ends_with("redis-server") => {
                Some("install redis-server, or give the --redis-url of one that runs")
            }
            Self::Spawn { name, .. } if name.ends_with("nats-server") => {
                Some("install nats-server, give it with --nats-server, or the --nats-url of one that runs")
            }
            Self::Nats { doing: "create a stream", .. } => {
                Some("js-publish and pull need JetStream: nats-server -js")
            }
            Self::Connect { .. } => Some("start a server with `trunkline up`, or give its --url"),
            Self::TlsRequired { .. } => Some("measure a listener without TLS"),
            Self::PayloadLimit { .. } => {
                Some("raise server.max_payload (nats-server: max_payload), or lower --payload")
            }
            Self::Refused { text } if text.contains("Authorization") => {
                Some("give credentials in the URL: nats://USER:PASSWORD@HOST:PORT")
            }
            Self::Refused { text } if text.contains("Permissions") => {
                Some("choose a --subject that the user may publish and subscribe to")
            }
            Self::Refused { text } if text.contains("Slow Consumer") => {
                Some("lower --window-bytes below the server's limit of pending bytes")
            }
            Self::Lost { .. } | Self::Stalled { .. } => Some(
                "the server lost messages, or raise --timeout if it is only slow; a lower --window-bytes rules out a slow consumer",
            ),
            Self::Foreign { .. } => Some("choose a --subject that nobody else uses"),
            Self::OpenFiles { .. } => Some("raise `ulimit -n`, or lower --clients"),
            Self::Run { source, .. } => source.hint(),
            _ => None,
        }
    }
}
