//! The running server: from its settings to its end, and what signals make of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use trunkline::backend::memory::{Hub, HubOptions};
use trunkline::config::HandshakeFirst;
use trunkline_server::{Server, ServerOptions, StartError, WebSocketOptions};

use super::files::{self, OwnFile, Ports};
use super::flags::Flags;
use super::log::Log;
use super::reload::reload;
use super::settings::{Listen, Settings, WebSocket, describe};
use super::{COMPATIBLE_WITH, PROGRAM};

/// How long a stop may take: what waits for clients is sent until then, and dropped after it.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// nats-server advises against more.
const PAYLOAD_BYTES_USUAL: usize = 8 << 20;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    #[error("Error listening on port: {address}, \"{cause}\"")]
    Listen { address: String, cause: String },
    #[error("{0}; {hint}", hint = .0.hint())]
    Start(StartError),
    #[error("Could not write pidfile: open {path}: {cause}")]
    PidFile { path: String, cause: String },
    #[error("Can't start monitoring: {0}")]
    Monitoring(String),
    #[error("cannot listen to signals: {0}")]
    Signals(std::io::Error),
}

/// Starts the server and runs it until it is told to stop.
pub(super) fn run(flags: &Flags, settings: Settings) -> ExitCode {
    let log = match Log::open(&settings.log) {
        Ok(log) => log,
        Err(error) => {
            let path = settings.log.file.as_deref().unwrap_or(Path::new("")).display();
            return super::refuse(&format!("error opening file: open {path}: {}", describe(&error)));
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
    log.info(&format!("  Version:  {COMPATIBLE_WITH}"));
    log.info(&format!("  Trunkline: {}", env!("CARGO_PKG_VERSION")));
    let mut options = options(&settings)?;
    if let Some(file) = &settings.file {
        log.info(&format!("Using configuration file: {} (sha256:{})", file.path.display(), file.sha256));
    }
    if settings.is_nothing_said {
        log.warn("config has no values or is empty");
    }
    if settings.limits.max_payload > PAYLOAD_BYTES_USUAL {
        log.warn(
            "Maximum payloads over 8.00 MB are generally discouraged and could lead to poor performance",
        );
    }
    for ignored in &settings.ignored {
        log.warn(&format!("{ignored} is taken and changes nothing on this server"));
    }
    options.plaintext = true;
    let exposed = exposed(&options);
    let server = Server::start(options).await.map_err(|error| match error {
        StartError::Bind { address, source, .. } => {
            let cause = format!("listen tcp {address}: bind: {}", describe(&source));
            ServeError::Listen { address: address.to_string(), cause }
        }
        error => ServeError::Start(error),
    })?;
    if exposed {
        log.warn("Passwords and messages travel in plain text between machines");
    }
    log.info(&format!("  Name:     {}", server.name()));
    log.info(&format!("  ID:       {}", server.id()));
    write_pid(&settings)?;
    let mut ports = write_ports(&settings, &server, log);
    tell_addresses(&settings, &server, log);
    log.info("Server is ready");
    let attendance = Attendance { flags, settings, log, server: &server, ports: &mut ports };
    attend(attendance, &mut signals).await;
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
    let monitoring = match (&settings.http, &settings.https) {
        (Some(http), Some(https)) => {
            let both = format!("can't specify both HTTP ({}) and HTTPs ({}) ports", http.port, https.port);
            return Err(ServeError::Monitoring(both));
        }
        (None, Some(_)) if settings.tls.is_none() => {
            return Err(ServeError::Monitoring("TLS cert and key required for HTTPS".to_owned()));
        }
        (http, https) => http.as_ref().or(https.as_ref()),
    };
    let at = |listen: &Listen| resolve(listen.host.as_deref().or(settings.host.as_deref()), listen.port);
    let hub = Hub::new(HubOptions { max_payload: settings.limits.max_payload, ..HubOptions::default() });
    let listen = resolve(settings.host.as_deref(), settings.port)?;
    let websocket = match &settings.websocket {
        Some(web) => Some(websocket(web, at(&web.listen)?, settings.auth.is_required())),
        None => None,
    };
    Ok(ServerOptions {
        listen,
        http: monitoring.map(at).transpose()?,
        http_tls: settings.https.is_some(),
        name: settings.name.clone(),
        tags: settings.tags.clone(),
        metadata: settings.metadata.clone(),
        advertise: settings.advertise.clone(),
        version: COMPATIBLE_WITH.to_owned(),
        nats_probes: true,
        trace_payloads: true,
        http_base_path: settings.http_base_path.clone(),
        headers: settings.headers,
        tls: settings.tls.clone(),
        websocket,
        limits: settings.limits.clone(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        auth: settings.auth.clone(),
        ..ServerOptions::new(Arc::new(hub))
    })
}

/// The listener for clients over WebSocket. Where the file says nothing of origins, nats-server lets any page connect; here
/// any may that knows a password, and where nobody is asked for one, those of the listener itself: a browser on this machine
/// would carry any page of the web to an address that is only for this machine.
fn websocket(web: &WebSocket, listen: SocketAddr, asks: bool) -> WebSocketOptions {
    let (same_origin, allowed_origins) = match (web.asks_for_origin(), asks) {
        (true, _) => (web.same_origin, web.allowed_origins.clone()),
        (false, true) => (false, vec!["*".to_owned()]),
        (false, false) => (true, Vec::new()),
    };
    WebSocketOptions {
        no_tls: web.tls.is_none(),
        tls: web.tls.clone(),
        same_origin,
        allowed_origins,
        both_origins: true,
        handshake_timeout: web.handshake_timeout,
        ..WebSocketOptions::at(listen)
    }
}

/// Whether other machines may send passwords or messages in plain text.
fn exposed(options: &ServerOptions) -> bool {
    let is_safe = options.tls.as_ref().is_some_and(|tls| !tls.allow_non_tls);
    let http = options.http.filter(|_| !options.http_tls);
    let web = options.websocket.as_ref().filter(|web| web.no_tls).map(|web| web.listen);
    let nats = Some(options.listen).filter(|_| !is_safe);
    [nats, http, web].into_iter().flatten().any(|address| !address.ip().is_loopback())
}

/// Says where the server listens, in the lines that scripts wait for.
fn tell_addresses(settings: &Settings, server: &Server, log: &Log) {
    let own = |listen: Option<&Listen>| {
        listen.and_then(|listen| listen.host.clone()).or_else(|| settings.host.clone())
    };
    if let Some(http) = server.http_addr() {
        let listen = settings.http.as_ref().or(settings.https.as_ref());
        let scheme = if settings.https.is_some() { "https" } else { "http" };
        log.info(&format!("Starting {scheme} monitor on {}", shown(own(listen).as_ref(), http)));
    }
    if let (Some(web), Some(address)) = (&settings.websocket, server.websocket_addr()) {
        let address = shown(own(Some(&web.listen)).as_ref(), address);
        let scheme = if web.tls.is_some() { "wss" } else { "ws" };
        log.info(&format!("Listening for websocket clients on {scheme}://{address}"));
        if web.tls.is_none() {
            log.warn("Websocket not configured with TLS. DO NOT USE IN PRODUCTION!");
        }
        if !web.asks_for_origin() && !settings.auth.is_required() {
            log.info("Web pages may connect from the address of the websocket alone, see websocket.allowed_origins");
        }
    }
    let nats = shown(settings.host.as_ref(), server.nats_addr());
    log.info(&format!("Listening for client connections on {nats}"));
    if let Some(tls) = &settings.tls {
        let how = if tls.allow_non_tls { "available" } else { "required" };
        log.info(&format!("TLS {how} for client connections"));
        if tls.handshake_first == HandshakeFirst::Always {
            log.warn("Clients that are not using \"TLS Handshake First\" option will fail to connect");
        }
    }
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

fn write_pid(settings: &Settings) -> Result<(), ServeError> {
    let Some(path) = &settings.pid_file else { return Ok(()) };
    files::write_pid(path)
        .map_err(|error| ServeError::PidFile { path: path.display().to_string(), cause: describe(&error) })
}

/// Writes where the server listens to the directory for it, if there is one. Without it the server runs all the same, as
/// nats-server does.
pub(super) fn write_ports(settings: &Settings, server: &Server, log: &Log) -> Option<OwnFile> {
    let directory = settings.ports_file_dir.as_ref()?;
    // As on nats-server: clients may come without TLS where the scheme does not say so.
    let is_secure = settings.tls.as_ref().is_some_and(|tls| !tls.allow_non_tls);
    let is_wss = settings.websocket.as_ref().is_some_and(|web| web.tls.is_some());
    let at = |is_secure: bool, [open, secure]: [&str; 2], address: Option<SocketAddr>| {
        let scheme = if is_secure { secure } else { open };
        address.map(|address| files::urls(scheme, address)).unwrap_or_default()
    };
    let ports = Ports {
        nats: at(is_secure, ["nats", "tls"], Some(server.nats_addr())),
        monitoring: at(settings.https.is_some(), ["http", "https"], server.http_addr()),
        websocket: at(is_wss, ["ws", "wss"], server.websocket_addr()),
    };
    match files::write_ports(directory, PROGRAM, &ports) {
        Ok(file) => Some(file),
        Err(error) => {
            let path = files::ports_path(directory, PROGRAM);
            let (path, cause) = (path.display(), describe(&error));
            log.error(&format!("Error writing ports file ({path}): open {path}: {cause}"));
            None
        }
    }
}

/// What signals act on.
struct Attendance<'a> {
    flags: &'a Flags,
    settings: Settings,
    log: &'a Arc<Log>,
    server: &'a Server,
    ports: &'a mut Option<OwnFile>,
}

/// How the server is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    Now,
    /// After its clients.
    LameDuck,
}

/// Does what signals ask for, until one asks to stop, or lame duck mode is over.
async fn attend(mut attendance: Attendance<'_>, signals: &mut Signals) {
    if attendance.until_leaving(signals).await == Leave::Now {
        return;
    }
    attendance.log.info("Entering lame duck mode, stop accepting new clients");
    let (server, lame_duck) = (attendance.server, attendance.settings.lame_duck);
    let seeing_off = server.lame_duck(lame_duck.grace_period, lame_duck.duration);
    let stopping = async {
        // Another signal for it changes nothing; whatever else is asked for still counts.
        while attendance.until_leaving(signals).await != Leave::Now {}
    };
    tokio::select! {
        () = seeing_off => {}
        () = stopping => {}
    }
}

impl Attendance<'_> {
    /// Acts on signals until one asks to leave.
    async fn until_leaving(&mut self, signals: &mut Signals) -> Leave {
        loop {
            let what = signals.next().await;
            self.log.info(&format!("Trapped {:?} signal", what.as_str()));
            match what {
                Asked::Interrupt | Asked::Terminate => return Leave::Now,
                Asked::LameDuck => return Leave::LameDuck,
                Asked::Reload => self.reload().await,
                Asked::Reopen => self.reopen(),
            }
        }
    }

    async fn reload(&mut self) {
        match reload(self.flags, &self.settings, self.log, self.server, self.ports).await {
            Ok(new) => self.settings = new,
            Err(error) => {
                // Lists of mistakes end with a line break.
                let text = format!("Failed to reload server configuration: {error}");
                self.log.error(text.trim_end());
            }
        }
    }

    fn reopen(&self) {
        match self.log.reopen() {
            Ok(true) => self.log.info("File log re-opened"),
            Ok(false) => self.log.info("File log re-open ignored, not a file logger"),
            Err(error) => self.log.error(&format!("Failed to re-open the log: {}", describe(&error))),
        }
    }
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
