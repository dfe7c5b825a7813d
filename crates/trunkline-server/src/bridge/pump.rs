//! What one subscription gets: from the backend in batches, to the client's outbox in one write a batch.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trunkline::Message;
use trunkline::backend::{LiveEvent, LiveSource, SubscribeError, SubscribeOptions};
use trunkline_protocol::encode;

use super::{Bridge, ORIGIN_HEADER, queue_token};
use crate::client::Client;
use crate::outbox::Written;
use crate::subscription::Subscription;
use crate::wire::{self, Fit};

/// Most events taken from the backend at a time.
const EVENTS_MAX: usize = 256;
/// Payloads from this size on are not copied before they are written.
const VECTORED_BYTES: usize = 4 << 10;
/// So many bytes are written before the batch is over.
const WRITE_BYTES: usize = 1 << 20;
/// A buffer that grew beyond this is given back.
const KEPT_BYTES: usize = 64 << 10;
/// Pause before a subscription that found no connection is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What a pump tells its lane; its end shows by the end of its task.
pub(super) enum Report {
    /// From now on it gets everything.
    Stands(usize),
    /// It does not start.
    Failed(usize, SubscribeError),
}

/// One subscription on its way to a client.
pub(super) struct Pump {
    /// The lane's name for it.
    pub(super) key: usize,
    pub(super) subscription: Arc<Subscription>,
    pub(super) bridge: Arc<Bridge>,
    /// The mark of messages that the client must not get back.
    pub(super) own: Option<ByteString>,
    /// Past it a subscription that does not start has failed.
    pub(super) start_by: Instant,
    /// The client has unsubscribed, or the server stops: what was published by now is still given out.
    pub(super) stop: CancellationToken,
    pub(super) reports: mpsc::Sender<Report>,
}

/// Lines for the client, and where large payloads belong between them.
#[derive(Default)]
struct Batch {
    lines: Vec<u8>,
    /// `(end of the lines before, payload)`.
    payloads: Vec<(usize, Bytes)>,
    payload_bytes: usize,
    messages: u64,
    message_bytes: u64,
    header: Vec<u8>,
}

impl Pump {
    /// Runs until the subscription ends; returns its key.
    pub(super) async fn run(self) -> usize {
        let key = self.key;
        let started = tokio::select! {
            biased;
            started = self.start() => started,
            // Nobody has seen it stand, so there is nothing that it owes.
            () = self.stop.cancelled() => return key,
        };
        match started {
            Ok(source) => {
                // The lane outlives its pumps, but need not listen any more.
                let _ = self.reports.send(Report::Stands(key)).await;
                self.pump(source).await;
            }
            Err(error) => {
                let _ = self.reports.send(Report::Failed(key, error)).await;
            }
        }
        key
    }

