//! Seeing what is on a backend outside of this process: its streams, where they have everything, and what libraries report.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use trunkline_core::Pattern;

use super::{Observer, Published};
use crate::backend::{Backend, BackendKind, LiveEvent, LiveSource, SubscribeOptions};

/// Events taken at a time.
const EVENTS_MAX: usize = 256;
/// Pause before a subscription that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Sees what is on `backend` until `stop`: on Redis what is published under the root and stored therefore, and everywhere what
/// libraries report. On NATS it is those reports alone: whoever listens there counts as one who answers. To be run by one
/// task, whose owner joins it.
pub async fn collect(observer: Arc<Observer>, backend: Arc<dyn Backend>, stop: CancellationToken) {
    let reads_streams = backend.capabilities().kind == BackendKind::Redis;
    let pattern = match reads_streams {
        true => observer.pattern(),
        false => Pattern::new(observer.trace_subject()).expect("a subject is a pattern"),
    };
    if reads_streams {
        observer.sees_streams();
    }
    let mut failed = false;
    loop {
        let subscribing = backend.subscribe(pattern.clone(), SubscribeOptions::default());
        let outcome = tokio::select! {
            () = stop.cancelled() => return,
            outcome = subscribing => outcome,
        };
        match outcome {
            Ok(source) => {
                failed = false;
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = read(&observer, source) => {}
                }
            }
            // Once: it is tried again every second.
            Err(error) if !failed => {
                failed = true;
                tracing::warn!(%pattern, %error, "conversations are not recorded while this lasts");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY_PAUSE) => {}
        }
    }
}

async fn read(observer: &Arc<Observer>, mut source: Box<dyn LiveSource>) {
    let mut events = Vec::with_capacity(EVENTS_MAX);
    while poll_fn(|cx| source.poll_batch(cx, EVENTS_MAX, &mut events)).await > 0 {
        for event in events.drain(..) {
            match event {
                LiveEvent::Message { message, offset: _ } => {
                    if observer.begins(true, &message) {
                        observer.published(Published {
                            message,
                            time: Timestamp::now(),
                            from: None,
                            to: Vec::new(),
                            missed: Vec::new(),
                            stored: None,
                            nobody: false,
                            redriven: false,
                        });
                    }
                }
                LiveEvent::Gap(gap) => {
                    observer.not_recorded.fetch_add(gap.missed.unwrap_or(1), Ordering::Relaxed);
                }
            }
        }
    }
}
