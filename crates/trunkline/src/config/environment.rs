//! Environment variables in: `TRUNKLINE_*` as one layer of values, the well-known URLs as what stands behind everything.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::sync::Arc;

use super::error::{ConfigError, ConfigWarning};
use super::keys::{self, ENV_PREFIX, Key};
use super::messaging::Backend;
use super::settings::{Shape, inline};
use super::tree::{Node, Origin, Value};
use super::urls::{NatsUrl, RedisUrl, redact};

/// Sets backend and URL in one, and beats every other source of both.
pub(super) const URL_VARIABLE: &str = "TRUNKLINE_URL";
/// Path of the configuration file.
pub(super) const FILE_VARIABLE: &str = "TRUNKLINE_CONFIG";
/// Variables with the prefix that are not keys: read elsewhere.
const RESERVED: [&str; 4] = [URL_VARIABLE, FILE_VARIABLE, "TRUNKLINE_LOG", "TRUNKLINE_ADMIN_TOKEN"];
const RESERVED_PREFIX: &str = "TRUNKLINE_TEST_";
/// An unknown name this close to a known one is a mistake; further away it may belong to the component itself.
const TYPO_EDITS_MAX: usize = 2;

/// The variables that matter here, by name. An empty one counts as not set, as compose files produce them.
pub(super) struct Environment(BTreeMap<String, String>);

impl Environment {
    pub(super) fn new(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        errors: &mut Vec<ConfigError>,
    ) -> Environment {
        let mut known = BTreeMap::new();
        for (name, value) in variables {
            let Ok(name) = name.into_string() else {
                continue;
            };
            if !name.starts_with(ENV_PREFIX) && !["REDIS_URL", "NATS_URL"].contains(&name.as_str()) {
                continue;
            }
            match value.into_string() {
                Ok(value) if value.is_empty() => {}
                Ok(value) => {
                    known.insert(name, value);
                }
                Err(_) => errors.push(ConfigError::Syntax {
                    origin: env_origin(&name),
                    reason: "the value is not UTF-8".to_owned(),
                }),
            }
        }
        Environment(known)
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The layer of all `TRUNKLINE_*` variables that are keys. Where both a section and a key in it are set, the key wins.
    pub(super) fn layer(
        &self,
        shape: &Shape,
        errors: &mut Vec<ConfigError>,
        warnings: &mut Vec<ConfigWarning>,
    ) -> Node {
        let mut found: Vec<(&'static Key, &str, &str)> = Vec::new();
        let mut names: HashMap<&str, &str> = HashMap::new();
        for (name, value) in &self.0 {
            let is_reserved = RESERVED.contains(&name.as_str()) || name.starts_with(RESERVED_PREFIX);
            if is_reserved || !name.starts_with(ENV_PREFIX) {
                continue;
            }
            let Some(key) = keys::by_env(name) else {
                match keys::nearest_env(name) {
                    Some((nearest, edits)) if edits <= TYPO_EDITS_MAX => {
                        errors.push(ConfigError::UnknownVariable {
                            name: name.clone(),
                            nearest: nearest.to_owned(),
                        });
                    }
                    _ => warnings.push(ConfigWarning::UnknownVariable { name: name.clone() }),
                }
                continue;
            };
            match names.insert(&key.path, name) {
                Some(first) => errors.push(ConfigError::DuplicateKey {
                    origin: env_origin(name),
                    key: key.path.clone(),
                    first: env_origin(first),
                }),
                None => found.push((key, name, value)),
            }
        }
        // Shorter paths first, so that the more specific of two variables is laid on top.
        found.sort_by_key(|(key, _, _)| key.path.matches('.').count());
        let mut layer = Node::empty_map(Origin::Default);
        for (key, name, value) in found {
            if let Some(node) = value_node(key, value, env_origin(name), errors) {
                layer.overlay(node.nested(&key.path), shape);
            }
        }
        layer
    }

    /// The layer of `TRUNKLINE_URL`: backend and URL in one.
    pub(super) fn url_layer(&self, errors: &mut Vec<ConfigError>) -> Option<Node> {
        let url = self.get(URL_VARIABLE)?;
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        let (backend, key, fault) = match scheme.split(['-', '+']).next() {
            Some("nats" | "tls") => (Backend::Nats, "nats_url", NatsUrl::parse(url).err()),
            Some("redis" | "rediss") => (Backend::Redis, "redis_url", RedisUrl::parse(url).err()),
            _ => (Backend::InMemory, "", Some("expected nats://… or redis://…".to_owned())),
        };
        if let Some(reason) = fault {
            errors.push(ConfigError::Url {
                origin: env_origin(URL_VARIABLE),
                key: "the URL of the bus".to_owned(),
                value: format!("{:?}", redact(url)),
                reason,
            });
            return None;
        }
        let mut layer = Node::text(backend.as_str(), env_origin(URL_VARIABLE)).nested("messaging.backend");
        let url = Node::text(url, env_origin(URL_VARIABLE)).nested(&format!("messaging.{key}"));
        layer.overlay(url, &super::SHAPE);
        Some(layer)
    }

    /// The layer of `REDIS_URL` and `NATS_URL`, below everything but the defaults.
    ///
    /// They are set for all sorts of programs; one that cannot be used is a mistake only if `backend` needs it.
    pub(super) fn well_known(&self, backend: &str, warnings: &mut Vec<ConfigWarning>) -> Node {
        let mut layer = Node::empty_map(Origin::Default);
        for (name, path, needed_by) in [
            ("REDIS_URL", "messaging.redis_url", Backend::Redis),
            ("NATS_URL", "messaging.nats_url", Backend::Nats),
        ] {
            let Some(url) = self.get(name) else {
                continue;
            };
            let fault = match needed_by {
                Backend::Redis => RedisUrl::parse(url).err(),
                _ => NatsUrl::parse(url).err(),
            };
            match fault {
                Some(reason) if backend != needed_by.as_str() => {
                    warnings.push(ConfigWarning::UnusedUrl { name, reason });
                }
                _ => layer.overlay(Node::text(url, env_origin(name)).nested(path), &super::SHAPE),
            }
        }
        layer
    }
}

/// The value of a key that was given as one text, by a variable or a flag: plain keys take the text as it stands, so
/// that no password has to be quoted; lists, maps and sections are inline YAML, of which JSON is a part.
pub(super) fn value_node(
    key: &Key,
    text: &str,
    origin: Origin,
    errors: &mut Vec<ConfigError>,
) -> Option<Node> {
    if key.is_text() {
        return Some(Node::text(text, origin));
    }
    inline(text, &origin, errors).map(|node| match node.value {
        // What is no list and no map in YAML is passed on as it was, for the error to show it.
        Value::Text(_) | Value::Null => Node::text(text, origin),
        _ => node,
    })
}

fn env_origin(name: &str) -> Origin {
    Origin::Env(Arc::from(name))
}
