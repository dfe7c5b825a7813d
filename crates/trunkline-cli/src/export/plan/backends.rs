//! The servers behind the bus: those of the deployment's own, and those that are there already.

use trunkline::config::Origin;

use super::{HTTP_PORT, NATS_PORT, Planner, REDIS_PORT, REDIS_PORT_BESIDE, ROUTE_PORT};
use crate::export::Target;
use crate::export::components::Urls;
use crate::export::error::ExportError;
use crate::export::nats::{self, NatsPlan, Node};
use crate::export::redis::{self, RedisPlan};
use crate::export::users::{self, NewUser};

impl Planner<'_> {
    pub(super) fn redis(&mut self) -> Result<(), ExportError> {
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
    pub(super) fn nats(&mut self) -> Result<Vec<(NewUser, Urls)>, ExportError> {
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
}
