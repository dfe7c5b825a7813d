//! What a deployment consists of: the services, their addresses and credentials, and the configuration of the bus.
//!
//! All of it is decided here, from the configuration and the options alone; what is specific to a target beyond addresses
//! is the business of its templates.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use trunkline::config::{Backend, Config, Loaded, Origin, env_name};

use super::Target;
use super::components::{self, ComponentPlan, Urls};
use super::config_file::ConfigFile;
use super::error::ExportError;
use super::nats::{self, NatsPlan, Node};
use super::redis::{self, RedisPlan};
use super::secrets::{Reader, SecretFile, password};
use super::size;
use super::users::{self, NewUser};
use crate::supervisor::reporting;

/// What every service may take unless `runtime.resources` says otherwise.
const MEMORY: u64 = 512_000_000;
const CPUS: f64 = 0.5;

const NATS_PORT: u16 = 4222;
const HTTP_PORT: u16 = 8222;
const ROUTE_PORT: u16 = 6222;
const REDIS_PORT: u16 = 6379;
/// Beside the Redis that the system's own package starts on 6379.
const REDIS_PORT_BESIDE: u16 = 6380;

/// The name of the service of the bus.
pub(crate) const BUS: &str = "trunkline";
/// What no component may be called.
const TAKEN: [&str; 8] = [BUS, "redis", "nats", "nats-1", "nats-2", "nats-3", "operator", "target"];

/// What the caller asks for.
pub(crate) struct Options {
    pub(crate) target: Target,
    /// Images by the name of a component or service.
    pub(crate) images: BTreeMap<String, String>,
    /// Whether containers of components run the configured command and not that of their image.
    pub(crate) commands: bool,
    /// Whether Redis or NATS are there already, where the configuration says.
    pub(crate) external: bool,
}

/// A deployment.
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) images: BTreeMap<String, String>,
    pub(crate) config: ConfigFile,
    /// Where the bus serves clients, probes and, where asked for, browsers; none on NATS.
    pub(crate) ports: Ports,
    /// What says whether the bus is ready: arguments of `trunkline`.
    pub(crate) health: Vec<String>,
    pub(crate) redis: Option<RedisPlan>,
    pub(crate) nats: Option<NatsPlan>,
    pub(crate) components: Vec<ComponentPlan>,
    pub(crate) secrets: Vec<SecretFile>,
    pub(crate) memory: u64,
    pub(crate) cpus: f64,
    /// Whether the servers behind the bus are elsewhere.
    pub(crate) external: bool,
    /// What differs from the configuration, and whoever asked should know.
    pub(crate) notes: Vec<String>,
}

/// Ports of the bus.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ports {
    pub(crate) nats: Option<u16>,
    pub(crate) http: Option<u16>,
    pub(crate) websocket: Option<u16>,
    pub(crate) metrics: Option<u16>,
}

/// Plans the deployment of a configuration.
///
/// # Errors
/// What the target cannot do without, files that the configuration names and that cannot be read.
pub(crate) fn plan(loaded: &Loaded, options: Options) -> Result<Plan, ExportError> {
    check_names(&loaded.config, &options)?;
    let mut planner = Planner::new(loaded, options);
    planner.server()?;
    let urls = match loaded.config.messaging.backend {
        Backend::InMemory => planner.embedded()?,
        Backend::Redis => {
            planner.redis()?;
            planner.embedded()?
        }
        Backend::Nats => planner.nats()?,
    };
    planner.components(&urls)?;
    planner.finish()
}

/// Names that would be given twice, and images for nobody.
fn check_names(config: &Config, options: &Options) -> Result<(), ExportError> {
    let mut taken: BTreeSet<String> =
        TAKEN.iter().map(|name| components::service(options.target, name)).collect();
    for name in config.components.keys() {
        let service = components::service(options.target, name);
        if service.is_empty() || !taken.insert(service.clone()) {
            return Err(ExportError::ServiceName { component: name.clone(), service });
        }
    }
    let known = |name: &str| {
        let backend = config.messaging.backend.as_str();
        config.components.contains_key(name) || name == BUS || (name == backend && !options.external)
    };
    match options.images.keys().find(|name| !known(name)) {
        Some(name) => Err(ExportError::UnknownImage { name: name.clone() }),
        None => Ok(()),
    }
}

