//! The configuration: whether it loads, what in it has no effect, and the files that it names.

use std::path::{Path, PathBuf};

use trunkline::config::{Config, ConfigError, Loaded, Loader};

use crate::checks::{Finding, certificates, disk};
use crate::failure::chain;
use crate::settings::{self, GlobalArgs};

const CHECK: &str = "config";

/// Loads it as every command does.
pub(super) fn check(global: &GlobalArgs) -> (Vec<Finding>, Option<Loaded>) {
    let mut loader = Loader::new();
    if let Some(path) = &global.config {
        loader = loader.file(path);
    }
    match loader.load() {
        Ok(loaded) => (findings(&loaded), Some(loaded)),
        Err(error) => (error.errors().iter().map(mistake).collect(), None),
    }
}

fn mistake(error: &ConfigError) -> Finding {
    Finding::fail(CHECK, chain(error), settings::way_out(error))
}

fn findings(loaded: &Loaded) -> Vec<Finding> {
    let file = match &loaded.file {
        Some(path) => format!("{} loads", path.display()),
        None => "there is no file, so the defaults are in force; `trunkline init` writes one".to_owned(),
    };
    let backend = loaded.config.messaging.backend.as_str();
    let mut findings = vec![Finding::ok(CHECK, format!("{file}; backend {backend}"))];
    let fix = "`trunkline config show` says where each value comes from";
    findings.extend(loaded.warnings.iter().map(|warning| Finding::warn(CHECK, warning.to_string(), fix)));
    findings.extend(
        loaded
            .config
            .without_effect()
            .into_iter()
            .map(|(key, reason)| Finding::warn(CHECK, format!("{key} has no effect: {reason}"), fix)),
    );
    findings
}

/// The certificates in the files that the configuration names.
pub(super) fn certificates(config: &Config) -> Vec<Finding> {
    let (tls, redis, nats) = (&config.server.tls, &config.messaging.redis_tls, &config.messaging.nats_tls);
    let named: [(&str, &Option<PathBuf>); 6] = [
        ("server.tls.cert_file", &tls.cert_file),
        ("server.tls.ca_file", &tls.ca_file),
        ("messaging.redis_tls.ca_file", &redis.ca_file),
        ("messaging.redis_tls.cert_file", &redis.cert_file),
        ("messaging.nats_tls.ca_file", &nats.ca_file),
        ("messaging.nats_tls.cert_file", &nats.cert_file),
    ];
    let named = named.into_iter().filter_map(|(setting, path)| Some((setting, path.as_deref()?)));
    named.flat_map(|(setting, path)| certificates::file(setting, path)).collect()
}

/// Room where our own files are.
pub(super) fn disks(loaded: &Loaded) -> Vec<Finding> {
    let directory = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let place = loaded.file.as_deref().map_or_else(|| PathBuf::from("."), directory);
    // Relative paths say little to who reads the line elsewhere.
    let place = place.canonicalize().unwrap_or(place);
    vec![disk::check("the configuration", &place)]
}
