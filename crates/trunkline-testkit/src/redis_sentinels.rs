//! A real Redis Sentinel setup: a master, a replica, and three sentinels that watch them.

use crate::redis_server::RedisServer;

/// Name of the master.
const MASTER: &str = "main";

/// One master, one replica, three sentinels. They go when it is dropped.
pub struct RedisSentinels {
    servers: [RedisServer; 2],
    sentinels: Vec<RedisServer>,
}

impl RedisSentinels {
    /// Starts all of them, ready to fail over when this returns. A master counts as down after half a second.
    ///
    /// # Panics
    /// When there is no `redis-server`, or they do not find each other within 20 s.
    pub fn start() -> RedisSentinels {
        // Without the delay a replica would wait for others to come.
        let arguments = ["--appendonly", "yes", "--repl-diskless-sync-delay", "0"];
        let master = RedisServer::start_with(arguments);
        let port = master.port().to_string();
        let replica = RedisServer::start_with(
            arguments.into_iter().chain(["--replicaof", "127.0.0.1", port.as_str()]).map(ToOwned::to_owned),
        );
        replica.wait_until("INFO replication", "master_link_status:up");
        let configuration = format!(
            "sentinel monitor {MASTER} 127.0.0.1 {port} 2\n\
             sentinel down-after-milliseconds {MASTER} 500\n\
             sentinel failover-timeout {MASTER} 3000\n"
        );
        let sentinels: Vec<RedisServer> =
            (0..3).map(|_| RedisServer::start_sentinel(configuration.clone())).collect();
        let all = RedisSentinels { servers: [master, replica], sentinels };
        for sentinel in &all.sentinels {
            let question = format!("SENTINEL MASTER {MASTER}");
            sentinel.wait_until(&question, "num-slaves\n1\nnum-other-sentinels\n2\n");
        }
        all
    }

    /// The URL for the bus, with all sentinels in it.
    pub fn url(&self) -> String {
        let hosts: Vec<String> =
            self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).collect();
        format!("redis-sentinel://{}/{MASTER}", hosts.join(","))
    }

    /// The server that was the master at the start, and the one that was its replica.
    pub fn servers(&mut self) -> &mut [RedisServer; 2] {
        &mut self.servers
    }

    /// The sentinels.
    pub fn sentinels(&mut self) -> &mut [RedisServer] {
        &mut self.sentinels
    }

    /// Waits until the second server is the master, for all sentinels.
    pub fn wait_for_failover(&self) {
        let port = self.servers[1].port();
        self.servers[1].wait_until("ROLE", "master");
        for sentinel in &self.sentinels {
            sentinel.wait_until(&format!("SENTINEL MASTER {MASTER}"), &format!("\n{port}\n"));
        }
    }
}
