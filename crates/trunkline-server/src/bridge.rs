//! The bridge: sessions in front of a backend that is not in this process, such as Redis.
//!
//! A bridging session has the parser, limits, client table and outbox that every session has. What differs is what its
//! operations do: they are *orders*, carried out one behind the other by a *lane*, one task for each connection.
//!
//! - [`orders`]: what waits between session and lane; bounded, and reading from the client pauses past the bound.
//! - [`front`]: the session's end: from an operation to an order.
//! - [`lane`]: carries orders out. A message leaves once every subscription before it stands; a PONG is said once every
//!   message before it has its outcome. A publish that failed ends the connection: a client that was told nothing may
//!   believe what it likes, and its flush must not succeed.
//! - [`feeds`]: the subscriptions of a connection, of which some start or end while others stand.
//! - [`pump`]: what one subscription gets, from the backend to the client's outbox.
//!
//! Nothing is routed here: what clients get comes only from the backend, so that all servers on it are one bus.

mod feeds;
pub(crate) mod front;
pub(crate) mod lane;
pub(crate) mod orders;
mod pump;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytestring::ByteString;
use trunkline::backend::{Backend, Gap};
use trunkline::observe::{Observation, Observer, What};
use trunkline::{Pattern, Token};

use crate::client::Client;

/// Header of a message whose publisher must not get it back: server and client that sent it. No client sees it.
pub(crate) const ORIGIN_HEADER: &str = "Trunkline-Origin";

/// The backend behind a bridging server, and what is counted on the way to it.
pub(crate) struct Bridge {
    pub(crate) backend: Arc<dyn Backend>,
    /// Longest time from a client's operation to its outcome; past it the connection ends.
    pub(crate) publish_timeout: Duration,
    missed: AtomicU64,
    gaps: AtomicU64,
    unconfirmed: AtomicU64,
    /// Is told of gaps, where conversations are recorded.
    observer: OnceLock<Arc<Observer>>,
}

impl std::fmt::Debug for Bridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bridge").field("publish_timeout", &self.publish_timeout).finish_non_exhaustive()
    }
}

impl Bridge {
    pub(crate) fn new(backend: Arc<dyn Backend>, publish_timeout: Duration) -> Self {
        Self {
            backend,
            publish_timeout,
            missed: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
            unconfirmed: AtomicU64::new(0),
            observer: OnceLock::new(),
        }
    }

    /// Says who is to be told of gaps. The first one stays.
    pub(crate) fn set_observer(&self, observer: &Arc<Observer>) {
        let _ = self.observer.set(observer.clone());
    }

    /// Messages that clients were not given, where their number is known.
    pub(crate) fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Gaps in what clients were given, of known and of unknown size.
    pub(crate) fn gaps(&self) -> u64 {
        self.gaps.load(Ordering::Relaxed)
    }

    /// Operations that failed or whose outcome is unknown; each of them ended its connection.
    pub(crate) fn unconfirmed(&self) -> u64 {
        self.unconfirmed.load(Ordering::Relaxed)
    }

    fn count_gap(&self, client: &Client, pattern: &Pattern, gap: Gap) {
        if let Some(observer) = self.observer.get() {
            let mut seen = Observation::new(What::Gap, jiff::Timestamp::now(), pattern.as_str());
            (seen.to, seen.missed) = (vec![client.seen_as()], gap.missed);
            seen.reason = Some("the backend did not give the subscription what it had for it".to_owned());
            observer.observed(seen);
        }
        self.gaps.fetch_add(1, Ordering::Relaxed);
        client.gaps.fetch_add(1, Ordering::Relaxed);
        if let Some(missed) = gap.missed {
            self.missed.fetch_add(missed, Ordering::Relaxed);
            client.missed.fetch_add(missed, Ordering::Relaxed);
        }
    }

    fn count_unconfirmed(&self) {
        self.unconfirmed.fetch_add(1, Ordering::Relaxed);
    }
}

/// The name of a queue group as backends take it. Clients may use several tokens, backends take one: what would make it
/// more is percent-encoded, and all bridges do it alike.
fn queue_token(queue: &str) -> Option<Token> {
    if let Ok(token) = Token::new(queue) {
        return Some(token);
    }
    let mut encoded = String::with_capacity(queue.len() + 8);
    for c in queue.chars() {
        match c {
            '%' => encoded.push_str("%25"),
            '.' => encoded.push_str("%2E"),
            '*' => encoded.push_str("%2A"),
            '>' => encoded.push_str("%3E"),
            c => encoded.push(c),
        }
    }
    Token::new(ByteString::from(encoded)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_names_of_several_tokens_stay_apart() {
        for (name, token) in [
            ("workers", Some("workers")),
            ("a%b", Some("a%b")),
            ("eu.workers", Some("eu%2Eworkers")),
            ("eu.50%", Some("eu%2E50%25")),
            ("all.*", Some("all%2E%2A")),
            ("a\u{0}b", None),
        ] {
            assert_eq!(queue_token(name).as_ref().map(Token::as_str), token, "{name:?}");
        }
    }
}
