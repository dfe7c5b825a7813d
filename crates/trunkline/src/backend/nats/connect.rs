//! Making the first connection.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_nats::rustls;
use async_nats::rustls::pki_types::pem::{Error as PemError, PemObject as _};
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions};
use tokio::time::Instant;

use super::events::Events;
use super::options::{NatsAuth, NatsConnectError, NatsOptions, NatsTls, Servers};

/// Delay between two rounds through the servers while none of them answers.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// Length of a seed: 2 bytes that say what it is, 32 of the key and 2 of a checksum, in base 32.
const SEED_BYTES: usize = 58;
const CA_FILE: &str = "messaging.nats_tls.ca_file";
const CERT_FILE: &str = "messaging.nats_tls.cert_file";
const KEY_FILE: &str = "messaging.nats_tls.key_file";
const NKEY_FILE: &str = "messaging.nats_auth.nkey_file";
const CREDENTIALS_FILE: &str = "messaging.nats_auth.credentials_file";
/// Least room of the client library's channel of one subscription. It is emptied by a task that waits for nobody, so
/// that it fills only while the runtime is busy elsewhere.
const CHANNEL_MESSAGES_MIN: usize = 65_536;

/// Connects, retrying until `connect_timeout` has passed, unless the answer would stay the same.
pub(super) async fn connect(
    options: &NatsOptions,
    servers: &Servers,
    events: &Arc<Events>,
) -> Result<Client, NatsConnectError> {
    let library_options = library_options(options, servers, events).await?;
    let unreachable = |reason: String| NatsConnectError::Unreachable {
        server: servers.shown.clone(),
        waited: options.connect_timeout,
        reason,
    };
    let deadline = Instant::now() + options.connect_timeout;
    let mut last = "no answer".to_owned();
    loop {
        let attempt = library_options.clone().connect(servers.addresses.as_slice());
        match tokio::time::timeout_at(deadline, attempt).await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error)) => last = retryable(&error, &servers.shown)?,
            Err(_) => return Err(unreachable(last)),
        }
        if tokio::time::timeout_at(deadline, tokio::time::sleep(RETRY_DELAY)).await.is_err() {
            return Err(unreachable(last));
        }
    }
}

/// What the attempt failed with, if another may succeed.
fn retryable(error: &ConnectError, server: &str) -> Result<String, NatsConnectError> {
    let (server, reason) = (server.to_owned(), error.to_string());
    match error.kind() {
        // Below it the same stands once more.
        ConnectErrorKind::AuthorizationViolation => {
            Err(NatsConnectError::Unauthorized { server, reason: error.kind().to_string() })
        }
        ConnectErrorKind::Authentication => Err(NatsConnectError::Unauthorized { server, reason }),
        ConnectErrorKind::Tls => Err(NatsConnectError::Tls { server, reason }),
        ConnectErrorKind::ServerParse => Err(NatsConnectError::BadServer { server, reason }),
        ConnectErrorKind::Dns
        | ConnectErrorKind::TimedOut
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => match tls_failure(error) {
            Some(reason) => Err(NatsConnectError::Tls { server, reason }),
            None => Ok(reason),
        },
    }
}

/// Why TLS failed, if it did: the client library passes on what the handshake says as an I/O error like any other.
fn tls_failure(error: &ConnectError) -> Option<String> {
    let mut cause = std::error::Error::source(error);
    while let Some(current) = cause {
        if let Some(failure) = current.downcast_ref::<rustls::Error>() {
            return Some(failure.to_string());
        }
        // An I/O error does not count what it was made from among its sources.
        let within = current.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(failure) = within.and_then(|within| within.downcast_ref::<rustls::Error>()) {
            return Some(failure.to_string());
        }
        cause = current.source();
    }
    None
}

/// Looks into the files before anything is sent, so that one that cannot be used is named. The client library reads them
/// again with each connection: certificates that were renewed count from the next one on.
fn check_tls_files(tls: &NatsTls) -> Result<(), NatsConnectError> {
    for path in &tls.root_certificates {
        check_certificates(path, CA_FILE)?;
    }
    let Some((certificate, key)) = &tls.client_certificate else { return Ok(()) };
    check_certificates(certificate, CERT_FILE)?;
    match PrivateKeyDer::from_pem_file(key) {
        Ok(_) => Ok(()),
        Err(error) => Err(unusable(key, KEY_FILE, file_fault(error, "a private key"))),
    }
}

