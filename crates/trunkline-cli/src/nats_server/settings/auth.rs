//! The keys about users: `authorization`, `accounts` and `no_auth_user`.

use std::collections::HashSet;
use std::time::Duration;

use trunkline::config::{ConnectionType, Permissions, Responses, Secret, SubjectRule, SubjectRules, User};
use trunkline_server::{AuthError, AuthOptions};

use super::super::conf::{Entry, Map, Node, Place, Value};
use super::read::Mistakes;
use super::top::says_nothing;

/// What stands for no limit of the time to answer.
const LONG: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// More time to say who one is than anybody needs.
const TIMEOUT_USUAL: Duration = Duration::from_secs(60);

const NO_PROXY: &str = "it trusts no proxy to say who a client is";

/// The account of everybody who is in no other.
const GLOBAL_ACCOUNT: &str = "$G";

/// Reads one of the keys of the top level that are about users.
pub(super) fn read(key: &str, entry: &Entry, auth: &mut AuthOptions, mistakes: &mut Mistakes) -> bool {
    match key {
        "authorization" => authorization(entry, auth, mistakes),
        "accounts" => accounts(entry, auth, mistakes),
        "no_auth_user" => auth.no_auth_user = mistakes.word(entry),
        _ => return false,
    }
    true
}

/// What only the whole shows to be wrong.
pub(super) fn check(map: &Map, auth: &AuthOptions, mistakes: &mut Mistakes) {
    if let (Some(name), Some(node)) = (&auth.no_auth_user, map.get("no_auth_user")) {
        let mut users = auth.users.iter().chain(auth.accounts.values().flatten());
        if !users.any(|user| user.user.as_ref().or(user.nkey.as_ref()) == Some(name)) {
            mistakes.note(
                &node.place,
                format!("no_auth_user: {name:?} not present as user or nkey in authorization block or account configuration"),
            );
        }
    }
    check_beside_accounts(map, mistakes);
    let mut names = HashSet::new();
    for user in auth.users.iter().chain(auth.accounts.values().flatten()) {
        let name = user.user.as_ref().or(user.nkey.as_ref());
        if let Some(name) = name.filter(|name| !names.insert((*name).clone()))
            && let Some(entry) = map.entries.iter().find(|entry| {
                entry.key.eq_ignore_ascii_case("accounts") || entry.key.eq_ignore_ascii_case("authorization")
            })
        {
            let what = if auth_has_nkey(auth, name) { "nkey" } else { "user" };
            mistakes.note(&entry.place, format!("Duplicate {what} {name:?} detected"));
        }
    }
}

fn auth_has_nkey(auth: &AuthOptions, name: &str) -> bool {
    let mut users = auth.users.iter().chain(auth.accounts.values().flatten());
    users.any(|user| user.nkey.as_deref() == Some(name))
}

/// One password or token for everybody and accounts exclude each other: in which account would its clients be?
fn check_beside_accounts(map: &Map, mistakes: &mut Mistakes) {
    let section = |key: &str| {
        let found = map.entries.iter().find(|entry| entry.key.eq_ignore_ascii_case(key));
        found.and_then(|entry| match &entry.node.value {
            Value::Map(section) if !section.entries.is_empty() => Some((entry, section)),
            _ => None,
        })
    };
    let (Some((entry, authorization)), Some(_)) = (section("authorization"), section("accounts")) else {
        return;
    };
    let says = |keys: &[&str]| keys.iter().any(|key| authorization.get(key).is_some());
    if says(&["user", "username"]) {
        mistakes.note(&entry.place, "Can not have a single user/pass and accounts");
    }
    if says(&["token"]) {
        mistakes.note(&entry.place, "Can not have a token and accounts");
    }
}

