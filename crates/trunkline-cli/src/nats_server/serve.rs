//! The running server: from its settings to its end, and what signals make of it.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use trunkline::backend::memory::{Hub, HubOptions};
use trunkline_server::{Server, ServerOptions, StartError};

use super::files::{self, OwnFile};
use super::flags::Flags;
use super::log::Log;
use super::settings::{LogSettings, Settings, describe};
use super::{COMPATIBLE_WITH, PROGRAM};

/// How long a stop may take: what waits for clients is sent until then, and dropped after it.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("Error listening on port: {address}, \"{cause}\"")]
    Listen { address: String, cause: String },
    #[error("{0}; {hint}", hint = .0.hint())]
    Start(StartError),
    #[error("could not write {what} {path}: {cause}")]
    File { what: &'static str, path: String, cause: String },
    #[error("cannot listen to signals: {0}")]
    Signals(std::io::Error),
}

/// Starts the server and runs it until it is told to stop.
pub(super) fn run(flags: &Flags, settings: Settings) -> ExitCode {
    let log = match Log::open(&settings.log) {
        Ok(log) => log,
        Err(error) => {
            let path = settings.log.file.as_deref().unwrap_or(std::path::Path::new(""));
            return super::refuse(&format!(
                "error opening file: open {}: {}",
                path.display(),
                describe(&error)
            ));
        }
    };
    log.listen();
    let runtime = match Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            log.fatal(&format!("cannot start the runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(serve(flags, settings, &log)) {
        Ok(()) => {
            log.info("Server Exiting..");
            ExitCode::SUCCESS
        }
        Err(error) => {
            log.fatal(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

async fn serve(flags: &Flags, settings: Settings, log: &Arc<Log>) -> Result<(), ServeError> {
    let mut signals = Signals::listen().map_err(ServeError::Signals)?;
    log.info("Starting nats-server");
    log.info(&format!("  Version:  {COMPATIBLE_WITH} (trunkline {})", env!("CARGO_PKG_VERSION")));
    let mut options = options(&settings)?;
    if let Some(file) = &settings.file {
        log.info(&format!("Using configuration file: {} (sha256:{})", file.path.display(), file.sha256));
    }
    for ignored in &settings.ignored {
        log.warn(&format!("{ignored} is taken and changes nothing on this server"));
    }
    options.plaintext = true;
    let (listen, http) = (options.listen, options.http);
    let server = Server::start(options).await.map_err(|error| match error {
        StartError::Bind { address, source, .. } => {
            let cause = format!("listen tcp {address}: bind: {}", describe(&source));
            ServeError::Listen { address: address.to_string(), cause }
        }
        error => ServeError::Start(error),
    })?;
    if !listen.ip().is_loopback() || http.is_some_and(|http| !http.ip().is_loopback()) {
        log.warn("Passwords and messages travel in plain text between machines");
    }
    log.info(&format!("  Name:     {}", server.name()));
    log.info(&format!("  ID:       {}", server.id()));
    let ports = write_files(&settings, &server)?;
    if let Some(http) = server.http_addr() {
        let host = settings.http.as_ref().and_then(|http| http.host.as_ref()).or(settings.host.as_ref());
        log.info(&format!("Starting http monitor on {}", shown(host, http)));
    }
    log.info(&format!(
        "Listening for client connections on {}",
        shown(settings.host.as_ref(), server.nats_addr())
    ));
    log.info("Server is ready");
    attend(flags, settings, log, &server, &mut signals).await;
    log.info("Initiating Shutdown...");
    // The file goes first: who reads it from now on shall not find a server that refuses connections.
    drop(ports);
    tokio::select! {
        cut = server.shutdown(STOP_WITHIN) => if cut > 0 {
            log.warn(&format!("{cut} connections were cut with messages left for them"));
        },
        () = signals.asked_to_end() => {}
    }
    Ok(())
}

fn options(settings: &Settings) -> Result<ServerOptions, ServeError> {
    let hub = Hub::new(HubOptions { max_payload: settings.limits.max_payload, ..HubOptions::default() });
    let listen = resolve(settings.host.as_deref(), settings.port)?;
    let http = settings.http.as_ref().map(|http| {
        let host = http.host.as_deref().or(settings.host.as_deref());
        resolve(host, http.port)
    });
    Ok(ServerOptions {
        listen,
        http: http.transpose()?,
        name: settings.name.clone(),
        limits: settings.limits.clone(),
        auth: settings.auth.clone(),
        ..ServerOptions::new(Arc::new(hub))
    })
}

/// The address of a host. Where none is given it is this machine alone, and not all its networks as on nats-server: to be
/// reached from elsewhere is something that has to be said.
fn resolve(host: Option<&str>, port: u16) -> Result<SocketAddr, ServeError> {
    let Some(host) = host.filter(|host| !host.is_empty()) else {
        return Ok((IpAddr::V4(Ipv4Addr::LOCALHOST), port).into());
    };
    let found: Vec<_> = (host, port).to_socket_addrs().map(Iterator::collect).unwrap_or_default();
    // Clients try the older addresses first; a name such as localhost has both.
    found.iter().find(|address| address.is_ipv4()).or(found.first()).copied().ok_or_else(|| {
        ServeError::Listen {
            address: format!("{host}:{port}"),
            cause: format!("listen tcp: lookup {host}: no such host"),
        }
    })
}

/// An address with its host as it was given.
fn shown(host: Option<&String>, bound: SocketAddr) -> String {
    match host {
        Some(host) if !host.contains(':') => format!("{host}:{}", bound.port()),
        _ => bound.to_string(),
    }
}

fn write_files(settings: &Settings, server: &Server) -> Result<Option<OwnFile>, ServeError> {
    if let Some(path) = &settings.pid_file {
        files::write_pid(path).map_err(|error| ServeError::File {
            what: "pidfile",
            path: path.display().to_string(),
            cause: describe(&error),
        })?;
    }
    let Some(directory) = &settings.ports_file_dir else { return Ok(None) };
    let written = files::write_ports(directory, PROGRAM, server.nats_addr(), server.http_addr());
    written.map(Some).map_err(|error| ServeError::File {
        what: "the ports file in",
        path: directory.display().to_string(),
        cause: describe(&error),
    })
}

/// Does what signals ask for, until one asks to stop.
async fn attend(
    flags: &Flags,
    mut settings: Settings,
    log: &Arc<Log>,
    server: &Server,
    signals: &mut Signals,
) {
    loop {
        let what = signals.next().await;
        log.info(&format!("Trapped {:?} signal", what.as_str()));
        match what {
            Asked::Interrupt | Asked::Terminate => return,
            Asked::Reload => match reload(flags, &settings, log, server) {
                Ok(new) => settings = new,
                Err(error) => log.error(&format!("Failed to reload server configuration: {error}")),
            },
            Asked::Reopen => match log.reopen() {
                Ok(()) => log.info("File log re-opened"),
                Err(error) => log.error(&format!("Failed to re-open the log: {}", describe(&error))),
            },
            Asked::LameDuck => {
                log.info("Entering lame duck mode, stop accepting new clients");
                let lame_duck = settings.lame_duck;
                tokio::select! {
                    () = server.lame_duck(lame_duck.grace_period, lame_duck.duration) => {}
                    () = signals.asked_to_end() => {}
                }
                return;
            }
        }
    }
}

/// Puts what the configuration file says now in force, as far as a running server can change.
fn reload(flags: &Flags, old: &Settings, log: &Log, server: &Server) -> Result<Settings, Box<dyn Error>> {
    if flags.config.is_none() {
        return Err("can only reload config when a file is provided using -c or --config".into());
    }
    let new = Settings::load(flags)?;
    if let Some(key) = fixed(old, &new) {
        return Err(format!("config reload not supported for {key}").into());
    }
    let auth_changed = new.auth != old.auth;
    server.reload(&new.auth).map_err(|error| crate::failure::chain(&error))?;
    log.set_levels(new.log.debug, new.log.trace);
    for (changed, what) in [
        (auth_changed, "authorization users"),
        (new.log.debug != old.log.debug, "debug"),
        (new.log.trace != old.log.trace, "trace"),
        (new.lame_duck.duration != old.lame_duck.duration, "lame_duck_duration"),
        (new.lame_duck.grace_period != old.lame_duck.grace_period, "lame_duck_grace_period"),
    ] {
        if changed {
            log.info(&format!("Reloaded: {what}"));
        }
    }
    let sha256 = new.file.as_ref().map_or("", |file| &file.sha256);
    log.info(&format!("Reloaded server configuration (sha256:{sha256})"));
    Ok(new)
}

/// The first key that has changed and that only a new server can have.
fn fixed(old: &Settings, new: &Settings) -> Option<&'static str> {
    let (was, is) = (&old.limits, &new.limits);
    let (old_log, new_log) = (fixed_log(&old.log), fixed_log(&new.log));
    let changes = [
        (old.host != new.host, "host"),
        (old.port != new.port, "port"),
        (old.http != new.http, "http"),
        (old.name != new.name, "server_name"),
        (old.pid_file != new.pid_file, "pid_file"),
        (old.ports_file_dir != new.ports_file_dir, "ports_file_dir"),
        (old_log != new_log, "log_file and logtime"),
        (was.max_payload != is.max_payload, "max_payload"),
        (was.max_control_line != is.max_control_line, "max_control_line"),
        (was.max_connections != is.max_connections, "max_connections"),
        (was.max_subscriptions != is.max_subscriptions, "max_subscriptions"),
        (was.max_pending != is.max_pending, "max_pending"),
        (was.ping_interval != is.ping_interval, "ping_interval"),
        (was.ping_max != is.ping_max, "ping_max"),
        (was.write_deadline != is.write_deadline, "write_deadline"),
    ];
    changes.into_iter().find(|(changed, _)| *changed).map(|(_, key)| key)
}

/// What of the log stays as it was at the start.
fn fixed_log(log: &LogSettings) -> LogSettings {
    LogSettings { debug: false, trace: false, ..log.clone() }
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Interrupt,
    Terminate,
    Reload,
    Reopen,
    LameDuck,
}

impl Asked {
    /// Its name in the log.
    fn as_str(self) -> &'static str {
        match self {
            Self::Interrupt => "interrupt",
            Self::Terminate => "terminated",
            Self::Reload => "hangup",
            Self::Reopen => "user defined signal 1",
            Self::LameDuck => "user defined signal 2",
        }
    }
}

/// The signals that the server knows, heard from the making of this on.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::Interrupt,
            _ = self.terminate.recv() => Asked::Terminate,
            _ = self.hangup.recv() => Asked::Reload,
            _ = self.user1.recv() => Asked::Reopen,
            _ = self.user2.recv() => Asked::LameDuck,
        }
    }

    async fn asked_to_end(&mut self) {
        while !matches!(self.next().await, Asked::Interrupt | Asked::Terminate) {}
    }
}
