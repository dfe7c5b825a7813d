//! What handlers of requests and deliveries have in common: how they fail, and how an error travels as a reply.

use std::time::Duration;

use trunkline_core::{Headers, Message, Subject};

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Header with the text of an error reply, as NATS services send it.
const ERROR: &str = "Nats-Service-Error";
/// Header with the code of an error reply.
const ERROR_CODE: &str = "Nats-Service-Error-Code";

/// What becomes of a delivery whose handler failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Retry {
    /// It comes again after the consumer's backoff.
    #[default]
    Backoff,
    /// It comes again after this delay.
    After(Duration),
    /// It will never succeed: it becomes a dead letter now.
    Never,
}

/// How a handler fails. Any error turns into one with `?`, which means: 500, try again after the backoff.
///
/// A responder sends code and text to the requester; a consumer does what [`Retry`] says.
#[derive(Debug)]
pub struct HandlerError {
    code: u16,
    message: String,
    retry: Retry,
}

impl HandlerError {
    /// A failure with code 500, to be tried again after the backoff.
    pub fn new(message: impl Into<String>) -> Self {
        Self { code: 500, message: message.into(), retry: Retry::Backoff }
    }

    /// A failure to be tried again after the delay. Code 503.
    pub fn retry_after(delay: Duration, message: impl Into<String>) -> Self {
        Self { code: 503, message: message.into(), retry: Retry::After(delay) }
    }

    /// A message that will never succeed. Code 400.
    pub fn reject(message: impl Into<String>) -> Self {
        Self { code: 400, message: message.into(), retry: Retry::Never }
    }

    /// Sets the code that the requester sees.
    #[must_use]
    pub fn code(mut self, code: u16) -> Self {
        self.code = code;
        self
    }

    /// What becomes of the delivery.
    pub fn retry(&self) -> Retry {
        self.retry
    }

    /// The code and text that a requester sees.
    pub fn as_reply(&self) -> (u16, &str) {
        (self.code, &self.message)
    }

    /// What came out of a stack of middleware: this library's own error if it is in there, else 500.
    pub(crate) fn from_service(error: BoxError) -> Self {
        match error.downcast::<Failure>() {
            Ok(failure) => failure.0,
            Err(error) => Self::new(with_causes(&*error)),
        }
    }
}

impl std::fmt::Display for HandlerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

// `HandlerError` itself is no `std::error::Error`, so that every error can turn into it; `Failure` is the one that
// passes through middleware.
impl<E: std::error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::new(with_causes(&error))
    }
}

/// A [`HandlerError`] on its way through middleware, where errors must be errors.
#[derive(Debug)]
pub struct Failure(pub HandlerError);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Failure {}

/// The error and its causes in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What a panicking handler said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("of unknown kind")
}

/// The error that a reply stands for, if it does.
pub(crate) fn service_error(headers: &Headers) -> Option<(u16, String)> {
    let (code, text) = (headers.get(ERROR_CODE), headers.get(ERROR));
    (code.is_some() || text.is_some()).then(|| {
        let code = code.and_then(|code| code.trim().parse().ok()).unwrap_or(500);
        (code, text.unwrap_or("unknown error").to_owned())
    })
}

/// A reply that stands for an error.
pub(crate) fn error_reply(to: Subject, code: u16, text: &str) -> Message {
    // A header is one line, and a bounded one.
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1024).collect();
    let mut message = Message::new(to, bytes::Bytes::new());
    for (name, value) in [(ERROR, line), (ERROR_CODE, code.to_string())] {
        message.headers.append(name, value).expect("a literal name and a value without line breaks");
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_turns_into_a_retryable_failure_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::num::ParseIntError);
        let fails = || -> Result<(), HandlerError> { Err(Outer("x".parse::<u8>().unwrap_err()))? };
        let error = fails().unwrap_err();
        assert_eq!(error.as_reply(), (500, "outer: invalid digit found in string"));
        assert_eq!(error.retry(), Retry::Backoff);
    }

    #[test]
    fn our_own_error_survives_middleware() {
        let error = HandlerError::from_service(Box::new(Failure(HandlerError::reject("bad").code(422))));
        assert_eq!((error.as_reply(), error.retry()), ((422, "bad"), Retry::Never));
    }

    #[test]
    fn an_error_reply_reads_back_on_one_line() {
        let reply = error_reply("r".parse().unwrap(), 503, "two\r\nlines");
        assert_eq!(service_error(&reply.headers), Some((503, "two  lines".to_owned())));
        assert_eq!(service_error(&Headers::new()), None);
    }
}