fn check_certificates(path: &Path, setting: &'static str) -> Result<(), NatsConnectError> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(found) if found.is_empty() => {
            Err(unusable(path, setting, "it is not PEM with certificates".to_owned()))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(unusable(path, setting, file_fault(error, "certificates"))),
    }
}

fn unusable(path: &Path, setting: &'static str, reason: String) -> NatsConnectError {
    NatsConnectError::TlsFile { path: path.to_owned(), setting, reason }
}

fn file_fault(error: PemError, expected: &str) -> String {
    match error {
        PemError::Io(error) => error.to_string(),
        _ => format!("it is not PEM with {expected}"),
    }
}

/// The seed in a file that has it in a line of its own, among others as in a credentials file, or alone.
async fn read_seed(path: &Path) -> io::Result<String> {
    let text = tokio::fs::read_to_string(path).await?;
    let seed = text.lines().map(str::trim).find(|line| is_seed(line));
    seed.map(str::to_owned).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "it has no line with the seed of a user, SU…")
    })
}

/// Whether a text has the form of a user's seed; whether it is one, its checksum tells when it is used.
fn is_seed(text: &str) -> bool {
    text.len() == SEED_BYTES
        && text.starts_with("SU")
        && text.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7'))
}

async fn library_options(
    options: &NatsOptions,
    servers: &Servers,
    events: &Arc<Events>,
) -> Result<ConnectOptions, NatsConnectError> {
    check_tls_files(&options.tls)?;
    let (reports, delays) = (Arc::clone(events), Arc::clone(events));
    // Whoever names them does not want to go on without, should somebody in between say that there is no TLS.
    let names_certificates =
        !options.tls.root_certificates.is_empty() || options.tls.client_certificate.is_some();
    let by_address = servers.addresses.iter().any(async_nats::ServerAddr::tls_required);
    let attempts = u32::try_from(servers.addresses.len()).unwrap_or(u32::MAX);
    let mut library = ConnectOptions::new()
        .event_callback(move |event| {
            reports.on_event(event);
            std::future::ready(())
        })
        .reconnect_delay_callback(move |attempt| delays.reconnect_delay(attempt))
        .max_reconnects(None)
        // Of several servers the first may be dead: the others must have their turn within the whole.
        .connection_timeout((options.connect_timeout / attempts.max(1)).max(RETRY_DELAY))
        .ping_interval(options.ping_interval.max(Duration::from_millis(10)))
        .subscription_capacity(options.max_pending.max(CHANNEL_MESSAGES_MIN))
        .custom_inbox_prefix(&options.inbox_prefix)
        // Subjects are checked when they are made.
        .skip_subject_validation(true)
        // Servers that the client learns of later come without a scheme: what one address asks for holds for them, too.
        .require_tls(options.tls.required || names_certificates || by_address);
    if let Some(name) = &options.name {
        library = library.name(name);
    }
    if options.tls.first {
        library = library.tls_first();
    }
    for path in &options.tls.root_certificates {
        library = library.add_root_certificates(path.clone());
    }
    if let Some((certificate, key)) = &options.tls.client_certificate {
        library = library.add_client_certificate(certificate.clone(), key.clone());
    }
    let auth = match &options.auth {
        NatsAuth::FromUrl => &servers.auth,
        given => given,
    };
    match auth {
        NatsAuth::FromUrl => Ok(library),
        NatsAuth::UserPassword { user, password } => {
            Ok(library.user_and_password(user.clone(), password.clone()))
        }
        NatsAuth::Token(token) => Ok(library.token(token.clone())),
        NatsAuth::Nkey(seed) if is_seed(seed) => Ok(library.nkey(seed.clone())),
        NatsAuth::Nkey(_) => Err(NatsConnectError::Nkey),
        NatsAuth::NkeyFile(path) => match read_seed(path).await {
            Ok(seed) => Ok(library.nkey(seed)),
            Err(source) => {
                Err(NatsConnectError::Credentials { path: path.clone(), setting: NKEY_FILE, source })
            }
        },
        NatsAuth::CredentialsFile(path) => {
            let read = match tokio::fs::read_to_string(path).await {
                Ok(text) => library.credentials(&text),
                Err(error) => Err(error),
            };
            read.map_err(|source| NatsConnectError::Credentials {
                path: path.clone(),
                setting: CREDENTIALS_FILE,
                source,
            })
        }
    }
}
