//! The servers a conversation is played on: the real one and ours, set up alike.

use std::net::SocketAddr;
use std::time::Duration;

use trunkline_server::Server;
use trunkline_testkit::NatsServer;

use super::super::auth::{auth, server_with};
use super::differences::Version;

/// Nothing that a conversation leads to is a matter of time: a machine that stands still for a minute or two changes none of
/// it. So long is everything that ends by itself, on both servers.
const LONG: Duration = Duration::from_secs(60 * 60);
/// nats-server takes no more.
const AUTH_TIMEOUT: Duration = Duration::from_secs(60);

/// How servers are set up, and what that makes interesting.
pub(crate) struct World {
    /// Behind limits, the configuration of nats-server.
    theirs: &'static str,
    /// The section `server` of ours.
    ours: &'static str,
    /// Fields of CONNECT that say who a client is; empty for nobody in particular.
    pub(crate) users: &'static [&'static str],
    /// Subjects and patterns about which the permissions say something.
    pub(crate) subjects: &'static [&'static str],
    /// Patterns that nobody subscribes to, since what is allowed is decided differently.
    pub(crate) avoided: &'static [&'static str],
    pub(crate) queues: &'static [&'static str],
    pub(crate) max_payload: usize,
    pub(crate) max_control_line: usize,
    pub(crate) max_subscriptions: usize,
}

/// Everybody may do everything.
pub(crate) static OPEN: World = World {
    theirs: "",
    ours: "{}",
    users: &[""],
    subjects: &[],
    avoided: &[],
    queues: &["q", "r"],
    max_payload: 1000,
    max_control_line: 1500,
    max_subscriptions: 8,
};

/// Users who may do this and not that.
pub(crate) static PERMISSIONS: World = World {
    theirs: r#"
authorization {
  timeout: 60
  users = [
    {user: full, password: f, permissions: {publish: ">", subscribe: ">"}}
    {user: ann, password: a, permissions: {
      publish: {allow: ["a.*", "b.>", "x.y"], deny: ["a.no", "b.*.secret"]}
      subscribe: {
        allow: ["a.*", "b.>", "q.x v1", "q.y", "q.y v2", "q.z v.*", "_INBOX.a"]
        deny: ["a.no", "b.secret.>", "b.*.hidden", "b.c q"]
      }
    }}
    {user: svc, password: s, permissions: {subscribe: ["svc.>", "c q"], allow_responses: {max: 2, expires: "1h"}}}
    {user: one, password: o, permissions: {
      subscribe: ["a.b", "svc.one"], publish: ["x.y"], allow_responses: {max: 1, expires: "1h"}
    }}
    {user: pub, password: p, permissions: {publish: {deny: ["a.>", "svc.*"]}, subscribe: {deny: [">"]}}}
    {user: def, password: d}
  ]
  default_permissions: {publish: ["a", "svc.>", "b.*"], subscribe: {deny: ["a.no", "b.>"]}}
}
"#,
    ours: r#"
{users: [
  {user: full, password: f, permissions: {publish: ">", subscribe: ">"}},
  {user: ann, password: a, permissions: {
    publish: {allow: ["a.*", "b.>", "x.y"], deny: ["a.no", "b.*.secret"]},
    subscribe: {
      allow: ["a.*", "b.>", "q.x v1", "q.y", "q.y v2", "q.z v.*", "_INBOX.a"],
      deny: ["a.no", "b.secret.>", "b.*.hidden", "b.c q"]
    }
  }},
  {user: svc, password: s, permissions: {subscribe: ["svc.>", "c q"], allow_responses: {max: 2, expires: 1h}}},
  {user: one, password: o, permissions: {
    subscribe: ["a.b", "svc.one"], publish: ["x.y"], allow_responses: {max: 1, expires: 1h}
  }},
  {user: pub, password: p, permissions: {publish: {deny: ["a.>", "svc.*"]}, subscribe: {deny: [">"]}}},
  {user: def, password: d}],
 permissions: {publish: ["a", "svc.>", "b.*"], subscribe: {deny: ["a.no", "b.>"]}}}
"#,
    users: &[
        r#""user":"full","pass":"f""#,
        r#""user":"full","pass":"f""#,
        r#""user":"ann","pass":"a""#,
        r#""user":"ann","pass":"a""#,
        r#""user":"svc","pass":"s""#,
        r#""user":"one","pass":"o""#,
        r#""user":"pub","pass":"p""#,
        r#""user":"def","pass":"d""#,
        r#""user":"ann","pass":"wrong""#,
        "",
    ],
    subjects: &[
        "a.no",
        "a.*",
        "b.>",
        "b.x.secret",
        "b.secret.x",
        "b.secret",
        "b.x.hidden",
        "b.*.hidden",
        "q.x",
        "q.y",
        "q.z",
        "b.c",
        "_INBOX.a",
        "_INBOX.>",
        "svc.one",
        "svc.two",
        "svc.*",
        "svc.>",
        "x.y",
        "a.b",
        ">",
        "a",
        "c",
    ],
    avoided: &["a.>"],
    queues: &["q", "v1", "v2", "v.1"],
    max_payload: 1000,
    max_control_line: 1500,
    max_subscriptions: 8,
};

