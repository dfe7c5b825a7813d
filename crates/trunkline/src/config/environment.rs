//! Environment variables in: `TRUNKLINE_*` as one layer of values, the well-known URLs as what stands behind everything.
//!
//! The value of a variable may lie in a file, named by the same variable with `_FILE` behind it: that is how containers
//! and service managers hand out secrets. It is read here, once for each loading.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::error::{ConfigError, ConfigWarning};
use super::keys::{self, ENV_PREFIX, Key};
use super::messaging::Backend;
use super::settings::{Shape, inline};
use super::tree::{Node, Origin, Value};
use super::urls::{NatsUrl, RedisUrl, redact};

/// Sets backend and URL in one, and beats every other source of both.
pub(super) const URL_VARIABLE: &str = "TRUNKLINE_URL";
/// A file with that URL.
const URL_FILE_VARIABLE: &str = "TRUNKLINE_URL_FILE";
/// Path of the configuration file.
pub(super) const FILE_VARIABLE: &str = "TRUNKLINE_CONFIG";
/// Variables with the prefix that are not keys: read elsewhere.
const RESERVED: [&str; 4] = [URL_VARIABLE, FILE_VARIABLE, "TRUNKLINE_LOG", "TRUNKLINE_ADMIN_TOKEN"];
const RESERVED_PREFIX: &str = "TRUNKLINE_TEST_";
/// What a variable ends with that names a file with the value.
const FILE_SUFFIX: &str = "_FILE";
/// Largest file with the value of a variable: as much as a whole configuration may have.
const VALUE_BYTES_MAX: u64 = 1 << 20;
/// An unknown name this close to a known one is a mistake; further away it may belong to the component itself.
const TYPO_EDITS_MAX: usize = 2;

/// The variables that matter here, by name. An empty one counts as not set, as compose files produce them. One that names
/// a file with its value is kept under its own name, with the content of the file.
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
            if named_in_file(&name).is_some() && !value.is_empty() {
                known.extend(read_value(&name, PathBuf::from(value), errors).map(|value| (name, value)));
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

    /// The bus's own URL with the name of the variable that has it. The one that has it itself goes first: whoever starts
    /// a component sets that one, whatever else is in the environment.
    fn url(&self) -> Option<(&'static str, &str)> {
        [URL_VARIABLE, URL_FILE_VARIABLE].into_iter().find_map(|name| Some((name, self.get(name)?)))
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
            let in_file = named_in_file(name);
            if in_file == Some(URL_VARIABLE) {
                continue;
            }
            let Some(key) = keys::by_env(in_file.unwrap_or(name)) else {
                match nearest(name) {
                    Some(nearest) => {
                        errors.push(ConfigError::UnknownVariable { name: name.clone(), nearest });
                    }
                    None => warnings.push(ConfigWarning::UnknownVariable { name: name.clone() }),
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
        let (variable, url) = self.url()?;
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        let (backend, key, fault) = match scheme.split(['-', '+']).next() {
            Some("nats" | "tls") => (Backend::Nats, "nats_url", NatsUrl::parse(url).err()),
            Some("redis" | "rediss") => (Backend::Redis, "redis_url", RedisUrl::parse(url).err()),
            _ => (Backend::InMemory, "", Some("expected nats://… or redis://…".to_owned())),
        };
        if let Some(reason) = fault {
            errors.push(ConfigError::Url {
                origin: env_origin(variable),
                key: "the URL of the bus".to_owned(),
                value: format!("{:?}", redact(url)),
                reason,
            });
            return None;
        }
        let mut layer = Node::text(backend.as_str(), env_origin(variable)).nested("messaging.backend");
        let url = Node::text(url, env_origin(variable)).nested(&format!("messaging.{key}"));
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

/// The variable whose value lies in the file that `name` names; `None` for those that have their value themselves, also
/// where a key is called so: `TRUNKLINE_SERVER_TLS_CERT_FILE`.
fn named_in_file(name: &str) -> Option<&str> {
    let variable = name.strip_suffix(FILE_SUFFIX)?;
    let is_one = variable == URL_VARIABLE || keys::by_env(variable).is_some();
    (is_one && keys::by_env(name).is_none()).then_some(variable)
}

/// The value in a file, without the line end that editors and `echo` leave there.
fn read_value(name: &str, path: PathBuf, errors: &mut Vec<ConfigError>) -> Option<String> {
    let mut text = String::new();
    // One byte more than allowed tells a file that is too large from one that just fits.
    let read =
        std::fs::File::open(&path).and_then(|file| file.take(VALUE_BYTES_MAX + 1).read_to_string(&mut text));
    let read = read.and_then(|length| match length as u64 > VALUE_BYTES_MAX {
        true => Err(std::io::Error::other(format!("it is larger than {VALUE_BYTES_MAX} bytes"))),
        false => Ok(()),
    });
    if let Err(source) = read {
        errors.push(ConfigError::UnreadableValue { origin: env_origin(name), path, source });
        return None;
    }
    let value = text.strip_suffix('\n').unwrap_or(&text);
    let value = value.strip_suffix('\r').unwrap_or(value);
    (!value.is_empty()).then(|| value.to_owned())
}

/// The variable that was probably meant by an unknown one.
fn nearest(name: &str) -> Option<String> {
    let close = |name| keys::nearest_env(name).filter(|&(_, edits)| edits <= TYPO_EDITS_MAX);
    if let Some((nearest, _)) = close(name) {
        return Some(nearest.to_owned());
    }
    let (nearest, _) = close(name.strip_suffix(FILE_SUFFIX)?)?;
    Some(format!("{nearest}{FILE_SUFFIX}"))
}

fn env_origin(name: &str) -> Origin {
    Origin::Env(Arc::from(name))
}