struct Planner<'a> {
    loaded: &'a Loaded,
    options: Options,
    config: ConfigFile,
    ports: Ports,
    redis: Option<RedisPlan>,
    nats: Option<NatsPlan>,
    components: Vec<ComponentPlan>,
    secrets: Vec<SecretFile>,
    memory: u64,
    notes: Vec<String>,
}

impl<'a> Planner<'a> {
    fn new(loaded: &'a Loaded, options: Options) -> Planner<'a> {
        let backend = loaded.config.messaging.backend;
        let deployed = !options.external;
        let config = ConfigFile::new(&loaded.entries(), |key| {
            let of = |section: &str| key.starts_with(section);
            let unused = of("components.")
                || of("server.users")
                || of("server.accounts")
                || key == "messaging.redis_url"
                || key == "messaging.nats_url"
                || (of("messaging.nats_") && (backend != Backend::Nats || deployed))
                || (of("messaging.redis_") && (backend != Backend::Redis || deployed))
                || (key == "messaging.wait_replicas" && deployed)
                // On NATS clients go to its servers.
                || (of("server.") && backend == Backend::Nats);
            !unused
        });
        let memory = loaded.config.runtime.resources.memory.unwrap_or(MEMORY);
        Planner {
            loaded,
            options,
            config,
            ports: Ports::default(),
            redis: None,
            nats: None,
            components: Vec::new(),
            secrets: Vec::new(),
            memory,
            notes: Vec::new(),
        }
    }

    /// Limits, and what the bus reads from files.
    fn server(&mut self) -> Result<(), ExportError> {
        let config = &self.loaded.config;
        self.config.set("messaging.backend", config.messaging.backend.as_str());
        self.config.set("runtime.resources.memory", size::config(self.memory));
        self.config.set("runtime.resources.cpus", config.runtime.resources.cpus.unwrap_or(CPUS));
        let (server, messaging) = (&config.server, &config.messaging);
        let external = self.options.external;
        let is_external = |backend| external && messaging.backend == backend;
        let serves = messaging.backend != Backend::Nats;
        let mut files = Vec::new();
        if serves {
            files.extend([
                ("server.tls.cert_file", &server.tls.cert_file),
                ("server.tls.key_file", &server.tls.key_file),
                ("server.tls.ca_file", &server.tls.ca_file),
            ]);
        }
        if is_external(Backend::Redis) {
            let tls = &messaging.redis_tls;
            files.extend([
                ("messaging.redis_tls.ca_file", &tls.ca_file),
                ("messaging.redis_tls.cert_file", &tls.cert_file),
                ("messaging.redis_tls.key_file", &tls.key_file),
            ]);
        }
        if is_external(Backend::Nats) {
            let (tls, auth) = (&messaging.nats_tls, &messaging.nats_auth);
            files.extend([
                ("messaging.nats_tls.ca_file", &tls.ca_file),
                ("messaging.nats_tls.cert_file", &tls.cert_file),
                ("messaging.nats_tls.key_file", &tls.key_file),
                ("messaging.nats_auth.nkey_file", &auth.nkey_file),
                ("messaging.nats_auth.credentials_file", &auth.credentials_file),
            ]);
        }
        for (key, path) in files {
            if let Some(path) = path {
                self.file(key, path)?;
            }
        }
        let mut secrets = Vec::new();
        if serves {
            let auth = &server.auth;
            secrets.push(("server.auth.password", &auth.password));
            secrets.push(("server.auth.token", &auth.token));
        }
        if is_external(Backend::Redis) {
            secrets.push(("messaging.redis_sentinel.password", &messaging.redis_sentinel.password));
        }
        if is_external(Backend::Nats) {
            secrets.push(("messaging.nats_auth.password", &messaging.nats_auth.password));
            secrets.push(("messaging.nats_auth.token", &messaging.nats_auth.token));
        }
        for (key, secret) in secrets {
            if let Some(secret) = secret {
                self.bus_secret(key, secret.expose().to_owned());
            }
        }
        Ok(())
    }

    /// A secret that the bus reads by the variable of its key.
    fn bus_secret(&mut self, key: &str, content: String) {
        let name = key.trim_start_matches("messaging.").replace('.', "_");
        let reader = Reader::Bus(Some(format!("{}_FILE", env_name(key))));
        self.secrets.push(SecretFile { name, content, reader });
    }

    /// A file that the configuration names: a copy of it goes with the secrets, and the configuration names that.
    fn file(&mut self, key: &str, path: &Path) -> Result<(), ExportError> {
        let content = fs::read_to_string(path).map_err(|source| ExportError::Unreadable {
            key: key.to_owned(),
            path: path.to_owned(),
            source,
        })?;
        let name = key.replace('.', "_");
        self.config.set(key, format!("{}/{name}", self.secret_directory()));
        self.secrets.push(SecretFile { name, content, reader: Reader::Bus(None) });
        Ok(())
    }

    /// Where the bus finds its secrets.
    fn secret_directory(&self) -> &'static str {
        match self.options.target.is_container() {
            true => "/run/secrets",
            false => "/run/credentials/trunkline.service",
        }
    }

