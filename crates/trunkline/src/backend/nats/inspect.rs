//! Questions to the server of a connection, for whoever checks how it is set up.

use std::time::Duration;

use bytes::Bytes;

use super::NatsBackend;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NatsAskError {
    /// The user may not publish there.
    #[error("asking {subject} is denied: {reason}")]
    Denied {
        /// Where it was asked.
        subject: String,
        /// What the server said.
        reason: String,
    },
    /// Nobody answers there, or not in time. Without JetStream a denial looks the same.
    #[error("no answer: {reason}")]
    Silent {
        /// What was seen.
        reason: String,
    },
}

impl NatsBackend {
    /// Sends a request to a subject of the server's own API, such as `$JS.API.INFO`, and gives the answer, which may be a
    /// refusal in the form of that API. It is no way to ask components: it knows no envelopes and no cancelling.
    ///
    /// # Errors
    /// See [`NatsAskError`].
    ///
    /// # Cancel safety
    /// The request may have been received.
    pub async fn ask(
        &self,
        subject: &str,
        payload: impl Into<Bytes>,
        wait: Duration,
    ) -> Result<Bytes, NatsAskError> {
        let payload = payload.into();
        if let Some(jetstream) = self.jetstream() {
            return jetstream.ask(subject, payload, wait).await;
        }
        let asking = self.link.client.request(subject.to_owned(), payload);
        match tokio::time::timeout(wait, asking).await {
            Ok(Ok(answer)) => Ok(answer.payload),
            Ok(Err(error)) => Err(NatsAskError::Silent { reason: error.to_string() }),
            Err(_) => Err(NatsAskError::Silent { reason: format!("none within {wait:?}") }),
        }
    }
}
