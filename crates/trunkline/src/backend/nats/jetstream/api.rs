//! Requests to JetStream's API, and why they fail.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use async_nats::{HeaderMap, StatusCode};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use super::replies::{Awaited, NoReply, Replies};
use crate::backend::nats::link::Link;
use crate::backend::{ConsumeError, StreamError};

/// Numbers of errors that JetStream answers with.
/// See <https://github.com/nats-io/nats-server/blob/main/server/errors.json>.
pub(super) mod codes {
    pub(crate) const CONSUMER_NOT_FOUND: u64 = 10014;
    pub(crate) const NO_MESSAGE_FOUND: u64 = 10037;
    pub(crate) const NOT_ENABLED_FOR_ACCOUNT: u64 = 10039;
    pub(crate) const SEQUENCE_NOT_FOUND: u64 = 10043;
    pub(crate) const STREAM_MSG_DELETE_FAILED: u64 = 10057;
    pub(crate) const STREAM_NAME_IN_USE: u64 = 10058;
    pub(crate) const STREAM_NOT_FOUND: u64 = 10059;
    pub(crate) const SUBJECTS_OVERLAP: u64 = 10065;
    pub(crate) const WRONG_LAST_SEQUENCE: u64 = 10071;
    pub(crate) const NOT_ENABLED: u64 = 10076;
    pub(crate) const CONSUMER_EXISTS: u64 = 10105;
    pub(crate) const CONSUMER_ALREADY_EXISTS: u64 = 10148;
}

/// After this time a question that nobody has answered is asked again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Whether a version that a server tells, such as `2.9.10`, is this one or a later one.
pub(super) fn is_at_least(version: &str, wanted: (u64, u64, u64)) -> bool {
    // What follows the digits, as in `2.11.0-beta.1`, is passed over.
    let number = |part: &str| {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        part[..digits].parse::<u64>().unwrap_or(0)
    };
    let mut parts = version.split('.').map(number);
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next()) >= wanted
}

/// What JetStream answers when it refuses.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Refusal {
    pub(super) code: u64,
    #[serde(default)]
    pub(super) err_code: u64,
    #[serde(default)]
    pub(super) description: String,
}

impl Refusal {
    /// Whether it may go well later: a cluster that has no leader at the moment, or too much to do, says so with these.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self.code, 429 | 503)
    }
}

/// Why a request has no good answer.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// There is no connection, nothing has left, or nothing came back.
    NotConnected(String),
    /// JetStream refused.
    Refused(Refusal),
    /// The server's permissions do not let this user ask.
    Denied {
        /// Where the request went.
        subject: String,
        reason: String,
    },
    /// The bus is draining or closed.
    Closed,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotConnected(reason) => f.write_str(reason),
            Self::Refused(refusal) => f.write_str(&refusal.description),
            Self::Denied { subject, reason } => write!(f, "publishing to {subject} was denied: {reason}"),
            Self::Closed => f.write_str("the bus is closed"),
        }
    }
}

impl Failure {
    /// Whether JetStream refused with one of these numbers.
    pub(super) fn is(&self, codes: &[u64]) -> bool {
        matches!(self, Self::Refused(refusal) if codes.contains(&refusal.err_code))
    }

    /// JetStream answered in a way that this client does not know.
    pub(super) fn unexpected(what: &str, error: impl std::fmt::Display) -> Self {
        Self::NotConnected(format!("{what} is not what was expected: {error}"))
    }
}

/// A request that was sent; dropping it gives its answer up.
pub(super) struct Sent {
    awaited: Awaited,
    subject: async_nats::Subject,
}

/// The way to JetStream's API.
pub(super) struct Api {
    pub(super) link: Arc<Link>,
    pub(super) replies: Arc<Replies>,
}

impl Api {
    /// Sends a request and waits for one answer, whatever it is.
    pub(super) async fn ask(
        &self,
        subject: impl Into<async_nats::Subject>,
        headers: Option<HeaderMap>,
        payload: Bytes,
        wait: Duration,
    ) -> Result<async_nats::Message, Failure> {
        let sent = self.send(subject, headers, payload, Instant::now() + wait).await?;
        self.answer(sent).await
    }

    /// Sends a request. Both this and its answer fail when `by` has come.
    pub(super) async fn send(
        &self,
        subject: impl Into<async_nats::Subject>,
        headers: Option<HeaderMap>,
        payload: Bytes,
        by: Instant,
    ) -> Result<Sent, Failure> {
        let connection = self.link.connection().ok_or_else(|| self.away())?;
        let subject = subject.into();
        let awaited = self.replies.expect(subject.clone(), connection, by, None);
        let message =
            OutboundMessage { subject: subject.clone(), reply: Some(awaited.reply()), payload, headers };
        let mut sending = pin!(self.link.client.publish_message(message));
        // There is room for it almost always, and then no timer is made.
        let at_once = poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await;
        let sent = match at_once {
            Poll::Ready(sent) => Ok(sent),
            Poll::Pending => tokio::time::timeout_at(by, sending).await,
        };
        match sent {
            Ok(Ok(())) => Ok(Sent { awaited, subject }),
            Ok(Err(_)) => Err(self.away()),
            Err(_) => Err(Failure::NotConnected(
                "the connection took nothing in time (messaging.publish_timeout)".to_owned(),
            )),
        }
    }

