//! Starting, looking after connections, stopping. What is accepted is `accept`'s matter, where may be listened `exposure`'s.

mod accept;
mod error;
mod exposure;

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trunkline::backend::Backend;
use trunkline::backend::memory::MemoryBackend;
use trunkline::memory::Relief;
use trunkline::{Bus, BusOptions, Front, Pattern, Subject, Token, Topics, observe};

use crate::auth::{Auth, AuthOptions, Reloaded};
use crate::bridge::Bridge;
use crate::client::Kind;
use crate::health::{HEALTH_TYPE, Health};
use crate::http::{self, Api, Members, Monitor, Token as AdminToken, Views};
use crate::lame_duck;
use crate::memory;
use crate::options::ServerOptions;
use crate::outbox::Ending;
use crate::promises::Promises;
use crate::reload::{RELOAD_SUBJECT, ReloadError, ReloadOptions, Reloader};
use crate::shared::{Shared, Shown};
use crate::threads::Threads;
use crate::tls::{self, TlsError, TlsOptions};
use crate::websocket::{Origins, WebListener, WebSocketOptions};

use accept::Accepting;
pub use error::StartError;
pub(crate) use exposure::{Exposure, METRICS_LISTEN, listen};

/// A running server. Dropping it stops it without waiting; [`Server::shutdown`] is the orderly way.
pub struct Server {
    shared: Arc<Shared>,
    http: Option<SocketAddr>,
    /// Where probes and metrics are served apart.
    metrics: Option<SocketAddr>,
    token: AdminToken,
    reloader: Arc<Reloader>,
    /// Ends looking after, and HTTP, and with them accepting.
    stop: CancellationToken,
    /// Ends accepting alone.
    closed: CancellationToken,
    /// Cancelled once nobody can connect any more.
    unreachable: CancellationToken,
    /// Every task of the server, connections included.
    tasks: TaskTracker,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("nats", &self.shared.address)
            .field("http", &self.http)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Binds and starts serving.
    ///
    /// # Errors
    /// An address that is taken or not allowed, a bad subject root, see [`StartError`].
    pub async fn start(options: ServerOptions) -> Result<Self, StartError> {
        let bad_root = |source| StartError::SubjectRoot { root: options.subject_root.clone(), source };
        let health_subject =
            Subject::new(format!("{}.{HEALTH_TYPE}", options.subject_root)).map_err(bad_root)?;
        let reload_subject =
            Pattern::new(format!("{}.{RELOAD_SUBJECT}", options.subject_root)).map_err(bad_root)?;
        let dead_letters = Pattern::new(format!("{}.dead.>", options.subject_root)).map_err(bad_root)?;
        let root = Token::new(options.subject_root.as_str()).map_err(bad_root)?;
        Topics::new(root.clone()).map_err(bad_root)?;
        let token = AdminToken::new(options.admin_token.map(|token| token.expose().to_owned()))
            .map_err(|error| StartError::AdminToken { reason: error.to_string() })?;
        let plan = plan(options.tls.as_ref(), options.websocket.as_ref(), options.http_tls)?;
        let read = plan.clone();
        let tls = tokio::task::spawn_blocking(move || read.read()).await;
        let tls = tls.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        let encrypted = plan.clients.as_ref().is_some_and(|tls| !tls.allow_non_tls);
        let rule =
            |encrypted| Exposure { auth: options.auth.is_required(), safe: encrypted || options.plaintext };
        let http = options.http.map(|wanted| listen(wanted, "server.http", rule(plan.http.is_some())));
        let http = http.transpose()?;
        let metrics = options.metrics.map(|wanted| listen(wanted, METRICS_LISTEN, Exposure::PROBES));
        let metrics = metrics.transpose()?;
        let (listener, address) = listen(options.listen, "server.listen", rule(encrypted))?;
        let (web_listener, web) = match options.websocket {
            Some(options) => {
                let setting = "server.websocket.listen";
                let (secure, origins) = (plan.web.is_some(), Arc::new(Origins::new(&options)?));
                let (listener, address) = listen(options.listen, setting, rule(secure))?;
                (Some(listener), Some(WebListener { options, address, origins, secure }))
            }
            None => (None, None),
        };
        let observer = options.observer.or_else(|| match &options.front {
            Front::Hub(hub) => hub.observer().cloned(),
            Front::Bridge(_) => None,
        });
        let (hub, bridge, backend): (_, _, Arc<dyn Backend>) = match options.front {
            Front::Hub(hub) => (hub.clone(), None, Arc::new(MemoryBackend::connect_to(&hub))),
            Front::Bridge(backend) => {
                let bridge = Bridge::new(backend.clone(), options.publish_timeout);
                (Arc::default(), Some(Arc::new(bridge)), backend)
            }
        };
        if let Some(bridge) = &bridge
            && !options.auth.accounts.is_empty()
        {
            return Err(StartError::Accounts { backend: bridge.backend.capabilities().kind });
        }
        let auth = Auth::new(&options.auth, hub.clone(), dead_letters.clone())?;
        let budget = options.memory.or_else(|| backend.memory()).unwrap_or_default();
        let status = options.backend_status.or_else(|| bridge.as_ref().map(|bridge| bridge.backend.status()));
        let shared = Shared::new(
            (hub, bridge, budget),
            auth,
            (tls, web),
            (dead_letters, reload_subject.clone()),
            options.limits.clone(),
            Shown {
                name: options.name,
                version: options.version,
                trace_payloads: options.trace_payloads,
                headers: options.headers,
                tags: options.tags,
                metadata: options.metadata,
                advertise: options.advertise,
            },
            address,
        );
        let shared = Arc::new(shared);
        let relief: Weak<dyn Relief> = Arc::downgrade(&(shared.clone() as Arc<dyn Relief>));
        shared.memory.set_relief(relief);
        let promises = Arc::new(Promises::new(options.promised_streams));
        let beside = (options.components.clone(), options.bus, promises.clone());
        let health = Arc::new(Health::new(shared.clone(), backend.clone(), status, beside));
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let count = if shared.bridge.is_some() { 0 } else { options.threads };
        let threads =
            Threads::start(count, &stop, &tasks).map_err(|source| StartError::Threads { count, source })?;
        let threads = Arc::new(threads);
        let closed = stop.child_token();
        let unreachable = CancellationToken::new();
        let listeners = [(Some(listener), Kind::Nats), (web_listener, Kind::WebSocket)];
        let accepting: Vec<_> = listeners
            .into_iter()
            .filter_map(|(listener, kind)| Some((listener?, kind)))
            .map(|(listener, kind)| {
                let accepting = Accepting {
                    kind,
                    shared: shared.clone(),
                    threads: threads.clone(),
                    tasks: tasks.clone(),
                };
                tasks.spawn(accepting.run(listener, closed.clone()))
            })
            .collect();
        let ended = unreachable.clone();
        tasks.spawn(async move {
            for listener in accepting {
                // One that broke has let go of its address, too.
                let _ = listener.await;
            }
            ended.cancel();
        });
        tasks.spawn(look_after(shared.clone(), stop.clone()));
        tasks.spawn(memory::keep(shared.clone(), stop.clone()));
        tasks.spawn(shared.spares.clone().keep(stop.clone()));
        if let Some(observer) = &observer {
            shared.set_observer(observer);
            tasks.spawn(observer.clone().run(stop.clone()));
            tasks.spawn(shared.clone().run_observers(tasks.clone(), stop.clone()));
            if shared.bridge.is_some() {
                tasks.spawn(observe::collect(observer.clone(), backend.clone(), stop.clone()));
            }
        }
        tasks.spawn(promises.watch(backend.clone(), stop.clone()));
        tasks.spawn(health.clone().tell((health_subject, options.health_interval), stop.clone()));
        let monitor = Arc::new(Monitor::new(
            shared.clone(),
            health.clone(),
            options.telemetry.clone(),
            (http.as_ref().map(|(_, address)| *address), options.nats_probes),
            options.http_base_path,
        ));
        let secure = |shared: &Arc<Shared>| {
            let shared = shared.clone();
            move || shared.tls.http.get()
        };
        let bounds = http::Bounds::of(&shared);
        let metrics = metrics.map(|(listener, address)| {
            let app = http::probes(monitor.clone(), address);
            let (bounds, secure) = (bounds.clone(), secure(&shared));
            tasks.spawn(http::serve(listener, app, bounds, secure, stop.clone(), tasks.clone()));
            address
        });
        let http = http.map(|(listener, address)| {
            let seen = options.backend.unwrap_or(backend);
            let own = BusOptions {
                subject_root: root,
                source: "dashboard".to_owned(),
                // Dead letters that are sent back from there are in the record as from anywhere.
                observer: observer.clone(),
                ..BusOptions::default()
            };
            let bus = Bus::with_backend(seen.clone(), own);
            let seen_by = (Some(shared.clone()), observer.clone());
            let views = Views::new(bus, health.status(), options.telemetry.clone(), seen_by);
            let limits = shared.limits();
            let api = Arc::new(Api::new(
                seen,
                (token.clone(), shared.clone()),
                options.subject_root,
                limits.max_payload,
                (options.admin_defaults, options.components),
                (observer, limits.http_timeout),
            ));
            tasks.spawn(expire_members(api.members().clone(), stop.clone()));
            let app = http::router(monitor, address, api, Arc::new(views));
            tasks.spawn(http::serve(listener, app, bounds, secure(&shared), stop.clone(), tasks.clone()));
            address
        });
        let web = shared.web.as_ref().map(|web| web.address);
        let exposed =
            [Some(shared.address), http, web].into_iter().flatten().find(|it| !it.ip().is_loopback());
        if let (Some(address), Some(user)) = (exposed, &options.auth.no_auth_user) {
            tracing::warn!(
                %address,
                user,
                "other machines reach this address, and whoever gives no credentials there is this user (server.auth.no_auth_user)"
            );
        }
        let reloader = Arc::new(Reloader::new(shared.clone(), options.auth_source, exposed));
        if reloader.has_source() {
            tasks.spawn(reloader.clone().listen(reload_subject, stop.clone()));
        }
        Ok(Self { shared, http, metrics, token, reloader, stop, closed, unreachable, tasks })
    }

