//! Configuration: the keys of `config.yaml`, from where they are read, and what they mean.
//!
//! [`Config::load`] reads `config.yaml`, `config.yml` or `config.toml` of the working directory, or the file that
//! `TRUNKLINE_CONFIG` names, and the environment. [`Loader`] takes other sources and adds flags. Sources, strongest
//! first:
//!
//! | source | what it sets |
//! |---|---|
//! | `TRUNKLINE_URL` | `messaging.backend` and its URL in one |
//! | flags | what the caller says |
//! | `TRUNKLINE_*` | any key: see [`env_name`] for the rule |
//! | the file | any key |
//! | `REDIS_URL`, `NATS_URL` | `messaging.redis_url`, `messaging.nats_url` |
//! | defaults | see the fields, or [`keys`] |
//!
//! Each of these variables may be given as a file instead: `TRUNKLINE_SERVER_AUTH_ADMIN_TOKEN_FILE` is the path of a file with
//! the token, as containers and service managers hand out secrets. A line end at its end does not belong to the value.
//!
//! Durations are written `30s`, `100ms`, `1h30m`, or as a number of seconds; sizes `512MB`, `64MiB`, or as a number of
//! bytes; switches `true`/`false`, `on`/`off` or `yes`/`no`. `off` takes a limit away where there need not be one. In
//! a variable or flag, a list, map or section is inline YAML or JSON. An empty value is the same as none.
//!
//! Mistakes are reported all at once, each with its file, line and column, variable or flag. How a key is declared
//! stands in `declare`; nothing outside of this module reads files or variables for configuration.

mod check;
mod declare;
mod environment;
mod error;
mod keys;
mod loader;
mod messaging;
mod observe;
mod runtime;
mod server;
mod settings;
mod subjects;
#[cfg(test)]
mod tests;
mod toml;
mod tree;
mod urls;
mod values;
mod yaml;

use std::collections::BTreeMap;

pub use error::{ConfigError, ConfigWarning, StreamPattern};
pub use keys::{Key, env_name, keys};
pub use loader::{Entry, Loaded, Loader};
pub use messaging::{
    Backend, Consumer, Fallback, InitialStreamId, Messaging, NatsAuth, NatsTls, RedisSentinel, RedisTls,
    Stream,
};
pub use observe::Observe;
pub use runtime::{Command, Component, Ready, Resources, Restart, Runtime};
pub use server::{
    Account, Auth, ConnectionType, HandshakeFirst, Limits, Permissions, Responses, Server, SubjectRules, Tls,
    TlsVersion, User, WebSocket,
};
pub use subjects::SubjectRule;
pub use tree::Origin;
pub use urls::{NatsUrl, RedisTopology, RedisUrl, redact as redact_url};
pub use values::Secret;

use declare::settings;
use settings::{Place, Rule, Setting, Shape};
use tree::Node;

settings! {
    /// The whole configuration. [`Config::default`] is what an empty file yields.
    pub struct Config in "" {
        /// Which backend carries the messages, where it is, and what streams and consumers are like.
        pub messaging: Messaging;
        /// The embedded server: where it listens, who may connect, and its limits.
        pub server: Server;
        /// What is recorded of messages, for `trace`, `tail` and the dashboard.
        pub observe: Observe;
        /// What the process may use.
        pub runtime: Runtime;
        /// Programs that `up` starts beside the bus, by name.
        pub components: BTreeMap<String, Component>;
    }
}

/// The whole schema.
static SHAPE: Shape = Config::SHAPE;

impl Config {
    /// Reads the configuration of this process: its environment, and the file of its working directory if there is one.
    ///
    /// Warnings are lost here; whoever can print them uses [`Loader`].
    ///
    /// # Errors
    /// A file that cannot be read, and every mistake in what the sources say, in one [`ConfigError`].
    pub fn load() -> Result<Config, ConfigError> {
        Loader::new().load().map(|loaded| loaded.config)
    }
}

impl Default for Config {
    fn default() -> Config {
        defaults()
    }
}

impl Default for Messaging {
    fn default() -> Messaging {
        defaults()
    }
}

impl Default for Consumer {
    fn default() -> Consumer {
        defaults()
    }
}

impl Default for Server {
    fn default() -> Server {
        defaults()
    }
}

impl Default for Observe {
    fn default() -> Observe {
        defaults()
    }
}

impl Default for Limits {
    fn default() -> Limits {
        defaults()
    }
}

/// A section in which nothing is set.
fn defaults<T: Setting>() -> T {
    let nothing = Node::empty_map(Origin::Default);
    let mut errors = Vec::new();
    T::read(&Place::root(&nothing), &Rule::new(), &mut errors)
        .expect("every key of these sections is optional or has a default in its own range")
}