/// Users of several accounts, each a space of subjects of its own.
pub(crate) static ACCOUNTS: World = World {
    theirs: r#"
accounts {
  east { users = [{user: ann, password: a}, {user: amy, password: a, permissions: {publish: {deny: "a.>"}}}] }
  west { users = [{user: bob, password: b}] }
}
authorization { timeout: 60 }
no_auth_user: bob
"#,
    ours: r#"
{accounts: {
  east: {users: [{user: ann, password: a}, {user: amy, password: a, permissions: {publish: {deny: ["a.>"]}}}]},
  west: {users: [{user: bob, password: b}]}},
 auth: {no_auth_user: bob}}
"#,
    users: &[
        r#""user":"ann","pass":"a""#,
        r#""user":"amy","pass":"a""#,
        r#""user":"bob","pass":"b""#,
        r#""user":"amy","pass":"wrong""#,
        "",
    ],
    subjects: &[],
    avoided: &[],
    queues: &["q", "r"],
    max_payload: 1000,
    max_control_line: 1500,
    max_subscriptions: 8,
};

/// Both servers of a world.
pub(crate) struct Pair {
    pub(crate) theirs: NatsServer,
    pub(crate) ours: Server,
}

impl World {
    fn limits(&self) -> String {
        format!(
            "max_payload: {}\nmax_control_line: {}\nmax_subscriptions: {}\nping_interval: 1h\nwrite_deadline: 1h\n",
            self.max_payload, self.max_control_line, self.max_subscriptions
        )
    }

    /// Starts them.
    pub(crate) async fn start(&self, version: Version) -> Pair {
        let config = format!("{}{}", self.limits(), self.theirs);
        let theirs = match version {
            Version::Newest => NatsServer::start_with_config(&config),
            Version::Debian => NatsServer::start_2_9_with_config(&config),
        };
        let ours = server_with(|options| {
            options.auth = auth(self.ours);
            options.auth.timeout = AUTH_TIMEOUT;
            // Wrong passwords are part of the conversation, from one address.
            options.auth.failures_max = None;
            // What the server says of itself is no part of the conversation.
            options.health_interval = 24 * LONG;
            (options.limits.ping_interval, options.limits.write_deadline) = (LONG, LONG);
            options.limits.max_payload = self.max_payload;
            options.limits.max_control_line = self.max_control_line;
            options.limits.max_subscriptions = self.max_subscriptions;
        })
        .await;
        Pair { theirs, ours }
    }
}

impl Pair {
    pub(crate) fn their_address(&self) -> SocketAddr {
        self.theirs.url().trim_start_matches("nats://").parse().expect("an address")
    }
}
