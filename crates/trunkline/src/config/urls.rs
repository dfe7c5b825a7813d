//! The URLs of the servers behind a backend. They may carry credentials, so they print without them everywhere.

use std::borrow::Cow;
use std::fmt;

use serde_json::Value as Json;
use url::Url;

use super::settings::{Fault, Leaf, Rule};
use super::values::Secret;

/// Most servers that one URL can list.
const SERVERS_MAX: usize = 64;

const REDIS_SCHEMES: &str = "redis, rediss, redis-sentinel, rediss-sentinel, redis-cluster or rediss-cluster";

/// Where Redis is.
///
/// | form | meaning |
/// |---|---|
/// | `redis://[user:password@]host[:port][/db]` | one server |
/// | `redis-sentinel://[user:password@]host[:port],…/master[/db]` | the sentinels that know where `master` is |
/// | `redis-cluster://[user:password@]host[:port],…` | some nodes of a cluster |
///
/// `rediss` in the place of `redis` means TLS; `+` may stand for `-`. Ports default to 6379, of sentinels to 26379.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisUrl {
    /// What the hosts are.
    pub topology: RedisTopology,
    /// Whether connections use TLS.
    pub tls: bool,
    /// Host and port of every server named, at least one.
    pub hosts: Vec<(String, u16)>,
    /// User name of Redis ACLs.
    pub username: Option<String>,
    /// Password, with or without a user name.
    pub password: Option<Secret>,
    /// Number of the database; a cluster has only 0.
    pub db: u32,
    text: String,
}

/// What the hosts of a [`RedisUrl`] are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisTopology {
    /// One server.
    Single,
    /// Sentinels, to be asked for the address of a master.
    Sentinel {
        /// Name of the master.
        master: String,
    },
    /// Nodes of a cluster.
    Cluster,
}

/// Where NATS is: one server or several of one cluster, separated by commas; `nats://` or `tls://`.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsUrl(Vec<Url>);

impl RedisUrl {
    /// Reads a URL in one of the forms above; on failure the text says why, without credentials.
    pub fn parse(text: &str) -> Result<RedisUrl, String> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| format!("expected a URL with the scheme {REDIS_SCHEMES}"))?;
        let scheme = scheme.to_ascii_lowercase().replace('+', "-");
        let (protocol, kind) = scheme.split_once('-').unwrap_or((&scheme, ""));
        let tls = match protocol {
            "redis" => false,
            "rediss" => true,
            _ => return Err(format!("the scheme is not {REDIS_SCHEMES}")),
        };
        if rest.contains(['?', '#']) {
            return Err("parameters after ? or # are not supported".to_owned());
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials), hosts),
            None => (None, authority),
        };
        let port_default = if kind == "sentinel" { 26379 } else { 6379 };
        let hosts =
            hosts.split(',').map(|host| host_port(host, port_default)).collect::<Result<Vec<_>, _>>()?;
        let segments: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (topology, db) = match (kind, segments.as_slice()) {
            ("", []) => (RedisTopology::Single, 0),
            ("", [db]) => (RedisTopology::Single, db_number(db)?),
            ("cluster", [] | ["0"]) => (RedisTopology::Cluster, 0),
            ("cluster", _) => return Err("a cluster has only database 0".to_owned()),
            ("sentinel", [master, rest @ ..]) if rest.len() <= 1 => {
                let db = rest.first().map_or(Ok(0), |db| db_number(db))?;
                let master = percent_decode(master)?;
                (RedisTopology::Sentinel { master }, db)
            }
            ("sentinel", []) => {
                return Err("the name of the master is missing: host:port/master".to_owned());
            }
            ("" | "sentinel", _) => return Err("too many parts after the host".to_owned()),
            _ => return Err(format!("the scheme is not {REDIS_SCHEMES}")),
        };
        if topology == RedisTopology::Single && hosts.len() > 1 {
            return Err("several hosts need the scheme redis-sentinel or redis-cluster".to_owned());
        }
        if hosts.len() > SERVERS_MAX {
            return Err(format!("lists more than {SERVERS_MAX} servers"));
        }
        let (username, password) = match credentials {
            None => (None, None),
            Some(credentials) => {
                let (user, password) = match credentials.split_once(':') {
                    Some((user, password)) => (user, Some(password)),
                    None => (credentials, None),
                };
                let user = Some(percent_decode(user)?).filter(|user| !user.is_empty());
                let password = password.map(percent_decode).transpose()?;
                (user, password.filter(|text| !text.is_empty()).map(Secret::new))
            }
        };
        Ok(RedisUrl { topology, tls, hosts, username, password, db, text: text.to_owned() })
    }

    /// The URL as it was written, credentials included, for a process that is to connect to the same server.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl NatsUrl {
    /// Reads one URL or several; on failure the text says why, without credentials.
    pub fn parse(text: &str) -> Result<NatsUrl, String> {
        let servers =
            text.split(',').map(|server| nats_server(server.trim())).collect::<Result<Vec<_>, _>>()?;
        match servers.len() {
            0..=SERVERS_MAX => Ok(NatsUrl(servers)),
            _ => Err(format!("lists more than {SERVERS_MAX} servers")),
        }
    }

    /// The servers, at least one, credentials included.
    pub fn servers(&self) -> &[Url] {
        &self.0
    }

    /// Whether a server is given with credentials.
    pub fn has_credentials(&self) -> bool {
        self.0.iter().any(|server| !server.username().is_empty() || server.password().is_some())
    }

    /// The servers separated by commas, credentials included, for a process that is to connect to the same ones.
    pub fn expose(&self) -> String {
        let servers: Vec<&str> = self.0.iter().map(Url::as_str).collect();
        servers.join(",")
    }
}

