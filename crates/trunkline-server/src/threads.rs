//! Threads of their own for connections.
//!
//! Each has a runtime with a poller of its own. On a runtime that shares one poller among its threads, whichever thread is
//! idle waits for the sockets of all and is woken by every packet of one that another thread is busy reading anyway.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// One thread, and the connections that it serves.
#[derive(Debug)]
struct Thread {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
    turns: Arc<Turns>,
}

/// The threads that serve connections; without any, the runtime that the server was started on does.
#[derive(Debug, Default)]
pub(crate) struct Threads(Vec<Thread>);

/// A connection's place on a thread, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
    turns: Arc<Turns>,
}

impl Place {
    /// Of the thread that it is on.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Those of all connections on its thread.
    pub(crate) fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }
}

/// Whose turn it is on a thread. Tasks run in the order in which they can: were a hundred clients to send a mebibyte each,
/// whoever sends a line would wait for all of them. So long turns are taken one at a time, and between two of them the
/// thread looks at its sockets and serves everybody whose turn is short.
#[derive(Debug)]
pub(crate) struct Turns {
    long: Semaphore,
    /// How many short ones were taken.
    short: AtomicU64,
    /// Who took the last long one.
    last: AtomicU64,
}

/// One of those that are taken one at a time, over when it is dropped.
pub(crate) type LongTurn<'a> = SemaphorePermit<'a>;

impl Turns {
    fn new() -> Self {
        Self { long: Semaphore::new(1), short: AtomicU64::new(0), last: AtomicU64::new(0) }
    }

    /// Notes a short turn.
    #[inline]
    pub(crate) fn short(&self) {
        // Counted by one thread alone.
        self.short.store(self.short.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// How many short turns there were.
    pub(crate) fn shorts(&self) -> u64 {
        self.short.load(Ordering::Relaxed)
    }

    /// A long turn at once, for a client that nobody waits for: nobody else has had any turn since its last one.
    pub(crate) fn another(&self, client: u64, shorts: u64) -> Option<LongTurn<'_>> {
        let alone = self.last.load(Ordering::Relaxed) == client && self.shorts() == shorts;
        alone.then(|| self.long.try_acquire().ok()).flatten()
    }

    /// Waits until a long turn may begin, which is over when what is returned is dropped. Cancel safe.
    pub(crate) async fn long(&self, client: u64) -> Option<LongTurn<'_>> {
        let turn = self.long.acquire().await.ok();
        // Until the thread has looked at its sockets.
        tokio::task::yield_now().await;
        self.last.store(client, Ordering::Relaxed);
        turn
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Threads {
    /// Starts so many. Each ends once `stop` is cancelled and no task is left in `tasks`.
    pub(crate) fn start(count: usize, stop: &CancellationToken, tasks: &TaskTracker) -> io::Result<Self> {
        let start = |n| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let thread = Thread {
                runtime: runtime.handle().clone(),
                connections: Arc::default(),
                turns: Arc::new(Turns::new()),
            };
            let (stop, tasks) = (stop.clone(), tasks.clone());
            std::thread::Builder::new().name(format!("connections-{n}")).spawn(move || {
                runtime.block_on(async {
                    stop.cancelled().await;
                    tasks.wait().await;
                });
                // A password may still be hashed for a client that has left.
                runtime.shutdown_background();
            })?;
            Ok(thread)
        };
        (0..count).map(start).collect::<io::Result<_>>().map(Self)
    }

    /// A place on the thread that has the fewest connections, and the socket there.
    pub(crate) fn place(&self, socket: TcpStream) -> io::Result<(TcpStream, Option<Place>)> {
        let Some(thread) = self.0.iter().min_by_key(|thread| thread.connections.load(Ordering::Relaxed))
        else {
            return Ok((socket, None));
        };
        thread.connections.fetch_add(1, Ordering::Relaxed);
        let place = Place {
            runtime: thread.runtime.clone(),
            connections: thread.connections.clone(),
            turns: thread.turns.clone(),
        };
        let socket = socket.into_std()?;
        let _within = place.runtime.enter();
        Ok((TcpStream::from_std(socket)?, Some(place)))
    }
}

/// Runs a connection on the runtime of its place, or here. The place itself is the connection's, which gives it back when it
/// is over: a task that kept both would be twice as large.
pub(crate) fn spawn(
    runtime: Option<&Handle>,
    tasks: &TaskTracker,
    connection: impl Future<Output = ()> + Send + 'static,
) {
    match runtime {
        None => tasks.spawn(connection),
        Some(runtime) => tasks.spawn_on(connection, runtime),
    };
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn socket() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn connections_go_to_the_thread_with_the_fewest_and_threads_end_after_them() {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let threads = Threads::start(2, &stop, &tasks).unwrap();
        let places =
            || threads.0.iter().map(|thread| thread.connections.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let (_first, first) = threads.place(socket().await).unwrap();
        let (_second, second) = threads.place(socket().await).unwrap();
        let (_third, third) = threads.place(socket().await).unwrap();
        assert_eq!(places(), [2, 1]);
        drop((first, third));
        assert_eq!(places(), [0, 1]);
        let (name, named) = tokio::sync::oneshot::channel();
        let goes_on = CancellationToken::new();
        let until = goes_on.clone();
        let second = second.unwrap();
        spawn(Some(&second.runtime().clone()), &tasks, async move {
            let _place = second;
            let _ = name.send(std::thread::current().name().map(str::to_owned));
            until.cancelled().await;
        });
        assert_eq!(named.await.unwrap().as_deref(), Some("connections-1"));
        stop.cancel();
        tasks.close();
        goes_on.cancel();
        tasks.wait().await;
        assert_eq!(places(), [0, 0]);
    }

    #[tokio::test]
    async fn long_turns_are_taken_one_at_a_time_and_others_run_between_them() {
        let turns = Arc::new(Turns::new());
        let log = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let mut long = tokio::task::JoinSet::new();
        for n in 0..10 {
            let (turns, log) = (turns.clone(), log.clone());
            long.spawn(async move {
                for _ in 0..3 {
                    let _turn = turns.long(n).await;
                    log.lock().push(Some(n));
                }
            });
        }
        let others = log.clone();
        let short = tokio::spawn(async move {
            loop {
                others.lock().push(None);
                tokio::task::yield_now().await;
            }
        });
        long.join_all().await;
        short.abort();
        let log = log.lock();
        // What could run before a turn began may run behind it.
        assert!(!log.windows(3).any(|three| three.iter().all(Option::is_some)), "{log:?}");
        // Each in its turn.
        let order: Vec<_> = log.iter().flatten().take(20).copied().collect();
        assert_eq!(order, (0..10).chain(0..10).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn only_who_is_alone_takes_one_long_turn_after_another() {
        let turns = Turns::new();
        drop(turns.long(1).await);
        let shorts = turns.shorts();
        assert!(turns.another(1, shorts).is_some());
        assert!(turns.another(2, shorts).is_none(), "it was somebody else's turn");
        turns.short();
        assert!(turns.another(1, shorts).is_none(), "somebody had a short one");
        drop(turns.long(2).await);
        assert!(turns.another(1, turns.shorts()).is_none(), "somebody had a long one");
    }

    #[tokio::test]
    async fn without_threads_a_connection_stays_here() {
        let (_socket, place) = Threads::default().place(socket().await).unwrap();
        assert!(place.is_none());
    }
}
