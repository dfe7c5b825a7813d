//! A real NATS cluster with JetStream: three servers on this machine, whose routes to each other can be cut.
//!
//! Every pair of servers is joined through proxies of their own, one for each direction, so that a server can lose the
//! others while its clients stay. What servers gossip about each other leads nowhere: a way round a proxy would heal
//! what a test has cut.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::environment;
use crate::process::{Addresses, Program, ServerProcess};
use crate::servers::temporary_directory;
use crate::tcp_proxy::TcpProxy;

/// How many servers there are.
pub const NODES: usize = 3;

/// Longest wait for the servers to agree. An election takes up to nine seconds, and one may follow another.
const AGREEMENT: Duration = Duration::from_secs(60);
/// Longest wait for a server in lame duck mode to end: it sends its clients away one by one, a second apart.
const LAME_DUCK: Duration = Duration::from_secs(60);
/// How often the servers are asked for what cannot be awaited.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// What a server writes that cannot catch up, every few seconds, and how often it may without being taken for stuck.
const IN_VAIN: &str = "Expected first catchup entry to be a snapshot and peerstate";
const IN_VAIN_OFTEN: usize = 5;
/// How much of each log a failed test shows, in lines.
const LOG_LINES: usize = 60;
/// Longest wait for one answer of a monitoring port.
const ANSWER: Duration = Duration::from_secs(5);

/// Three servers with JetStream, each with a store of its own. They go when it is dropped.
///
/// What it does blocks: call it where that does no harm, as on a test's own thread.
pub struct NatsCluster {
    nodes: Vec<ServerProcess>,
    /// By who connects and to whom.
    routes: BTreeMap<(usize, usize), TcpProxy>,
    /// Runs the proxies, so that they outlive the runtime of whoever uses the cluster. Taken when this is dropped.
    runtime: Option<Runtime>,
}

impl NatsCluster {
    /// Starts the servers; they have elected a leader when this returns.
    ///
    /// # Panics
    /// When there is no `nats-server`, or the servers do not agree within a minute.
    pub fn start() -> NatsCluster {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime for the proxies");
        let routes: BTreeMap<(usize, usize), TcpProxy> = {
            let _inside = runtime.enter();
            let pairs = (0..NODES).flat_map(|from| (0..NODES).map(move |to| (from, to)));
            let reserve = |pair| (pair, TcpProxy::reserve().expect("a free port"));
            pairs.filter(|(from, to)| from != to).map(reserve).collect()
        };
        let nodes = (0..NODES).map(|node| {
            let to = |(_, proxy): (_, &TcpProxy)| format!("\"nats://{}\"", proxy.address());
            let outward: Vec<String> = routes.iter().filter(|((from, _), _)| *from == node).map(to).collect();
            let port: Arc<OnceLock<u16>> = Arc::default();
            let path = environment::nats_server();
            let program = NodeProgram { path, node, routes: outward.join(", "), cluster_port: port.clone() };
            let process = ServerProcess::start(Box::new(program), temporary_directory());
            let port = *port.get().expect("a server that has started has said where");
            for (_, proxy) in routes.iter().filter(|((_, to), _)| *to == node) {
                proxy.aim(SocketAddr::from(([127, 0, 0, 1], port)));
            }
            process
        });
        let nodes = nodes.collect();
        let cluster = NatsCluster { nodes, routes, runtime: Some(runtime) };
        cluster.wait_until_ready();
        cluster
    }

