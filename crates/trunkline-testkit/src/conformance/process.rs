//! Harnesses over server processes: one line makes a backend on a real server conform.

use std::ops::DerefMut;
use std::sync::{Arc, Mutex, PoisonError};

use trunkline::backend::nats::{NatsBackend, NatsOptions};
use trunkline::backend::redis::{RedisBackend, RedisOptions};
use trunkline::backend::{Backend, Fut};
use trunkline::config::RedisUrl;

use super::{Column, Faults, Harness};
use crate::conformance::replicated::Replicated;
use crate::nats_cluster::{NODES, NatsCluster};
use crate::process::ServerProcess;
use crate::redis_cluster::RedisCluster;
use crate::redis_server::RedisServer;

/// Hurts a server process, or several, by signals.
struct ProcessFaults<S> {
    /// The process; taken for one deed at a time.
    server: Arc<Mutex<S>>,
}

impl<S: Send + 'static> ProcessFaults<S> {
    /// Does `deed` where it may block; the panic of a deed that fails is the panic of the property.
    fn act(&self, deed: impl FnOnce(&mut S) + Send + 'static) -> Fut<'_, ()> {
        let server = self.server.clone();
        Box::pin(async move {
            let deed = move || deed(&mut server.lock().unwrap_or_else(PoisonError::into_inner));
            if let Err(failed) = tokio::task::spawn_blocking(deed).await {
                std::panic::resume_unwind(failed.into_panic());
            }
        })
    }
}

impl<S: DerefMut<Target = ServerProcess> + Send + 'static> Faults for ProcessFaults<S> {
    fn kill(&self) -> Fut<'_, ()> {
        self.act(|server| server.kill())
    }

    fn restart(&self) -> Fut<'_, ()> {
        self.act(|server| server.restart())
    }

    fn pause(&self) -> Fut<'_, ()> {
        self.act(|server| server.pause())
    }

    fn resume(&self) -> Fut<'_, ()> {
        self.act(|server| server.resume())
    }
}

impl Faults for ProcessFaults<RedisCluster> {
    fn kill(&self) -> Fut<'_, ()> {
        self.act(RedisCluster::kill)
    }

    fn restart(&self) -> Fut<'_, ()> {
        self.act(RedisCluster::restart)
    }

    fn pause(&self) -> Fut<'_, ()> {
        self.act(|cluster| cluster.pause())
    }

    fn resume(&self) -> Fut<'_, ()> {
        self.act(|cluster| cluster.resume())
    }
}

impl Faults for ProcessFaults<NatsCluster> {
    fn kill(&self) -> Fut<'_, ()> {
        self.act(|cluster| (0..NODES).for_each(|node| cluster.kill(node)))
    }

    fn restart(&self) -> Fut<'_, ()> {
        self.act(|cluster| {
            (0..NODES).for_each(|node| cluster.restart(node));
            cluster.wait_until_ready();
        })
    }

    fn pause(&self) -> Fut<'_, ()> {
        self.act(|cluster| (0..NODES).for_each(|node| cluster.pause(node)))
    }

    fn resume(&self) -> Fut<'_, ()> {
        self.act(|cluster| {
            (0..NODES).for_each(|node| cluster.resume(node));
            cluster.wait_until_ready();
        })
    }
}

/// The `nats` backend on core NATS, in front of a server of its own: the real `nats-server` or Trunkline's.
pub fn nats_core<S: DerefMut<Target = ServerProcess> + Send + 'static>(server: S) -> Harness {
    nats(Column::NatsCore, server)
}

/// The `nats` backend with JetStream, in front of a server of its own that was started with `-js`.
pub fn nats_jetstream<S: DerefMut<Target = ServerProcess> + Send + 'static>(server: S) -> Harness {
    nats(Column::JetStream, server)
}

fn nats<S: DerefMut<Target = ServerProcess> + Send + 'static>(column: Column, server: S) -> Harness {
    let url = server.url().to_owned();
    // The faults live in the harness, and with them the process.
    let faults = ProcessFaults { server: Arc::new(Mutex::new(server)) };
    let harness = Harness::new(column, move || {
        let options = NatsOptions::new([url.clone()]);
        async move {
            let backend =
                NatsBackend::connect(options).await.expect("the server was ready when it was started");
            let backend: Arc<dyn Backend> = Arc::new(backend);
            backend
        }
    });
    harness.with_faults(faults)
}

/// The `redis` backend in front of a server of its own.
pub fn redis(server: RedisServer) -> Harness {
    let url = RedisUrl::parse(server.url()).expect("a server process has a valid URL");
    let faults = ProcessFaults { server: Arc::new(Mutex::new(server)) };
    let harness = Harness::new(Column::Redis, move || {
        let options = RedisOptions::new(url.clone());
        async move {
            let backend =
                RedisBackend::connect(options).await.expect("the server was ready when it was started");
            let backend: Arc<dyn Backend> = Arc::new(backend);
            backend
        }
    });
    harness.with_faults(faults)
}

/// The `redis` backend in front of a cluster that other harnesses may use at the same time, as long as none hurts it: a
/// prefix keeps them apart.
pub fn redis_cluster(cluster: &Arc<Mutex<RedisCluster>>) -> Harness {
    let url = cluster.lock().unwrap_or_else(PoisonError::into_inner).url();
    let url = RedisUrl::parse(&url).expect("a cluster has a valid URL");
    let prefix = format!("p{:08x}", fastrand::u32(..));
    let harness = Harness::new(Column::Redis, move || {
        let mut options = RedisOptions::new(url.clone());
        options.prefix = prefix.clone();
        async move {
            let backend = RedisBackend::connect(options).await.expect("the cluster was ready");
            let backend: Arc<dyn Backend> = Arc::new(backend);
            backend
        }
    });
    harness.with_faults(ProcessFaults { server: cluster.clone() })
}

/// The `nats` backend with JetStream in front of a cluster, with a copy of every stream on each server. Other harnesses may
/// use it at the same time, as long as none hurts it: a prefix keeps them apart.
///
/// All connections of a harness are to one server: what is published through another one right after `subscribe` has
/// returned may be too early, since servers tell each other of subscriptions a moment later.
pub fn nats_cluster(cluster: &Arc<Mutex<NatsCluster>>) -> Harness {
    let url = cluster.lock().unwrap_or_else(PoisonError::into_inner).url(fastrand::usize(..NODES)).to_owned();
    let prefix = format!("p{:08x}", fastrand::u32(..));
    let harness = Harness::new(Column::JetStream, move || {
        let options = NatsOptions { stream_prefix: prefix.clone(), ..NatsOptions::new([url.clone()]) };
        async move {
            let backend = NatsBackend::connect(options).await.expect("the cluster was ready");
            let backend: Arc<dyn Backend> = Arc::new(Replicated::new(Arc::new(backend), 3));
            backend
        }
    });
    harness.that_has_copies(4).with_faults(ProcessFaults { server: cluster.clone() })
}
