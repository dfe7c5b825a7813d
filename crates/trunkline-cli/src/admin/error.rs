//! What a command on streams can fail with.

use std::borrow::Cow;

use trunkline::backend::{PublishError, StreamError};
use trunkline::{ConnectError, ConsumerError, RedriveError};

use crate::failure::{Explain, Kind};
use crate::trust::{TrustError, UNTRUSTED};

/// Why a command on streams failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum AdminError {
    #[error("the configured server has no HTTP address (server.http), so there is no admin API")]
    NoHttp,
    #[error("the admin API of {url} needs a token, and none is known")]
    NoToken { url: String },
    #[error("{url} refuses the admin token (401): {said}")]
    Refused { url: String, said: String },
    #[error("{url} is neither an http:// nor an https:// address")]
    Url { url: String },
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("the certificate of {url} is not trusted: {reason}")]
    Untrusted { url: String, reason: String },
    #[error("cannot reach the admin API at {url}: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("no `trunkline up` of this user on this machine serves clients at {url}")]
    NoServerThere { url: String },
    #[error("the browser was not opened: {reason}")]
    NotOpened { reason: String },
    #[error("{url} does not answer as an admin API")]
    NotAdmin { url: String },
    #[error("{url} answered {status}: {said}")]
    Answer { url: String, status: u16, said: String, hint: Option<String> },
    #[error(transparent)]
    Settings(#[from] ConnectError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Consumer(#[from] ConsumerError),
    #[error(transparent)]
    Redrive(#[from] RedriveError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error("stream {stream:?} has no consumer named {consumer:?}")]
    NoConsumer { stream: String, consumer: String },
    #[error("there is no dead letter {offset}")]
    NoDeadLetter { offset: String },
    #[error("{what} cannot be undone")]
    NotConfirmed { what: String },
    #[error("it is not said which dead letters")]
    WhichDeadLetters,
    #[error("{to} is stored by stream {stream:?} itself, so the replay would feed itself")]
    ReplayIntoItself { to: String, stream: String },
    #[error("{failed} of {all} dead letters were not sent back")]
    SomeNotRedriven { failed: u64, all: u64 },
    #[error(
        "some messages were still being handled after {waited:?} and were given up; they are delivered again"
    )]
    Unfinished { waited: std::time::Duration },
}

impl Explain for AdminError {
    fn kind(&self) -> Kind {
        match self {
            Self::NotConfirmed { .. }
            | Self::WhichDeadLetters
            | Self::Url { .. }
            | Self::ReplayIntoItself { .. }
            | Self::Stream(StreamError::BadName(_)) => Kind::Usage,
            _ => Kind::Failed,
        }
    }

    fn hint(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::NoHttp => "set server.http, or name the server with --http".into(),
            Self::NoToken { .. } | Self::Refused { .. } => {
                "give the token that `trunkline up` printed with --token or TRUNKLINE_ADMIN_TOKEN (server.auth.admin_token)"
                    .into()
            }
            Self::NotOpened { .. } => "`trunkline dashboard` prints the address, to be opened by hand".into(),
            Self::Trust(_) | Self::Untrusted { .. } => UNTRUSTED.into(),
            Self::Url { .. } => "give --http as in http://127.0.0.1:8222".into(),
            Self::Unreachable { .. } => "start a bus with `trunkline up`, or name another with --http or --url".into(),
            Self::NoServerThere { .. } => {
                "name its HTTP address with --http, and its token with --token where it runs elsewhere".into()
            }
            Self::NotAdmin { .. } => "--http takes the HTTP address of a Trunkline server".into(),
            Self::Answer { hint, .. } => hint.clone()?.into(),
            Self::Settings(error) => error.hint()?.into(),
            Self::Stream(error)
            | Self::Consumer(ConsumerError::Join(error))
            | Self::Redrive(RedriveError::Stream(error)) => stream_hint(error)?,
            Self::Redrive(RedriveError::NotOfItsStream { .. }) => {
                "name a subject that its stream stores with --to; `trunkline stream info` shows them".into()
            }
            Self::Redrive(RedriveError::NotRemoved(_)) => "remove it with `trunkline dlq purge`".into(),
            Self::NoConsumer { .. } => "`trunkline consumer ls STREAM` lists them".into(),
            Self::NoDeadLetter { .. } => "`trunkline dlq ls` lists them".into(),
            Self::NotConfirmed { .. } => "add --yes".into(),
            Self::WhichDeadLetters => "give offsets as `trunkline dlq ls` shows them, --stream, --consumer, or --all".into(),
            Self::ReplayIntoItself { .. } => "choose a subject outside the stream".into(),
            Self::Unfinished { .. } => "give handlers longer with --timeout".into(),
            _ => return None,
        })
    }
}

fn stream_hint(error: &StreamError) -> Option<Cow<'static, str>> {
    Some(match error {
        StreamError::NoStream(_) => {
            "streams are made by messaging.streams in the configuration of `trunkline up`; `trunkline stream ls` lists them"
                .into()
        }
        StreamError::Unsupported(error) => format!(
            "{}; for a Trunkline server give --http and --token",
            error.hint()
        )
        .into(),
        StreamError::OffsetAhead { .. } => "the offset is from another life of the stream".into(),
        StreamError::Conflict { .. } => "use another name, or remove what is there first".into(),
        StreamError::Denied { .. } => {
            "see the permissions of this user; docs/nats.md lists what each role needs".into()
        }
        StreamError::NotConnected { .. } => "see the log of `trunkline up`, or of the NATS server".into(),
        _ => return None,
    })
}
