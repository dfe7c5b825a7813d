//! The scenario `request`: requesters keep a number of requests in flight, responders send each payload back. As real
//! clients do, a requester has one wildcard subscription for its replies and a reply subject of its own for each request.
//! Times are taken once per read and per write: what a request waits in a batch counts as its latency.

use std::io::Write;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::connection::{Connection, Fill};
use super::desk::Desk;
use super::endpoint::Endpoint;
use super::error::BenchError;
use super::frames::{self, Frame, Message};
use super::halt::{Halt, first_error};
use super::load::{joined, server_usage};
use super::measure::Flow;
use super::plan::{Amount, Workload};
use super::process::{self, Processes};

pub(super) const READ_BYTES: usize = 256 * 1024;

/// Longest latency that the histogram tells apart.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Runs `workload` once: connects, warms up, measures.
///
/// # Errors
/// Anything that makes the run worthless: an unanswered request above all.
pub(super) fn run(
    workload: &Workload,
    endpoint: &Endpoint,
    server: Processes,
    halt: &Halt,
) -> Result<Flow, BenchError> {
    let subscribe = format!("SUB {} bench 1\r\n", workload.subject);
    let mut responders = Vec::with_capacity(workload.subscribers);
    for index in 0..workload.subscribers {
        let mut connection = Connection::open(endpoint, READ_BYTES, halt)?;
        connection.check_payload(workload.payload_bytes)?;
        connection.send(subscribe.as_bytes(), halt)?;
        // Beside a hostile client that floods the subject, messages come before the PONG.
        connection.round_trip_amid_messages(&format!("responder {index}"), halt)?;
        responders.push(connection);
    }
    let mut requesters = Vec::with_capacity(workload.clients);
    for index in 0..workload.clients {
        let inbox: String = std::iter::repeat_with(fastrand::alphanumeric).take(22).collect();
        let mut connection = Connection::open(endpoint, READ_BYTES, halt)?;
        connection.send(format!("SUB _INBOX.{inbox}.* 1\r\n").as_bytes(), halt)?;
        connection.round_trip(&format!("requester {index}"), halt)?;
        requesters.push(Requester::new(index, connection, &format!("_INBOX.{inbox}."), workload));
    }
    if !workload.warm_up.is_zero() {
        phase(Amount::For(workload.warm_up), &mut requesters, &mut responders, halt)?;
    }
    let before = (process::own_cpu()?, server.usage()?);
    let done = phase(workload.amount, &mut requesters, &mut responders, halt)?;
    let after = (process::own_cpu()?, server.usage()?);
    Ok(Flow {
        published: done.latency.len(),
        messages: done.latency.len(),
        elapsed: done.elapsed,
        load_cpu: after.0.saturating_sub(before.0),
        server: server_usage(before.1, after.1),
        latency: Some(done.latency),
    })
}

struct Done {
    elapsed: Duration,
    latency: Histogram<u64>,
}

/// What a requester thread returns.
struct Answered {
    started: Instant,
    last: Instant,
    latency: Histogram<u64>,
}

fn phase(
    amount: Amount,
    requesters: &mut [Requester],
    responders: &mut [Connection],
    halt: &Halt,
) -> Result<Done, BenchError> {
    let requesting = AtomicUsize::new(requesters.len());
    let begin = Barrier::new(requesters.len() + responders.len());
    let (requesting, begin) = (&requesting, &begin);
    // The scope owns the threads: requesters end with their share, responders when no requester is left,
    // and all of them within a POLL after one has failed.
    let (answered, responded) = thread::scope(|scope| {
        let responders: Vec<_> = responders
            .iter_mut()
            .map(|connection| {
                scope.spawn(move || {
                    begin.wait();
                    halt.watch(respond(connection, requesting, halt))
                })
            })
            .collect();
        let clients = requesters.len();
        let requesters: Vec<_> = requesters
            .iter_mut()
            .map(|requester| {
                let share = amount.share(requester.index, clients);
                scope.spawn(move || {
                    begin.wait();
                    let answered = halt.watch(requester.run(share, halt));
                    requesting.fetch_sub(1, Ordering::Release);
                    answered
                })
            })
            .collect();
        let answered: Vec<_> = requesters.into_iter().map(joined).collect();
        (answered, responders.into_iter().map(joined).collect::<Vec<_>>())
    });
    let answered = match first_error(answered) {
        Err(BenchError::Interrupted) => {
            first_error(responded)?;
            return Err(BenchError::Interrupted);
        }
        other => other?,
    };
    first_error(responded)?;
    let started = answered.iter().map(|requester| requester.started).min();
    let last = answered.iter().map(|requester| requester.last).max();
    let mut latency = histogram();
    for requester in &answered {
        // Same bounds, so that nothing can be out of range.
        latency.add(&requester.latency).expect("all histograms have the same bounds");
    }
    Ok(Done { elapsed: last.zip(started).map(|(last, first)| last - first).unwrap_or_default(), latency })
}

