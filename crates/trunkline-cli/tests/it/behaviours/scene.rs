//! A server with the configuration of one behaviour, and what is done to it, or to the client, when the client asks for it.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use trunkline_testkit::servers::{NatsServer, TrunklineServer};
use trunkline_testkit::{ServerProcess, environment};

use super::site::Site;
use super::tampering::TamperingProxy;

/// Longest wait for a server to notice something.
const PATIENCE: Duration = Duration::from_secs(20);

/// The file's name.
const CONFIGURATION: &str = "server.conf";

/// How often the server is asked whether it has.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Which of the servers a behaviour is seen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Our binary under the name nats-server.
    Ours,
    /// `trunkline up`.
    Up,
    Theirs,
}

impl Which {
    pub(super) fn name(self) -> &'static str {
        match self {
            Which::Ours => "ours",
            Which::Up => "up",
            Which::Theirs => "nats-server",
        }
    }
}

enum Server {
    /// The real one, or ours under its name.
    Nats(NatsServer),
    Up(TrunklineServer),
}

impl Deref for Server {
    type Target = ServerProcess;

    fn deref(&self) -> &ServerProcess {
        match self {
            Server::Nats(server) => server,
            Server::Up(server) => server,
        }
    }
}

impl DerefMut for Server {
    fn deref_mut(&mut self) -> &mut ServerProcess {
        match self {
            Server::Nats(server) => server,
            Server::Up(server) => server,
        }
    }
}

/// One behaviour on one server.
pub(super) struct Scene {
    server: Server,
    site: Site,
    /// Where clients connect that are told of a larger `max_payload` than the server has.
    proxy: TamperingProxy,
    /// Where clients come by WebSocket.
    web: Option<String>,
}

impl Scene {
    pub(super) fn start(which: Which, behaviour: &str, site: Site) -> Self {
        let configuration = site.configuration(behaviour);
        Self::start_with(which, behaviour, configuration, site)
    }

    /// As [`Scene::start`], for clients that come by WebSocket.
    pub(super) fn start_web(which: Which, behaviour: &str, site: Site) -> Self {
        let configuration = site.web_configuration(behaviour);
        let mut scene = Self::start_with(which, behaviour, configuration, site);
        let url = web_url(&scene.server);
        // So that it comes back at the same place.
        let port = url.rsplit(':').next().expect("a port");
        let path = scene.site.path().join(CONFIGURATION);
        let text = std::fs::read_to_string(&path).expect("it was written");
        std::fs::write(&path, text.replace("127.0.0.1:-1", &format!("127.0.0.1:{port}"))).expect("a file");
        // By name, since that is what certificates are made for.
        scene.web = Some(url.replace("127.0.0.1", "localhost"));
        scene
    }

    fn start_with(which: Which, behaviour: &str, configuration: String, site: Site) -> Self {
        let write = |name: &str, content: String| {
            let path = site.path().join(name);
            std::fs::write(&path, content).expect("a temporary directory takes a file");
            path.into_os_string()
        };
        let under_the_name = |program: &Path| {
            let path = write(CONFIGURATION, configuration.clone());
            Server::Nats(NatsServer::start_program(program, ["-c".into(), path]))
        };
        let binary = Path::new(env!("CARGO_BIN_EXE_trunkline"));
        let server = match which {
            Which::Theirs => under_the_name(&environment::nats_server()),
            Which::Up => {
                let up = site.up_configuration(behaviour).expect("it is seen on `up`");
                let arguments = ["--config".into(), write("config.yaml", up)];
                Server::Up(TrunklineServer::start(binary, arguments))
            }
            Which::Ours => {
                let name = site.path().join("nats-server");
                std::os::unix::fs::symlink(binary, &name).expect("a new name");
                under_the_name(&name)
            }
        };
        let proxy = TamperingProxy::start(server.port());
        Self { server, site, proxy, web: None }
    }

    /// By name, since that is what certificates are made for.
    pub(super) fn url(&self) -> String {
        self.web.clone().unwrap_or_else(|| format!("nats://localhost:{}", self.server.port()))
    }

    pub(super) fn variables(&self) -> Vec<(&'static str, OsString)> {
        let mut variables = self.site.variables();
        variables.push(("BEHAVIOUR_PROXY", self.proxy.url().into()));
        variables
    }

    /// Does what a client asks for. `client` is its process, where it has one of its own; one that lives in the test stands
    /// still while this is running.
    pub(super) fn act(&mut self, cue: &str, client: Option<u32>) {
        match cue {
            "restart-server" => self.server.restart(),
            "stop-server" => assert!(self.server.stop().success(), "{}", self.server.log()),
            "lame-duck" => self.server.signal(Signal::SIGUSR2),
            "pause-server" => self.server.pause(),
            "resume-server" => self.server.resume(),
            "freeze-until-slow" => {
                let server: &ServerProcess = &self.server;
                frozen(client, || flood_until_slow(server));
            }
            "freeze-until-gone" => {
                let server: &ServerProcess = &self.server;
                frozen(client, || until(server, "no connection left", |varz| varz["connections"] == 0));
            }
            _ => panic!("nobody knows what to do at {cue:?}"),
        }
    }
}

/// Where a server takes WebSockets, as its ports file says.
fn web_url(server: &ServerProcess) -> String {
    let path = server.directory().join(format!("nats-server_{}.ports", server.pid()));
    let ports = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let ports: Value = serde_json::from_slice(&ports).expect("it was read before");
    ports["websocket"][0].as_str().unwrap_or_else(|| panic!("no WebSockets: {ports}")).to_owned()
}

/// Stops a process (SIGSTOP) while something is done.
fn frozen(client: Option<u32>, action: impl FnOnce()) {
    let signal = |signal| {
        if let Some(pid) = client {
            let pid = Pid::from_raw(i32::try_from(pid).expect("process ids are below 2^22"));
            kill(pid, signal).expect("the client runs");
        }
    };
    signal(Signal::SIGSTOP);
    action();
    signal(Signal::SIGCONT);
}

/// Publishes on `flood` until the server has cut somebody off for being slow.
fn flood_until_slow(server: &ServerProcess) {
    let mut socket = TcpStream::connect(("127.0.0.1", server.port())).expect("the server listens");
    socket.set_write_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
    let mut info = String::new();
    BufReader::new(&socket).read_line(&mut info).expect("INFO comes");
    socket.write_all(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\n").expect("it is read");
    let mut message = format!("PUB flood {}\r\n", 64 * 1024).into_bytes();
    message.resize(message.len() + 64 * 1024, b'x');
    message.extend_from_slice(b"\r\n");
    let deadline = Instant::now() + PATIENCE;
    while varz(server)["slow_consumers"] == 0 {
        assert!(Instant::now() < deadline, "nobody was cut off:\n{}", server.log());
        for _ in 0..64 {
            socket.write_all(&message).expect("the publisher is not cut off");
        }
    }
}

/// Waits for something that the server says of itself.
fn until(server: &ServerProcess, what: &str, holds: impl Fn(&Value) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let varz = varz(server);
        if holds(&varz) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {varz}");
        thread::sleep(POLL_INTERVAL);
    }
}

fn varz(server: &ServerProcess) -> Value {
    let address = server.http().trim_start_matches("http://");
    let mut socket = TcpStream::connect(address).expect("HTTP is served");
    // Of the older version, in which answers do not come in chunks.
    write!(socket, "GET /varz HTTP/1.0\r\nHost: {address}\r\n\r\n").expect("a request");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer of text");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
}
