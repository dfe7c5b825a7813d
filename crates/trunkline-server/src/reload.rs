//! Users, permissions and certificates, read again while the server runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use trunkline::Pattern;
use trunkline::backend::memory::{Inbox, Target};
use trunkline::backend::{BackendKind, LiveEvent, LiveSource, SubscribeOptions};
use trunkline_core::Role;

use crate::auth::{AuthError, AuthOptions, Reloaded};
use crate::options::{Advertised, Limits};
use crate::shared::Shared;
use crate::tls::{Plan, TlsError, TlsOptions};

/// Where users and permissions are read from, again and again: a file, mostly. It may block.
pub type AuthSource = Arc<dyn Fn() -> Result<AuthOptions, SourceError> + Send + Sync>;
/// Why a source gives nothing.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// What a request to reload is published on has this behind the root of the subjects.
pub(crate) const RELOAD_SUBJECT: &str = "system.policy.reload";
/// Shortest time between two reloads that messages ask for; what comes in between is answered by one.
const PAUSE: Duration = Duration::from_secs(1);
/// Requests to reload that wait; one stands for all.
const REQUESTS_MAX: usize = 16;
/// Pause before a subscription on the backend of a bridge is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Why users and permissions were not replaced; those in force stay.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// They cannot be read.
    #[error("users and permissions cannot be read again")]
    Source(#[source] SourceError),
    /// The server was started without a source to read them from.
    #[error("the server has nowhere to read users and permissions from")]
    NoSource,
    /// Certificates or keys that cannot be used.
    #[error("the certificates cannot be put in force")]
    Tls(#[from] TlsError),
    /// WebSocket or HTTP is served over TLS, and there would be no certificate for it any more.
    #[error("WebSocket or HTTP is served over TLS, and would be without a certificate")]
    WithoutTls,
    /// They cannot be put in force.
    #[error("the users of the server cannot be put in force")]
    Auth(#[from] AuthError),
    /// Without authentication everybody who reaches the address could do everything.
    #[error("there would be no authentication, and {address} is reachable from other machines")]
    Exposed {
        /// The address.
        address: SocketAddr,
    },
    /// Users and token are gone. Half a file may say so, too.
    #[error("there would be no authentication any more, which takes a restart")]
    Open,
    /// Accounts are spaces of subjects apart, and the backend of a bridge has only one.
    #[error("server.accounts is set, and backend {backend} has one space of subjects for all accounts")]
    Accounts {
        /// The backend.
        backend: BackendKind,
    },
}

/// What a running server is to have instead of what it has.
#[derive(Debug, Clone)]
pub struct ReloadOptions {
    /// Who may connect, and what they may do.
    pub auth: AuthOptions,
    /// Bounds.
    pub limits: Limits,
    /// TLS for NATS clients; a server that has none may get it, and the other way round.
    pub tls: Option<TlsOptions>,
    /// Certificates of the WebSocket listener's own. Whether that speaks TLS stays as it is.
    pub websocket_tls: Option<TlsOptions>,
    /// As [`ServerOptions::tags`](crate::ServerOptions::tags).
    pub tags: Vec<String>,
    /// As [`ServerOptions::metadata`](crate::ServerOptions::metadata).
    pub metadata: BTreeMap<String, String>,
    /// As [`ServerOptions::advertise`](crate::ServerOptions::advertise); for clients that come from now on.
    pub advertise: Option<Advertised>,
}

/// Replaces users and permissions, one after the other.
pub(crate) struct Reloader {
    shared: Arc<Shared>,
    source: Option<AuthSource>,
    /// An address that other machines reach, if there is one.
    exposed: Option<SocketAddr>,
    /// Held while they are read and put in force, so that what was read last is in force last.
    turn: tokio::sync::Mutex<()>,
}

impl Reloader {
    pub(crate) fn new(shared: Arc<Shared>, source: Option<AuthSource>, exposed: Option<SocketAddr>) -> Self {
        Self { shared, source, exposed, turn: tokio::sync::Mutex::default() }
    }

    pub(crate) fn has_source(&self) -> bool {
        self.source.is_some()
    }

    pub(crate) fn put_in_force(
        &self,
        auth: &AuthOptions,
        limits: Option<Limits>,
    ) -> Result<Reloaded, ReloadError> {
        if let Some(address) = self.exposed.filter(|_| !auth.is_required()) {
            return Err(ReloadError::Exposed { address });
        }
        if let Some(bridge) = self.shared.bridge.as_ref().filter(|_| !auth.accounts.is_empty()) {
            return Err(ReloadError::Accounts { backend: bridge.backend.capabilities().kind });
        }
        Ok(self.shared.replace(auth, limits)?)
    }

    pub(crate) async fn reload(&self) -> Result<Reloaded, ReloadError> {
        let _turn = self.turn.lock().await;
        let source = self.source.clone().ok_or(ReloadError::NoSource)?;
        let read = tokio::task::spawn_blocking(move || source()).await;
        let auth = read.unwrap_or_else(|error| Err(error.into())).map_err(ReloadError::Source)?;
        // A file that is being written is empty for a moment, and an empty one lets everybody in.
        if self.shared.auth.is_configured() && !auth.is_required() {
            return Err(ReloadError::Open);
        }
        self.put_all_in_force(&auth, None, self.shared.tls.plan()).await
    }

    pub(crate) async fn reload_all(&self, options: ReloadOptions) -> Result<Reloaded, ReloadError> {
        let _turn = self.turn.lock().await;
        let ReloadOptions { auth, limits, tls, websocket_tls, tags, metadata, advertise } = options;
        let former = self.shared.tls.plan();
        // A listener does not change what it speaks, as clients know it by a URL.
        let web = former.web.and(websocket_tls.or_else(|| tls.clone()));
        let http = former.http.and(tls.as_ref().map(TlsOptions::for_http));
        let has =
            (self.shared.web.as_ref().is_some_and(|web| web.secure), self.shared.tls.http.get().is_some());
        if has != (web.is_some(), http.is_some()) {
            return Err(ReloadError::WithoutTls);
        }
        let reloaded = self.put_all_in_force(&auth, Some(limits), Plan { clients: tls, web, http }).await?;
        *self.shared.tags.write() = tags;
        *self.shared.metadata.write() = metadata;
        self.shared.advertise(advertise);
        Ok(reloaded)
    }

    /// Called with `turn` held.
    async fn put_all_in_force(
        &self,
        auth: &AuthOptions,
        limits: Option<Limits>,
        plan: Plan,
    ) -> Result<Reloaded, ReloadError> {
        // Read first, so that all of it is put in force or nothing.
        let read = tokio::task::spawn_blocking(move || plan.read()).await;
        let slots = read.map_err(|error| ReloadError::Source(error.into()))??;
        let reloaded = self.put_in_force(auth, limits)?;
        self.shared.tls.replace(&slots);
        Ok(reloaded)
    }

    /// From when it returns, messages on `{root}.system.policy.reload` ask for a reload; on a bridge, from when its backend
    /// has the subscription. Who may ask is decided by who may publish there. The future carries it out: it is owned by
    /// the server's tracker and ends by `stop`.
    pub(crate) fn listen(
        self: Arc<Self>,
        subject: Pattern,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        // A tap: nobody takes the server for somebody who would answer.
        let tap = self.shared.bridge.is_none().then(|| {
            let inbox = Arc::new(Inbox::new(REQUESTS_MAX));
            self.shared.hub.router().insert(&subject, Role::Tap, Target::Inbox(inbox.clone()));
            inbox
        });
        async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.serve(tap, subject) => {}
            }
        }
    }

    async fn serve(&self, tap: Option<Arc<Inbox>>, subject: Pattern) {
        if let Some(inbox) = tap {
            let mut events = Vec::new();
            while std::future::poll_fn(|cx| inbox.poll_batch(cx, REQUESTS_MAX, &mut events)).await > 0 {
                self.asked(&mut events).await;
            }
        }
        let Some(bridge) = self.shared.bridge.clone() else { return };
        loop {
            let options = SubscribeOptions { responder: false, ..SubscribeOptions::default() };
            match bridge.backend.subscribe(subject.clone(), options).await {
                Ok(source) => self.follow(source).await,
                Err(error) => tracing::debug!(%error, %subject, "cannot listen for reloads"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn follow(&self, mut source: Box<dyn LiveSource>) {
        let mut events = Vec::new();
        while std::future::poll_fn(|cx| source.poll_batch(cx, REQUESTS_MAX, &mut events)).await > 0 {
            self.asked(&mut events).await;
        }
    }

    async fn asked(&self, events: &mut Vec<LiveEvent>) {
        events.clear();
        // Its success has been told by who did it.
        if let Err(error) = self.reload().await {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, cause, "users and permissions stay as they are");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