fn authorization(entry: &Entry, auth: &mut AuthOptions, mistakes: &mut Mistakes) {
    let Some(map) = mistakes.map(entry) else { return };
    let (mut user, mut password, mut users) = (None, None, None);
    for inner in &map.entries {
        match inner.key.to_ascii_lowercase().as_str() {
            "user" | "username" => user = mistakes.text(inner),
            "pass" | "password" => password = mistakes.text(inner),
            "token" => auth.token = token(inner, mistakes),
            "timeout" => {
                if let Some(timeout) = mistakes.duration(inner).filter(|timeout| !timeout.is_zero()) {
                    auth.timeout = timeout;
                    if timeout > TIMEOUT_USUAL {
                        let text = "timeout is high, consider keeping it under 60 seconds";
                        let text = format!("invalid use of field {:?}: {text}", inner.key);
                        mistakes.doubt(&inner.place, text);
                    }
                }
            }
            "users" => users = Some(read_users(inner, mistakes)),
            "default_permission" | "default_permissions" | "permissions" => {
                auth.default_permissions = permissions(inner, mistakes);
            }
            "proxy_required" if is_off(inner) => {}
            "proxy_required" => not_supported(inner, NO_PROXY, mistakes),
            "auth_callout" => not_supported(inner, "it asks nobody else who a client is", mistakes),
            _ => mistakes.unknown(inner),
        }
    }
    if user.is_some() && auth.token.is_some() {
        mistakes.note(&entry.place, "Cannot have a user/pass and token");
    }
    if users.is_some() && auth.token.is_some() {
        mistakes.note(&entry.place, "Can not have a token and a users array");
    }
    if users.is_some() && user.is_some() {
        mistakes.note(&entry.place, "Can not have a single user/pass and a users array");
    }
    auth.users = users.unwrap_or_default();
    if let Some(user) = user {
        auth.users.push(super::named_user(&user, password.as_deref().unwrap_or_default()));
    }
}

/// A token, or its hash.
fn token(entry: &Entry, mistakes: &mut Mistakes) -> Option<Secret> {
    let token = mistakes.text(entry)?;
    if token.is_empty() {
        // On nats-server everybody is let in then, which nobody means who writes it.
        mistakes.note(&entry.place, "token is empty");
        return None;
    }
    let token = Some(Secret::new(token));
    let alone = AuthOptions { token: token.clone(), ..AuthOptions::default() };
    alone.check().inspect_err(|error| mistakes.note(&entry.place, error.to_string())).ok()?;
    token
}

fn is_off(entry: &Entry) -> bool {
    entry.node.value == Value::Bool(false)
}

fn accounts(entry: &Entry, auth: &mut AuthOptions, mistakes: &mut Mistakes) {
    match &entry.node.value {
        // Names alone: accounts without users, so that nobody is ever in them.
        Value::List(list) => {
            let mut names = HashSet::new();
            for node in list {
                if let Value::Text(name) = &node.value {
                    check_account_name(name, &node.place, mistakes);
                    if !names.insert(name) {
                        mistakes.note(&node.place, format!("Duplicate Account Entry: {name}"));
                    }
                }
            }
        }
        Value::Map(map) => {
            for account in &map.entries {
                check_account_name(&account.key, &account.place, mistakes);
                let users = account_users(account, mistakes);
                auth.accounts.entry(account.key.clone()).or_default().extend(users);
            }
        }
        _ => {
            mistakes.map(entry);
        }
    }
}

/// nats-server's word for the account of everybody who is in no other is not to be given away.
fn check_account_name(name: &str, place: &Place, mistakes: &mut Mistakes) {
    if name == GLOBAL_ACCOUNT {
        mistakes.note(place, format!("{name:?} is a Reserved Account"));
    }
}

fn account_users(entry: &Entry, mistakes: &mut Mistakes) -> Vec<User> {
    let Some(map) = mistakes.map(entry) else { return Vec::new() };
    let (mut users, mut defaults) = (Vec::new(), None);
    for inner in &map.entries {
        match inner.key.to_ascii_lowercase().as_str() {
            "users" => users = read_users(inner, mistakes),
            "default_permission" | "default_permissions" | "permissions" => {
                defaults = permissions(inner, mistakes);
            }
            "exports" | "imports" | "mappings" | "maps" | "limits" if says_nothing(&inner.node) => {}
            "exports" | "imports" => not_supported(inner, "accounts share nothing", mistakes),
            "jetstream" => match inner.node.value {
                Value::Bool(false) => {}
                Value::Text(ref text) if text.eq_ignore_ascii_case("disabled") => {}
                _ => not_supported(inner, "it has no JetStream", mistakes),
            },
            "limits" => not_supported(inner, "limits are those of the server", mistakes),
            "mappings" | "maps" => not_supported(inner, "it does not map subjects", mistakes),
            "nkey" | "msg_trace" | "trace_dest" | "cluster_traffic" => {
                not_supported(inner, "it has no such thing for an account", mistakes);
            }
            _ => mistakes.unknown(inner),
        }
    }
    for user in users.iter_mut().filter(|user| user.permissions.is_none()) {
        user.permissions = defaults.clone();
    }
    users
}

