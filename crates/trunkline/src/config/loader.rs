//! Puts the sources together: finds the file, lays one source over the other, reads and checks the result once.

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;

use super::environment::{Environment, FILE_VARIABLE, value_node};
use super::error::{ConfigError, ConfigWarning};
use super::messaging::Backend;
use super::settings::{Place, Rule, Setting};
use super::tree::{Node, Origin, Value};
use super::urls::{NatsUrl, RedisTopology, RedisUrl};
use super::{Config, SHAPE, check, keys, toml, yaml};

/// Largest file that is read. A configuration of this size would have some ten thousand keys.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Credentials that are no part of a URL, and the servers that they are for.
struct Belonging {
    /// Key of the credentials.
    credentials: &'static str,
    /// Key of the URL, and the variable that is its default.
    url: &'static str,
    variable: &'static str,
    /// The hosts of a URL that would be given the credentials. One that is no URL at all is a mistake that is reported
    /// elsewhere, and goes nowhere.
    hosts: fn(&str) -> Option<Vec<String>>,
}

const BELONGINGS: [Belonging; 2] = [
    Belonging {
        credentials: "messaging.nats_auth",
        url: "messaging.nats_url",
        variable: "NATS_URL",
        hosts: |url| {
            let servers = NatsUrl::parse(url).ok()?;
            Some(servers.servers().iter().map(|server| server.host_str().unwrap_or("").to_owned()).collect())
        },
    },
    Belonging {
        credentials: "messaging.redis_sentinel",
        url: "messaging.redis_url",
        variable: "REDIS_URL",
        // Servers that are no sentinels are given the credentials of their URL alone.
        hosts: |url| {
            let RedisUrl { topology: RedisTopology::Sentinel { .. }, hosts, .. } =
                RedisUrl::parse(url).ok()?
            else {
                return None;
            };
            Some(hosts.into_iter().map(|(host, _)| host).collect())
        },
    },
];

/// Names looked for in the working directory, in this order.
const FILE_NAMES: [&str; 3] = ["config.yaml", "config.yml", "config.toml"];

/// Loads a [`Config`] from its sources, each of which can be given in the place of the process's own.
///
/// Flags beat `TRUNKLINE_*` variables, which beat the file, which beats `REDIS_URL` and `NATS_URL`, which beat the
/// defaults. `TRUNKLINE_URL` beats all of them for `messaging.backend` and the URL of that backend, flags included, so
/// that a component started beside a running bus joins it. Credentials that the file has for NATS servers, or for
/// sentinels, are left out where it names one on another host. Sections are joined key by key; a list or map is taken from
/// one source as a whole.
///
/// ```
/// use trunkline::config::{Backend, Loader};
///
/// let loaded = Loader::new()
///     .env([("TRUNKLINE_CONSUMER_ACK_WAIT", "10s")])
///     .flag("messaging.backend", "redis", "--backend")
///     .working_dir("/nonexistent")
///     .load()?;
/// assert_eq!(loaded.config.messaging.backend, Backend::Redis);
/// assert_eq!(loaded.config.messaging.consumer.ack_wait.as_secs(), 10);
/// # Ok::<(), trunkline::config::ConfigError>(())
/// ```
#[derive(Default)]
pub struct Loader {
    file: Option<PathBuf>,
    env: Option<Vec<(OsString, OsString)>>,
    flags: Vec<Flag>,
    working_dir: Option<PathBuf>,
}

struct Flag {
    key: String,
    value: String,
    name: String,
}

/// A configuration with all that is known about where it came from.
#[derive(Clone)]
#[non_exhaustive]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What the author should know although it does not stop the start.
    pub warnings: Vec<ConfigWarning>,
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
    tree: Node,
}

/// A line of `config show`: a key, its value and where that came from.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Entry {
    /// The key with its whole path.
    pub key: String,
    /// The value in the form in which a file would have it; `null` when nothing is set, `***` for secrets.
    pub value: Json,
    /// Where it came from.
    pub origin: Origin,
    /// Whether the value is hidden.
    pub secret: bool,
}

