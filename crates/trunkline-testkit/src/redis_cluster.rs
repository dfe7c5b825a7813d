//! A real Redis Cluster: three masters on this machine, each with a replica where that is asked for.

use std::time::{Duration, Instant};

use crate::certificates::{Authority, Certificate};
use crate::redis_server::{PATIENCE, RedisServer, Tls, shown};
use crate::redis_version::{NoTls, RedisVersion};

const MASTERS: usize = 3;
const SLOTS: usize = 16_384;

/// Three masters, each with a third of the slots. They go when it is dropped.
pub struct RedisCluster {
    /// The masters at the start come first, their replicas behind them in the same order.
    nodes: Vec<RedisServer>,
    tls_ports: Vec<u16>,
}

/// A slot on its way from one node to another.
#[must_use = "the slot belongs to no node alone until the move ends"]
#[derive(Debug)]
pub struct SlotMove {
    /// How many keys were in the slot.
    pub keys: usize,
    slot: u16,
    to: usize,
}

impl RedisCluster {
    /// Starts the nodes and makes them one cluster, ready when this returns.
    ///
    /// # Panics
    /// When there is no `redis-server`, or the nodes do not agree within 20 s.
    pub fn start() -> RedisCluster {
        RedisCluster::start_version(RedisVersion::System)
    }

    /// As [`RedisCluster::start`], with nodes of this version.
    ///
    /// # Panics
    /// As [`RedisCluster::start`].
    pub fn start_version(version: RedisVersion) -> RedisCluster {
        RedisCluster::start_with(version, None, false)
    }

    /// As [`RedisCluster::start_version`], with a replica of each master, which takes its place when
    /// [`RedisCluster::promote_replica_of`] says so.
    ///
    /// # Panics
    /// As [`RedisCluster::start`].
    pub fn start_replicated(version: RedisVersion) -> RedisCluster {
        RedisCluster::start_with(version, None, true)
    }

    /// As [`RedisCluster::start_version`], with nodes that speak TLS, too, on ports of their own.
    ///
    /// # Errors
    /// When the program was built without TLS.
    ///
    /// # Panics
    /// As [`RedisCluster::start`].
    pub fn start_tls(
        version: RedisVersion,
        authority: &Authority,
        certificate: &Certificate,
    ) -> Result<RedisCluster, NoTls> {
        version.has_tls()?;
        Ok(RedisCluster::start_with(version, Some((authority, certificate)), false))
    }

    fn start_with(version: RedisVersion, tls: Option<Tls<'_>>, replicated: bool) -> RedisCluster {
        let count = if replicated { 2 * MASTERS } else { MASTERS };
        let (nodes, tls_ports): (Vec<RedisServer>, Vec<Option<u16>>) =
            (0..count).map(|_| RedisServer::start_node(version, tls)).unzip();
        for (n, node) in nodes[..MASTERS].iter().enumerate() {
            let slots = SLOTS * n / MASTERS..SLOTS * (n + 1) / MASTERS;
            let slots: Vec<String> = slots.map(|slot| slot.to_string()).collect();
            node.ask(&format!("CLUSTER ADDSLOTS {}", slots.join(" ")));
            // Each an epoch of its own, so that none of them has to give way.
            node.ask(&format!("CLUSTER SET-CONFIG-EPOCH {}", n + 1));
        }
        let tls_ports = tls_ports.into_iter().flatten().collect();
        let cluster = RedisCluster { nodes, tls_ports };
        for n in 1..count {
            let port = cluster.tls_ports.get(n).copied().unwrap_or_else(|| cluster.nodes[n].port());
            cluster.nodes[0].ask(&format!("CLUSTER MEET 127.0.0.1 {port}"));
        }
        cluster.wait_until_agreed();
        for (n, replica) in cluster.nodes[MASTERS..].iter().enumerate() {
            replica.ask(&format!("CLUSTER REPLICATE {}", cluster.id(n)));
        }
        cluster.wait_until_replicated();
        cluster
    }

    /// Waits until every node serves its slots and knows the others', and has what its master has.
    ///
    /// # Panics
    /// When that takes longer than 20 s.
    pub fn wait_until_ready(&self) {
        self.wait_until_agreed();
        self.wait_until_replicated();
    }

    fn wait_until_agreed(&self) {
        let count = self.nodes.len();
        for node in &self.nodes {
            node.wait_until("CLUSTER INFO", &format!("cluster_known_nodes:{count}\r\n"));
            node.wait_until("CLUSTER INFO", &format!("cluster_slots_ok:{SLOTS}\r\n"));
            node.wait_until("CLUSTER INFO", "cluster_state:ok");
        }
    }

    fn wait_until_replicated(&self) {
        let settled = |replication: &str| {
            replication.contains("role:master") || replication.contains("master_link_status:up")
        };
        for node in &self.nodes {
            node.wait_until_answer("INFO replication", settled);
        }
        // Whoever votes for a replica has to know it as one.
        for node in self.nodes.iter().filter(|_| self.nodes.len() > MASTERS) {
            node.wait_until_answer("CLUSTER NODES", |nodes| nodes.matches("slave").count() == MASTERS);
        }
    }

