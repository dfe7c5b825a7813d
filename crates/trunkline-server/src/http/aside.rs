//! Answers that take work: made where they keep no session waiting, few at a time, and not more of them kept than there is room
//! for. Whoever reaches the port may ask, so that a flood of questions, or answers that nobody takes, must cost little.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::sync::Semaphore;

use super::internal;

/// Bytes of answers that were made and not taken, of each kind. One more than that always fits.
const KEPT_BYTES_MAX: usize = 64 << 20;
/// Answers of so many bytes are given in any case.
const SMALL_BYTES: usize = 64 << 10;

/// Answers of one kind, all together: of this process, as its memory is one.
pub(crate) struct Aside {
    /// One permit for each that is being made. Who asks waits for one in order, and there are never more than there are
    /// connections.
    making: Semaphore,
    kept_bytes: AtomicUsize,
}

/// Lists of connections and subscriptions, which may be long, those of the admin API, too. One at a time: of two processors the
/// other serves clients.
pub(crate) static LISTS: Aside = Aside::new(1);
/// Everything else, which is quick: a scrape does not wait for lists.
pub(crate) static FACTS: Aside = Aside::new(2);

impl Aside {
    const fn new(at_a_time: usize) -> Self {
        Self { making: Semaphore::const_new(at_a_time), kept_bytes: AtomicUsize::new(0) }
    }

    /// Takes so many of its places, until what it returns is dropped.
    #[cfg(test)]
    pub(crate) async fn take(&'static self, places: u32) -> tokio::sync::SemaphorePermit<'static> {
        self.making.acquire_many(places).await.expect("nobody closes it")
    }

    /// Has an answer made.
    pub(crate) async fn make(&'static self, work: impl FnOnce() -> Response + Send + 'static) -> Response {
        let permit = match self.making.acquire().await {
            Ok(permit) => permit,
            Err(error) => return internal(&error),
        };
        // With the work, which goes on where nobody waits for it any more.
        let work = move || {
            let _permit = permit;
            work()
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(answer) => self.keep(answer).await,
            Err(error) => internal(&error),
        }
    }

    /// Counts the answer until it has been taken, or refuses it where too much is kept.
    async fn keep(&'static self, answer: Response) -> Response {
        let (head, body) = answer.into_parts();
        // It was made in one piece, which is what comes out again.
        let bytes = match axum::body::to_bytes(body, usize::MAX).await {
            Ok(bytes) => bytes,
            Err(error) => return internal(&error),
        };
        let length = bytes.len();
        if length <= SMALL_BYTES {
            return Response::from_parts(head, bytes.into());
        }
        let kept = Kept { bytes, of: self };
        let before = self.kept_bytes.fetch_add(length, Ordering::AcqRel);
        if before > 0 && before.saturating_add(length) > KEPT_BYTES_MAX {
            let text =
                format!("{before} bytes of long answers are on their way already; ask for less, or later\n");
            return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], text).into_response();
        }
        Response::from_parts(head, Body::from(Bytes::from_owner(kept)))
    }
}

/// An answer that has not been taken.
struct Kept {
    bytes: Bytes,
    of: &'static Aside,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.of.kept_bytes.fetch_sub(self.bytes.len(), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn so_many_answers_are_made_at_a_time() {
        static FEW: Aside = Aside::new(2);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let making = (0..32).map(|_| {
            let (now, most) = (now.clone(), most.clone());
            tokio::spawn(FEW.make(move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // Others get a chance to come in between.
                std::thread::yield_now();
                now.fetch_sub(1, Ordering::SeqCst);
                "made".into_response()
            }))
        });
        for made in making.collect::<Vec<_>>() {
            assert_eq!(made.await.expect("no panic").status(), StatusCode::OK);
        }
        assert!(most.load(Ordering::SeqCst) <= 2, "{most:?}");
    }

    #[tokio::test]
    async fn answers_that_nobody_takes_are_kept_up_to_a_bound_and_short_ones_always() {
        static FEW: Aside = Aside::new(1);
        let long = || FEW.make(|| vec![b'x'; KEPT_BYTES_MAX / 4].into_response());
        let mut kept = Vec::new();
        for n in 0..4 {
            let answer = long().await;
            assert_eq!(answer.status(), StatusCode::OK, "{n}");
            kept.push(answer);
        }
        assert_eq!(long().await.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(FEW.make(|| "short".into_response()).await.status(), StatusCode::OK);
        let taken = kept.pop().expect("four are kept").into_body();
        let bytes = axum::body::to_bytes(taken, usize::MAX).await.expect("a whole answer");
        assert_eq!(
            long().await.status(),
            StatusCode::SERVICE_UNAVAILABLE,
            "what is taken is still in memory"
        );
        drop(bytes);
        assert_eq!(long().await.status(), StatusCode::OK);
        drop(kept);
        assert_eq!(FEW.kept_bytes.load(Ordering::SeqCst), 0);
        let huge = FEW.make(|| vec![b'x'; KEPT_BYTES_MAX + 1].into_response()).await;
        assert_eq!(huge.status(), StatusCode::OK, "one always fits");
    }
}
