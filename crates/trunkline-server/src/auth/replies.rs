//! Requests that a responder got and may answer, although it may not publish there otherwise.

use std::time::Instant;

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::permissions::Responses;

/// Most requests that one half keeps. A responder that is given more before it answers may no longer answer the oldest.
const HALF_MAX: usize = 8192;

/// Answers that one client may give, at most twice [`HALF_MAX`].
#[derive(Debug)]
pub(crate) struct Replies {
    limits: Responses,
    /// Held for a look or a change. Whoever delivers a request to the client takes it, and the client's own session.
    halves: Mutex<Halves>,
}

/// The younger half takes what comes; when it is full, it becomes the older one, and that is forgotten.
#[derive(Debug, Default)]
struct Halves {
    young: Half,
    old: Half,
}

type Half = HashMap<Box<[u8]>, Request, foldhash::quality::RandomState>;

#[derive(Debug, Clone, Copy)]
struct Request {
    at: Instant,
    answers: u32,
}

impl Replies {
    pub(crate) fn new(limits: Responses) -> Self {
        Self { limits, halves: Mutex::default() }
    }

    pub(crate) fn limits(&self) -> Responses {
        self.limits
    }

    /// The client is given a request with this reply subject.
    pub(crate) fn note(&self, reply: &[u8], now: Instant) {
        let mut halves = self.halves.lock();
        if halves.young.len() >= HALF_MAX {
            halves.old = std::mem::take(&mut halves.young);
        }
        halves.young.insert(reply.into(), Request { at: now, answers: 0 });
    }

    /// Whether the client may answer to `reply`; if so, one answer less is left.
    pub(crate) fn take(&self, reply: &[u8], now: Instant) -> bool {
        let mut halves = self.halves.lock();
        let Halves { young, old } = &mut *halves;
        let half = if young.contains_key(reply) { young } else { old };
        let Some(request) = half.get_mut(reply) else { return false };
        request.answers += 1;
        let in_time = now.saturating_duration_since(request.at) <= self.limits.expires;
        if !in_time || request.answers >= self.limits.max {
            half.remove(reply);
        }
        in_time
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn replies(max: u32) -> Replies {
        Replies::new(Responses { max, expires: Duration::from_secs(10) })
    }

    #[test]
    fn a_request_may_be_answered_so_often_and_so_long() {
        let (replies, now) = (replies(2), Instant::now());
        assert!(!replies.take(b"r", now), "nobody asked");
        replies.note(b"r", now);
        assert!(replies.take(b"r", now) && replies.take(b"r", now));
        assert!(!replies.take(b"r", now));
        replies.note(b"r", now);
        assert!(replies.take(b"r", now + Duration::from_secs(10)));
        assert!(!replies.take(b"r", now + Duration::from_secs(11)), "too late");
        assert!(!replies.take(b"r", now), "and over");
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let (replies, now) = (replies(1), Instant::now());
        for n in 0..=2 * HALF_MAX {
            replies.note(n.to_string().as_bytes(), now);
        }
        let halves = replies.halves.lock();
        assert!(halves.young.len() + halves.old.len() <= 2 * HALF_MAX);
        drop(halves);
        assert!(!replies.take(b"0", now));
        assert!(replies.take(HALF_MAX.to_string().as_bytes(), now), "of the older half");
        assert!(replies.take((2 * HALF_MAX).to_string().as_bytes(), now));
    }
}
