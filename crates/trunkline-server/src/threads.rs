//! Threads of their own for connections.
//!
//! Each has a runtime with a poller of its own. On a runtime that shares one poller among its threads, whichever thread is
//! idle waits for the sockets of all and is woken by every packet of one that another thread is busy reading anyway.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::turns::Turns;

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

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Threads {
    /// Starts so many. Each ends once `stop` is cancelled and no task is left in `tasks`.
    pub(crate) fn start(count: usize, stop: &CancellationToken, tasks: &TaskTracker) -> io::Result<Self> {
        let start = |(n, turns)| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let thread = Thread {
                runtime: runtime.handle().clone(),
                connections: Arc::default(),
                turns: Arc::new(turns),
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
        Turns::of_threads(count).enumerate().map(start).collect::<io::Result<_>>().map(Self)
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
    async fn without_threads_a_connection_stays_here() {
        let (_socket, place) = Threads::default().place(socket().await).unwrap();
        assert!(place.is_none());
    }
}
