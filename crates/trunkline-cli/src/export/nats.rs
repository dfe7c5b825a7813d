//! The NATS cluster of a deployment: three servers with JetStream, who they are to each other, and their users.

use serde_json::{Value, json};

use super::error::ExportError;
use super::secrets::{Reader, SecretFile, password};
use super::users::NewUser;

/// Servers of the cluster: the fewest of which one may be away.
pub(super) const NODES: usize = 3;
/// The user of the bus itself.
pub(super) const BUS: &str = "bus";
/// The user that waits for streams, and may do nothing else.
pub(super) const PROBE: &str = "probe";
/// The user by which servers know each other.
const ROUTE: &str = "route";

/// The NATS cluster of a deployment.
pub(crate) struct NatsPlan {
    pub(crate) nodes: Vec<Node>,
    /// Memory of streams that are kept there: the list of members of consumers.
    pub(crate) max_memory_store: u64,
}

/// A server of the cluster.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// Under which the others reach it.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) route_port: u16,
    pub(crate) http_port: u16,
}

/// The file that every server includes: routes with their password, and users by hashes of theirs.
pub(super) fn secrets(nodes: &[Node], users: &[NewUser]) -> Result<SecretFile, ExportError> {
    let route = password()?;
    let routes: Vec<String> = nodes
        .iter()
        .map(|node| format!("nats://{ROUTE}:{route}@{}:{}", node.host, node.route_port))
        .collect();
    let mut list = Vec::new();
    for user in users {
        let mut entry = json!({ "user": user.name, "password": user.hash()? });
        if let Some(permissions) = &user.permissions {
            entry["permissions"] = permissions.clone();
        }
        list.push(serde_json::to_string(&entry)?);
    }
    let content = format!(
        "# Made by `trunkline export`: who the servers are to each other, and who may connect.\n\
         ROUTE_USER: {ROUTE}\nROUTE_PASSWORD: {}\nROUTES: {}\n\n\
         accounts {{\n  BUS {{\n    jetstream: enabled\n    users: [\n      {}\n    ]\n  }}\n}}\n",
        Value::from(route.as_str()),
        Value::from(routes),
        list.join(",\n      "),
    );
    Ok(SecretFile { name: "nats_auth.conf".to_owned(), content, reader: Reader::Nats })
}

/// What the user that waits for streams may do.
pub(super) fn probe_permissions() -> Value {
    json!({
        "publish": ["$JS.API.INFO", "$JS.API.STREAM.INFO.*", "$JS.API.STREAM.LIST", "$JS.API.STREAM.NAMES"],
        "subscribe": ["_INBOX.>"],
    })
}
