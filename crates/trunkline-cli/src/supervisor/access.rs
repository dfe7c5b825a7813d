//! How components reach the bus: where it is, and as whom.
//!
//! Where the server asks for users, each component gets one of its own for this run, with a password that nobody has to
//! know: it is in memory and in the component's environment, and nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use trunkline::Pattern;
use trunkline::config::{Config, NatsUrl, Secret, SubjectRule, User};
use trunkline_server::{AuthOptions, AuthSource};
use url::Url;

/// Random bytes of a password.
const PASSWORD_BYTES: usize = 24;
/// What the names of made users begin with.
const USER_PREFIX: &str = "component-";

/// The system gives no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("passwords for components cannot be made: {reason}")]
pub(crate) struct PasswordError {
    reason: String,
}

/// The users that are made for components.
#[derive(Debug, Clone, Default)]
pub(crate) struct MadeUsers {
    /// Passwords by the name of the component.
    passwords: BTreeMap<String, Secret>,
    /// Those of them to whom somebody of their name lends its permissions.
    lent: BTreeSet<String>,
    /// Where components report what they see, where they are to.
    reports: Option<Pattern>,
}

impl MadeUsers {
    /// Makes a user for each component, where the server asks for users at all.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub(crate) fn make(config: &Config) -> Result<Self, PasswordError> {
        let (mut passwords, mut lent) = (BTreeMap::new(), BTreeSet::new());
        let options = AuthOptions::from(&config.server);
        if options.is_required() {
            for name in config.components.keys() {
                passwords.insert(name.clone(), password()?);
                let mut users = options.users.iter().chain(options.accounts.values().flatten());
                if users.any(|user| user.user.as_ref() == Some(name)) {
                    lent.insert(name.clone());
                }
            }
        }
        Ok(Self { passwords, lent, reports: reports(config) })
    }

    /// Adds them to the users of the configuration. Who is named like the component lends it its permissions, and is in
    /// the same account; else it has those of whoever has none of its own. Where there was somebody of that name and is not
    /// any more, the component is nobody either: it must not have more rights because those were taken away.
    pub(crate) fn join(&self, options: &mut AuthOptions) {
        for (name, password) in &self.passwords {
            let alike = |user: &&User| user.user.as_ref() == Some(name);
            let mut made = User {
                user: Some(format!("{USER_PREFIX}{name}")),
                password: Some(password.clone()),
                nkey: None,
                admin: false,
                connection_types: None,
                permissions: options.users.iter().find(alike).and_then(|user| user.permissions.clone()),
            };
            options.made.extend(made.user.clone());
            let inherited = options.default_permissions.clone();
            let account = options.accounts.values_mut().find(|users| users.iter().any(|user| alike(&user)));
            if self.lent.contains(name) && account.is_none() && !options.users.iter().any(|user| alike(&user))
            {
                continue;
            }
            if let Some(users) = &account {
                made.permissions = users.iter().find(alike).and_then(|user| user.permissions.clone());
            }
            made.permissions = made.permissions.or(inherited);
            self.allow_reports(&mut made);
            account.unwrap_or(&mut options.users).push(made);
        }
    }

    /// What `up` asks a component to do, its user may.
    fn allow_reports(&self, made: &mut User) {
        let allowed = made.permissions.as_mut().and_then(|permissions| permissions.publish.allow.as_mut());
        if let (Some(allowed), Some(pattern)) = (allowed, &self.reports) {
            allowed.push(SubjectRule { pattern: pattern.clone(), queue: None });
        }
    }

    /// The source of users with these beside those that it says.
    pub(crate) fn beside(self, source: AuthSource) -> AuthSource {
        Arc::new(move || {
            let mut options = source()?;
            self.join(&mut options);
            Ok(options)
        })
    }

    fn of(&self, component: &str) -> Option<(String, &Secret)> {
        self.passwords.get(component).map(|password| (format!("{USER_PREFIX}{component}"), password))
    }
}

