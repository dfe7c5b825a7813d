//! A real `redis-server` to run tests against.

use std::ffi::OsString;
use std::net::TcpListener;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::certificates::{Authority, Certificate};
use crate::environment;
use crate::process::{Addresses, Program, ServerProcess, log_path};
use crate::redis_log;
use crate::redis_version::{NoTls, RedisVersion};
use crate::servers::temporary_directory;

/// Ports to choose from: below those that the system gives to outgoing connections, so that no connection of another
/// test sits on the port while the server is away.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// Longest wait for a server to answer, or for servers to agree on something.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Arguments of a server with an append-only file that is synced with each write.
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// A real `redis-server` on a port of 127.0.0.1 that was free; the rest of it is [`ServerProcess`].
///
/// With an append-only file it comes back with its data after a kill; without one it comes back empty. Its files lie in
/// the server's directory and go with it.
pub struct RedisServer {
    process: ServerProcess,
    version: RedisVersion,
}

impl RedisServer {
    /// Starts a server with an append-only file that is synced with each write: with `everysec` the server may hold
    /// back even the write while a sync is under way, and a kill then takes what was confirmed.
    ///
    /// # Panics
    /// When there is no `redis-server` (the message says how to get it) or it does not come up.
    pub fn start() -> RedisServer {
        RedisServer::start_version(RedisVersion::System, DURABLE)
    }

    /// As [`RedisServer::start`], with a server of this version.
    ///
    /// # Panics
    /// As [`RedisServer::start`].
    pub fn start_durable(version: RedisVersion) -> RedisServer {
        RedisServer::start_version(version, DURABLE)
    }

    /// Starts a server that keeps nothing over a restart.
    ///
    /// # Panics
    /// As [`RedisServer::start`].
    pub fn start_volatile() -> RedisServer {
        RedisServer::start_with(["--appendonly", "no"])
    }

    /// Starts a server with these arguments besides the ones for address and directory.
    ///
    /// # Panics
    /// As [`RedisServer::start`].
    pub fn start_with<A: Into<OsString>>(arguments: impl IntoIterator<Item = A>) -> RedisServer {
        RedisServer::start_version(RedisVersion::System, arguments)
    }

    /// As [`RedisServer::start_with`], with a server of this version.
    ///
    /// # Panics
    /// As [`RedisServer::start`].
    pub fn start_version<A: Into<OsString>>(
        version: RedisVersion,
        arguments: impl IntoIterator<Item = A>,
    ) -> RedisServer {
        let arguments = arguments.into_iter().map(Into::into).collect();
        RedisServer::launch_version(version, Kind::Plain, free_port(), arguments)
    }

    /// Starts a server that speaks TLS only, with a certificate of `authority` for `certificate`, and wants one of its
    /// clients, of the same authority, if `clients` says so.
    ///
    /// # Panics
    /// As [`RedisServer::start`], and when the system's server was built without TLS.
    pub fn start_tls(authority: &Authority, certificate: &Certificate, clients: bool) -> RedisServer {
        RedisServer::start_tls_version(RedisVersion::System, authority, certificate, clients)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`RedisServer::start_tls`], with a server of this version.
    ///
    /// # Errors
    /// When it was built without TLS.
    ///
    /// # Panics
    /// As [`RedisServer::start`].
    pub fn start_tls_version(
        version: RedisVersion,
        authority: &Authority,
        certificate: &Certificate,
        clients: bool,
    ) -> Result<RedisServer, NoTls> {
        version.has_tls()?;
        let mut arguments: Vec<OsString> = vec!["--appendonly".into(), "no".into()];
        arguments.extend(with_dashes(tls_settings(authority, certificate, clients)));
        Ok(RedisServer::launch_version(version, Kind::Tls, free_port(), arguments))
    }

    /// Starts a server with these arguments whose disk [`RedisServer::fill_disk`] makes full: it takes no harm from that,
    /// other than that its writes fail.
    ///
    /// # Panics
    /// As [`RedisServer::start`].
    pub fn start_on_small_disk<A: Into<OsString>>(
        version: RedisVersion,
        arguments: impl IntoIterator<Item = A>,
    ) -> RedisServer {
        let arguments = arguments.into_iter().map(Into::into).collect();
        RedisServer::launch_version(version, Kind::SmallDisk, free_port(), arguments)
    }

