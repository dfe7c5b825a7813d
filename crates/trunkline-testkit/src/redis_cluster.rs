//! A real Redis Cluster: three masters on this machine.

use crate::certificates::{Authority, Certificate};
use crate::redis_server::{RedisServer, shown};

const NODES: usize = 3;
const SLOTS: usize = 16_384;

/// Three masters, each with a third of the slots. They go when it is dropped.
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
    tls_ports: Vec<u16>,
}

impl RedisCluster {
    /// Starts the nodes and makes them one cluster, ready when this returns.
    ///
    /// # Panics
    /// When there is no `redis-server`, or the nodes do not agree within 20 s.
    pub fn start() -> RedisCluster {
        RedisCluster::start_with(None)
    }

    /// As [`RedisCluster::start`], with nodes that speak TLS, too, on ports of their own.
    ///
    /// # Panics
    /// As [`RedisCluster::start`].
    pub fn start_tls(authority: &Authority, certificate: &Certificate) -> RedisCluster {
        RedisCluster::start_with(Some((authority, certificate)))
    }

    fn start_with(tls: Option<(&Authority, &Certificate)>) -> RedisCluster {
        let (nodes, tls_ports): (Vec<RedisServer>, Vec<Option<u16>>) =
            (0..NODES).map(|_| RedisServer::start_node(tls)).unzip();
        for (n, node) in nodes.iter().enumerate() {
            let slots = SLOTS * n / NODES..SLOTS * (n + 1) / NODES;
            let slots: Vec<String> = slots.map(|slot| slot.to_string()).collect();
            node.ask(&format!("CLUSTER ADDSLOTS {}", slots.join(" ")));
            // Each an epoch of its own, so that none of them has to give way.
            node.ask(&format!("CLUSTER SET-CONFIG-EPOCH {}", n + 1));
        }
        let tls_ports = tls_ports.into_iter().flatten().collect();
        let cluster = RedisCluster { nodes, tls_ports };
        for n in 1..NODES {
            let port = cluster.tls_ports.get(n).copied().unwrap_or_else(|| cluster.nodes[n].port());
            cluster.nodes[0].ask(&format!("CLUSTER MEET 127.0.0.1 {port}"));
        }
        cluster.wait_until_ready();
        cluster
    }

    /// Waits until every node serves its slots and knows the others'.
    pub fn wait_until_ready(&self) {
        for node in &self.nodes {
            node.wait_until("CLUSTER INFO", &format!("cluster_known_nodes:{NODES}\r\n"));
            node.wait_until("CLUSTER INFO", &format!("cluster_slots_ok:{SLOTS}\r\n"));
            node.wait_until("CLUSTER INFO", "cluster_state:ok");
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
    pub fn owner(&self, slot: u16) -> usize {
        let serves = |node: &RedisServer| {
            let nodes = shown(&node.ask("CLUSTER NODES"));
            let own = nodes.lines().find(|line| line.contains("myself")).unwrap_or_default().to_owned();
            own.split_whitespace().skip(8).any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                matches!((first.parse(), last.parse()), (Ok(first), Ok(last)) if (first..=last).contains(&slot))
            })
        };
        self.nodes.iter().position(serves).expect("a node serves the slot")
    }

    /// Begins to move a slot: whoever asks for what is not at its node is sent to the node `to`.
    pub fn begin_move(&self, slot: u16, to: usize) {
        let from = self.owner(slot);
        self.nodes[to].ask(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", self.id(from)));
        self.nodes[from].ask(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", self.id(to)));
    }

    /// Moves the keys that are in a slot one by one, and says how many there were.
    pub fn move_keys(&self, slot: u16, to: usize) -> usize {
        let (from, mut moved) = (self.owner(slot), 0);
        loop {
            let keys = shown(&self.nodes[from].ask(&format!("CLUSTER GETKEYSINSLOT {slot} 1")));
            let Some(key) = keys.lines().next().filter(|key| !key.is_empty()) else { return moved };
            let port = self.nodes[to].port().to_string();
            let migrated = self.nodes[from].try_ask_words(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
            migrated.unwrap_or_else(|error| panic!("{key} cannot be moved: {error}"));
            moved += 1;
        }
    }

    /// Ends the move of a slot: every node knows that it is at the node `to`.
    pub fn end_move(&self, slot: u16, to: usize) {
        let command = format!("CLUSTER SETSLOT {slot} NODE {}", self.id(to));
        self.nodes[to].ask(&command);
        self.nodes.iter().for_each(|node| {
            node.ask(&command);
        });
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