    /// The embedded server: its addresses and users. Returns who finds it where.
    fn embedded(&mut self) -> Result<Vec<(NewUser, Urls)>, ExportError> {
        let config = &self.loaded.config;
        let server = &config.server;
        let nats = self.address("server.listen", Some(server.listen), NATS_PORT);
        let http = self.address("server.http", server.http.or(Some(local(HTTP_PORT))), HTTP_PORT);
        let metrics = self.address("server.metrics_listen", server.metrics_listen, HTTP_PORT + 1);
        let websocket = self.address("server.websocket.listen", server.websocket.listen, 8443);
        self.ports = Ports { nats, http, websocket, metrics };
        if server.http.is_none() {
            self.notes
                .push("server.http is off, and on in the deployment: health checks ask there".to_owned());
        }
        if server.tls.http {
            self.config.set("server.tls.http", false);
            self.notes
                .push("server.tls.http is off in the deployment: health checks ask without TLS".to_owned());
        }
        if self.options.target.is_container() {
            // The network is the deployment's own. What has a certificate is served over TLS all the same.
            self.config.set("server.plaintext", true);
        }
        if let Some(user) = &server.auth.no_auth_user {
            self.notes.push(format!(
                "clients without credentials get in as {user}, as configured (server.auth.no_auth_user)"
            ));
        }
        let new = users::new_users(self.loaded)?;
        let list = users::server_users(self.loaded, &new)?;
        self.bus_secret("server.users", list);
        if let Some(accounts) = users::accounts(self.loaded)? {
            self.bus_secret("server.accounts", accounts);
        }
        let token = match &server.auth.admin_token {
            Some(token) => token.expose().to_owned(),
            None => password()?,
        };
        self.bus_secret("server.auth.admin_token", token);

        let scheme = if server.tls.is_on() { "tls" } else { "nats" };
        let host = if self.options.target.is_container() { BUS } else { "127.0.0.1" };
        let port = nats.unwrap_or(NATS_PORT);
        let urls = new.into_iter().map(|user| {
            let url = format!("{scheme}://{}:{}@{host}:{port}", user.name, user.password);
            (user, Urls { trunkline: url.clone(), nats: url })
        });
        Ok(urls.collect())
    }

    /// Gives an address of the server the form that the target needs, and returns its port.
    fn address(&mut self, key: &str, configured: Option<SocketAddr>, default: u16) -> Option<u16> {
        let configured = configured?;
        // A port that is chosen at the start is one that nobody finds.
        let port = if configured.port() == 0 { default } else { configured.port() };
        let ip = match self.options.target.is_container() {
            true => Ipv4Addr::UNSPECIFIED.into(),
            false if configured.ip().is_loopback() => configured.ip(),
            false => {
                self.notes.push(format!("{key} stays within the machine in the deployment"));
                Ipv4Addr::LOCALHOST.into()
            }
        };
        self.config.set(key, SocketAddr::new(ip, port).to_string());
        Some(port)
    }

