//! What a server under the name `nats-server` is started with: the configuration file in nats-server's keys, and the flags,
//! which win. `top` knows the keys of a file's top level, `auth` those about users, `tls` and `websocket` those of their sections,
//! `read` the types of values.

mod absent;
mod auth;
mod read;
mod tls;
mod top;
mod websocket;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use trunkline::config::{HandshakeFirst, Secret, User};
use trunkline_server::{Advertised, AuthError, AuthOptions, ClientCertificates, Limits, TlsOptions};

use super::conf::{self, Place, Surroundings, SyntaxError};
use super::flags::Flags;
use super::log::Rotation;
use read::Mistakes;
pub(crate) use read::shown as shown_duration;
pub(crate) use websocket::WebSocket;

/// Largest file that is read as a configuration.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// An address as it is given; -1 is any free port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listen {
    /// A name or an address; `None` is the default of the one who listens.
    pub(crate) host: Option<String>,
    pub(crate) port: u16,
}

/// Everything that can be set.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) host: Option<String>,
    /// 0 is any free one.
    pub(crate) port: u16,
    pub(crate) http: Option<Listen>,
    /// In the place of `http`, over TLS.
    pub(crate) https: Option<Listen>,
    pub(crate) tls: Option<TlsOptions>,
    /// Whether clients without TLS are served where there is TLS.
    pub(crate) allow_non_tls: bool,
    pub(crate) websocket: Option<WebSocket>,
    /// Under which monitoring is served, such as `/nats`.
    pub(crate) http_base_path: String,
    /// Whether clients may use headers.
    pub(crate) headers: bool,
    pub(crate) name: Option<String>,
    /// For monitoring.
    pub(crate) tags: Vec<String>,
    /// For monitoring.
    pub(crate) metadata: BTreeMap<String, String>,
    /// Where clients are told that the server is.
    pub(crate) advertise: Option<Advertised>,
    pub(crate) limits: Limits,
    pub(crate) auth: AuthOptions,
    /// Whether it is the file that says how long a client may take to say who it is.
    says_auth_timeout: bool,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) ports_file_dir: Option<PathBuf>,
    pub(crate) log: LogSettings,
    pub(crate) lame_duck: LameDuck,
    /// The configuration file.
    pub(crate) file: Option<ConfigFile>,
    /// There is a file, and it says nothing.
    pub(crate) is_nothing_said: bool,
    /// Keys and flags that change nothing here.
    pub(crate) ignored: Vec<String>,
    /// What the file says that may not be what is meant.
    pub(crate) doubts: Vec<Mistake>,
}

/// Where and what is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogSettings {
    /// `None` is stderr.
    pub(crate) file: Option<PathBuf>,
    pub(crate) time: bool,
    pub(crate) utc: bool,
    pub(crate) debug: bool,
    pub(crate) trace: bool,
    /// Of messages, traces show the headers alone.
    pub(crate) trace_headers: bool,
    /// So many bytes of a message are shown; 0 is all of them.
    pub(crate) traced_bytes_max: usize,
    pub(crate) rotation: Rotation,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            file: None,
            time: true,
            utc: false,
            debug: false,
            trace: false,
            trace_headers: false,
            traced_bytes_max: 0,
            rotation: Rotation::default(),
        }
    }
}

/// How clients are asked to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LameDuck {
    /// From the beginning to the end.
    pub(crate) duration: Duration,
    /// Until the first client is closed.
    pub(crate) grace_period: Duration,
}

