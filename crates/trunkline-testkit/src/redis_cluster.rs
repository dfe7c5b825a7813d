//! A real Redis Cluster: three masters on this machine.

use std::thread;
use std::time::{Duration, Instant};

use crate::redis_server::{RedisServer, shown};

const NODES: usize = 3;
const SLOTS: usize = 16_384;
/// Longest wait for the nodes to agree.
const PATIENCE: Duration = Duration::from_secs(20);

/// Three masters, each with a third of the slots. They go when it is dropped.
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts the nodes and makes them one cluster, ready when this returns.
    ///
    /// # Panics
    /// When there is no `redis-server`, or the nodes do not agree within 20 s.
    pub fn start() -> RedisCluster {
        let nodes: Vec<RedisServer> = (0..NODES).map(|_| RedisServer::start_node()).collect();
        for (n, node) in nodes.iter().enumerate() {
            let slots = SLOTS * n / NODES..SLOTS * (n + 1) / NODES;
            let slots: Vec<String> = slots.map(|slot| slot.to_string()).collect();
            node.ask(&format!("CLUSTER ADDSLOTS {}", slots.join(" ")));
            // Each an epoch of its own, so that none of them has to give way.
            node.ask(&format!("CLUSTER SET-CONFIG-EPOCH {}", n + 1));
        }
        let cluster = RedisCluster { nodes };
        for node in &cluster.nodes[1..] {
            cluster.nodes[0].ask(&format!("CLUSTER MEET 127.0.0.1 {}", node.port()));
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
            self.nodes[from].ask(&format!("MIGRATE 127.0.0.1 {} {key} 0 5000", self.nodes[to].port()));
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

    /// Waits until the nodes have heard of each other that `node` is gone.
    pub fn wait_until_failed(&self, node: usize) {
        let deadline = Instant::now() + PATIENCE;
        let others = self.nodes.iter().enumerate().filter(|(n, _)| *n != node);
        for (_, other) in others {
            while !shown(&other.ask("CLUSTER INFO")).contains("cluster_state:fail") {
                assert!(Instant::now() < deadline, "the cluster never notices");
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}