fn not_supported(entry: &Entry, reason: &str, mistakes: &mut Mistakes) {
    mistakes.note(&entry.place, format!("{:?} is not supported by this server: {reason}", entry.key));
}

fn read_users(entry: &Entry, mistakes: &mut Mistakes) -> Vec<User> {
    let Some(list) = mistakes.list(entry) else { return Vec::new() };
    list.iter().filter_map(|node| user(node, mistakes)).collect()
}

fn user(node: &Node, mistakes: &mut Mistakes) -> Option<User> {
    let Value::Map(map) = &node.value else {
        mistakes.note(&node.place, format!("Expected user entry to be a map, got {}", node.value.kind()));
        return None;
    };
    let mut user = User {
        user: None,
        password: None,
        nkey: None,
        admin: false,
        permissions: None,
        connection_types: None,
    };
    for inner in &map.entries {
        match inner.key.to_ascii_lowercase().as_str() {
            "user" | "username" => user.user = mistakes.word(inner),
            "pass" | "password" => user.password = mistakes.text(inner).map(Secret::new),
            "nkey" => user.nkey = mistakes.word(inner),
            "proxy_required" if is_off(inner) => {}
            "proxy_required" => not_supported(inner, NO_PROXY, mistakes),
            "permission" | "permissions" | "authorization" => user.permissions = permissions(inner, mistakes),
            "allowed_connection_types" | "connection_types" | "clients" => {
                user.connection_types = connection_types(inner, mistakes);
            }
            _ => mistakes.unknown(inner),
        }
    }
    match (&user.user, &user.nkey) {
        (Some(_), Some(_)) => {
            mistakes.note(&node.place, "Nkey users do not take usernames or passwords");
        }
        (None, None) => mistakes.note(&node.place, "User entry requires a user"),
        (Some(_), None) => return Some(user).filter(|user| check_alone(user, &node.place, mistakes)),
        (None, Some(_)) if user.password.is_some() => {
            mistakes.note(&node.place, "Nkey users do not take usernames or passwords");
        }
        (None, Some(_)) => return Some(user).filter(|user| check_alone(user, &node.place, mistakes)),
    }
    None
}

/// What is wrong with a user whoever else there is.
fn check_alone(user: &User, place: &Place, mistakes: &mut Mistakes) -> bool {
    // Whether a user may do without a password is another question.
    let alone = AuthOptions { users: vec![user.clone()], by_certificate: true, ..AuthOptions::default() };
    match alone.check() {
        Ok(()) => return true,
        Err(AuthError::Nkey { .. }) => mistakes.note(place, "Not a valid public nkey for a user"),
        Err(error) => mistakes.note(place, error.to_string()),
    }
    false
}

/// How a user may connect; `None` is any way. Types that nats-server has and this server has no listener for lead to none.
fn connection_types(entry: &Entry, mistakes: &mut Mistakes) -> Option<Vec<ConnectionType>> {
    let list = mistakes.texts(entry).filter(|list| !list.is_empty())?;
    let (mut types, mut unknown) = (Vec::new(), Vec::new());
    for name in list.iter().map(|name| name.to_ascii_uppercase()) {
        match name.as_str() {
            "STANDARD" => types.push(ConnectionType::Standard),
            "WEBSOCKET" => types.push(ConnectionType::WebSocket),
            "LEAFNODE" | "LEAFNODE_WS" | "MQTT" | "MQTT_WS" | "IN_PROCESS" => {}
            _ => unknown.push(format!("{name:?}")),
        }
    }
    if !unknown.is_empty() {
        mistakes.note(&entry.place, format!("invalid connection types [{}]", unknown.join(" ")));
    } else if types.is_empty() {
        not_supported(entry, "it listens for connections of types STANDARD and WEBSOCKET alone", mistakes);
    }
    Some(types)
}

