//! The scenarios in which messages flow one way: `pub`, `sub`, `fanout`, `queue`. One thread per connection with blocking
//! calls: on few cores nothing is cheaper, and what the load costs is taken from the server under test.
//!
//! Every run proves that nothing was lost, doubled or reordered: subscribers count and check all messages,
//! and finish only after a PONG behind the last one.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::connection::{CONTROL_BUFFER_BYTES, Connection, Fill};
use super::endpoint::Endpoint;
use super::error::BenchError;
use super::halt::{Halt, first_error};
use super::measure::{Flow, Usage};
use super::plan::{Amount, Scenario, Workload};
use super::process::{self, Processes};
use super::stamp::{self, STAMP_BYTES};
use super::tally::{Control, Expect, Tally};
use super::window::Window;

/// Read buffer of a subscriber, less where there are many of them.
const READ_BYTES: usize = 1024 * 1024;
const READ_BYTES_TOGETHER: usize = 64 * 1024 * 1024;
const READ_BYTES_MIN: usize = 64 * 1024;

/// How often a publisher looks for a PING of the server.
const ANSWER_EVERY: Duration = Duration::from_millis(500);

/// Runs `workload` once: connects, warms up, measures.
///
/// # Errors
/// Anything that makes the run worthless: a lost message above all.
pub(super) fn run(
    workload: &Workload,
    endpoint: &Endpoint,
    server: Processes,
    halt: &Halt,
) -> Result<Flow, BenchError> {
    let mut clients = Clients::connect(workload, endpoint, halt)?;
    if !workload.warm_up.is_zero() {
        Phase::new(workload, Amount::For(workload.warm_up), halt).run(&mut clients)?;
    }
    let before = (process::own_cpu()?, server.usage()?);
    let done = Phase::new(workload, workload.amount, halt).run(&mut clients)?;
    let after = (process::own_cpu()?, server.usage()?);
    Ok(Flow {
        published: done.published,
        messages: done.messages,
        elapsed: done.elapsed,
        load_cpu: after.0.saturating_sub(before.0),
        server: server_usage(before.1, after.1),
        latency: None,
    })
}

/// CPU spent between two readings, memory as of the later one.
pub(super) fn server_usage(before: Option<Usage>, after: Option<Usage>) -> Option<Usage> {
    let (before, mut after) = (before?, after?);
    after.cpu = after.cpu.saturating_sub(before.cpu);
    Some(after)
}

/// The connections of one run.
struct Clients {
    publishers: Vec<Connection>,
    subscribers: Vec<Connection>,
}

impl Clients {
    fn connect(workload: &Workload, endpoint: &Endpoint, halt: &Halt) -> Result<Self, BenchError> {
        let count = workload.subscribers;
        let buffer_bytes = (READ_BYTES_TOGETHER / count.max(1)).clamp(READ_BYTES_MIN, READ_BYTES);
        let queue_group = if workload.scenario == Scenario::Queue { " bench" } else { "" };
        let subscribe = format!("SUB {}{queue_group} 1\r\n", workload.subject);
        let mut subscribers = Vec::with_capacity(count);
        for index in 0..count {
            let mut connection = Connection::open(endpoint, buffer_bytes, halt)?;
            connection.check_payload(workload.payload_bytes)?;
            connection.send(subscribe.as_bytes(), halt)?;
            connection.round_trip(&format!("subscriber {index}"), halt)?;
            subscribers.push(connection);
        }
        let mut publishers = Vec::with_capacity(workload.publishers);
        for _ in 0..workload.publishers {
            let connection = Connection::open(endpoint, CONTROL_BUFFER_BYTES, halt)?;
            connection.check_payload(workload.payload_bytes)?;
            publishers.push(connection);
        }
        Ok(Self { publishers, subscribers })
    }
}

/// What a phase came to.
struct Done {
    published: u64,
    messages: u64,
    elapsed: Duration,
}

/// What a publisher thread returns.
struct Published {
    sent: u64,
    started: Instant,
    confirmed: Instant,
}

/// What a subscriber thread returns.
struct Received {
    tally: Tally,
    last: Instant,
}

