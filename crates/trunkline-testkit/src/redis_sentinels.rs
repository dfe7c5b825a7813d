//! A real Redis Sentinel setup: a master, a replica, and three sentinels that watch them.

use std::ffi::OsString;

use crate::certificates::{Authority, Certificate};
use crate::redis_server::{RedisServer, Tls};
use crate::redis_version::{NoTls, RedisVersion};

/// Name of the master.
const MASTER: &str = "main";

/// One master, one replica, three sentinels. They go when it is dropped.
pub struct RedisSentinels {
    servers: [RedisServer; 2],
    sentinels: Vec<RedisServer>,
    /// The ports by which the servers know each other, and on which sentinels are asked.
    server_ports: [u16; 2],
    sentinel_ports: Vec<u16>,
    scheme: &'static str,
}

impl RedisSentinels {
    /// Starts all of them, ready to fail over when this returns. A master counts as down after half a second.
    ///
    /// # Panics
    /// When there is no `redis-server`, or they do not find each other within 20 s.
    pub fn start() -> RedisSentinels {
        RedisSentinels::start_version(RedisVersion::System)
    }

    /// As [`RedisSentinels::start`], with programs of this version: every server of Redis can be a sentinel.
    ///
    /// # Panics
    /// As [`RedisSentinels::start`].
    pub fn start_version(version: RedisVersion) -> RedisSentinels {
        RedisSentinels::start_with(version, None)
    }

    /// As [`RedisSentinels::start_version`], with all of them speaking TLS, to each other and on the ports that
    /// [`RedisSentinels::url`] has. The test itself asks them without.
    ///
    /// # Errors
    /// When the program was built without TLS.
    ///
    /// # Panics
    /// As [`RedisSentinels::start`].
    pub fn start_tls(
        version: RedisVersion,
        authority: &Authority,
        certificate: &Certificate,
    ) -> Result<RedisSentinels, NoTls> {
        version.has_tls()?;
        Ok(RedisSentinels::start_with(version, Some((authority, certificate))))
    }

    fn start_with(version: RedisVersion, tls: Option<Tls<'_>>) -> RedisSentinels {
        // Without the delay a replica would wait for others to come.
        let arguments =
            ["--appendonly", "yes", "--repl-diskless-sync-delay", "0"].map(OsString::from).to_vec();
        let (master, tls_port) = RedisServer::start_watched(version, tls, arguments.clone());
        let master_port = tls_port.unwrap_or_else(|| master.port());
        let mut following = arguments;
        following.extend(["--replicaof".into(), "127.0.0.1".into(), master_port.to_string().into()]);
        let (replica, tls_port) = RedisServer::start_watched(version, tls, following);
        let replica_port = tls_port.unwrap_or_else(|| replica.port());
        replica.wait_until("INFO replication", "master_link_status:up");
        let configuration = format!(
            "sentinel monitor {MASTER} 127.0.0.1 {master_port} 2\n\
             sentinel down-after-milliseconds {MASTER} 500\n\
             sentinel failover-timeout {MASTER} 3000\n"
        );
        let (mut sentinels, mut sentinel_ports) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let (sentinel, tls_port) = RedisServer::start_sentinel(version, tls, configuration.clone());
            sentinel_ports.push(tls_port.unwrap_or_else(|| sentinel.port()));
            sentinels.push(sentinel);
        }
        for sentinel in &sentinels {
            let question = format!("SENTINEL MASTER {MASTER}");
            sentinel.wait_until(&question, "num-slaves\n1\nnum-other-sentinels\n2\n");
        }
        RedisSentinels {
            servers: [master, replica],
            sentinels,
            server_ports: [master_port, replica_port],
            sentinel_ports,
            scheme: if tls.is_some() { "rediss-sentinel" } else { "redis-sentinel" },
        }
    }

    /// The URL for the bus, with all sentinels in it.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinel_ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("{}://{}/{MASTER}", self.scheme, hosts.join(","))
    }

    /// The server that was the master at the start, and the one that was its replica.
    pub fn servers(&mut self) -> &mut [RedisServer; 2] {
        &mut self.servers
    }

    /// The sentinels.
    pub fn sentinels(&mut self) -> &mut [RedisServer] {
        &mut self.sentinels
    }

    /// Has the sentinels wait so long before a silent master counts as down.
    pub fn wait_before_failover(&self, millis: u32) {
        for sentinel in &self.sentinels {
            sentinel.ask(&format!("SENTINEL SET {MASTER} down-after-milliseconds {millis}"));
        }
    }

    /// Waits until the second server is the master, for all sentinels.
    pub fn wait_for_failover(&self) {
        self.servers[1].wait_until("ROLE", "master");
        for sentinel in &self.sentinels {
            let port = self.server_ports[1];
            sentinel.wait_until(&format!("SENTINEL MASTER {MASTER}"), &format!("\n{port}\n"));
        }
    }
}
