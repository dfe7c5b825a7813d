//! Making the first connection.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions};
use tokio::time::Instant;

use super::events::Events;
use super::options::{NatsAuth, NatsConnectError, NatsOptions, Servers};

/// Delay between two rounds through the servers while none of them answers.
const RETRY_DELAY: Duration = Duration::from_millis(100);
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
            Ok(Err(error)) => last = retryable(error, &servers.shown)?,
            Err(_) => return Err(unreachable(last)),
        }
        if tokio::time::timeout_at(deadline, tokio::time::sleep(RETRY_DELAY)).await.is_err() {
            return Err(unreachable(last));
        }
    }
}

/// What the attempt failed with, if another may succeed.
fn retryable(error: ConnectError, server: &str) -> Result<String, NatsConnectError> {
    let (server, reason) = (server.to_owned(), error.to_string());
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            Err(NatsConnectError::Unauthorized { server, reason })
        }
        ConnectErrorKind::Tls => Err(NatsConnectError::Tls { server, reason }),
        ConnectErrorKind::ServerParse => Err(NatsConnectError::BadServer { server, reason }),
        ConnectErrorKind::Dns
        | ConnectErrorKind::TimedOut
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => Ok(reason),
    }
}

async fn library_options(
    options: &NatsOptions,
    servers: &Servers,
    events: &Arc<Events>,
) -> Result<ConnectOptions, NatsConnectError> {
    let (reports, delays) = (Arc::clone(events), Arc::clone(events));
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
        .require_tls(options.tls.required);
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
        NatsAuth::Nkey(seed) => Ok(library.nkey(seed.clone())),
        NatsAuth::CredentialsFile(path) => library
            .credentials_file(path)
            .await
            .map_err(|source| NatsConnectError::Credentials { path: path.clone(), source }),
    }
}
