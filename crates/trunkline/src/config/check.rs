//! What several keys must fulfil together, checked once each of them has been read.

use std::collections::HashMap;

use super::error::{ConfigError, StreamPattern};
use super::settings::Place;
use super::tree::{Node, Origin};
use super::values::is_name;
use super::{Config, HandshakeFirst, keys};

/// Reports every contradiction in `config`; `tree` is what it was read from and knows the origins.
pub(super) fn check(config: &Config, tree: &Node, errors: &mut Vec<ConfigError>) {
    let check = Check { config, tree };
    check.nats(errors);
    check.streams(errors);
    check.users(errors);
    check.server(errors);
    check.component_names(errors);
    check.dependencies(errors);
}

struct Check<'a> {
    config: &'a Config,
    tree: &'a Node,
}

impl Check<'_> {
    fn origin(&self, key: &str) -> Origin {
        self.tree.find(key).map_or(Origin::Default, |node| node.origin.clone())
    }

    fn inconsistent(&self, at: &str, key: &str, reason: impl Into<String>) -> ConfigError {
        ConfigError::Inconsistent { origin: self.origin(at), key: key.to_owned(), reason: reason.into() }
    }

    fn nats(&self, errors: &mut Vec<ConfigError>) {
        let auth = &self.config.messaging.nats_auth;
        let given = [
            ("messaging.nats_auth.username", auth.username.is_some()),
            ("messaging.nats_auth.token", auth.token.is_some()),
            ("messaging.nats_auth.nkey_file", auth.nkey_file.is_some()),
            ("messaging.nats_auth.credentials_file", auth.credentials_file.is_some()),
        ];
        let mut given = given.into_iter().filter_map(|(key, is_set)| is_set.then_some(key));
        let fault = match (&auth.username, &auth.password) {
            (Some(_), None) => {
                Some(("messaging.nats_auth.username", "needs messaging.nats_auth.password".to_owned()))
            }
            (None, Some(_)) => {
                Some(("messaging.nats_auth.password", "needs messaging.nats_auth.username".to_owned()))
            }
            _ => given.next().zip(given.next()).map(|(first, second)| (second, format!("excludes {first}"))),
        };
        errors.extend(fault.map(|(key, reason)| self.inconsistent(key, key, reason)));

        let tls = &self.config.messaging.nats_tls;
        let fault = match (&tls.cert_file, &tls.key_file) {
            (Some(_), None) => Some(("messaging.nats_tls.cert_file", "needs messaging.nats_tls.key_file")),
            (None, Some(_)) => Some(("messaging.nats_tls.key_file", "needs messaging.nats_tls.cert_file")),
            _ => None,
        };
        errors.extend(fault.map(|(key, reason)| self.inconsistent(key, key, reason)));
    }

    fn streams(&self, errors: &mut Vec<ConfigError>) {
        let streams = &self.config.messaging.streams;
        let mut names = HashMap::new();
        for (index, stream) in streams.iter().enumerate() {
            let at = format!("messaging.streams[{index}]");
            if stream.subjects.is_empty() {
                let key = format!("{at}.subjects");
                errors.push(self.inconsistent(&at, &key, "must name at least one subject"));
            }
            let name_key = format!("{at}.name");
            if let Some(first) = names.insert(stream.name.as_str(), name_key.clone()) {
                errors.push(ConfigError::DuplicateName {
                    origin: self.origin(&name_key),
                    what: "stream",
                    name: stream.name.clone(),
                    first: self.origin(&first),
                });
            }
            for earlier in 0..index {
                self.overlap(index, earlier, errors);
            }
        }
    }

    /// One error for two streams is enough, however many of their patterns overlap.
    fn overlap(&self, index: usize, earlier_index: usize, errors: &mut Vec<ConfigError>) {
        let streams = &self.config.messaging.streams;
        let described = |stream: usize, pattern: usize| {
            Box::new(StreamPattern {
                stream: streams[stream].name.clone(),
                pattern: streams[stream].subjects[pattern].to_string(),
                origin: self.origin(&format!("messaging.streams[{stream}].subjects[{pattern}]")),
            })
        };
        for (i, pattern) in streams[index].subjects.iter().enumerate() {
            for (j, other) in streams[earlier_index].subjects.iter().enumerate() {
                if pattern.overlaps(other) {
                    errors.push(ConfigError::Overlap {
                        later: described(index, i),
                        earlier: described(earlier_index, j),
                    });
                    return;
                }
            }
        }
    }

    fn users(&self, errors: &mut Vec<ConfigError>) {
        let server = &self.config.server;
        let mut names = HashMap::new();
        for (index, user) in server.users.iter().enumerate() {
            self.user(user, format!("server.users[{index}]"), &mut names, errors);
        }
        for (name, account) in &server.accounts {
            let at = format!("server.accounts.{name}");
            if !is_name(name, "_-") {
                // Its place is not found by a printed key, which takes a dot for the end of a name.
                let accounts = Place::root(self.tree).field("server").field("accounts");
                errors.push(ConfigError::Inconsistent {
                    origin: accounts.field(name).near(),
                    key: at,
                    reason: "is no name for an account: letters, digits, _ or - and at most 64 of them"
                        .to_owned(),
                });
                continue;
            }
            for (index, user) in account.users.iter().enumerate() {
                if user.admin {
                    let key = format!("{at}.users[{index}].admin");
                    let reason = "cannot be: the admin API is about the users of server.users";
                    errors.push(self.inconsistent(&key, &key, reason));
                }
                self.user(user, format!("{at}.users[{index}]"), &mut names, errors);
            }
        }
        self.queue_in_publish(&server.permissions, "server.permissions", errors);

        let auth = &server.auth;
        if let Some(name) = &auth.no_auth_user
            && !names.contains_key(name.as_str())
            && auth.user.as_ref() != Some(name)
        {
            let key = "server.auth.no_auth_user";
            errors.push(self.inconsistent(key, key, format!("is \"{name}\", which is no user")));
        }
        let fault = match (&auth.user, &auth.password, &auth.token) {
            (Some(_), None, _) => Some(("server.auth.user", "needs server.auth.password")),
            (None, Some(_), _) => Some(("server.auth.password", "needs server.auth.user")),
            (Some(_), Some(_), Some(_)) => Some(("server.auth.token", "excludes server.auth.user")),
            (Some(user), Some(_), None) if names.contains_key(user.as_str()) => {
                Some(("server.auth.user", "is a user of server.users or server.accounts too"))
            }
            _ => None,
        };
        errors.extend(fault.map(|(key, reason)| self.inconsistent(key, key, reason)));
    }

    /// One user, at the key `at`. A name is one user's in all accounts: it alone says to which of them a client belongs.
    fn user<'a>(
        &self,
        user: &'a super::User,
        at: String,
        names: &mut HashMap<&'a str, String>,
        errors: &mut Vec<ConfigError>,
    ) {
        let fault = match (&user.user, &user.password, &user.nkey) {
            (Some(_), Some(_), None) | (None, None, Some(_)) => None,
            (None, None, None) => Some("needs a user and a password, or an nkey"),
            (_, _, Some(_)) => Some("has an nkey and a user or password; one excludes the other"),
            (Some(_), None, None) if self.config.server.tls.verify_and_map => None,
            (Some(_), None, None) => Some("has no password"),
            (None, Some(_), None) => Some("has a password but no user"),
        };
        errors.extend(fault.map(|reason| self.inconsistent(&at, &at, reason)));
        if let Some(permissions) = &user.permissions {
            self.queue_in_publish(permissions, &format!("{at}.permissions"), errors);
        }
        let Some(name) = user.user.as_ref().or(user.nkey.as_ref()) else {
            return;
        };
        let field = if user.user.is_some() { "user" } else { "nkey" };
        let key = format!("{at}.{field}");
        if let Some(first) = names.insert(name.as_str(), key.clone()) {
            errors.push(ConfigError::DuplicateName {
                origin: self.origin(&key),
                what: "user",
                name: name.clone(),
                first: self.origin(&first),
            });
        }
    }

    /// A publish has no queue group; with one the rule would never match, and its author would not know.
    fn queue_in_publish(&self, permissions: &super::Permissions, at: &str, errors: &mut Vec<ConfigError>) {
        let rules = &permissions.publish;
        let mut all = rules.allow.iter().flatten().chain(&rules.deny);
        if all.any(|rule| rule.queue.is_some()) {
            let key = format!("{at}.publish");
            errors.push(self.inconsistent(&key, &key, "cannot be restricted to a queue group"));
        }
    }

    fn server(&self, errors: &mut Vec<ConfigError>) {
        let tls = &self.config.server.tls;
        let fault = match (&tls.cert_file, &tls.key_file) {
            (Some(_), None) => Some(("server.tls.cert_file", "needs server.tls.key_file")),
            (None, Some(_)) => Some(("server.tls.key_file", "needs server.tls.cert_file")),
            _ if tls.verify && tls.ca_file.is_none() => {
                Some(("server.tls.verify", "needs server.tls.ca_file"))
            }
            _ if tls.verify && !tls.is_on() => Some(("server.tls.verify", "needs server.tls.cert_file")),
            _ if tls.verify_and_map && tls.ca_file.is_none() => {
                Some(("server.tls.verify_and_map", "needs server.tls.ca_file"))
            }
            _ if tls.verify_and_map && !tls.is_on() => {
                Some(("server.tls.verify_and_map", "needs server.tls.cert_file"))
            }
            _ if tls.http && !tls.is_on() => Some(("server.tls.http", "needs server.tls.cert_file")),
            // The two ask the client for opposite things: to begin at once, and to say nothing.
            _ if tls.allow_non_tls && tls.handshake_first == HandshakeFirst::Always => {
                Some(("server.tls.allow_non_tls", "excludes server.tls.handshake_first: true"))
            }
            _ => None,
        };
        errors.extend(fault.map(|(key, reason)| self.inconsistent(key, key, reason)));

        if self.config.server.websocket.no_tls && self.config.server.websocket.listen.is_none() {
            let key = "server.websocket.no_tls";
            errors.push(self.inconsistent(key, key, "needs server.websocket.listen"));
        }

        let limits = &self.config.server.limits;
        if limits.max_payload > limits.max_pending {
            let set = ["server.limits.max_payload", "server.limits.max_pending"]
                .into_iter()
                .find(|key| self.tree.find(key).is_some())
                .unwrap_or_default();
            errors.push(self.inconsistent(
                set,
                "server.limits.max_payload",
                "is larger than server.limits.max_pending, so such a message would reach nobody",
            ));
        }
    }

    fn component_names(&self, errors: &mut Vec<ConfigError>) {
        let components = self.tree.find("components");
        for (name, component) in &self.config.components {
            let place = Place::root(self.tree).field("components").field(name);
            let origin = components
                .and_then(|node| node.entry(name))
                .map_or(Origin::Default, |(name, _)| name.origin.clone());
            if !is_name(name, "_-") {
                errors.push(ConfigError::Value {
                    origin: origin.clone(),
                    key: "components".to_owned(),
                    value: format!("a map with the name {name:?}"),
                    expected: "names of letters, digits, _ and -".to_owned(),
                });
            }
            for variable in component.env.keys() {
                if variable.is_empty() || variable.contains(['=', '\0']) {
                    errors.push(ConfigError::Inconsistent {
                        origin: place.field("env").near(),
                        key: format!("components.{name}.env"),
                        reason: format!("has {variable:?}, which cannot name a variable"),
                    });
                }
            }
        }
    }

    fn dependencies(&self, errors: &mut Vec<ConfigError>) {
        let components = &self.config.components;
        let places = Place::root(self.tree).field("components");
        let origin = |name: &str, index: usize| places.field(name).field("depends_on").index(index).near();
        for (name, component) in components {
            for (index, dependency) in component.depends_on.iter().enumerate() {
                if !components.contains_key(dependency) {
                    let known = components.keys().map(String::as_str);
                    errors.push(ConfigError::UnknownDependency {
                        origin: origin(name, index),
                        component: name.clone(),
                        dependency: dependency.clone(),
                        nearest: keys::closest(dependency, known).map(str::to_owned),
                    });
                }
            }
        }

        // Depth first with an explicit path: a component met again while it is on the path closes a circle. One that
        // was left is done for good, so each circle is found once.
        let mut visits: HashMap<&str, Visit> = HashMap::new();
        for start in components.keys() {
            let mut path: Vec<(&str, usize)> = Vec::new();
            if !visits.contains_key(start.as_str()) {
                visits.insert(start, Visit::OnPath);
                path.push((start, 0));
            }
            while let Some((name, next)) = path.pop() {
                let Some(dependency) = components.get(name).and_then(|it| it.depends_on.get(next)) else {
                    visits.insert(name, Visit::Left);
                    continue;
                };
                path.push((name, next + 1));
                match visits.get(dependency.as_str()) {
                    Some(Visit::Left) => {}
                    Some(Visit::OnPath) => {
                        let circle = path.iter().skip_while(|(name, _)| name != dependency);
                        let mut cycle: Vec<String> = circle.map(|(name, _)| (*name).to_owned()).collect();
                        cycle.push(dependency.clone());
                        errors.push(ConfigError::DependencyCycle { origin: origin(name, next), cycle });
                    }
                    None if components.contains_key(dependency) => {
                        visits.insert(dependency, Visit::OnPath);
                        path.push((dependency, 0));
                    }
                    None => {}
                }
            }
        }
    }
}

/// How far the search for circles has come with a component.
#[derive(Clone, Copy)]
enum Visit {
    OnPath,
    Left,
}