/// A configuration file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigFile {
    pub(crate) path: PathBuf,
    /// Of its text, in hexadecimal.
    pub(crate) sha256: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            host: None,
            port: 4222,
            http: None,
            https: None,
            tls: None,
            allow_non_tls: false,
            websocket: None,
            http_base_path: String::new(),
            headers: true,
            name: None,
            tags: Vec::new(),
            metadata: BTreeMap::new(),
            advertise: None,
            limits: Limits::default(),
            auth: AuthOptions::default(),
            says_auth_timeout: false,
            pid_file: None,
            ports_file_dir: None,
            log: LogSettings::default(),
            lame_duck: LameDuck { duration: Duration::from_secs(120), grace_period: Duration::from_secs(10) },
            file: None,
            is_nothing_said: false,
            ignored: Vec::new(),
            doubts: Vec::new(),
        }
    }
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("{} {}: {}", verb(source), path.display(), describe(source))]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Syntax(#[from] SyntaxError),
    #[error("{}", lines(.0))]
    Mistakes(Vec<Mistake>),
    #[error("{0} is not a port")]
    Port(i64),
    #[error("{0}")]
    Together(&'static str),
    #[error("{0}")]
    Advertise(String),
    #[error("{0}")]
    Tls(String),
    /// Nobody could say an empty name or an empty token, and so nobody would be let in.
    #[error("{0} is empty")]
    Nobody(&'static str),
    #[error("server name cannot contain spaces")]
    Name,
    #[error("{0}")]
    Users(AuthError),
    #[error("max_payload ({payload}) cannot be higher than max_pending ({pending})")]
    Payload { payload: usize, pending: usize },
}

/// One thing that is wrong with the values of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {text}")]
pub(crate) struct Mistake {
    pub(crate) place: Place,
    pub(crate) text: String,
}

/// A line for each of them.
pub(crate) fn lines(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|mistake| format!("{mistake}\n")).collect()
}

/// A path; an empty one is what is not given, as scripts have it whose variable is not set.
fn given(path: &Path) -> Option<&Path> {
    (!path.as_os_str().is_empty()).then_some(path)
}

/// What could not be done with a file; a directory can be opened and not be read.
fn verb(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::IsADirectory => "read",
        _ => "open",
    }
}

/// The text of the system for an error, as nats-server shows it.
pub(crate) fn describe(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::AddrInUse => "address already in use".to_owned(),
        std::io::ErrorKind::IsADirectory => "is a directory".to_owned(),
        std::io::ErrorKind::NotADirectory => "not a directory".to_owned(),
        _ => error.to_string(),
    }
}

impl Settings {
    /// What the file says, if there is one, and the flags.
    ///
    /// # Errors
    /// Everything that is wrong with the values, or the first thing that is wrong with the syntax.
    pub(crate) fn load(flags: &Flags) -> Result<Self, SettingsError> {
        let mut settings = match &flags.config {
            Some(path) => Self::from_file(path)?,
            None => Self::default(),
        };
        settings.apply(flags)?;
        settings.finish()?;
        Ok(settings)
    }

    fn from_file(path: &Path) -> Result<Self, SettingsError> {
        let unreadable = |source| SettingsError::Unreadable { path: path.to_owned(), source };
        let text = read_file(path).map_err(unreadable)?;
        let sha256 = hexadecimal(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref());
        let mut settings = Self::from_text(&path.to_string_lossy(), &text, &Outside)?;
        settings.file = Some(ConfigFile { path: path.to_owned(), sha256 });
        Ok(settings)
    }

    /// What a text says; `name` is what places call it.
    pub(super) fn from_text(
        name: &str,
        text: &str,
        surroundings: &dyn Surroundings,
    ) -> Result<Self, SettingsError> {
        let map = conf::parse(name, text, surroundings)?;
        let (mut settings, mut mistakes) = (Self::default(), Mistakes::default());
        settings.is_nothing_said = map.entries.is_empty();
        top::read(&map, &mut settings, &mut mistakes);
        let (mistakes, doubts) = mistakes.finish();
        if !mistakes.is_empty() {
            return Err(SettingsError::Mistakes(mistakes));
        }
        settings.doubts = doubts;
        Ok(settings)
    }

    fn apply(&mut self, flags: &Flags) -> Result<(), SettingsError> {
        let port = |given: i64| match given {
            -1 => Ok(0),
            _ => u16::try_from(given).map_err(|_| SettingsError::Port(given)),
        };
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let path = |path: &Option<PathBuf>| path.as_deref().and_then(given).map(Path::to_owned);
        self.host = text(&flags.address).or(self.host.take());
        match flags.port {
            // As on nats-server, 0 is what is not set.
            None | Some(0) => {}
            Some(given) => self.port = port(given)?,
        }
        match flags.http_port {
            None | Some(0) => {}
            Some(given) => {
                let host = self.http.take().and_then(|http| http.host);
                self.http = Some(Listen { host, port: port(given)? });
            }
        }
        match flags.https_port {
            None | Some(0) => {}
            Some(given) => {
                let host = self.https.take().and_then(|https| https.host);
                self.https = Some(Listen { host, port: port(given)? });
            }
        }
        tls::apply(flags, &mut self.tls)?;
        self.name = text(&flags.name).or(self.name.take());
        if let Some(text) = text(&flags.advertise) {
            self.advertise = Some(read::advertised(&text).map_err(SettingsError::Advertise)?);
        }
        self.pid_file = path(&flags.pid_file).or(self.pid_file.take());
        self.ports_file_dir = path(&flags.ports_file_dir).or(self.ports_file_dir.take());
        let log = &mut self.log;
        log.file = path(&flags.log_file).or(log.file.take());
        log.time = flags.log_time.unwrap_or(log.time);
        log.utc = flags.log_time_utc.unwrap_or(log.utc);
        log.debug = flags.debug.unwrap_or(log.debug);
        log.trace = flags.trace.unwrap_or(log.trace);
        // As on nats-server, 0 is what is not set.
        if let Some(bytes) = flags.log_size_limit.filter(|bytes| *bytes != 0) {
            log.rotation.bytes_max = u64::try_from(bytes).unwrap_or_default();
        }
        if let Some(bytes) = flags.max_traced_msg_len.filter(|bytes| *bytes != 0) {
            log.traced_bytes_max = usize::try_from(bytes).unwrap_or_default();
        }
        self.ignored.extend(flags.ignored.iter().cloned());
        self.apply_user(flags)
    }