    /// The id of this run of the server, as INFO has it.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// The name of the server; its id where none was given.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Where NATS clients connect.
    pub fn nats_addr(&self) -> SocketAddr {
        self.shared.address
    }

    /// Where NATS clients connect over WebSocket.
    pub fn websocket_addr(&self) -> Option<SocketAddr> {
        self.shared.web.as_ref().map(|web| web.address)
    }

    /// As [`Server::websocket_addr`], with `ws` or `wss` before it.
    pub fn websocket_url(&self) -> Option<String> {
        let web = self.shared.web.as_ref()?;
        Some(format!("{}://{}", if web.secure { "wss" } else { "ws" }, web.address))
    }

    /// Where health, monitoring and metrics are served.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http
    }

    /// As [`Server::http_addr`], with `http` or `https` before it.
    pub fn http_url(&self) -> Option<String> {
        self.url(self.http)
    }

    /// Where probes and metrics are served apart, with `http` or `https` before it.
    pub fn metrics_url(&self) -> Option<String> {
        self.url(self.metrics)
    }

    fn url(&self, address: Option<SocketAddr>) -> Option<String> {
        let scheme = if self.shared.tls.http.get().is_some() { "https" } else { "http" };
        Some(format!("{scheme}://{}", address?))
    }

    /// The token of the admin API.
    pub fn admin_token(&self) -> &str {
        self.token.expose()
    }

    /// Puts other users and permissions in force, without a pause: connections that may stay do so, with their permissions
    /// as they are now; the others are closed with `-ERR 'Authorization Violation'`, and subscriptions that are not permitted
    /// any more end with an error. From when it returns, nothing new is let through that is not permitted any more.
    ///
    /// # Errors
    /// [`ReloadError`]: nothing has changed then.
    pub fn reload(&self, auth: &AuthOptions) -> Result<Reloaded, ReloadError> {
        self.reloader.put_in_force(auth, None)
    }

    /// As [`Server::reload`], with bounds and certificates beside users and permissions: all of it, or nothing. Certificates
    /// count for connections that come, and so do [`Limits::max_pending`](crate::Limits::max_pending) and those of HTTP;
    /// the other bounds count for all from their next operation on, and clients beyond
    /// [`Limits::max_connections`](crate::Limits::max_connections) are closed.
    ///
    /// # Errors
    /// [`ReloadError`]: nothing has changed then.
    ///
    /// # Cancel safety
    /// What has been begun may still be put in force.
    pub async fn reload_all(&self, options: ReloadOptions) -> Result<Reloaded, ReloadError> {
        self.reloader.reload_all(options).await
    }

    /// As [`Server::reload`], with what [`ServerOptions::auth_source`] says now.
    ///
    /// # Errors
    /// [`ReloadError`]: nothing has changed then.
    ///
    /// # Cancel safety
    /// What has been begun may still be put in force.
    pub async fn reload_from_source(&self) -> Result<Reloaded, ReloadError> {
        self.reloader.reload().await
    }

    /// Asks the clients to leave, as nats-server's lame duck mode does: no new connections; clients are told by INFO that
    /// they should go elsewhere; after `grace` those that are still here are closed one by one, the last of them `within`
    /// the beginning. Returns when nobody is left, or when that time is over; [`Server::shutdown`] is to follow.
    ///
    /// # Cancel safety
    /// New connections stay refused; clients that were not closed stay.
    pub async fn lame_duck(&self, grace: Duration, within: Duration) {
        self.closed.cancel();
        // Whoever is told to go elsewhere must not find this server again.
        self.unreachable.cancelled().await;
        self.shared.begin_lame_duck();
        lame_duck::see_off(&self.shared, grace, within).await;
    }

    /// Stops: no new connections; what waits is sent, until `within` is over; then everything is closed. Returns how many
    /// connections had to be cut.
    pub async fn shutdown(&self, within: Duration) -> usize {
        self.stop.cancel();
        self.shared.end_all(Ending::WhenFlushed);
        self.tasks.close();
        if tokio::time::timeout(within, self.tasks.wait()).await.is_ok() {
            return 0;
        }
        let cut = self.shared.connections();
        self.shared.end_all(Ending::Now);
        self.tasks.wait().await;
        cut
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tasks.close();
        self.shared.end_all(Ending::Now);
    }
}

/// Which listener is to have which TLS.
fn plan(
    tls: Option<&TlsOptions>,
    web: Option<&WebSocketOptions>,
    http_tls: bool,
) -> Result<tls::Plan, TlsError> {
    let web = web.filter(|web| !web.no_tls).and_then(|web| web.tls.as_ref().or(tls));
    let http = tls.filter(|_| http_tls).map(TlsOptions::for_http);
    match http_tls && http.is_none() {
        true => Err(TlsError::for_http()),
        false => Ok(tls::Plan { clients: tls.cloned(), web: web.cloned(), http }),
    }
}

/// Owned by the server's tracker; ends by `stop`.
async fn expire_members(members: Arc<Members>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => members.expire(tokio::time::Instant::now()),
        }
    }
}

/// Owned by the server's tracker; ends by `stop`.
async fn look_after(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        // Often enough for the shortest of the times it watches, which a reload may change.
        let limits = shared.limits();
        let pings = limits.websocket_ping_interval.unwrap_or(limits.ping_interval).min(limits.ping_interval);
        let shortest = pings.min(limits.write_deadline);
        let period = (shortest / 4).clamp(Duration::from_millis(20), Duration::from_secs(1));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(period) => shared.look_after(),
        }
    }
}
