//! What a deployment consists of: the services, their addresses and credentials, and the configuration of the bus.
//!
//! All of it is decided here, from the configuration and the options alone; what is specific to a target beyond addresses
//! is the business of its templates.

mod backends;
mod server;

use std::collections::{BTreeMap, BTreeSet};

use trunkline::config::{Backend, Config, Loaded};

use super::Target;
use super::components::{self, ComponentPlan, Urls};
use super::config_file::ConfigFile;
use super::error::ExportError;
use super::nats::{self, NatsPlan};
use super::redis::RedisPlan;
use super::secrets::{Reader, SecretFile};
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