    fn redis(&mut self) -> Result<(), ExportError> {
        let messaging = &self.loaded.config.messaging;
        let origin = self.loaded.origin("messaging.fallback");
        if matches!(origin, Origin::Default) {
            // What a service manager starts again shall not run beside its data meanwhile.
            self.config.set("messaging.fallback", "fail");
        }
        self.patience();
        if self.options.external {
            self.bus_secret("messaging.redis_url", messaging.redis_url.expose().to_owned());
            return Ok(());
        }
        self.replaced("messaging.redis_url", "a Redis");
        if messaging.wait_replicas > 0 {
            self.notes.push(
                "messaging.wait_replicas is left out: the Redis of the deployment has no replicas".to_owned(),
            );
        }
        let (host, port) = match self.options.target.is_container() {
            true => ("redis", REDIS_PORT),
            false => ("127.0.0.1", REDIS_PORT_BESIDE),
        };
        self.redis = Some(RedisPlan { port, max_memory: self.memory / 2 });
        self.secrets.extend(redis::secrets(host, port, &messaging.stream_prefix)?);
        Ok(())
    }

    /// The servers of NATS and their users. Returns who finds them where.
    fn nats(&mut self) -> Result<Vec<(NewUser, Urls)>, ExportError> {
        let messaging = &self.loaded.config.messaging;
        self.patience();
        if self.options.external {
            self.bus_secret("messaging.nats_url", messaging.nats_url.expose());
            return self.external_nats();
        }
        self.replaced("messaging.nats_url", "a NATS cluster");
        let nodes: Vec<Node> = (1..=nats::NODES as u16).map(|number| self.node(number)).collect();
        let mut new = users::new_users(self.loaded)?;
        let bus = NewUser::new(nats::BUS, None)?;
        let probe = NewUser::new(nats::PROBE, Some(nats::probe_permissions()))?;
        let servers: Vec<String> =
            nodes.iter().map(|node| format!("nats://{}:{}", node.host, node.port)).collect();
        self.config.set("messaging.nats_url", servers.join(","));
        self.config.set("messaging.nats_auth.username", bus.name.as_str());
        self.bus_secret("messaging.nats_auth.password", bus.password.clone());
        self.replicas();
        new.push(bus);
        new.push(probe);
        self.secrets.push(nats::secrets(&nodes, &new)?);
        let url = |user: &NewUser, host: &str, port: u16| {
            format!("nats://{}:{}@{host}:{port}", user.name, user.password)
        };
        let is_container = self.options.target.is_container();
        let urls = new.into_iter().filter(|user| user.name != nats::BUS).map(|user| {
            let all: Vec<String> = nodes.iter().map(|node| url(&user, &node.host, node.port)).collect();
            // Not every client takes several servers in one text; one name for all of them serves these as well.
            let one = match is_container {
                true => url(&user, "nats", NATS_PORT),
                false => url(&user, &nodes[0].host, nodes[0].port),
            };
            (user, Urls { trunkline: all.join(","), nats: one })
        });
        let urls = urls.collect();
        self.nats = Some(NatsPlan { nodes, max_memory_store: self.memory / 8 });
        Ok(urls)
    }

    /// Everybody goes with what the configuration says of those servers: they know users of their own.
    fn external_nats(&mut self) -> Result<Vec<(NewUser, Urls)>, ExportError> {
        let messaging = &self.loaded.config.messaging;
        let auth = &messaging.nats_auth;
        let mut servers = messaging.nats_url.servers().to_vec();
        if let (Some(user), Some(password), false) =
            (&auth.username, &auth.password, messaging.nats_url.has_credentials())
        {
            for server in &mut servers {
                // Fails for addresses without a host, which there are none of.
                let _ = server.set_username(user);
                let _ = server.set_password(Some(password.expose()));
            }
        }
        if auth.token.is_some() || auth.nkey_file.is_some() || auth.credentials_file.is_some() {
            self.notes.push(
                "components get the address of the NATS servers without credentials: messaging.nats_auth is the bus's own"
                    .to_owned(),
            );
        }
        let all: Vec<String> = servers.iter().map(|server| server.as_str().to_owned()).collect();
        let urls = Urls { trunkline: all.join(","), nats: all[0].clone() };
        let new = users::new_users(self.loaded)?;
        Ok(new.into_iter().map(|user| (user, urls.clone())).collect())
    }

