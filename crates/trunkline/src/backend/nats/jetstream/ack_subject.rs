//! What JetStream tells about a delivery: all of it stands in the subject by which it is acknowledged.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What an acknowledgement subject tells about a delivery.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AckSubject {
    pub(super) attempt: u32,
    pub(super) stream_seq: u64,
    pub(super) consumer_seq: u64,
    pub(super) time: SystemTime,
}

impl AckSubject {
    /// Reads `$JS.ACK.STREAM.CONSUMER.ATTEMPT.SSEQ.CSEQ.TIME.PENDING`, or the longer form with domain and account before
    /// the stream.
    pub(super) fn parse(subject: &str) -> Option<Self> {
        let mut tokens = subject.strip_prefix("$JS.ACK.")?.split('.');
        let skipped = match subject.bytes().filter(|&byte| byte == b'.').count() + 1 {
            9 => 2,
            11.. => 4,
            _ => return None,
        };
        tokens.nth(skipped - 1)?;
        let mut number = || tokens.next()?.parse::<u64>().ok();
        Some(Self {
            attempt: u32::try_from(number()?).unwrap_or(u32::MAX),
            stream_seq: number()?,
            consumer_seq: number()?,
            time: UNIX_EPOCH + Duration::from_nanos(number()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ack_subjects_tell_about_the_delivery_in_both_forms() {
        let expected = AckSubject {
            attempt: 2,
            stream_seq: 7,
            consumer_seq: 9,
            time: UNIX_EPOCH + Duration::from_nanos(1_795_344_761_830_089_140),
        };
        for text in [
            "$JS.ACK.p_s.c.2.7.9.1795344761830089140.3",
            "$JS.ACK._.hash.p_s.c.2.7.9.1795344761830089140.3.x",
        ] {
            assert_eq!(AckSubject::parse(text).as_ref(), Some(&expected), "{text}");
        }
        for text in ["", "$JS.ACK.p_s.c.2.7.9.1", "$JS.ACK.p_s.c.x.7.9.1.3", "a.b.c.d.2.7.9.1.3"] {
            assert_eq!(AckSubject::parse(text), None, "{text}");
        }
    }
}