    /// From now on no file of this server may be longer than so many bytes. A server that is started again is bound by
    /// nothing.
    ///
    /// # Panics
    /// When the server is not running, or the system has no `prlimit`.
    pub fn fill_disk(&self, bytes_max: u64) {
        self.limit_files(&bytes_max.to_string());
    }

    /// There is room on the disk again.
    ///
    /// # Panics
    /// As [`RedisServer::fill_disk`].
    pub fn free_disk(&self) {
        self.limit_files("unlimited");
    }

    /// Sets the soft limit alone: it can be raised again without any rights.
    fn limit_files(&self, bytes_max: &str) {
        let pid = self.pid().to_string();
        let status = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes_max}:")]).status();
        let status = status.unwrap_or_else(|error| panic!("prlimit, of util-linux, cannot be run: {error}"));
        assert!(status.success(), "prlimit ends with {status}");
    }

    /// Starts a sentinel with this configuration, that speaks TLS, too, if `tls` says so: then on a port of its own, which
    /// is given back.
    pub(crate) fn start_sentinel(
        version: RedisVersion,
        tls: Option<Tls<'_>>,
        mut configuration: String,
    ) -> (RedisServer, Option<u16>) {
        let tls_port = tls.map(|_| free_port());
        if let (Some((authority, certificate)), Some(tls_port)) = (tls, tls_port) {
            // By TLS it talks to the others, and says that it is to be reached.
            configuration.push_str(&format!("tls-port {tls_port}\ntls-replication yes\n"));
            for (name, value) in tls_settings(authority, certificate, false) {
                configuration.push_str(&format!("{name} \"{}\"\n", value.display()));
            }
        }
        let kind = Kind::Sentinel { configuration };
        (RedisServer::launch_version(version, kind, free_port(), Vec::new()), tls_port)
    }

    /// Starts a server for sentinels to watch. Where there is TLS it is on a port of its own, which is given back, and
    /// replication goes over it.
    pub(crate) fn start_watched(
        version: RedisVersion,
        tls: Option<Tls<'_>>,
        mut arguments: Vec<OsString>,
    ) -> (RedisServer, Option<u16>) {
        let tls_port = tls.map(|_| free_port());
        if let (Some(tls), Some(tls_port)) = (tls, tls_port) {
            arguments.extend(tls_beside(tls, tls_port));
            arguments.extend(["--tls-replication".into(), "yes".into()]);
        }
        (RedisServer::launch_version(version, Kind::Plain, free_port(), arguments), tls_port)
    }

    /// Starts a node of a cluster that serves no slots yet. Where there is TLS it is on a port of its own, which is given
    /// back, and the nodes use it among themselves.
    pub(crate) fn start_node(version: RedisVersion, tls: Option<Tls<'_>>) -> (RedisServer, Option<u16>) {
        let mut arguments: Vec<OsString> = [
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            // Without the delay a replica would wait for others to come.
            "--repl-diskless-sync-delay",
            "0",
            "--cluster-enabled",
            "yes",
            "--cluster-config-file",
            "nodes.conf",
            "--cluster-node-timeout",
            "1500",
            // A machine that is busy for so long must not have a master replaced. Who is to be promoted is told so.
            "--cluster-replica-no-failover",
            "yes",
            "--cluster-replica-validity-factor",
            "0",
        ]
        .map(OsString::from)
        .to_vec();
        // The nodes talk to each other on a second port, so much above the first.
        let two_ports = || {
            let port = (0..1000).map(|_| free_port()).find(|port| is_free(port + 10_000));
            port.expect("two ports are free at the right distance")
        };
        let tls_port = tls.map(|_| two_ports());
        if let (Some(tls), Some(tls_port)) = (tls, tls_port) {
            arguments.extend(tls_beside(tls, tls_port));
            arguments.extend(["--tls-cluster".into(), "yes".into()]);
        }
        (RedisServer::launch_version(version, Kind::Plain, two_ports(), arguments), tls_port)
    }

    fn launch_version(version: RedisVersion, kind: Kind, port: u16, arguments: Vec<OsString>) -> RedisServer {
        let path = environment::redis_server(version);
        let program = RedisServerProgram { path, kind, port, arguments };
        let process = ServerProcess::start(Box::new(program), temporary_directory());
        RedisServer { process, version }
    }

    /// Starts the server again on the same port and in the same directory; stops it first where it still runs. Where it was
    /// killed its log is mended first, as operators are told to: see [`redis_log`].
    ///
    /// # Panics
    /// When the log cannot be mended, or the server does not come up.
    pub fn restart(&mut self) {
        if !self.process.is_running() {
            redis_log::mend(self.version, self.directory());
        }
        self.process.restart();
    }

    /// As [`RedisServer::restart`], with the log as it is.
    ///
    /// # Panics
    /// When the server does not come up.
    pub fn restart_unmended(&mut self) {
        self.process.restart();
    }

    /// Ends the server as SIGKILL does when it comes within a write of the log: of the last transaction that has `marker` in
    /// it the end is missing.
    ///
    /// # Panics
    /// When it is not running, or there is no such transaction.
    pub fn kill_within_write(&mut self, marker: &str) {
        self.kill();
        redis_log::cut_within(self.directory(), marker.as_bytes());
    }

    /// Sends one command on a connection of its own, words separated by blanks, and gives the answer.
    ///
    /// # Panics
    /// When the server does not answer, or with an error.
    pub fn ask(&self, command: &str) -> redis::Value {
        self.try_ask(command).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// As [`RedisServer::ask`], with the error as a value.
    pub fn try_ask(&self, command: &str) -> redis::RedisResult<redis::Value> {
        self.try_ask_words(&command.split_whitespace().collect::<Vec<_>>())
    }

    /// As [`RedisServer::try_ask`], for words that have blanks in them.
    pub(crate) fn try_ask_words(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let mut command = redis::cmd(words[0]);
        words[1..].iter().for_each(|word| {
            command.arg(*word);
        });
        let mut connection = redis::Client::open(self.url())?.get_connection_with_timeout(PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        command.query(&mut connection)
    }

    /// Waits until `replica` has all that this server has now.
    ///
    /// # Panics
    /// When that takes longer than 20 s.
    #[track_caller]
    pub fn wait_until_on(&self, replica: &RedisServer) {
        let offset = |replication: &str, field: &str| -> Option<u64> {
            replication.lines().find_map(|line| line.strip_prefix(field)?.trim().parse().ok())
        };
        let here = offset(&shown(&self.ask("INFO replication")), "master_repl_offset:");
        let here = here.expect("a server says how much it has");
        replica.wait_until_answer("INFO replication", |there| {
            offset(there, "slave_repl_offset:").is_some_and(|there| there >= here)
        });
    }

    /// Sends a command until the answer, as text, contains `expected`.
    ///
    /// # Panics
    /// When that takes longer than 20 s.
    #[track_caller]
    pub(crate) fn wait_until(&self, command: &str, expected: &str) {
        self.wait_until_answer(command, |answer| answer.contains(expected));
    }

    /// Sends a command until the answer, as text, is as wanted.
    ///
    /// # Panics
    /// When that takes longer than 20 s.
    #[track_caller]
    pub(crate) fn wait_until_answer(&self, command: &str, wanted: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.try_ask(command).map(|answer| shown(&answer));
            if answer.as_ref().is_ok_and(|answer| wanted(answer)) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{command} never has the answer that is wanted, but {answer:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// An answer as text, one element a line.
pub(crate) fn shown(answer: &redis::Value) -> String {
    match answer {
        redis::Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        redis::Value::SimpleString(text) => text.clone(),
        redis::Value::Int(n) => n.to_string(),
        redis::Value::Array(values) => values.iter().map(shown).collect::<Vec<_>>().join("\n"),
        other => format!("{other:?}"),
    }
}

impl Deref for RedisServer {
    type Target = ServerProcess;

    fn deref(&self) -> &ServerProcess {
        &self.process
    }
}

impl DerefMut for RedisServer {
    fn deref_mut(&mut self) -> &mut ServerProcess {
        &mut self.process
    }
}

/// What a `redis-server` is started as.
enum Kind {
    Plain,
    Tls,
    Sentinel { configuration: String },
    SmallDisk,
}

/// An authority, and the certificate that it has signed for a server.
pub(crate) type Tls<'a> = (&'a Authority, &'a Certificate);

struct RedisServerProgram {
    path: PathBuf,
    kind: Kind,
    port: u16,
    arguments: Vec<OsString>,
}

impl Program for RedisServerProgram {
    fn name(&self) -> &str {
        "redis-server"
    }

    fn command(&self, directory: &Path, _former: Option<&Addresses>) -> Command {
        let mut command = match &self.kind {
            // Whoever writes past the limit of its files is killed, unless it ignores the signal: then the write fails, as
            // on a disk that is full. Redis has no opinion, so it is told before it starts.
            Kind::SmallDisk => {
                let mut shell = Command::new("sh");
                shell.args(["-c", r#"trap '' XFSZ; exec "$0" "$@""#]).arg(&self.path);
                shell
            }
            Kind::Plain | Kind::Tls | Kind::Sentinel { .. } => Command::new(&self.path),
        };
        let port = self.port.to_string();
        match &self.kind {
            Kind::Plain | Kind::SmallDisk => {
                command.args(["--port", &port]);
            }
            Kind::Tls => {
                command.args(["--port", "0", "--tls-port", &port]);
            }
            Kind::Sentinel { configuration } => {
                // A sentinel keeps what it learns in its file, so a second start finds it there.
                let file = directory.join("sentinel.conf");
                if !file.exists() {
                    let content = format!("bind 127.0.0.1\nport {port}\n{configuration}");
                    std::fs::write(&file, content).expect("a temporary directory takes files");
                }
                command.arg(file).arg("--sentinel");
                return command;
            }
        }
        command.args(["--bind", "127.0.0.1", "--save", ""]).arg("--dir").arg(directory).args(&self.arguments);
        command
    }

    /// Redis writes no file of ports, but says in its log when it is ready, with its process id.
    fn ports_file(&self, directory: &Path, _pid: u32) -> PathBuf {
        log_path(directory)
    }

    fn parse_ports(&self, content: &str, pid: u32) -> Option<Addresses> {
        let own = format!("{pid}:");
        let (scheme, word) = match self.kind {
            Kind::Plain | Kind::SmallDisk => ("redis", "Ready to accept connections"),
            Kind::Tls => ("rediss", "Ready to accept connections"),
            Kind::Sentinel { .. } => ("redis", "+monitor master"),
        };
        let ready = |line: &str| line.starts_with(&own) && line.contains(word);
        let url = format!("{scheme}://127.0.0.1:{}", self.port);
        content.lines().any(ready).then(|| Addresses { nats: url.clone(), http: url })
    }
}

/// The arguments with which a server speaks TLS on this port, beside the one where it does not.
fn tls_beside((authority, certificate): Tls<'_>, tls_port: u16) -> Vec<OsString> {
    let mut arguments = vec!["--tls-port".into(), tls_port.to_string().into()];
    arguments.extend(with_dashes(tls_settings(authority, certificate, false)));
    arguments
}

fn tls_settings(
    authority: &Authority,
    certificate: &Certificate,
    clients: bool,
) -> [(&'static str, OsString); 4] {
    [
        ("tls-cert-file", certificate.cert_file.clone().into()),
        ("tls-key-file", certificate.key_file.clone().into()),
        ("tls-ca-cert-file", authority.ca_file().into()),
        ("tls-auth-clients", if clients { "yes" } else { "no" }.into()),
    ]
}

/// Settings as arguments.
fn with_dashes(settings: [(&'static str, OsString); 4]) -> impl Iterator<Item = OsString> {
    settings.into_iter().flat_map(|(name, value)| [format!("--{name}").into(), value])
}

fn free_port() -> u16 {
    (0..1000)
        .map(|_| fastrand::u16(PORTS))
        .find(|port| is_free(*port))
        .expect("one of a thousand ports is free")
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}