/// One stretch of load on open connections: the warm-up, or what is measured.
struct Phase<'a> {
    workload: &'a Workload,
    amount: Amount,
    expect: Expect,
    limit: u64,
    window: Window,
    /// Lets all threads of the phase begin together.
    begin: Barrier,
    /// Messages sent by the publishers that are done.
    published: AtomicU64,
    /// Publishers that are not done.
    publishing: AtomicUsize,
    halt: &'a Halt,
}

impl<'a> Phase<'a> {
    fn new(workload: &'a Workload, amount: Amount, halt: &'a Halt) -> Self {
        let expect = if workload.scenario == Scenario::Queue { Expect::Share } else { Expect::Every };
        let limit = workload.window_messages();
        Self {
            workload,
            amount,
            expect,
            limit,
            window: Window::new(limit, workload.subscribers, expect),
            begin: Barrier::new(workload.publishers + workload.subscribers),
            published: AtomicU64::new(0),
            publishing: AtomicUsize::new(workload.publishers),
            halt,
        }
    }

    fn run(&self, clients: &mut Clients) -> Result<Done, BenchError> {
        // The scope owns the threads: each ends with its share of the work, or within a POLL after one has failed.
        let (published, received) = thread::scope(|scope| {
            let subscribers: Vec<_> = clients
                .subscribers
                .iter_mut()
                .enumerate()
                .map(|(index, connection)| {
                    scope.spawn(move || self.halt.watch(self.subscribe(index, connection)))
                })
                .collect();
            let publishers: Vec<_> = clients
                .publishers
                .iter_mut()
                .enumerate()
                .map(|(index, connection)| {
                    scope.spawn(move || self.halt.watch(self.publish(index, connection)))
                })
                .collect();
            (publishers.into_iter().map(joined).collect(), subscribers.into_iter().map(joined).collect())
        });
        let received: Result<Vec<Received>, _> = first_error(received);
        let published: Result<Vec<Published>, _> = first_error(published);
        let (published, received) = match (published, received) {
            (Ok(published), Ok(received)) => (published, received),
            (Err(error), Ok(_)) | (Ok(_), Err(error)) => return Err(error),
            (Err(a), Err(b)) => {
                return Err(first_error::<()>(vec![Err(b), Err(a)]).err().unwrap_or(BenchError::Interrupted));
            }
        };
        self.verify(&published, &received)?;
        let sent = published.iter().map(|publisher| publisher.sent).sum();
        let started = published.iter().map(|publisher| publisher.started).min();
        let ended = match self.workload.scenario {
            Scenario::Pub => published.iter().map(|publisher| publisher.confirmed).max(),
            _ => received.iter().map(|subscriber| subscriber.last).max(),
        };
        let elapsed = ended.zip(started).map(|(ended, started)| ended - started).unwrap_or_default();
        let messages = match self.workload.scenario {
            Scenario::Pub => sent,
            _ => received.iter().map(|subscriber| subscriber.tally.received()).sum(),
        };
        Ok(Done { published: sent, messages, elapsed })
    }

    fn publish(&self, index: usize, connection: &mut Connection) -> Result<Published, BenchError> {
        let Workload { subject, body, payload_bytes, publishers, .. } = self.workload;
        let claim_max = Window::claim_max(self.limit, *publishers) as usize;
        let mut batch = Batch::new(subject, (*body, *payload_bytes), index, claim_max);
        let role = format!("publisher {index}");
        let share = self.amount.share(index, *publishers);
        self.begin.wait();
        let started = Instant::now();
        let mut answered = started;
        let mut sent = 0;
        loop {
            let now = Instant::now();
            let count = match share {
                Amount::Messages(total) => batch.messages().min(total - sent),
                Amount::For(duration) if now - started < duration => batch.messages(),
                Amount::For(_) => 0,
            };
            if count == 0 {
                break;
            }
            self.halt.check()?;
            self.window.claim(count, &role, self.halt)?;
            connection.send(batch.stamped(sent, count), self.halt)?;
            sent += count;
            if now - answered >= ANSWER_EVERY {
                answered = now;
                connection.answer_pings(self.halt)?;
            }
        }
        // In this order: who sees that nobody publishes any more must see how much was published.
        self.published.fetch_add(sent, Ordering::Release);
        self.publishing.fetch_sub(1, Ordering::Release);
        connection.round_trip(&role, self.halt)?;
        Ok(Published { sent, started, confirmed: Instant::now() })
    }