    /// The URLs for clients, in the order of the servers.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.url().to_owned()).collect()
    }

    /// The URL of one server.
    pub fn url(&self, node: usize) -> &str {
        self.nodes[node].url()
    }

    /// One server, for its log and its process.
    pub fn node(&self, node: usize) -> &ServerProcess {
        &self.nodes[node]
    }

    /// Ends a server on the spot (SIGKILL).
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Asks a server to end (SIGTERM), and waits until it has.
    pub fn stop(&mut self, node: usize) {
        self.nodes[node].stop();
    }

    /// Puts a server into lame duck mode (SIGUSR2): it hands over what it leads and sends its clients away. Returns when
    /// it has ended.
    ///
    /// # Panics
    /// When it has not within a minute.
    pub fn lame_duck(&mut self, node: usize) {
        self.nodes[node].signal(Signal::SIGUSR2);
        self.nodes[node].wait_for_exit_within(LAME_DUCK);
    }

    /// Starts a server again on its ports and with its store. It has not caught up with the others when this returns:
    /// [`wait_until_ready`](NatsCluster::wait_until_ready) waits for that.
    pub fn restart(&mut self, node: usize) {
        self.nodes[node].restart();
    }

    /// Freezes a server (SIGSTOP).
    pub fn pause(&self, node: usize) {
        self.nodes[node].pause();
    }

    /// Lets a frozen server go on.
    pub fn resume(&self, node: usize) {
        self.nodes[node].resume();
    }

    /// Cuts a server off from the others: its routes break, and new ones are refused. Its clients stay.
    pub fn cut(&self, node: usize) {
        self.routes_of(node).for_each(TcpProxy::cut);
    }

    /// Cuts a server off without a word: its routes stay open, and nothing gets through any more.
    pub fn silence(&self, node: usize) {
        self.routes_of(node).for_each(TcpProxy::half_open);
    }

    /// Joins a server that was cut off to the others again.
    pub fn heal(&self, node: usize) {
        self.routes_of(node).for_each(TcpProxy::heal);
    }

    fn routes_of(&self, node: usize) -> impl Iterator<Item = &TcpProxy> {
        let of = move |((from, to), _): &(&(usize, usize), &TcpProxy)| *from == node || *to == node;
        self.routes.iter().filter(of).map(|(_, proxy)| proxy)
    }

    /// Waits until all servers see each other and one leader, and have caught up with all that is stored.
    ///
    /// # Panics
    /// When that takes more than a minute; the message has what the servers say.
    pub fn wait_until_ready(&self) {
        let ready = || {
            let leaders: Vec<Option<String>> = (0..NODES).map(|node| self.meta_leader_at(node)).collect();
            let agreed = leaders[0].is_some() && leaders.iter().all(|leader| *leader == leaders[0]);
            let agreed = agreed && (0..NODES).all(|node| self.sees_all(node));
            let healthy = |node| self.ask(node, "/healthz").is_some_and(|answer| answer["status"] == "ok");
            (agreed && (0..NODES).all(healthy)).then_some(())
        };
        self.wait_for("servers that agree and have caught up", ready);
    }

    /// The server that leads the whole cluster, as the others see it.
    pub fn meta_leader(&self) -> Option<usize> {
        let of = |leader: String| node_of(&leader);
        let seen = (0..NODES).filter_map(|node| Some((node, of(self.meta_leader_at(node)?)?)));
        // One that was cut off believes for a while that nothing has changed; those of a majority agree.
        let seen: Vec<(usize, usize)> = seen.collect();
        let votes = |leader| seen.iter().filter(|(_, seen)| *seen == leader).count();
        (0..NODES).find(|leader| votes(*leader) * 2 > NODES)
    }

    /// The server that leads the whole cluster once it is not this one.
    ///
    /// # Panics
    /// When there is none within a minute.
    pub fn meta_leader_without(&self, node: usize) -> usize {
        self.wait_for("another leader", || self.meta_leader().filter(|leader| *leader != node))
    }

    /// Whether no server is away for this one; who leads the cluster makes nothing on servers that are.
    fn sees_all(&self, node: usize) -> bool {
        let answer = self.ask(node, "/jsz").unwrap_or_default();
        let mut others = answer["meta_cluster"]["replicas"].as_array().into_iter().flatten();
        others.all(|other| other["offline"] != true)
    }

    fn meta_leader_at(&self, node: usize) -> Option<String> {
        let answer = self.ask(node, "/jsz")?;
        let meta = &answer["meta_cluster"];
        let complete = meta["cluster_size"].as_u64() == Some(NODES as u64);
        meta["leader"].as_str().filter(|leader| complete && !leader.is_empty()).map(str::to_owned)
    }

    /// The server that leads a stream, once there is one. The stream goes by its name on the servers.
    ///
    /// # Panics
    /// When there is none within a minute.
    pub fn stream_leader(&self, stream: &str) -> usize {
        let of = |found: &Value| node_of(found["cluster"]["leader"].as_str()?);
        self.wait_for("a stream with a leader", || self.leader(stream, of))
    }

    /// The server that leads a consumer of a stream, once there is one.
    ///
    /// # Panics
    /// When there is none within a minute.
    pub fn consumer_leader(&self, stream: &str, consumer: &str) -> usize {
        let of = |found: &Value| {
            let mut consumers = found["consumer_detail"].as_array()?.iter();
            let consumer = consumers.find(|found| found["name"] == consumer)?;
            node_of(consumer["cluster"]["leader"].as_str()?)
        };
        self.wait_for("a consumer with a leader", || self.leader(stream, of))
    }

    /// The server that says of itself that it is the one that `of` finds in the description of a stream.
    fn leader(&self, stream: &str, of: impl Fn(&Value) -> Option<usize>) -> Option<usize> {
        (0..NODES).find(|node| {
            let answer =
                self.ask(*node, "/jsz?accounts=true&streams=true&consumers=true").unwrap_or_default();
            let accounts = answer["account_details"].as_array().into_iter().flatten();
            let mut streams =
                accounts.flat_map(|account| account["stream_detail"].as_array().into_iter().flatten());
            streams.any(|found| found["name"] == stream && of(found) == Some(*node))
        })
    }

    /// The server that a client with this name is connected to.
    pub fn node_of_client(&self, client: &str) -> Option<usize> {
        (0..NODES).find(|node| {
            let answer = self.ask(*node, "/connz?limit=10000").unwrap_or_default();
            answer["connections"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == client))
        })
    }

    /// Whether a server was sent the same part of a log over and over, and could not make use of it: nats-server 2.15.1 was
    /// seen to do so after a restart under load. What it leads stands still then, until other servers lead it.
    pub fn has_stuck(&self) -> bool {
        let in_vain = |node: &ServerProcess| node.log().matches(IN_VAIN).count() >= IN_VAIN_OFTEN;
        self.nodes.iter().any(in_vain)
    }

    fn wait_for<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> T {
        let deadline = Instant::now() + AGREEMENT;
        loop {
            if let Some(found) = look() {
                return found;
            }
            if Instant::now() >= deadline {
                let says = |node| (self.ask(node, "/healthz"), self.ask(node, "/jsz"));
                let all: Vec<_> = (0..NODES).map(says).collect();
                panic!("{what}: not within {AGREEMENT:?}; the servers say {all:#?}");
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// What the monitoring port of a server answers, if it does.
    fn ask(&self, node: usize, path: &str) -> Option<Value> {
        let address: SocketAddr = self.nodes[node].http().trim_start_matches("http://").parse().ok()?;
        let mut stream = TcpStream::connect_timeout(&address, ANSWER).ok()?;
        stream.set_read_timeout(Some(ANSWER)).ok()?;
        // In the older version of HTTP the answer ends with the connection and comes in one piece.
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }
}

impl NatsCluster {
    /// What became of the servers, for who reads that a test has failed: their groups, and the end of their logs.
    fn tell(&self) {
        for node in 0..NODES {
            let groups = self.ask(node, "/raftz").unwrap_or_default();
            eprintln!("{}: groups {groups:#}", name(node));
            let log = self.nodes[node].log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.len().saturating_sub(LOG_LINES);
            eprintln!("{}: the last of its log\n{}", name(node), lines[last..].join("\n"));
        }
    }
}

impl Drop for NatsCluster {
    fn drop(&mut self) {
        if thread::panicking() {
            self.tell();
        }
        // Killed while the proxies still run, lest they take it for an outage and log about it.
        self.nodes.clear();
        self.routes.clear();
        if let Some(runtime) = self.runtime.take() {
            // It may be dropped within another runtime, where waiting is not allowed; its tasks end with the proxies.
            runtime.shutdown_background();
        }
    }
}

fn name(node: usize) -> String {
    format!("node-{node}")
}

fn node_of(server: &str) -> Option<usize> {
    server.strip_prefix("node-")?.parse().ok()
}

struct NodeProgram {
    path: PathBuf,
    node: usize,
    /// The URLs of its routes to the others, as the config wants them.
    routes: String,
    /// Where the others reach it, known once it has started.
    cluster_port: Arc<OnceLock<u16>>,
}

impl NodeProgram {
    fn config(&self, directory: &Path) -> String {
        // Any free one at first, that one ever after.
        let port = self.cluster_port.get().map_or(-1, |port| i32::from(*port));
        format!(
            "server_name: {name}\n\
             jetstream {{ store_dir: \"{store}\" }}\n\
             lame_duck_grace_period: \"100ms\"\n\
             lame_duck_duration: \"30s\"\n\
             ping_interval: \"1s\"\n\
             cluster {{\n\
             name: tests\n\
             listen: \"127.0.0.1:{port}\"\n\
             no_advertise: true\n\
             advertise: \"127.0.0.1:1\"\n\
             routes: [{routes}]\n\
             }}\n",
            name = name(self.node),
            store = directory.join("store").display(),
            routes = self.routes,
        )
    }
}

impl Program for NodeProgram {
    fn name(&self) -> &str {
        "nats-server of a cluster"
    }

    fn command(&self, directory: &Path, former: Option<&Addresses>) -> Command {
        let config = directory.join("nats-server.conf");
        fs::write(&config, self.config(directory)).expect("a temporary directory takes a file");
        let port = |former: Option<u16>| former.map_or_else(|| "-1".to_owned(), |port| port.to_string());
        let mut command = Command::new(&self.path);
        command
            .args(["-a", "127.0.0.1"])
            .args(["-p", &port(former.map(Addresses::nats_port))])
            .args(["-m", &port(former.map(Addresses::http_port))])
            .arg("--ports_file_dir")
            .arg(directory)
            .arg("-c")
            .arg(config);
        command
    }

    fn ports_file(&self, directory: &Path, pid: u32) -> PathBuf {
        directory.join(format!("nats-server_{pid}.ports"))
    }

    fn parse_ports(&self, content: &str, _pid: u32) -> Option<Addresses> {
        let ports: Value = serde_json::from_str(content).ok()?;
        let first = |list: &str| Some(ports.get(list)?.get(0)?.as_str()?.to_owned());
        let addresses = Addresses { nats: first("nats")?, http: first("monitoring")? };
        let port = first("cluster")?.rsplit_once(':')?.1.parse().ok()?;
        let known = self.cluster_port.get_or_init(|| port);
        assert_eq!(*known, port, "a server came back where the others do not look for it");
        Some(addresses)
    }
}