    /// The answer to what was sent, whatever it is.
    pub(super) async fn answer(
        &self,
        Sent { awaited, subject }: Sent,
    ) -> Result<async_nats::Message, Failure> {
        match awaited.answer().await {
            Ok(answer) if answer.status == Some(StatusCode::NO_RESPONDERS) => {
                Err(Failure::NotConnected("JetStream is not there".to_owned()))
            }
            Ok(answer) => Ok(answer),
            Err(NoReply::Denied(reason)) => Err(Failure::Denied { subject: subject.to_string(), reason }),
            Err(NoReply::Broken) => Err(self.away()),
            Err(NoReply::Silent) => Err(Failure::NotConnected(
                "JetStream gave no answer in time (messaging.publish_timeout)".to_owned(),
            )),
        }
    }

    /// Ends when the server refuses what is sent to this subject from now on, and never otherwise: for requests whose
    /// answers come to an inbox of their own.
    pub(super) fn denied(
        &self,
        subject: &str,
        connection: u64,
        wait: Duration,
    ) -> impl Future<Output = Failure> + use<> {
        let subject = async_nats::Subject::from(subject);
        let awaited = self.replies.expect(subject.clone(), connection, Instant::now() + wait, None);
        async move { Failure::Denied { subject: subject.to_string(), reason: awaited.denial().await } }
    }

    /// Calls the API: JSON there and back.
    pub(super) async fn call(&self, what: &str, body: &impl Serialize) -> Result<Value, Failure> {
        self.call_within(what, body, self.link.publish_timeout).await
    }

    /// Calls the API for what changes nothing there, and asks again when there is no answer: each server of a cluster leaves it
    /// to the one that has to answer, and while something is made, removed or led by another one, that may be none of them.
    pub(super) async fn look(&self, what: &str, body: &impl Serialize) -> Result<Value, Failure> {
        let by = Instant::now() + self.link.publish_timeout;
        loop {
            let asked = Instant::now();
            let wait = by.saturating_duration_since(asked).min(LOOK_AGAIN);
            match self.call_within(what, body, wait).await {
                // What fails sooner fails for another reason.
                Err(Failure::NotConnected(_))
                    if asked.elapsed() >= wait && Instant::now() < by && self.link.connection().is_some() => {
                }
                outcome => return outcome,
            }
        }
    }

    async fn call_within(&self, what: &str, body: &impl Serialize, wait: Duration) -> Result<Value, Failure> {
        let payload = serde_json::to_vec(body).map_err(|error| Failure::unexpected("the request", error))?;
        let subject = format!("$JS.API.{what}");
        let answer = self.ask(subject, None, payload.into(), wait).await?;
        let mut answer: Value = serde_json::from_slice(&answer.payload)
            .map_err(|error| Failure::unexpected("the answer of JetStream", error))?;
        match answer.get_mut("error").map(Value::take) {
            None => Ok(answer),
            Some(error) => match serde_json::from_value(error) {
                Ok(refusal) => Err(Failure::Refused(refusal)),
                Err(error) => Err(Failure::unexpected("the refusal of JetStream", error)),
            },
        }
    }

    fn away(&self) -> Failure {
        match self.link.refusing.load(std::sync::atomic::Ordering::SeqCst) {
            true => Failure::Closed,
            false => Failure::NotConnected(self.link.events.reason()),
        }
    }

    /// As an error of an operation on this stream.
    pub(super) fn stream_error(&self, stream: &str, failure: Failure) -> StreamError {
        match failure {
            Failure::Closed => StreamError::Closed,
            Failure::NotConnected(reason) => {
                StreamError::NotConnected { server: self.link.server.clone(), reason }
            }
            Failure::Denied { subject, reason } => StreamError::Denied { subject, reason },
            Failure::Refused(refusal) if refusal.err_code == codes::STREAM_NOT_FOUND => {
                StreamError::NoStream(stream.to_owned())
            }
            Failure::Refused(refusal) if refusal.is_passing() => {
                StreamError::NotConnected { server: self.link.server.clone(), reason: refusal.description }
            }
            Failure::Refused(refusal) => {
                StreamError::Refused { stream: stream.to_owned(), reason: refusal.description }
            }
        }
    }

    /// As an error of a member of a consumer.
    pub(super) fn consume_error(&self, stream: &str, consumer: &str, failure: Failure) -> ConsumeError {
        let gone = [codes::STREAM_NOT_FOUND, codes::CONSUMER_NOT_FOUND];
        if failure.is(&gone) {
            return ConsumeError::Gone { stream: stream.to_owned(), consumer: consumer.to_owned() };
        }
        let reason = match failure {
            Failure::Closed => return ConsumeError::Closed,
            Failure::Denied { subject, reason } => return ConsumeError::Denied { subject, reason },
            Failure::NotConnected(reason) => reason,
            Failure::Refused(refusal) => refusal.description,
        };
        ConsumeError::NotConnected { server: self.link.server.clone(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::is_at_least;

    #[test]
    fn versions_compare_by_number() {
        for (version, expected) in [
            ("2.15.1", true),
            ("2.11.3", true),
            ("2.11.2", false),
            ("2.11.3-beta.1", true),
            ("2.9.25", false),
            ("3.0.0", true),
            ("", false),
        ] {
            assert_eq!(is_at_least(version, (2, 11, 3)), expected, "{version}");
        }
    }
}