    fn subscribe(&self, index: usize, connection: &mut Connection) -> Result<Received, BenchError> {
        let role = match self.expect {
            Expect::Every => format!("subscriber {index}"),
            Expect::Share => format!("the queue group with member {index}"),
        };
        let Workload { subject, body, payload_bytes, publishers, .. } = self.workload;
        let mut tally = Tally::new(role, subject, (*body, *payload_bytes), *publishers, self.expect);
        self.begin.wait();
        let mut last = Instant::now();
        let mut moved = (0, Instant::now());
        while !self.is_complete(&tally) {
            if connection.fill(self.halt)? == Fill::Bytes {
                let before = tally.received();
                self.take(connection, &mut tally)?;
                if tally.received() > before {
                    last = Instant::now();
                    self.window.deliver(index, tally.received());
                }
                continue;
            }
            let progress = self.progress(&tally);
            if progress != moved.0 {
                moved = (progress, Instant::now());
            }
            let outstanding = self.window.claimed() > progress;
            if outstanding && moved.1.elapsed() >= self.halt.timeout {
                return Err(BenchError::Lost {
                    role: tally.role().to_owned(),
                    received: progress,
                    expected: self.window.claimed(),
                    waited: self.halt.timeout,
                });
            }
        }
        self.read_to_pong(connection, &mut tally)?;
        Ok(Received { tally, last })
    }

    /// What must reach the number published: what this subscriber has, or what the group has.
    fn progress(&self, tally: &Tally) -> u64 {
        match self.expect {
            Expect::Every => tally.received(),
            Expect::Share => self.window.received(),
        }
    }

    fn is_complete(&self, tally: &Tally) -> bool {
        self.publishing.load(Ordering::Acquire) == 0
            && self.progress(tally) >= self.published.load(Ordering::Acquire)
    }

    /// Counts what is in the buffer and answers what the server asks. True when a PONG was among it.
    fn take(&self, connection: &mut Connection, tally: &mut Tally) -> Result<bool, BenchError> {
        let mut pong = false;
        loop {
            let (consumed, control) = tally.scan(connection.pending())?;
            connection.consume(consumed);
            match control {
                None => return Ok(pong),
                Some(Control::Ping) => connection.send(b"PONG\r\n", self.halt)?,
                Some(Control::Pong) => pong = true,
                Some(Control::Note) => {}
            }
        }
    }

    /// Whatever the server still has for this subscriber arrives before the PONG: a message too many shows here.
    fn read_to_pong(&self, connection: &mut Connection, tally: &mut Tally) -> Result<(), BenchError> {
        connection.send(b"PING\r\n", self.halt)?;
        let since = Instant::now();
        while !self.take(connection, tally)? {
            if connection.fill(self.halt)? == Fill::Tick && since.elapsed() >= self.halt.timeout {
                let role = tally.role().to_owned();
                return Err(BenchError::Stalled { role, waited: self.halt.timeout });
            }
        }
        Ok(())
    }

    /// Nothing lost, nothing doubled.
    fn verify(&self, published: &[Published], received: &[Received]) -> Result<(), BenchError> {
        let expected: u64 = published.iter().map(|publisher| publisher.sent).sum();
        let check = |role: &str, received: u64| {
            if received == expected {
                return Ok(());
            }
            Err(BenchError::Excess { role: role.to_owned(), received, expected })
        };
        match self.expect {
            Expect::Every => received
                .iter()
                .try_for_each(|subscriber| check(subscriber.tally.role(), subscriber.tally.received())),
            Expect::Share => {
                check("the queue group", received.iter().map(|member| member.tally.received()).sum())?;
                let sums = received.iter().map(|member| member.tally.sequence_sum());
                let due = published.iter().map(|publisher| stamp::sum_of(publisher.sent));
                let add = |a: u64, b: u64| a.wrapping_add(b);
                let stamped = self.workload.payload_bytes >= STAMP_BYTES;
                if stamped && sums.fold(0, add) != due.fold(0, add) {
                    return Err(BenchError::Duplicates);
                }
                Ok(())
            }
        }
    }
}

/// The result of a thread; its panic goes on in this one.
pub(super) fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
