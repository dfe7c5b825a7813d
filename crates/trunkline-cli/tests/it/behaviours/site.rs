//! What the behaviours need beside a server: certificates, an nkey, and the configuration file of each.

use std::ffi::OsString;
use std::path::Path;

use nkeys::KeyPair;
use trunkline_testkit::Authority;
use trunkline_testkit::certificates::{Certificate, DnType};

/// Whether `trunkline up` has keys of its own for what this behaviour is about.
pub(super) fn is_seen_on_up(behaviour: &str) -> bool {
    behaviour.starts_with("tls_")
        || behaviour.starts_with("a_client_certificate_")
        || behaviour == "a_secure_connection_comes_back"
}

/// Certificates and keys of one run. They go when it is dropped.
pub(super) struct Site {
    authority: Authority,
    stranger: Authority,
    server: Certificate,
    /// Names the user `ann`.
    ann: Certificate,
    /// Names nobody the server knows, but is signed by the authority it trusts.
    nobody: Certificate,
    nkey: KeyPair,
    unknown_nkey: KeyPair,
    directory: tempfile::TempDir,
}

impl Site {
    pub(super) fn make() -> Self {
        let authority = Authority::make();
        let named = |name: &str| {
            authority.sign_with(&[&format!("{name}.test")], |params| {
                params.distinguished_name = Default::default();
                params.distinguished_name.push(DnType::CommonName, name);
            })
        };
        let site = Self {
            server: authority.sign(&["localhost", "127.0.0.1"]),
            ann: named("ann"),
            nobody: named("nobody"),
            authority,
            stranger: Authority::make(),
            nkey: KeyPair::new_user(),
            unknown_nkey: KeyPair::new_user(),
            directory: tempfile::tempdir().expect("a temporary directory"),
        };
        for (name, key) in [("nkey.seed", &site.nkey), ("unknown.seed", &site.unknown_nkey)] {
            let seed = key.seed().expect("it was just made");
            std::fs::write(site.path().join(name), seed).expect("a temporary directory takes a file");
        }
        site
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// What the programs read from their environment.
    pub(super) fn variables(&self) -> Vec<(&'static str, OsString)> {
        vec![
            ("BEHAVIOUR_CA", self.authority.ca_file().into()),
            // Whom pages trust is not for them to say.
            ("NODE_EXTRA_CA_CERTS", self.authority.ca_file().into()),
            ("BEHAVIOUR_STRANGE_CA", self.stranger.ca_file().into()),
            ("BEHAVIOUR_CERT", (&self.ann.cert_file).into()),
            ("BEHAVIOUR_KEY", (&self.ann.key_file).into()),
            ("BEHAVIOUR_NOBODY_CERT", (&self.nobody.cert_file).into()),
            ("BEHAVIOUR_NOBODY_KEY", (&self.nobody.key_file).into()),
            ("BEHAVIOUR_NKEY", self.nkey.public_key().into()),
            ("BEHAVIOUR_NKEY_FILE", self.path().join("nkey.seed").into()),
            ("BEHAVIOUR_UNKNOWN_NKEY", self.unknown_nkey.public_key().into()),
            ("BEHAVIOUR_UNKNOWN_NKEY_FILE", self.path().join("unknown.seed").into()),
        ]
    }

    /// The configuration file for a behaviour, in nats-server's syntax.
    pub(super) fn configuration(&self, behaviour: &str) -> String {
        match behaviour {
            // The second password is the hash of `hashed`.
            "user_and_password_open_the_door" => {
                let hash = bcrypt::hash("hashed", 4).expect("a hash can be made");
                format!("authorization {{users: [{{user: ann, password: plain}}, {{user: bob, password: \"{hash}\"}}]}}\n")
            }
            "a_token_opens_the_door" => "authorization {token: \"s3cr3t-token\"}\n".to_owned(),
            "an_nkey_opens_the_door" => {
                format!("authorization {{users: [{{nkey: {}}}]}}\n", self.nkey.public_key())
            }
            "no_auth_user_is_who_says_nothing" => "\
                authorization {users: [{user: ann, password: plain},\
                {user: guest, password: \"\", permissions: {publish: [\"open.>\"], subscribe: [\"open.>\", \"_INBOX.>\"]}}]}\n\
                no_auth_user: guest\n"
                .to_owned(),
            "violations_of_permissions_reach_the_error_handler" => "\
                authorization {users: [{user: ann, password: plain, permissions: {\
                publish: {allow: [\"open.>\"], deny: [\"open.secret\"]}, subscribe: [\"open.>\", \"open.work workers\", \"_INBOX.>\"]}}]}\n"
                .to_owned(),
            "tls_is_required" => format!("tls {}\n", self.tls("")),
            "tls_is_optional" => format!("tls {}\nallow_non_tls: true\n", self.tls("")),
            "tls_comes_first" => format!("tls {}\n", self.tls("handshake_first: true")),
            "tls_comes_first_for_who_begins_with_it" => {
                format!("tls {}\n", self.tls("handshake_first: \"300ms\""))
            }
            "a_client_certificate_is_verified" => {
                format!("tls {}\n", self.tls(&format!("verify: true, {}", self.ca())))
            }
            "a_client_certificate_names_a_user" => {
                let tls = self.tls(&format!("verify_and_map: true, {}", self.ca()));
                format!("tls {tls}\nauthorization {{users: [{ANN_BY_CERTIFICATE}]}}\n")
            }
            "a_secure_connection_comes_back" => {
                format!("tls {}\nauthorization {{users: [{ANN}]}}\n", self.tls(""))
            }
            "lame_duck_mode_is_told" => {
                "lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"200ms\"\n".to_owned()
            }
            "a_silent_client_is_cut_off" => "ping_interval: \"250ms\"\nping_max: 2\n".to_owned(),
            "a_slow_client_is_cut_off" => "max_pending: 1MB\nwrite_deadline: \"10s\"\n".to_owned(),
            "too_large_a_payload_is_refused_in_the_client" | "too_large_a_payload_ends_the_connection" => {
                "max_payload: 1024\n".to_owned()
            }
            "one_connection_too_many_is_refused" => "max_connections: 2\n".to_owned(),
            "one_subscription_too_many_is_refused" => "max_subscriptions: 2\n".to_owned(),
            _ => String::new(),
        }
    }

    /// The same for clients that come by WebSocket; what is said of TLS is then about that.
    pub(super) fn web_configuration(&self, behaviour: &str) -> String {
        let (tls, rest) = match behaviour {
            "tls_is_required" => (format!("tls {}", self.tls("")), String::new()),
            "a_secure_connection_comes_back" => {
                (format!("tls {}", self.tls("")), format!("authorization {{users: [{ANN}]}}\n"))
            }
            _ => ("no_tls: true".to_owned(), self.configuration(behaviour)),
        };
        format!("{rest}websocket {{listen: \"127.0.0.1:-1\", {tls}}}\n")
    }

    /// The same for `trunkline up`, if it [is seen there](is_seen_on_up).
    pub(super) fn up_configuration(&self, behaviour: &str) -> Option<String> {
        let section = match behaviour {
            "tls_is_required" => self.tls(""),
            "tls_is_optional" => self.tls("allow_non_tls: true"),
            "tls_comes_first" => self.tls("handshake_first: true"),
            "tls_comes_first_for_who_begins_with_it" => self.tls("handshake_first: 300ms"),
            "a_client_certificate_is_verified" => self.tls(&format!("verify: true, {}", self.ca())),
            "a_client_certificate_names_a_user" => {
                let tls = self.tls(&format!("verify_and_map: true, {}", self.ca()));
                return Some(format!("server:\n  tls: {tls}\n  users: [{ANN_BY_CERTIFICATE}]\n"));
            }
            "a_secure_connection_comes_back" => {
                return Some(format!("server:\n  tls: {}\n  users: [{ANN}]\n", self.tls("")));
            }
            _ => return None,
        };
        Some(format!("server:\n  tls: {section}\n"))
    }

    fn tls(&self, more: &str) -> String {
        let (cert, key) = (self.server.cert_file.display(), self.server.key_file.display());
        format!("{{cert_file: \"{cert}\", key_file: \"{key}\", timeout: \"5s\", {more}}}")
    }

    fn ca(&self) -> String {
        format!("ca_file: \"{}\"", self.authority.ca_file().display())
    }
}

const ANN: &str = "{user: ann, password: plain}";

const ANN_BY_CERTIFICATE: &str =
    "{user: \"CN=ann\", permissions: {publish: \"open.>\", subscribe: \"open.>\"}}";