    async fn start(&self) -> Result<Box<dyn LiveSource>, SubscribeError> {
        let pattern = &self.subscription.pattern;
        let queue = match &self.subscription.queue {
            None => None,
            Some(queue) => Some(queue_token(queue).ok_or_else(|| SubscribeError::Denied {
                pattern: pattern.clone(),
                reason: "the queue group cannot be named like this".to_owned(),
            })?),
        };
        let options = SubscribeOptions {
            queue,
            // Replies come to inboxes; nobody asks there.
            responder: pattern.tokens().next() != Some("_INBOX"),
            ..SubscribeOptions::default()
        };
        loop {
            let starting = self.bridge.backend.subscribe(pattern.clone(), options.clone());
            let error = match tokio::time::timeout_at(self.start_by, starting).await {
                Ok(Ok(source)) => return Ok(source),
                Ok(Err(error)) => error,
                Err(_) => SubscribeError::NotConnected {
                    server: self.bridge.backend.status().borrow().server.clone(),
                    reason: format!("no answer within {:?}", self.bridge.publish_timeout),
                },
            };
            if !error.is_retryable() || Instant::now() + RETRY_PAUSE >= self.start_by {
                return Err(error);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn pump(&self, mut source: Box<dyn LiveSource>) {
        let (mut events, mut batch) = (Vec::new(), Batch::default());
        let mut stopping = false;
        loop {
            let took = std::future::poll_fn(|cx| source.poll_batch(cx, EVENTS_MAX, &mut events));
            tokio::select! {
                biased;
                count = took => {
                    if count == 0 {
                        return;
                    }
                }
                () = self.stop.cancelled(), if !stopping => {
                    stopping = true;
                    if let Err(error) = source.stop().await {
                        tracing::debug!(client = self.client().id, %error, "a subscription ended before it had everything");
                    }
                    continue;
                }
            }
            if !self.give(&mut events, &mut batch) {
                return;
            }
        }
    }

    fn client(&self) -> &Arc<Client> {
        &self.subscription.client
    }

    /// Writes a batch; `false` once the subscription is over.
    fn give(&self, events: &mut Vec<LiveEvent>, batch: &mut Batch) -> bool {
        let mut goes_on = true;
        for event in events.drain(..) {
            match event {
                LiveEvent::Message { message, .. } => {
                    goes_on = goes_on && self.stage(&message, batch);
                    if batch.size_bytes() > WRITE_BYTES {
                        goes_on &= batch.write(self.client());
                    }
                }
                LiveEvent::Gap(gap) => {
                    self.bridge.count_gap(self.client(), &self.subscription.pattern, gap);
                    tracing::warn!(
                        client = self.client().id,
                        pattern = %self.subscription.pattern,
                        missed = gap.missed,
                        "a client was not given messages that the backend had for it"
                    );
                }
            }
        }
        batch.write(self.client()) && goes_on
    }

    /// `false` once the subscription has had all it may have.
    fn stage(&self, message: &Message, batch: &mut Batch) -> bool {
        let client = self.client();
        if let Some(own) = &self.own
            && message.headers.get(ORIGIN_HEADER) == Some(own)
        {
            return true;
        }
        let reply = message.reply.as_ref().map(|reply| reply.as_bytes());
        if !self.subscription.admits(message.subject.as_bytes(), reply) {
            return true;
        }
        batch.header.clear();
        let fit = wire::header_block(&message.headers, &message.payload, client, &mut batch.header);
        match fit {
            Fit::Withheld => return true,
            // As on nats-server, beside the deliveries that a limit counts.
            Fit::NobodyAnswers => {}
            Fit::Block | Fit::Without if !self.subscription.take_delivery() => return false,
            Fit::Block | Fit::Without => {}
        }
        batch.message(&self.subscription.sid, message, fit != Fit::Without);
        // The last one was this one, if there is one.
        !self.subscription.has_ended()
    }
}

impl Batch {
    fn size_bytes(&self) -> usize {
        self.lines.len() + self.payload_bytes
    }

    fn message(&mut self, sid: &[u8], message: &Message, with_header: bool) {
        let (subject, payload) = (message.subject.as_bytes(), &message.payload);
        let reply = message.reply.as_ref().map(|reply| reply.as_bytes());
        let header = with_header.then_some(&self.header[..]);
        self.messages += 1;
        self.message_bytes += (payload.len() + header.map_or(0, <[u8]>::len)) as u64;
        if payload.len() < VECTORED_BYTES {
            encode::msg(&mut self.lines, subject, sid, reply, header, payload);
        } else {
            encode::msg_head(&mut self.lines, subject, sid, reply, header, payload.len());
            self.payloads.push((self.lines.len(), payload.clone()));
            self.payload_bytes += payload.len();
            self.lines.extend_from_slice(b"\r\n");
        }
    }

    /// Writes what is staged; `false` when the connection takes nothing any more.
    fn write(&mut self, client: &Client) -> bool {
        let total = self.size_bytes();
        if total == 0 {
            return true;
        }
        let mut slices = Vec::with_capacity(2 * self.payloads.len() + 1);
        let mut from = 0;
        for (until, payload) in &self.payloads {
            slices.push(IoSlice::new(&self.lines[from..*until]));
            slices.push(IoSlice::new(payload));
            from = *until;
        }
        slices.push(IoSlice::new(&self.lines[from..]));
        let written = client.write(&slices, total);
        client.keep_memory();
        if written != Written::Closed {
            client.sent.messages.fetch_add(self.messages, Ordering::Relaxed);
            client.sent.bytes.fetch_add(self.message_bytes, Ordering::Relaxed);
        }
        self.lines.clear();
        if self.lines.capacity() > KEPT_BYTES {
            self.lines = Vec::new();
        }
        self.payloads.clear();
        (self.payload_bytes, self.messages, self.message_bytes) = (0, 0, 0);
        written != Written::Closed
    }
}