impl Loader {
    /// A loader that reads the environment and working directory of this process, unless told otherwise.
    pub fn new() -> Loader {
        Loader::default()
    }

    /// Reads this file in the place of `TRUNKLINE_CONFIG` and what the working directory holds. `.toml` is TOML,
    /// everything else YAML.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Loader {
        self.file = Some(path.into());
        self
    }

    /// Takes these variables in the place of the process's environment.
    pub fn env<N: Into<OsString>, V: Into<OsString>>(
        mut self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Loader {
        self.env = Some(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect());
        self
    }

    /// Sets `key` to `value`, written as in an environment variable; errors call the source `flag_name`. Of several
    /// values for the same key the last one counts.
    pub fn flag(
        mut self,
        key: impl Into<String>,
        value: impl Into<String>,
        flag_name: impl Into<String>,
    ) -> Loader {
        self.flags.push(Flag { key: key.into(), value: value.into(), name: flag_name.into() });
        self
    }

    /// Looks for the file here, and takes relative paths of it from here, in the place of the process's directory.
    pub fn working_dir(mut self, path: impl Into<PathBuf>) -> Loader {
        self.working_dir = Some(path.into());
        self
    }

    /// Reads all sources and checks the result.
    ///
    /// # Errors
    /// A file that cannot be read, and every mistake in what the sources say: as many as were found, in one
    /// [`ConfigError`].
    pub fn load(self) -> Result<Loaded, ConfigError> {
        let mut errors = Vec::new();
        let mut warnings = Vec::new();
        let environment = match &self.env {
            Some(variables) => Environment::new(variables.iter().cloned(), &mut errors),
            None => Environment::new(std::env::vars_os(), &mut errors),
        };

        let file = self.find_file(&environment, &mut warnings);
        let file_node = match &file {
            Some(path) => read_file(&self.resolve(path), path, &mut errors)?,
            None => None,
        };
        let flags = self.flag_layer(&mut errors);
        let url = environment.url_layer(&mut errors);
        warnings.extend(self.overridden(url.as_ref()));

        let mut tree = Node::empty_map(Origin::Default);
        if let Some(file_node) = file_node {
            tree.overlay(file_node, &SHAPE);
        }
        tree.overlay(environment.layer(&SHAPE, &mut errors, &mut warnings), &SHAPE);
        tree.overlay(flags, &SHAPE);
        if let Some(url) = url {
            for belonging in &BELONGINGS {
                if belonging.leads_elsewhere(&url, &tree, &environment)
                    && let Some(origin) = tree.forget_from_file(belonging.credentials)
                {
                    let key = belonging.credentials.to_owned();
                    warnings.push(ConfigWarning::CredentialsOfOthers { origin, key });
                }
            }
            tree.overlay(url, &SHAPE);
        }
        let backend = match tree.find("messaging.backend").map(|node| &node.value) {
            Some(Value::Text(backend)) => backend.as_str(),
            _ => Backend::InMemory.as_str(),
        };
        let mut lowest = environment.well_known(backend, &mut warnings);
        lowest.overlay(tree, &SHAPE);
        let tree = lowest;

        let config = Config::read(&Place::root(&tree), &Rule::new(), &mut errors);
        if let Some(config) = &config {
            check::check(config, &tree, &mut errors);
        }
        match (ConfigError::from_list(errors), config) {
            (Some(error), _) => Err(error),
            (None, Some(config)) => Ok(Loaded { config, warnings, file, tree }),
            (None, None) => unreachable!("reading fails only after it has reported an error"),
        }
    }

    fn resolve(&self, path: &Path) -> PathBuf {
        match &self.working_dir {
            Some(directory) => directory.join(path),
            None => path.to_owned(),
        }
    }

    /// The file as errors will call it: as it was given, or its bare name in the working directory.
    fn find_file(&self, environment: &Environment, warnings: &mut Vec<ConfigWarning>) -> Option<PathBuf> {
        let given = self.file.clone().or_else(|| environment.get(FILE_VARIABLE).map(PathBuf::from));
        if given.is_some() {
            return given;
        }
        let mut found = FILE_NAMES.iter().map(PathBuf::from).filter(|name| self.resolve(name).is_file());
        let used = found.next()?;
        warnings.extend(found.map(|ignored| ConfigWarning::SecondFile { used: used.clone(), ignored }));
        Some(used)
    }

    fn flag_layer(&self, errors: &mut Vec<ConfigError>) -> Node {
        let mut layer = Node::empty_map(Origin::Default);
        for flag in &self.flags {
            let origin = Origin::Flag(Arc::from(flag.name.as_str()));
            let Some(key) = keys::by_path(&flag.key) else {
                errors.push(ConfigError::UnknownKey {
                    origin,
                    key: flag.key.clone(),
                    nearest: keys::nearest_path(&flag.key),
                });
                continue;
            };
            if let Some(node) = value_node(key, &flag.value, origin, errors) {
                layer.overlay(node.nested(&key.path), &SHAPE);
            }
        }
        layer
    }

    fn overridden(&self, url: Option<&Node>) -> Vec<ConfigWarning> {
        let Some(url) = url else {
            return Vec::new();
        };
        self.flags
            .iter()
            .filter(|flag| url.find(&flag.key).is_some_and(|node| matches!(node.value, Value::Text(_))))
            .map(|flag| ConfigWarning::Overridden { flag: flag.name.clone(), key: flag.key.clone() })
            .collect()
    }
}

