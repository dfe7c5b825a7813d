//! What a new configuration is to be: the presets, and what was said beside them.

use std::net::SocketAddr;

use trunkline::config::{Backend, Loader, NatsUrl, RedisUrl};

use super::{InitArgs, InitError};
use crate::failure::Failure;
use crate::settings::SettingsError;

/// What a bus is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Preset {
    /// This machine, nothing to install; what is stored lives as long as the bus
    Personal,
    /// Redis on this machine, with a prefix of its own; starts without Redis, too
    Developer,
    /// Redis with durable streams; refuses to start without it
    Enterprise,
    /// Enterprise, kept for ten years, with an audit stream
    Regulatory,
    /// NATS servers with JetStream and durable streams
    Nats,
}

impl Preset {
    pub(super) const ALL: [Self; 5] =
        [Self::Personal, Self::Developer, Self::Enterprise, Self::Regulatory, Self::Nats];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Personal => "personal",
            Self::Developer => "developer",
            Self::Enterprise => "enterprise",
            Self::Regulatory => "regulatory",
            Self::Nats => "nats",
        }
    }

    /// The choice in a line, as the wizard shows it.
    pub(super) fn explained(self) -> &'static str {
        match self {
            Self::Personal => "this machine, nothing to install; nothing is kept when it stops",
            Self::Developer => "Redis on this machine; starts in memory where there is none",
            Self::Enterprise => "Redis with durable streams; refuses to start without it",
            Self::Regulatory => "as enterprise, kept for ten years, with an audit stream",
            Self::Nats => "NATS servers with JetStream and durable streams",
        }
    }

    pub(super) fn backend(self) -> Backend {
        match self {
            Self::Personal => Backend::InMemory,
            Self::Developer | Self::Enterprise | Self::Regulatory => Backend::Redis,
            Self::Nats => Backend::Nats,
        }
    }

    pub(super) fn stream_prefix(self) -> &'static str {
        match self {
            Self::Developer => "atlas-dev",
            _ => "atlas_bus",
        }
    }
}

/// Something that the file must not have, and the variable that carries it.
pub(super) struct Carried {
    pub(super) variable: &'static str,
    pub(super) value: String,
    /// The line for a shell, with a placeholder for what is secret.
    pub(super) how: String,
}

/// All that decides what stands in the file.
pub(super) struct Answers {
    pub(super) preset: Preset,
    /// Where the backend is, without passwords; `None` where a variable says it, or there is none.
    pub(super) url: Option<String>,
    pub(super) stream_prefix: String,
    pub(super) subject_root: String,
    pub(super) replicas: u32,
    pub(super) listen: SocketAddr,
    pub(super) http: SocketAddr,
    pub(super) secrets: Vec<Carried>,
}

impl Answers {
    /// From the command line alone.
    ///
    /// # Errors
    /// A flag with a value that its key does not take.
    pub(super) fn from_flags(preset: Preset, args: &InitArgs) -> Result<Self, Failure> {
        let prefix = args.stream_prefix.clone().unwrap_or_else(|| preset.stream_prefix().to_owned());
        for (key, value, flag) in [
            ("messaging.stream_prefix", &prefix, "--stream-prefix"),
            ("messaging.subject_root", &args.subject_root, "--subject-root"),
        ] {
            check(key, value, flag)?;
        }
        for (flag, address) in [("--listen", args.listen), ("--http", args.http)] {
            if !address.ip().is_loopback() {
                return Err(InitError::Reachable { flag, address }.into());
            }
        }
        let mut answers = Self {
            preset,
            url: None,
            stream_prefix: prefix,
            subject_root: args.subject_root.clone(),
            replicas: args.replicas,
            listen: args.listen,
            http: args.http,
            secrets: Vec::new(),
        };
        match preset.backend() {
            Backend::InMemory => {}
            Backend::Redis => match (&args.redis_url, variable("REDIS_URL")) {
                (Some(url), _) => {
                    check("messaging.redis_url", url, "--redis-url")?;
                    answers.redis(url);
                }
                (None, Some(_)) => {}
                (None, None) => answers.redis(REDIS_URL),
            },
            Backend::Nats => match (&args.nats_url, variable("NATS_URL")) {
                (Some(url), _) => {
                    check("messaging.nats_url", url, "--nats-url")?;
                    answers.nats(url);
                }
                (None, Some(_)) => {}
                (None, None) => answers.nats(NATS_URL),
            },
        }
        Ok(answers)
    }