/// Sends every payload back where its message asks for it, until nobody requests any more.
pub(super) fn respond(
    connection: &mut Connection,
    requesting: &AtomicUsize,
    halt: &Halt,
) -> Result<(), BenchError> {
    let mut out = Vec::with_capacity(READ_BYTES);
    while requesting.load(Ordering::Acquire) > 0 {
        if connection.fill(halt)? == Fill::Tick {
            continue;
        }
        out.clear();
        let consumed = each_message(connection.pending(), &mut out, |message, out| {
            let Some(reply) = message.reply else {
                let line = frames::shown(message.subject);
                return Err(BenchError::Foreign { role: "a responder".to_owned(), line });
            };
            out.extend_from_slice(b"PUB ");
            out.extend_from_slice(reply);
            // Writing to a `Vec` cannot fail.
            let _ = write!(out, " {}\r\n", message.payload.len());
            out.extend_from_slice(message.payload);
            out.extend_from_slice(b"\r\n");
            Ok(())
        })?;
        connection.consume(consumed);
        connection.send(&out, halt)?;
    }
    Ok(())
}

/// Hands all whole messages to `take` and answers PING into `out`; returns the bytes consumed.
fn each_message(
    pending: &[u8],
    out: &mut Vec<u8>,
    mut take: impl FnMut(Message<'_>, &mut Vec<u8>) -> Result<(), BenchError>,
) -> Result<usize, BenchError> {
    let mut consumed = 0;
    while let Some((frame, length)) = frames::next(&pending[consumed..])? {
        consumed += length;
        match frame {
            Frame::Message(message) => take(message, out)?,
            Frame::Ping => out.extend_from_slice(b"PONG\r\n"),
            Frame::Pong | Frame::Ok | Frame::Info(_) => {}
            Frame::Error(text) => {
                return Err(BenchError::Refused { text: frames::shown(text) });
            }
        }
    }
    Ok(consumed)
}

/// A client with a fixed number of requests in flight.
struct Requester {
    index: usize,
    connection: Connection,
    desk: Desk,
}

impl Requester {
    fn new(index: usize, connection: Connection, inbox: &str, workload: &Workload) -> Self {
        Self { index, connection, desk: Desk::new(index, inbox, workload) }
    }

    fn run(&mut self, share: Amount, halt: &Halt) -> Result<Answered, BenchError> {
        let mut latency = histogram();
        let started = Instant::now();
        let mut last = started;
        let mut budget = Budget { share, started, requested: 0 };
        let mut answered = 0;
        let mut out = Vec::new();
        for slot in 0..self.desk.slots() {
            if budget.take(started) {
                self.desk.request(slot, started, &mut out);
            }
        }
        self.connection.send(&out, halt)?;
        while answered < budget.requested {
            if self.connection.fill(halt)? == Fill::Tick {
                if last.elapsed() >= halt.timeout {
                    return Err(BenchError::Lost {
                        role: format!("requester {}", self.index),
                        received: answered,
                        expected: budget.requested,
                        waited: halt.timeout,
                    });
                }
                continue;
            }
            let now = Instant::now();
            out.clear();
            let desk = &mut self.desk;
            let consumed = each_message(self.connection.pending(), &mut out, |message, out| {
                let (slot, sent) = desk.settle(&message)?;
                latency.saturating_record((now - sent).as_nanos() as u64);
                answered += 1;
                last = now;
                if budget.take(now) {
                    desk.request(slot, now, out);
                }
                Ok(())
            })?;
            self.connection.consume(consumed);
            self.connection.send(&out, halt)?;
        }
        Ok(Answered { started, last, latency })
    }
}

/// How many more requests a requester may begin.
struct Budget {
    share: Amount,
    started: Instant,
    requested: u64,
}

impl Budget {
    fn take(&mut self, now: Instant) -> bool {
        let more = match self.share {
            Amount::Messages(total) => self.requested < total,
            Amount::For(duration) => now - self.started < duration,
        };
        self.requested += u64::from(more);
        more
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are valid constants")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_of_messages_ends() {
        let now = Instant::now();
        let mut budget = Budget { share: Amount::Messages(2), started: now, requested: 0 };
        assert_eq!([budget.take(now), budget.take(now), budget.take(now)], [true, true, false]);
        let mut timed = Budget { share: Amount::For(Duration::from_secs(1)), started: now, requested: 0 };
        assert!(timed.take(now));
        assert!(!timed.take(now + Duration::from_secs(1)));
    }
}