impl Loaded {
    /// Every key with its value and origin, in the order of the documentation; secrets are hidden.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        self.config.show(&Place::root(&self.tree), &Rule::new(), &mut entries);
        // The one default that depends on another key is shown as it takes effect.
        let fallback = entries.iter_mut().find(|entry| entry.key == "messaging.fallback");
        if let Some(entry) = fallback {
            entry.value = self.config.messaging.fallback().as_str().into();
        }
        entries
    }

    /// Where the value of `key` came from; lists and maps may be gone into: `messaging.streams[0].name`.
    pub fn origin(&self, key: &str) -> Origin {
        self.tree.find(key).map_or(Origin::Default, |node| node.origin.clone())
    }
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("config", &self.config)
            .field("warnings", &self.warnings)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Belonging {
    /// Whether `TRUNKLINE_URL` names a server on a host that the configuration does not name, though it names one: the
    /// credentials in the file are not for that one.
    fn leads_elsewhere(&self, url: &Node, tree: &Node, environment: &Environment) -> bool {
        let text = |node: &Node| match &node.value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        };
        let named = tree.find(self.url).and_then(text);
        let named = named.or_else(|| environment.get(self.variable).map(str::to_owned));
        let (Some(url), Some(named)) = (url.find(self.url).and_then(text), named) else { return false };
        let Some(hosts) = (self.hosts)(&url) else { return false };
        // Where the configuration names servers of another kind, the credentials are for none of these.
        let known = (self.hosts)(&named).unwrap_or_default();
        !hosts.iter().all(|host| known.contains(host))
    }
}

fn read_file(path: &Path, shown: &Path, errors: &mut Vec<ConfigError>) -> Result<Option<Node>, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: shown.to_owned(), source };
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large from one that just fits.
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: shown.to_owned(), limit: FILE_BYTES_MAX });
    }
    let source = Origin::File { path: Arc::from(shown), line: 0, column: 0 };
    let Ok(text) = String::from_utf8(bytes) else {
        errors.push(ConfigError::Syntax { origin: source, reason: "the file is not UTF-8".to_owned() });
        return Ok(None);
    };
    let is_toml = path.extension().is_some_and(|extension| extension == "toml");
    let node = match is_toml {
        true => toml::parse(&text, &source, errors),
        false => yaml::parse(&text, &source, errors),
    };
    Ok(node)
}