fn permissions(entry: &Entry, mistakes: &mut Mistakes) -> Option<Permissions> {
    let map = mistakes.map(entry)?;
    let nothing = || SubjectRules { allow: None, deny: Vec::new() };
    let mut permissions = Permissions { publish: nothing(), subscribe: nothing(), allow_responses: None };
    for inner in &map.entries {
        match inner.key.to_ascii_lowercase().as_str() {
            "pub" | "publish" | "import" => permissions.publish = rules(inner, false, mistakes),
            "sub" | "subscribe" | "export" => permissions.subscribe = rules(inner, true, mistakes),
            "publish_allow_responses" | "allow_responses" => {
                permissions.allow_responses = responses(inner, mistakes);
            }
            _ => mistakes.unknown(inner),
        }
    }
    // Who may answer, and has no list of where else it may publish, may publish nowhere else; as on nats-server.
    if permissions.allow_responses.is_some() {
        permissions.publish.allow.get_or_insert_default();
    }
    Some(permissions)
}

fn rules(entry: &Entry, with_queue: bool, mistakes: &mut Mistakes) -> SubjectRules {
    let mut rules = SubjectRules { allow: None, deny: Vec::new() };
    match &entry.node.value {
        Value::Map(map) => {
            for inner in &map.entries {
                match inner.key.to_ascii_lowercase().as_str() {
                    "allow" => rules.allow = Some(subjects(inner, with_queue, mistakes)),
                    "deny" => rules.deny = subjects(inner, with_queue, mistakes),
                    _ => mistakes.unknown(inner),
                }
            }
        }
        _ => rules.allow = Some(subjects(entry, with_queue, mistakes)),
    }
    rules
}

fn subjects(entry: &Entry, with_queue: bool, mistakes: &mut Mistakes) -> Vec<SubjectRule> {
    let nodes = match &entry.node.value {
        Value::Text(_) => std::slice::from_ref(&entry.node),
        Value::List(list) => list,
        other => {
            let kind = other.kind();
            mistakes.note(
                &entry.place,
                format!("Expected subject permissions to be a subject, or array of subjects, got {kind}"),
            );
            return Vec::new();
        }
    };
    nodes.iter().filter_map(|node| subject(node, with_queue, mistakes)).collect()
}

fn subject(node: &Node, with_queue: bool, mistakes: &mut Mistakes) -> Option<SubjectRule> {
    let text = match &node.value {
        Value::Text(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        other => {
            mistakes.note(&node.place, format!("a subject is text, and not a {}", other.kind()));
            return None;
        }
    };
    let mut words = text.split_whitespace();
    let (pattern, queue) = (words.next().unwrap_or_default(), words.next());
    let too_many = words.next().is_some() || (queue.is_some() && !with_queue);
    // Blanks are left around the words where there are two of them; alone, they belong to what is no subject then.
    let is_padded = queue.is_none() && text.trim() != text;
    let parsed = pattern.parse().ok().zip(queue.map(str::parse).transpose().ok());
    match parsed.filter(|_| !too_many && !is_padded) {
        Some((pattern, queue)) => Some(SubjectRule { pattern, queue }),
        None => {
            mistakes.note(&node.place, format!("subject {text:?} is not a valid subject"));
            None
        }
    }
}

fn responses(entry: &Entry, mistakes: &mut Mistakes) -> Option<Responses> {
    let mut responses = Responses { max: 1, expires: Duration::from_secs(120) };
    let map = match &entry.node.value {
        Value::Bool(allowed) => return allowed.then_some(responses),
        _ => mistakes.map(entry)?,
    };
    for inner in &map.entries {
        match inner.key.to_ascii_lowercase().as_str() {
            // Less than none is any number, and none is the default.
            "max" | "max_msgs" | "max_messages" | "max_responses" => match mistakes.integer(inner) {
                Some(max) if max < 0 => responses.max = u32::MAX,
                Some(0) | None => {}
                Some(max) => responses.max = u32::try_from(max).unwrap_or(u32::MAX),
            },
            "expires" | "expiration" | "ttl" => match &inner.node.value {
                Value::Integer(seconds) if *seconds < 0 => responses.expires = LONG,
                Value::Text(text) if text.starts_with('-') => responses.expires = LONG,
                _ => {
                    if let Some(expires) =
                        mistakes.duration_with_unit(inner).filter(|expires| !expires.is_zero())
                    {
                        responses.expires = expires;
                    }
                }
            },
            _ => mistakes.unknown(inner),
        }
    }
    Some(responses)
}
