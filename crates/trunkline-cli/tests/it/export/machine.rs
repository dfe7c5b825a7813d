//! A machine for units of systemd, as far as processes need one: files where units expect them, credentials, environment,
//! and the socket on which a service says that it is ready. Ports and paths are this machine's own.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use trunkline_testkit::environment;

use super::Exported;
use crate::command::{PATIENCE, Running, start};

/// The files of a deployment for systemd, with free ports in the place of its own.
pub(crate) struct Machine {
    exported: Exported,
    ports: BTreeMap<u16, u16>,
}

impl Machine {
    /// Rewrites ports and paths of the deployment in all its files.
    pub(crate) fn new(exported: Exported, ports: &[u16]) -> Machine {
        // All are held until all are chosen, so that no two are the same.
        let held: Vec<TcpListener> =
            ports.iter().map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let free = held.iter().map(|listener| listener.local_addr().expect("an address").port());
        let ports: BTreeMap<u16, u16> = ports.iter().copied().zip(free).collect();
        let root = exported.out();
        for path in exported.files() {
            let mut text = fs::read_to_string(&path).expect("text");
            for (from, to) in &ports {
                text = text.replace(&format!(":{from}"), &format!(":{to}"));
                text = text.replace(&format!("port {from}\n"), &format!("port {to}\n"));
            }
            for directory in ["/etc/trunkline/", "/var/lib/"] {
                text = text.replace(directory, &format!("{}{directory}", root.display()));
            }
            text = text.replace("/run/credentials/", &format!("{}/run/credentials/", root.display()));
            fs::write(&path, text).expect("written");
        }
        Machine { exported, ports }
    }

    pub(crate) fn port(&self, port: u16) -> u16 {
        self.ports[&port]
    }

    pub(crate) fn read(&self, path: &str) -> String {
        self.exported.read(path)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.exported.out()
    }

    /// A variable of the file that is the environment of a component.
    pub(crate) fn variable(&self, component: &str, name: &str) -> String {
        let file = self.read(&format!("etc/trunkline/secrets/{component}.env"));
        let line = file.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        line.unwrap_or_else(|| panic!("no {name} in {file}")).to_owned()
    }

    /// The lines of a unit with this key.
    fn values(&self, unit: &str, key: &str) -> Vec<String> {
        let unit = self.read(&format!("etc/systemd/system/{unit}.service"));
        unit.lines().filter_map(|line| Some(line.strip_prefix(key)?.strip_prefix('=')?.to_owned())).collect()
    }

    /// What `ExecStart` of a unit runs, with its environment and credentials.
    fn command(&self, unit: &str) -> Command {
        self.command_of(unit, "ExecStart")
    }

    fn command_of(&self, unit: &str, key: &str) -> Command {
        let credentials = self.root().join(format!("run/credentials/{unit}.service"));
        fs::create_dir_all(&credentials).expect("a directory for credentials");
        for credential in self.values(unit, "LoadCredential") {
            let (name, path) = credential.split_once(':').expect("NAME:PATH");
            fs::copy(path, credentials.join(name)).expect("the credential is there");
        }
        for directory in self.values(unit, "StateDirectory") {
            fs::create_dir_all(self.root().join("var/lib").join(directory)).expect("a directory for data");
        }
        let credentials = credentials.display().to_string();
        let filled =
            |text: &str| text.replace("${CREDENTIALS_DIRECTORY}", &credentials).replace("%d", &credentials);
        let words = self.values(unit, key).remove(0);
        // As systemd reads it: quotes hold words together, and these two stand for themselves when they are doubled.
        let words =
            shlex::split(&filled(&words).replace("$$", "$").replace("%%", "%")).expect("quotes that close");
        let mut command = crate::command::command::<&str>(&[]);
        let program = match words[0].as_str() {
            "redis-server" => Some("redis-server".into()),
            "nats-server" => Some(environment::nats_server()),
            "trunkline" => None,
            other => panic!("{other} is no program of a deployment"),
        };
        if let Some(program) = program {
            command = Command::new(program);
        }
        command.args(&words[1..]).current_dir(self.root());
        for file in self.values(unit, "EnvironmentFile") {
            for line in fs::read_to_string(file).expect("the file is there").lines() {
                let (name, value) = line.split_once('=').expect("NAME=value");
                command.env(name, value);
            }
        }
        for variable in self.values(unit, "Environment") {
            let variable = filled(&variable);
            let (name, value) = variable.split_once('=').expect("NAME=value");
            let is_runtime = name == "XDG_RUNTIME_DIR";
            command.env(name, if is_runtime { self.root().display().to_string() } else { value.to_owned() });
        }
        command
    }

    /// Starts a service that says nothing of when it is ready.
    pub(crate) fn start(&self, unit: &str) -> Running {
        assert_eq!(self.values(unit, "Type"), ["exec"]);
        start(self.command(unit), b"")
    }

    /// Starts what a component's unit runs, or with `ExecStartPre` what goes before it.
    pub(crate) fn start_component(&self, unit: &str, key: &str) -> Running {
        start(self.command_of(unit, key), b"")
    }

    /// Starts a service and waits until it says that it is ready, as systemd would.
    #[track_caller]
    pub(crate) fn start_and_wait(&self, unit: &str) -> Service {
        assert_eq!(self.values(unit, "Type"), ["notify"]);
        let path = self.root().join("notify");
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        let mut command = self.command(unit);
        command.env("NOTIFY_SOCKET", &path);
        let mut service = Service { running: start(command, b""), socket };
        service.until_it_notifies("READY=1");
        service
    }

    /// What a person on this machine runs, with the environment of the bus's service: `trunkline` with these arguments.
    pub(crate) fn on_the_machine(&self, arguments: &[&str]) -> crate::command::Ended {
        let mut command = self.command("trunkline");
        let mut plain = crate::command::command(arguments);
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                plain.env(name, value);
            }
        }
        plain.arg("--config").arg(self.root().join("etc/trunkline/config.yaml"));
        command = plain;
        start(command, b"").end()
    }
}

/// A service that tells how it is.
pub(crate) struct Service {
    pub(crate) running: Running,
    socket: UnixDatagram,
}

impl Service {
    #[track_caller]
    pub(crate) fn until_it_notifies(&mut self, expected: &str) {
        let mut buffer = [0; 4096];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) if String::from_utf8_lossy(&buffer[..length]).contains(expected) => return,
                Ok(_) => {}
                Err(error) => {
                    self.running.signal(nix::sys::signal::Signal::SIGTERM);
                    self.running.until_it_says(&format!("{expected} was not told: {error}"));
                }
            }
        }
    }
}

/// Asks again until it is so; what is waited for is told by nobody.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "{what} did not happen within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether something accepts connections there.
pub(crate) fn is_open(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
}
