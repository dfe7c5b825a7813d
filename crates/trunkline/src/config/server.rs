//! The section `server`: where the embedded server listens, who may connect, and its limits.
//!
//! Whether an address may be served without auth or TLS is the server's decision and not checked here.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value as Json;

use super::declare::{choices, settings};
use super::settings::{Fault, Format, Leaf, Rule};
use super::subjects::SubjectRule;
use super::tree::{Name, Node, Value};
use super::values::{Secret, parse_duration, render_duration};

settings! {
    /// The embedded server: where it listens, who may connect, and its limits.
    pub struct Server in "server." {
        /// Address for NATS clients; port 0 takes any free one.
        pub listen: SocketAddr => default("127.0.0.1:4222");
        /// Address of the dashboard, the admin API and monitoring; `off` for none.
        pub http: Option<SocketAddr> => default("127.0.0.1:8222");
        /// A separate address for probes and metrics alone; with `server.http` unless set.
        pub metrics_listen: Option<SocketAddr>;
        /// Whether addresses beyond loopback may be served without TLS.
        pub plaintext: bool => default("false");
        /// One user or token for everybody, and the admin token.
        pub auth: Auth;
        /// Users, each with its own permissions.
        pub users: Vec<User>;
        /// Permissions of whoever has none of its own: users, the one user or token, and clients where nobody is asked who
        /// they are.
        pub permissions: Permissions;
        /// Spaces of subjects that are apart from each other and from that of `server.users`, by name.
        pub accounts: BTreeMap<String, Account>;
        /// Certificates, for clients and WebSocket alike.
        pub tls: Tls;
        /// Bounds of what one client may take.
        pub limits: Limits;
        /// NATS over WebSocket, for browsers.
        pub websocket: WebSocket;
    }
}

settings! {
    /// One user or token for everybody, and the admin token.
    pub struct Auth in "server.auth." {
        /// The one user name; several stand in `server.users`.
        pub user: Option<String>;
        /// Password of that user: a bcrypt or argon2 hash, as `trunkline passwd` makes it, or plain text.
        pub password: Option<Secret>;
        /// A token in the place of user and password: its hash or the plain text.
        pub token: Option<Secret>;
        /// The user that a client without credentials is taken for.
        pub no_auth_user: Option<String>;
        /// Token of the admin API and the dashboard; `up` makes one and prints it unless set.
        pub admin_token: Option<Secret>;
    }
}

settings! {
    /// A user: a name with a password, or an nkey.
    pub struct User in "server.users[]." {
        /// User name.
        pub user: Option<String>;
        /// Password: a bcrypt or argon2 hash, as `trunkline passwd` makes it, or plain text.
        pub password: Option<Secret>;
        /// Public nkey, in the place of name and password.
        pub nkey: Option<String> => format(Format::Nkey);
        /// Whether this user may use the admin API and the dashboard, with its name and password.
        pub admin: bool => default("false");
        /// What it may publish and subscribe to; `server.permissions` unless set.
        pub permissions: Option<Permissions>;
        /// How it may connect, `standard` (TCP or TLS) and `websocket`; either way unless set.
        pub connection_types: Option<Vec<ConnectionType>>;
    }
}

settings! {
    /// A space of subjects of its own: what its users publish is seen by them alone.
    pub struct Account in "server.accounts.{name}." {
        /// The users of the account.
        pub users: Vec<User>;
    }
}

settings! {
    /// What a user may publish and subscribe to.
    pub struct Permissions in "server.permissions." {
        /// Subjects that may be published to: a pattern, a list, or `{allow, deny}`.
        pub publish: SubjectRules;
        /// Subjects that may be subscribed to, `PATTERN` or `PATTERN QUEUE`: one, a list, or `{allow, deny}`.
        pub subscribe: SubjectRules;
        /// Whether a responder may publish to the reply subject of a request it got: `true`, or `{max, expires}`.
        pub allow_responses: Option<Responses>;
    }
}

settings! {
    /// Patterns that are allowed and denied; what is denied stays so even when allowed.
    pub struct SubjectRules in "server.permissions.{publish,subscribe}.", shorthand allow_list {
        /// What is allowed; everything unless set, nothing if empty.
        pub allow: Option<Vec<SubjectRule>>;
        /// What is denied.
        pub deny: Vec<SubjectRule>;
    }
}

settings! {
    /// How long a responder may publish to the reply subject of a request.
    pub struct Responses in "server.permissions.allow_responses.", shorthand plain_true {
        /// Replies to one request.
        pub max: u32 => default("1"), range("1", "1000000");
        /// Time after the request.
        pub expires: Duration => default("2m"), range("100ms", "24h");
    }
}

settings! {
    /// Certificates. Paths are relative to the working directory.
    pub struct Tls in "server.tls." {
        /// Certificate chain, PEM; TLS is on when it is set.
        pub cert_file: Option<PathBuf>;
        /// Private key of the certificate, PEM.
        pub key_file: Option<PathBuf>;
        /// Authorities that client certificates are checked against, PEM.
        pub ca_file: Option<PathBuf>;
        /// Whether clients must show a certificate.
        pub verify: bool => default("false");
        /// Whether clients must show a certificate, which says which user they are: by an e-mail address, a DNS name, a URI
        /// or its subject. Such users need no password.
        pub verify_and_map: bool => default("false");
        /// Whether clients that speak no TLS are served, too.
        pub allow_non_tls: bool => default("false");
        /// Oldest version of TLS.
        pub min_version: TlsVersion => default("1.2");
        /// Whether the handshake comes before INFO: `true`, `false`, or how long to wait for a client that starts it;
        /// `auto` is 50 ms.
        pub handshake_first: HandshakeFirst => default("false"), range("1ms", "10s");
        /// Longest handshake.
        pub timeout: Duration => default("2s"), range("100ms", "1m");
        /// Whether `server.http` is served over TLS, too: `https://`, with the same certificate. Nobody is asked for theirs.
        pub http: bool => default("false");
    }
}

