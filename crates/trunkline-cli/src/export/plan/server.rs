//! What the bus itself is given: limits, the files and secrets that it reads, and the addresses and users of the embedded server.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use trunkline::config::{Backend, env_name};

use super::{BUS, CPUS, HTTP_PORT, NATS_PORT, Planner, Ports};
use crate::export::components::Urls;
use crate::export::error::ExportError;
use crate::export::secrets::{Reader, SecretFile, password};
use crate::export::size;
use crate::export::users::{self, NewUser};

impl Planner<'_> {
    /// Limits, and what the bus reads from files.
    pub(super) fn server(&mut self) -> Result<(), ExportError> {
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
    pub(super) fn bus_secret(&mut self, key: &str, content: String) {
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
    pub(super) fn embedded(&mut self) -> Result<Vec<(NewUser, Urls)>, ExportError> {
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
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}
