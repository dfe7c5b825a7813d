//! Dead letters: how one is made, written, and where it is kept.

use std::sync::Arc;
use std::time::SystemTime;

use trunkline_core::redelivery::DeadReason;
use trunkline_core::{HeaderError, Message, Token};

use crate::backend::{
    Delivery, PublishError, PublishOptions, Receipt, StreamConfig, StreamError, Streams, Unsupported,
};
use crate::bus::Inner;
use crate::bus::spans::{self, Operation};

/// Longest root that stands in the name of the built-in stream as it is: a name has at most 64 bytes.
const ROOT_BYTES_MAX: usize = 59;

/// Why a dead letter is not surely kept. The message stays with its consumer.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeadLetterError {
    #[error("dead letter not published")]
    Publish(#[from] PublishError),
    #[error("stream of dead letters cannot be made")]
    Stream(#[from] StreamError),
    #[error("no stream keeps dead letters")]
    NotStored,
    #[error("a header of the message cannot be sent again")]
    Header(#[from] HeaderError),
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
}

/// Makes sure that dead letters are stored: in a stream of the operator's that covers them, else in the built-in one.
pub(in crate::bus) async fn ensure_stream(
    inner: &Arc<Inner>,
    streams: &dyn Streams,
) -> Result<(), StreamError> {
    let pattern = inner.topics.dead_letters();
    let covered = |config: &StreamConfig| config.subjects.iter().any(|subject| subject.covers(&pattern));
    let there = streams.list().await?;
    if there.iter().any(|stream| covered(&stream.config)) {
        return Ok(());
    }
    let name = stream_name(inner.topics.root());
    // Making it would give a stream of the operator's that has the name other subjects.
    if let Some(taken) = there.iter().find(|stream| stream.config.name == name) {
        return Err(StreamError::Conflict {
            what: format!("stream {name:?}"),
            found: format!("subjects {:?}", taken.config.subjects),
            wanted: format!("subjects [{pattern:?}]"),
        });
    }
    let mut config = StreamConfig::new(name, vec![pattern]);
    config.max_age = Some(inner.options.dead_letter_age);
    config.max_messages = Some(inner.options.dead_letters_max);
    // A dead letter takes the place of its original, so it is kept as safely as any of them.
    config.replicas = there.iter().map(|stream| stream.config.replicas).max().unwrap_or(1);
    streams.ensure(config).await.map(drop)
}

/// Name of the built-in stream: `dead-ROOT`, so that buses with different roots on one server do not take each other's.
/// A root that is longer than a name may be, or has other characters, gives as much of it as fits and a hash of it all.
fn stream_name(root: &Token) -> String {
    let fits = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let root = root.as_str();
    if root.len() <= ROOT_BYTES_MAX && root.chars().all(|c| fits(&c)) {
        return format!("dead-{root}");
    }
    let start: String = root.chars().filter(fits).take(ROOT_BYTES_MAX - 17).collect();
    // FNV-1a: the same in every version and on every machine.
    let hash = root.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("dead-{start}-{hash:016x}")
}

/// The dead letter of a delivery: the original, and what became of it.
fn make(
    inner: &Arc<Inner>,
    stream: &str,
    consumer: &str,
    delivery: &Delivery,
    reason: DeadReason,
) -> Result<Message, HeaderError> {
    let original = &delivery.message;
    let mut headers = original.headers.clone();
    // The id of the original would have the server swallow a redrive of it.
    headers.remove("Nats-Msg-Id");
    if let Some(reply) = &original.reply
        && headers.get("Trunkline-Reply-To").is_none()
    {
        headers.set("Trunkline-Reply-To", reply.as_str())?;
    }
    headers.set("Trunkline-Dead-Reason", reason.as_str())?;
    headers.set("Trunkline-Dead-Attempts", delivery.attempt.to_string())?;
    headers.set("Trunkline-Dead-Stream", stream)?;
    headers.set("Trunkline-Dead-Consumer", consumer)?;
    headers.set("Trunkline-Dead-Offset", delivery.offset.to_string())?;
    headers.set("Trunkline-Dead-Subject", original.subject.as_str())?;
    let subject = inner.topics.dead(stream, consumer);
    Ok(Message { subject, reply: None, headers, payload: original.payload.clone() })
}

/// Names a dead letter, so that writing it twice keeps it once. The time stands for the message itself: a stream that was
/// removed and made again counts its offsets anew, and its dead letters are others.
fn dedupe_id(stream: &str, consumer: &str, delivery: &Delivery) -> String {
    let stored = delivery.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("dl:{stream}:{consumer}:{}:{stored}", delivery.offset)
}

/// Writes the dead letter of a delivery, and returns once it is stored.
pub(super) async fn write(
    inner: &Arc<Inner>,
    stream: &str,
    consumer: &str,
    delivery: &Delivery,
    reason: DeadReason,
) -> Result<(), DeadLetterError> {
    // The stream may have been removed since the consumer was started, so a second try makes it anew.
    for _ in 0..2 {
        let message = make(inner, stream, consumer, delivery, reason)?;
        let dedupe_id = Some(dedupe_id(stream, consumer, delivery));
        let options = PublishOptions { dedupe_id, ..PublishOptions::default() };
        // Past the outbox: a dead letter that waits in this process is none, and the original may be given up for it.
        let writing = spans::publishing(inner, Operation::DeadLetter, message, |message| {
            inner.publish_now(message, options)
        });
        match writing.outcome().await {
            Ok(Receipt::Stored { .. }) => return Ok(()),
            // Without a stream there is neither storage nor deduplication; which of them is said depends on the backend.
            Ok(Receipt::Accepted | Receipt::Queued) | Err(PublishError::Unsupported(_)) => {
                ensure_stream(inner, inner.backend.streams()?).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(DeadLetterError::NotStored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_root_has_a_stream_of_its_own_with_a_name_that_all_backends_take() {
        let names: Vec<String> =
            ["nachos", "a.b", "ab", "å", "ä", &"x".repeat(59), &"x".repeat(60), &"x".repeat(61)]
                .iter()
                .filter_map(|root| Token::new((*root).to_owned()).ok())
                .map(|root| stream_name(&root))
                .collect();
        assert_eq!((names.len(), names[0].as_str(), names[1].as_str()), (7, "dead-nachos", "dead-ab"));
        for (at, name) in names.iter().enumerate() {
            assert!(
                name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'),
                "{name}"
            );
            assert!(!names[..at].contains(name), "{name}");
        }
    }
}
