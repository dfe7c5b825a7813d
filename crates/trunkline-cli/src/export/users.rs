//! Who may connect to the bus of a deployment: the users of the configuration, one for each component, and one for people.

use serde_json::{Value, json};
use trunkline::config::Loaded;
use trunkline_server::{HashScheme, hash_password};

use super::config_file::ConfigFile;
use super::error::ExportError;
use super::secrets::password;
use crate::supervisor::reports;

/// The user that people take; it may do everything, the admin API included.
pub(super) const OPERATOR: &str = "operator";
/// What the passwords of a deployment cost to check. They are random and long: a higher cost would only slow down who connects.
const BCRYPT_COST: u32 = 6;

/// A user that was made for the deployment.
pub(super) struct NewUser {
    pub(super) name: String,
    pub(super) password: String,
    /// What it may do, in the form of the configuration and of nats-server, where that is restricted.
    pub(super) permissions: Option<Value>,
    /// Whether it may use the admin API.
    pub(super) admin: bool,
}

impl NewUser {
    pub(super) fn new(name: impl Into<String>, permissions: Option<Value>) -> Result<NewUser, ExportError> {
        Ok(NewUser { name: name.into(), password: password()?, permissions, admin: false })
    }

    /// The password's hash, which is all that a server has to know.
    pub(super) fn hash(&self) -> Result<String, ExportError> {
        Ok(hash_password(&self.password, HashScheme::Bcrypt { cost: BCRYPT_COST })?)
    }

    fn to_json(&self) -> Result<Value, ExportError> {
        let mut user = json!({ "user": self.name, "password": self.hash()? });
        if self.admin {
            user["admin"] = true.into();
        }
        if let Some(permissions) = &self.permissions {
            user["permissions"] = permissions.clone();
        }
        Ok(user)
    }
}

/// The name of a component's user.
pub(super) fn user_of(component: &str) -> String {
    format!("component-{component}")
}

/// Users for all components, with the permissions of the configured user of the same name, and the operator.
pub(super) fn new_users(loaded: &Loaded) -> Result<Vec<NewUser>, ExportError> {
    let tree = ConfigFile::new(&loaded.entries(), |key| key.starts_with("server."));
    let configured = &loaded.config.server.users;
    let mut users = Vec::new();
    for component in loaded.config.components.keys() {
        let name = user_of(component);
        let like_named =
            configured.iter().position(|user| [Some(&name), Some(component)].contains(&user.user.as_ref()));
        let permissions = like_named
            .and_then(|index| tree.get(&format!("server.users[{index}].permissions")))
            .or_else(|| tree.get("server.permissions"));
        let mut permissions = permissions.cloned();
        let rules = permissions.as_mut().and_then(|permissions| permissions.get_mut("publish"));
        if let (Some(rules), Some(reports)) = (rules, reports(&loaded.config)) {
            // Its environment asks it to report what it sees.
            allow(rules, reports.as_str());
        }
        users.push(NewUser::new(name, permissions)?);
    }
    let mut operator = NewUser::new(OPERATOR, None)?;
    operator.admin = true;
    // Permissions of whoever has none of its own are not meant for who looks after all.
    operator.permissions =
        tree.get("server.permissions").map(|_| json!({ "publish": [">"], "subscribe": [">"] }));
    users.push(operator);
    Ok(users)
}

/// Adds a pattern to those that are allowed, in whatever form they are given, where not everything is.
fn allow(rules: &mut Value, pattern: &str) {
    match rules {
        Value::String(only) => *rules = json!([only, pattern]),
        Value::Array(list) => list.push(pattern.into()),
        Value::Object(fields) => {
            if let Some(allowed) = fields.get_mut("allow").filter(|allowed| !allowed.is_null()) {
                allow(allowed, pattern);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// `server.users` of the deployment: the new ones, and those of the configuration whose names they leave.
pub(super) fn server_users(loaded: &Loaded, new: &[NewUser]) -> Result<String, ExportError> {
    let mut list = new.iter().map(NewUser::to_json).collect::<Result<Vec<_>, _>>()?;
    let tree = ConfigFile::new(&loaded.entries(), |key| key.starts_with("server.users["));
    for (index, user) in loaded.config.server.users.iter().enumerate() {
        if user.user.as_ref().is_some_and(|name| new.iter().any(|new| new.name == *name)) {
            continue;
        }
        list.push(with_password(tree.get(&format!("server.users[{index}]")), user));
    }
    Ok(serde_json::to_string_pretty(&list)?)
}

/// `server.accounts` as configured, passwords included.
pub(super) fn accounts(loaded: &Loaded) -> Result<Option<String>, ExportError> {
    let accounts = &loaded.config.server.accounts;
    if accounts.is_empty() {
        return Ok(None);
    }
    let tree = ConfigFile::new(&loaded.entries(), |key| key.starts_with("server.accounts."));
    let mut all = serde_json::Map::new();
    for (name, account) in accounts {
        let at = |index| format!("server.accounts.{name}.users[{index}]");
        let users = account.users.iter().enumerate();
        let users: Vec<Value> =
            users.map(|(index, user)| with_password(tree.get(&at(index)), user)).collect();
        all.insert(name.clone(), json!({ "users": users }));
    }
    Ok(Some(serde_json::to_string_pretty(&all)?))
}

fn with_password(shown: Option<&Value>, user: &trunkline::config::User) -> Value {
    let mut shown = shown.cloned().unwrap_or_else(|| json!({}));
    if let Some(password) = &user.password {
        shown["password"] = password.expose().into();
    }
    shown
}