    fn node(&self, number: u16) -> Node {
        let at = |port: u16, step: u16| port + (number - 1) * step;
        let (host, step) = match self.options.target {
            Target::Compose => (format!("nats-{number}"), 0),
            Target::Systemd => ("127.0.0.1".to_owned(), 1),
            // Pods of a stateful set, which counts from 0, under the name of its service.
            Target::Kubernetes => (format!("nats-{}.nats", number - 1), 0),
        };
        Node {
            name: format!("nats-{number}"),
            host,
            port: at(NATS_PORT, step),
            route_port: at(ROUTE_PORT, step),
            // Beside the bus, which has none on NATS.
            http_port: at(HTTP_PORT, step),
        }
    }

    /// Streams for which nothing else is said have a copy on every server.
    fn replicas(&mut self) {
        let mut raised = Vec::new();
        for (index, stream) in self.loaded.config.messaging.streams.iter().enumerate() {
            let key = format!("messaging.streams[{index}].replicas");
            if matches!(self.loaded.origin(&key), Origin::Default) {
                self.config.set(&key, nats::NODES);
                raised.push(stream.name.as_str());
            }
        }
        if !raised.is_empty() {
            self.notes
                .push(format!("streams have a copy on each server (replicas: 3): {}", raised.join(", ")));
        }
    }

    /// Services start at once where nothing holds them back; the bus waits for its backend.
    fn patience(&mut self) {
        if matches!(self.loaded.origin("messaging.connect_timeout"), Origin::Default) {
            self.config.set("messaging.connect_timeout", "30s");
        }
    }

    fn replaced(&mut self, key: &str, by: &str) {
        if !matches!(self.loaded.origin(key), Origin::Default) {
            self.notes.push(format!(
                "{by} of the deployment's own takes the place of {key}; --external keeps to that"
            ));
        }
    }

    fn components(&mut self, urls: &[(NewUser, Urls)]) -> Result<(), ExportError> {
        let of = |name: &str| urls.iter().find(|(user, _)| user.name == name).map(|(_, urls)| urls);
        let target = self.options.target;
        let config = &self.loaded.config;
        for (name, component) in &config.components {
            let Some(urls) = of(&users::user_of(name)) else { continue };
            let service = components::component(name, &config.components, &self.options, &mut self.notes)?;
            let environment = components::environment(
                name,
                component,
                (urls, &reporting(config)),
                target,
                &mut self.notes,
            )?;
            self.secrets.push(environment);
            self.components.push(service);
        }
        if let Some(urls) = of(users::OPERATOR) {
            let content = format!("{}\n", urls.trunkline);
            self.secrets.push(SecretFile {
                name: "operator_url".to_owned(),
                content,
                reader: Reader::Operator,
            });
        }
        if let (Some(urls), Target::Kubernetes) = (of(nats::PROBE), target) {
            let prefix = &self.loaded.config.messaging.stream_prefix;
            let content = format!("TRUNKLINE_URL={}\nTRUNKLINE_STREAM_PREFIX={prefix}\n", urls.trunkline);
            self.secrets.push(SecretFile { name: "probe.env".to_owned(), content, reader: Reader::Probe });
        }
        Ok(())
    }

    fn finish(self) -> Result<Plan, ExportError> {
        let config = &self.loaded.config;
        // On NATS the bus is ready when its streams are there; they are made in their order.
        let health: Vec<&str> = match (config.messaging.backend, config.messaging.streams.last()) {
            (Backend::Nats, Some(stream)) => vec!["stream", "info", &stream.name],
            _ => vec!["status"],
        };
        Ok(Plan {
            target: self.options.target,
            health: health.into_iter().map(str::to_owned).collect(),
            images: self.options.images,
            config: self.config,
            ports: self.ports,
            redis: self.redis,
            nats: self.nats,
            components: self.components,
            secrets: self.secrets,
            memory: self.memory,
            external: self.options.external && config.messaging.backend != Backend::InMemory,
            cpus: config.runtime.resources.cpus.unwrap_or(CPUS),
            notes: self.notes,
        })
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}