fn nats_server(text: &str) -> Result<Url, String> {
    // NATS clients accept `host:port` alone, so people write it.
    let text: Cow<'_, str> = match text.contains("://") {
        true => text.into(),
        false => format!("nats://{text}").into(),
    };
    let mut url = Url::parse(&text).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "nats" | "tls") {
        return Err("the scheme is not nats or tls".to_owned());
    }
    if url.host_str().unwrap_or_default().is_empty() {
        return Err("the host is missing".to_owned());
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err("nothing may follow the port".to_owned());
    }
    url.set_path("");
    if url.port().is_none() {
        url.set_port(Some(4222)).map_err(|()| "the host is missing".to_owned())?;
    }
    Ok(url)
}

fn host_port(text: &str, port_default: u16) -> Result<(String, u16), String> {
    let url = Url::parse(&format!("redis://{text}")).map_err(|error| error.to_string())?;
    match url.host_str() {
        Some(host) if !host.is_empty() => Ok((host.to_owned(), url.port().unwrap_or(port_default))),
        _ => Err("the host is missing".to_owned()),
    }
}

fn db_number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "the database after the host is not a number".to_owned())
}

fn percent_decode(text: &str) -> Result<String, String> {
    let broken = || "a % is not followed by two hexadecimal digits of UTF-8".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            rest.next()
                .and_then(|byte| char::from(byte).to_digit(16))
                .and_then(|digit| u8::try_from(digit).ok())
                .ok_or_else(broken)
        };
        bytes.push(digit()? << 4 | digit()?);
    }
    String::from_utf8(bytes).map_err(|_| broken())
}

/// The text with everything that may be a credential in a URL replaced by `***`.
///
/// It works on any text, because a URL that does not parse must not show its password either. For the same reason it
/// cuts up to the last `@`, and so loses the first hosts of a list: a password may contain an unescaped comma.
pub fn redact(text: &str) -> Cow<'_, str> {
    let Some((before, after)) = text.rsplit_once('@') else {
        return text.into();
    };
    match before.split_once("://") {
        Some((scheme, _)) => format!("{scheme}://***@{after}").into(),
        None => format!("***@{after}").into(),
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact(&self.text))
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

impl fmt::Display for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, server) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}", redact(server.as_str()))?;
        }
        Ok(())
    }
}

impl fmt::Debug for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NatsUrl({self})")
    }
}

impl Leaf for RedisUrl {
    fn expected(_: &Rule) -> Cow<'static, str> {
        "a URL such as redis://localhost:6379/0".into()
    }

    fn parse(text: &str, _: &Rule) -> Result<Self, Fault> {
        RedisUrl::parse(text).map_err(Fault::Url)
    }

    fn render(&self, _: &Rule) -> Json {
        self.to_string().into()
    }
}

impl Leaf for NatsUrl {
    fn expected(_: &Rule) -> Cow<'static, str> {
        "URLs such as nats://localhost:4222".into()
    }

    fn parse(text: &str, _: &Rule) -> Result<Self, Fault> {
        NatsUrl::parse(text).map_err(Fault::Url)
    }

    fn render(&self, _: &Rule) -> Json {
        self.to_string().into()
    }
}