    /// Takes a URL of Redis, which was checked; a password in it goes into a variable.
    pub(super) fn redis(&mut self, url: &str) {
        let (shown, placeholder) = without_password(url);
        if RedisUrl::parse(url).is_ok_and(|url| url.password.is_some()) {
            self.secrets.push(Carried {
                variable: "TRUNKLINE_REDIS_URL",
                value: url.to_owned(),
                how: format!(
                    "export TRUNKLINE_REDIS_URL='{placeholder}'   # what is special in it as %XX, such as %40 for @"
                ),
            });
        }
        self.url = Some(shown);
    }

    /// Takes URLs of NATS, which were checked; credentials in them go into a variable.
    pub(super) fn nats(&mut self, url: &str) {
        let Ok(parsed) = NatsUrl::parse(url) else { return };
        let servers = |user: &str| -> String {
            let shown = parsed.servers().iter().map(|server| {
                let (host, port) = (server.host_str().unwrap_or_default(), server.port().unwrap_or(4222));
                format!("{}://{user}{host}:{port}", server.scheme())
            });
            shown.collect::<Vec<_>>().join(",")
        };
        if parsed.has_credentials() {
            self.secrets.push(Carried {
                variable: "TRUNKLINE_NATS_URL",
                value: url.to_owned(),
                how: format!("export TRUNKLINE_NATS_URL='{}'", servers("USER:PASSWORD@")),
            });
        }
        self.url = Some(servers(""));
    }

    /// Takes user and password for NATS servers.
    pub(super) fn nats_user(&mut self, user: String, password: String) {
        self.secrets.push(Carried {
            variable: "TRUNKLINE_NATS_AUTH_USERNAME",
            how: format!("export TRUNKLINE_NATS_AUTH_USERNAME='{}'", user.replace('\'', r"'\''")),
            value: user,
        });
        self.secrets.push(Carried {
            variable: "TRUNKLINE_NATS_AUTH_PASSWORD",
            value: password,
            how: "export TRUNKLINE_NATS_AUTH_PASSWORD='PASSWORD'".to_owned(),
        });
    }
}

pub(super) const REDIS_URL: &str = "redis://localhost:6379/0";
pub(super) const NATS_URL: &str = "nats://127.0.0.1:4222";

/// A variable of the environment that is set to something.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether a key takes this value, by the rules of the configuration itself.
///
/// # Errors
/// What is wrong with the value, told of the flag.
pub(super) fn check(key: &str, value: &str, flag: &str) -> Result<(), SettingsError> {
    let nothing: [(&str, &str); 0] = [];
    Loader::new()
        .env(nothing)
        .working_dir("/nonexistent")
        .flag(key, value, flag)
        .load()
        .map(drop)
        .map_err(SettingsError::from)
}

/// A URL of Redis without its password, and with a placeholder for it.
fn without_password(url: &str) -> (String, String) {
    let whole = || (url.to_owned(), url.to_owned());
    let Some((scheme, rest)) = url.split_once("://") else { return whole() };
    let end = rest.find('/').unwrap_or(rest.len());
    let Some((credentials, hosts)) = rest[..end].rsplit_once('@') else { return whole() };
    let path = &rest[end..];
    let user = credentials.split_once(':').map_or(credentials, |(user, _)| user);
    let before = if user.is_empty() { String::new() } else { format!("{user}@") };
    (format!("{scheme}://{before}{hosts}{path}"), format!("{scheme}://{user}:PASSWORD@{hosts}{path}"))
}

/// Text as a part of a URL.
pub(super) fn escaped(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_leave_the_url() {
        for (url, shown, placeholder) in [
            ("redis://h:1/0", "redis://h:1/0", "redis://h:1/0"),
            ("redis://u:s%2Fx@h:1/0", "redis://u@h:1/0", "redis://u:PASSWORD@h:1/0"),
            ("rediss://:s@h", "rediss://h", "rediss://:PASSWORD@h"),
            (
                "redis-sentinel://u:s@a,b:2/main/1",
                "redis-sentinel://u@a,b:2/main/1",
                "redis-sentinel://u:PASSWORD@a,b:2/main/1",
            ),
        ] {
            assert_eq!(without_password(url), (shown.to_owned(), placeholder.to_owned()), "{url}");
        }
    }

    #[test]
    fn what_is_special_in_a_url_is_escaped() {
        assert_eq!(escaped("p@ss/w:ö"), "p%40ss%2Fw%3A%C3%B6");
        let url = format!("redis://u:{}@h", escaped("p@ss/w:ö"));
        assert_eq!(RedisUrl::parse(&url).unwrap().password.unwrap().expose(), "p@ss/w:ö");
    }
}