    /// What one setting means for another, as nats-server has it.
    fn finish(&mut self) -> Result<(), SettingsError> {
        if self.name.as_ref().is_some_and(|name| name.contains(char::is_whitespace)) {
            return Err(SettingsError::Name);
        }
        let (payload, pending) = (self.limits.max_payload, self.limits.max_pending);
        if payload > pending {
            return Err(SettingsError::Payload { payload, pending });
        }
        if let Some(tls) = &mut self.tls {
            // Who has to begin with the handshake cannot do without it.
            tls.allow_non_tls = self.allow_non_tls && tls.handshake_first != HandshakeFirst::Always;
            if !self.says_auth_timeout {
                self.auth.timeout = tls.timeout + Duration::from_secs(1);
            }
        }
        let web = self.websocket.as_ref().and_then(|web| web.tls.as_ref());
        let mapped = |tls: &TlsOptions| tls.clients == ClientCertificates::Mapped;
        self.auth.by_certificate = self.tls.iter().chain(web).any(mapped);
        if !self.auth.by_certificate {
            // Such a user has an empty password.
            let users = self.auth.users.iter_mut().chain(self.auth.accounts.values_mut().flatten());
            for user in users.filter(|user| user.user.is_some()) {
                user.password.get_or_insert_with(|| Secret::new(""));
            }
        }
        self.auth.check().map_err(SettingsError::Users)
    }

    fn apply_user(&mut self, flags: &Flags) -> Result<(), SettingsError> {
        if flags.user.is_some() && flags.token.is_some() {
            return Err(SettingsError::Together("Cannot have a user/pass and token"));
        }
        if flags.token.as_ref().is_some_and(String::is_empty) {
            return Err(SettingsError::Nobody("token"));
        }
        if flags.user.as_ref().is_some_and(String::is_empty) {
            return Err(SettingsError::Nobody("user"));
        }
        if let Some(token) = &flags.token {
            self.auth.token = Some(Secret::new(token.as_str()));
        }
        if let Some(user) = &flags.user {
            let password = flags.password.as_deref().unwrap_or_default();
            self.auth.users.retain(|other| other.user.as_deref() != Some(user));
            self.auth.users.push(named_user(user, password));
        }
        Ok(())
    }
}

/// A user with a name and a password, and no permissions of its own.
fn named_user(user: &str, password: &str) -> User {
    User {
        user: Some(user.to_owned()),
        password: Some(Secret::new(password)),
        nkey: None,
        admin: false,
        permissions: None,
        connection_types: None,
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a file whole, unless it is no configuration at all.
fn read_file(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    match read as u64 > FILE_BYTES_MAX {
        true => Err(std::io::Error::other(format!("the file has more than {FILE_BYTES_MAX} bytes"))),
        false => Ok(text),
    }
}

/// The files and the environment of this process.
struct Outside;

impl Surroundings for Outside {
    fn include(&self, from: &str, name: &str) -> std::io::Result<(Arc<str>, String)> {
        let directory = Path::new(from).parent().unwrap_or(Path::new(""));
        let path = directory.join(name);
        let text = read_file(&path).map_err(|error| {
            std::io::Error::new(error.kind(), format!("open {}: {}", path.display(), describe(&error)))
        })?;
        Ok((path.to_string_lossy().into(), text))
    }

    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

#[cfg(test)]
mod tests;