settings! {
    /// Bounds of what one client may take.
    pub struct Limits in "server.limits." {
        /// Largest message with its headers.
        pub max_payload: u64 => default("1MiB"), format(Format::Bytes), range("1", "64MiB");
        /// Longest protocol line.
        pub max_control_line: u64 => default("4KiB"), format(Format::Bytes), range("256", "1MiB");
        /// Most clients at a time.
        pub max_connections: u64 => default("65536"), range("1", "10000000");
        /// Most connections that one address may open within a second; unlimited unless set.
        pub connection_rate: Option<u32> => range("1", "1000000");
        /// Most subscriptions of one client; unlimited unless set.
        pub max_subscriptions: Option<u64> => range("1", "1000000000");
        /// Most bytes that wait for one client before it is cut off as a slow consumer.
        pub max_pending: u64 => default("64MiB"), format(Format::Bytes), range("64KiB", "16GiB");
        /// Time between two PINGs to a client.
        pub ping_interval: Duration => default("2m"), range("100ms", "1h");
        /// PINGs without an answer before the connection is stale.
        pub ping_max: u32 => default("2"), range("1", "100");
        /// Longest time a write to a client may take.
        pub write_deadline: Duration => default("10s"), range("100ms", "10m");
        /// Longest time until a client has authenticated.
        pub auth_timeout: Duration => default("2s"), range("100ms", "10m");
        /// Failed attempts to authenticate as one user from one address within a minute; more are refused unchecked.
        pub auth_failures: Option<u32> => default("30"), range("1", "1000000");
        /// Over what time lame duck mode closes the clients.
        pub lame_duck_duration: Duration => default("2m"), range("1s", "1h");
        /// Time in lame duck mode before the first client is closed.
        pub lame_duck_grace_period: Duration => default("10s"), range("0s", "1h");
    }
}

settings! {
    /// NATS over WebSocket.
    pub struct WebSocket in "server.websocket." {
        /// Address for WebSocket clients; none unless set.
        pub listen: Option<SocketAddr>;
        /// Origins besides the server's own that pages may connect from, such as `https://chat.example.org`; `*` are all.
        pub allowed_origins: Vec<String>;
        /// Whether pages may connect that come from the host and port that they connect to.
        pub same_origin: bool => default("true");
        /// Whether this address is without TLS where other clients have it: behind a proxy that does TLS itself.
        pub no_tls: bool => default("false");
        /// Longest time until a client has asked for a WebSocket.
        pub handshake_timeout: Duration => default("2s"), range("100ms", "1m");
    }
}

choices! {
    /// How a client may connect.
    pub enum ConnectionType {
        /// By TCP, with TLS or without.
        Standard = "standard",
        /// Over WebSocket.
        WebSocket = "websocket",
    }
}

choices! {
    /// A version of TLS.
    pub enum TlsVersion {
        /// TLS 1.2 of 2008, for clients that know no newer one.
        V12 = "1.2",
        /// TLS 1.3 of 2018.
        V13 = "1.3",
    }
}

impl Tls {
    /// Whether clients are served over TLS.
    pub fn is_on(&self) -> bool {
        self.cert_file.is_some()
    }
}

/// Whether the TLS handshake comes before the server's first line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFirst {
    /// INFO first, then the handshake, as NATS clients expect by default.
    Off,
    /// The handshake first, always.
    Always,
    /// The handshake first if the client starts it within this time, else INFO.
    Within(Duration),
}

impl HandshakeFirst {
    /// What `auto` says, as on nats-server: clients that begin with the handshake are waited for 50 ms.
    pub const AUTO: Self = Self::Within(Duration::from_millis(50));
}

impl Leaf for HandshakeFirst {
    fn expected(_: &Rule) -> Cow<'static, str> {
        "true, false, auto or a duration such as 300ms".into()
    }

    fn parse(text: &str, rule: &Rule) -> Result<Self, Fault> {
        match text {
            "true" | "on" => Ok(HandshakeFirst::Always),
            "false" | "off" => Ok(HandshakeFirst::Off),
            "auto" => Ok(HandshakeFirst::AUTO),
            _ => {
                parse_duration(text).ok_or(Fault::Type)?;
                Duration::parse(text, rule).map(HandshakeFirst::Within)
            }
        }
    }

    fn render(&self, _: &Rule) -> Json {
        match self {
            HandshakeFirst::Off => false.into(),
            HandshakeFirst::Always => true.into(),
            HandshakeFirst::Within(wait) => render_duration(*wait).into(),
        }
    }
}

/// `publish: "a.>"` and `publish: ["a.>"]` are short for `publish: {allow: ["a.>"]}`.
fn allow_list(short: &Node) -> Option<Node> {
    let items = match &short.value {
        Value::Text(_) => vec![short.clone()],
        Value::List(items) => items.clone(),
        Value::Null | Value::Map(_) => return None,
    };
    let allow = Node { value: Value::List(items), origin: short.origin.clone() };
    let name = Name { text: "allow".to_owned(), origin: short.origin.clone() };
    Some(Node { value: Value::Map(vec![(name, allow)]), origin: short.origin.clone() })
}

/// `allow_responses: true` is short for all its defaults.
fn plain_true(short: &Node) -> Option<Node> {
    match &short.value {
        Value::Text(text) if matches!(text.as_str(), "true" | "on") => {
            Some(Node::empty_map(short.origin.clone()))
        }
        _ => None,
    }
}