fn password() -> Result<Secret, PasswordError> {
    let mut bytes = [0; PASSWORD_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| PasswordError { reason: error.to_string() })?;
    // Digits and letters alone: clients differ in what else they decode in a URL. A letter first: nats.js takes digits behind
    // the first colon for the port.
    Ok(Secret::new(format!("p{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())))
}

/// Where components find the bus.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// At the embedded server.
    Embedded {
        /// Where it listens.
        address: SocketAddr,
        /// Whether clients have to use TLS.
        tls: bool,
    },
    /// At the NATS servers themselves.
    Nats,
}

/// Makes the variables that lead a component to the bus.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    place: Place,
    users: MadeUsers,
    nats_url: NatsUrl,
    nats_auth: trunkline::config::NatsAuth,
    /// What components are to report of themselves, where conversations are recorded.
    observe: Vec<(String, String)>,
}

/// Where components report what they see, where conversations are recorded.
pub(crate) fn reports(config: &Config) -> Option<Pattern> {
    // The root was checked when the configuration was read.
    let pattern = Pattern::new(format!("{}.system.trace", config.messaging.subject_root)).ok();
    pattern.filter(|_| config.observe.enabled.unwrap_or(true))
}

/// The variables by which components that are built on the library report what they see.
pub(crate) fn reporting(config: &Config) -> Vec<(String, String)> {
    if !config.observe.enabled.unwrap_or(true) {
        return Vec::new();
    }
    let mut variables = vec![("TRUNKLINE_OBSERVE_ENABLED".to_owned(), "true".to_owned())];
    if !config.observe.redact.is_empty() {
        // What nobody is to see does not even leave the component.
        let names = serde_json::Value::from(config.observe.redact.clone()).to_string();
        variables.push(("TRUNKLINE_OBSERVE_REDACT".to_owned(), names));
    }
    variables
}

impl Access {
    /// The way of this configuration's components.
    pub(crate) fn new(config: &Config, place: Place, users: MadeUsers) -> Self {
        let messaging = &config.messaging;
        let (nats_url, nats_auth) = (messaging.nats_url.clone(), messaging.nats_auth.clone());
        Self { place, users, nats_url, nats_auth, observe: reporting(config) }
    }

    /// The variables of one component. Stock clients differ in what they read of a URL, so user and password stand beside
    /// it, too.
    pub(super) fn variables(&self, component: &str) -> Vec<(String, String)> {
        let (servers, user) = match &self.place {
            Place::Embedded { address, tls } => {
                let scheme = if *tls { "tls" } else { "nats" };
                let url = Url::parse(&format!("{scheme}://{}", reachable(*address)));
                let user = self.users.of(component).map(|(name, password)| (name, password.clone()));
                (url.into_iter().collect(), user)
            }
            Place::Nats => {
                let auth = &self.nats_auth;
                let user = auth.username.clone().zip(auth.password.clone());
                (self.nats_url.servers().to_vec(), user)
            }
        };
        let token = match self.place {
            Place::Nats => self.nats_auth.token.as_ref(),
            Place::Embedded { .. } => None,
        };
        let with_user = |url: &Url| {
            let mut url = url.clone();
            // What stands in the URL is for this server, and wins.
            let is_free = url.username().is_empty() && url.password().is_none();
            if let (Some((name, password)), true) = (&user, is_free) {
                // It has a host, so it takes both.
                let _ = url.set_username(name).and_then(|()| url.set_password(Some(password.expose())));
            } else if let (Some(token), true) = (token, is_free) {
                let _ = url.set_username(token.expose());
            }
            url.to_string()
        };
        let urls: Vec<String> = servers.iter().map(with_user).collect();
        // Not every client takes a list; one server is enough to learn of the others.
        let first = urls.first().cloned().unwrap_or_default();
        let mut variables =
            vec![("TRUNKLINE_URL".to_owned(), urls.join(",")), ("NATS_URL".to_owned(), first)];
        variables.extend(self.observe.iter().cloned());
        if let Some((name, password)) = user {
            variables.push(("NATS_USER".to_owned(), name));
            variables.push(("NATS_PASSWORD".to_owned(), password.expose().to_owned()));
        }
        if let Place::Nats = self.place {
            let files =
                [("NATS_CREDS", &self.nats_auth.credentials_file), ("NATS_NKEY", &self.nats_auth.nkey_file)];
            for (name, file) in files {
                if let Some(file) = file {
                    // A component may run in another directory.
                    let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
                    variables.push((name.to_owned(), file.to_string_lossy().into_owned()));
                }
            }
        }
        variables
    }
}

/// The address under which this machine reaches what listens there.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use trunkline::config::Loader;

    use super::*;

    fn config(yaml: &str) -> Config {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.yaml"), yaml).unwrap();
        let none: [(&str, &str); 0] = [];
        Loader::new().env(none).working_dir(directory.path()).load().unwrap().config
    }

    fn variables(yaml: &str, place: Place) -> BTreeMap<String, String> {
        let config = config(yaml);
        let users = MadeUsers::make(&config).unwrap();
        Access::new(&config, place, users).variables("tool").into_iter().collect()
    }

    fn embedded() -> Place {
        Place::Embedded { address: "0.0.0.0:4300".parse().unwrap(), tls: false }
    }

    const COMPONENT: &str = "components: {tool: {command: x}}\n";

    #[test]
    fn without_users_there_is_nothing_but_the_address() {
        let variables = variables(COMPONENT, embedded());
        assert_eq!(variables.len(), 3);
        assert_eq!(variables["TRUNKLINE_OBSERVE_ENABLED"], "true");
        assert_eq!(variables["NATS_URL"], "nats://127.0.0.1:4300");
        assert_eq!(variables["TRUNKLINE_URL"], "nats://127.0.0.1:4300");
    }

    #[test]
    fn components_report_what_they_see_unless_nothing_is_recorded_and_hide_what_is_to_be_hidden() {
        let off = variables(&format!("{COMPONENT}observe: {{enabled: false, redact: [pin]}}"), embedded());
        assert_eq!(off.len(), 2, "{off:?}");
        let on = variables(&format!("{COMPONENT}observe: {{redact: [pin, 'a\"b']}}"), embedded());
        assert_eq!(on["TRUNKLINE_OBSERVE_ENABLED"], "true");
        assert_eq!(on["TRUNKLINE_OBSERVE_REDACT"], r#"["pin","a\"b"]"#);
    }

    #[test]
    fn a_made_user_has_the_permissions_of_the_one_named_alike_and_none_of_its_other_rights() {
        let yaml = format!(
            "{COMPONENT}server: {{users: [{{user: tool, password: x, admin: true, permissions: {{publish: 'a.>'}}}}]}}\n"
        );
        let config = config(&yaml);
        let users = MadeUsers::make(&config).unwrap();
        let mut options = AuthOptions::from(&config.server);
        users.join(&mut options);
        let made = options.users.last().unwrap();
        assert_eq!(made.user.as_deref(), Some("component-tool"));
        let allowed = |user: &User| {
            let rules = user.permissions.as_ref().unwrap().publish.allow.clone().unwrap();
            rules.iter().map(|rule| rule.pattern.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(allowed(&options.users[0]), ["a.>"]);
        assert_eq!(allowed(made), ["a.>", "nachos.system.trace"], "it is asked to report");
        assert!(!made.admin);
        let password = made.password.as_ref().unwrap().expose().to_owned();
        assert!(password.len() >= 32 && password.chars().all(|c| c.is_ascii_alphanumeric()));
        assert!(!format!("{users:?} {options:?}").contains(&password), "it must not be shown");
        let variables = Access::new(&config, embedded(), users).variables("tool");
        let url = format!("nats://component-tool:{password}@127.0.0.1:4300");
        assert!(variables.contains(&("NATS_URL".to_owned(), url)));
        assert!(variables.contains(&("NATS_PASSWORD".to_owned(), password)));
    }

    #[test]
    fn a_made_user_goes_when_the_one_named_alike_goes_and_gains_nothing() {
        let restricted = format!(
            "{COMPONENT}server: {{users: [{{user: tool, password: x, permissions: {{publish: []}}}}]}}\n"
        );
        let users = MadeUsers::make(&config(&restricted)).unwrap();
        let made = |yaml: &str| {
            let mut options = AuthOptions::from(&config(yaml).server);
            users.join(&mut options);
            let names: Vec<_> = options.users.into_iter().filter_map(|user| user.user).collect();
            names
        };
        assert_eq!(made(&restricted), ["tool", "component-tool"]);
        assert_eq!(made("server: {users: [{user: ann, password: a}]}\n"), ["ann"]);
        let moved = "server: {accounts: {east: {users: [{user: tool, password: x}]}}}\n";
        let mut options = AuthOptions::from(&config(moved).server);
        users.join(&mut options);
        assert_eq!(options.accounts["east"].len(), 2);
    }

    #[test]
    fn a_made_user_is_in_the_account_of_the_one_named_alike() {
        let yaml =
            format!("{COMPONENT}server: {{accounts: {{east: {{users: [{{user: tool, password: x}}]}}}}}}\n");
        let config = config(&yaml);
        let mut options = AuthOptions::from(&config.server);
        MadeUsers::make(&config).unwrap().join(&mut options);
        assert!(options.users.is_empty());
        assert_eq!(options.accounts["east"][1].user.as_deref(), Some("component-tool"));
    }

    #[test]
    fn on_nats_the_configured_credentials_go_along() {
        let yaml = format!(
            "{COMPONENT}messaging: {{backend: nats, nats_url: 'nats://a:1,nats://own:pw@b:2', nats_auth: {{username: ann, password: s3}}}}\n"
        );
        let variables = variables(&yaml, Place::Nats);
        assert_eq!(variables["TRUNKLINE_URL"], "nats://ann:s3@a:1,nats://own:pw@b:2");
        assert_eq!(variables["NATS_URL"], "nats://ann:s3@a:1");
        assert_eq!(variables["NATS_USER"], "ann");
        let yaml =
            format!("{COMPONENT}messaging: {{backend: nats, nats_auth: {{credentials_file: /a.creds}}}}\n");
        assert_eq!(super::tests::variables(&yaml, Place::Nats)["NATS_CREDS"], "/a.creds");
    }
}