    /// The URL for the bus, with all nodes in it.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis-cluster://{}", hosts.join(","))
    }

    /// The URL for the bus over TLS, with one node in it.
    ///
    /// # Panics
    /// When the nodes do not speak TLS.
    pub fn tls_url(&self) -> String {
        format!("rediss-cluster://127.0.0.1:{}", self.tls_ports[0])
    }

    /// The nodes.
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// The nodes, to hurt them.
    pub fn nodes_mut(&mut self) -> &mut [RedisServer] {
        &mut self.nodes
    }

    /// The slot of a key.
    pub fn slot_of(&self, key: &str) -> u16 {
        let slot = shown(&self.nodes[0].ask(&format!("CLUSTER KEYSLOT {key}")));
        slot.parse().expect("a number")
    }

    /// Which node serves a slot, as that node itself says.
    ///
    /// # Panics
    /// When no node does for 20 s. A move of the slot that has just ended may not be known to anybody yet.
    pub fn owner(&self, slot: u16) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(owner) = (0..self.nodes.len()).find(|node| self.serves(*node, slot)) {
                return owner;
            }
            assert!(Instant::now() < deadline, "no node serves slot {slot}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether a node says that it serves a slot; one that is gone says nothing.
    fn serves(&self, node: usize, slot: u16) -> bool {
        let nodes = self.nodes[node].try_ask("CLUSTER NODES").map(|nodes| shown(&nodes)).unwrap_or_default();
        let own = nodes.lines().find(|line| line.contains("myself")).unwrap_or_default();
        own.split_whitespace().skip(8).any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            matches!((first.parse(), last.parse()), (Ok(first), Ok(last)) if (first..=last).contains(&slot))
        })
    }

    /// The replica that was given to a master at the start.
    ///
    /// # Panics
    /// When it has none.
    pub fn replica_of(&self, master: usize) -> usize {
        assert!(self.nodes.len() > MASTERS && master < MASTERS, "node {master} was given no replica");
        master + MASTERS
    }

    /// Lets the replica of a master that is gone take its place, once the others agree that it is; returns when the replica
    /// serves the slots and all that are left know.
    ///
    /// # Panics
    /// When that takes longer than 20 s.
    pub fn promote_replica_of(&self, gone: usize) {
        let replica = &self.nodes[self.replica_of(gone)];
        replica.ask("CONFIG SET cluster-replica-no-failover no");
        let deadline = Instant::now() + PATIENCE;
        while !shown(&replica.ask("INFO replication")).contains("role:master") {
            assert!(Instant::now() < deadline, "it is not promoted: {}", replica.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        for (_, node) in self.nodes.iter().enumerate().filter(|(n, _)| *n != gone) {
            node.wait_until("CLUSTER INFO", &format!("cluster_slots_ok:{SLOTS}\r\n"));
            node.wait_until("CLUSTER INFO", "cluster_state:ok");
        }
    }

    /// Begins to move the slot of a key to the next master and moves the keys in it, one by one. Until the move ends
    /// whoever asks for what is not at the old node is sent to the new one.
    pub fn half_move(&self, key: &str) -> SlotMove {
        let slot = self.slot_of(key);
        let from = self.owner(slot);
        let to = (from + 1) % MASTERS;
        self.nodes[to].ask(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", self.id(from)));
        self.nodes[from].ask(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", self.id(to)));
        let (port, mut keys) = (self.nodes[to].port().to_string(), 0);
        loop {
            let found = shown(&self.nodes[from].ask(&format!("CLUSTER GETKEYSINSLOT {slot} 1")));
            let Some(key) = found.lines().next().filter(|key| !key.is_empty()) else { break };
            let migrated = self.nodes[from].try_ask_words(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
            migrated.unwrap_or_else(|error| panic!("{key} cannot be moved: {error}"));
            keys += 1;
        }
        SlotMove { keys, slot, to }
    }

    /// Ends a move: every master knows where the slot is.
    pub fn end_move(&self, half: SlotMove) {
        let command = format!("CLUSTER SETSLOT {} NODE {}", half.slot, self.id(half.to));
        self.nodes[half.to].ask(&command);
        self.nodes[..MASTERS].iter().for_each(|node| {
            node.ask(&command);
        });
    }

    /// Moves the slot of a key to the next master, and says how many keys there were.
    pub fn move_slot(&self, key: &str) -> usize {
        let half = self.half_move(key);
        let keys = half.keys;
        self.end_move(half);
        keys
    }

    /// Kills every node.
    pub fn kill(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.kill());
    }

    /// Starts every node again; ready when this returns.
    pub fn restart(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.restart());
        self.wait_until_ready();
    }

    /// Freezes every node.
    pub fn pause(&self) {
        self.nodes.iter().for_each(|node| node.pause());
    }

    /// Lets every node go on; ready when this returns.
    pub fn resume(&self) {
        self.nodes.iter().for_each(|node| node.resume());
        self.wait_until_ready();
    }

    fn id(&self, node: usize) -> String {
        shown(&self.nodes[node].ask("CLUSTER MYID"))
    }
}
