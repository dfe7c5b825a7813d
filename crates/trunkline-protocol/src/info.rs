//! The JSON object of `INFO`: what a server says about itself.

use serde::{Deserialize, Serialize};

/// What a server says about itself, to one client.
///
/// Flags that are false and fields that are absent are left out of the JSON, as nats-server does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    /// Unique id of the running server.
    pub server_id: String,
    /// Name of the server; its id where none was given.
    pub server_name: String,
    /// Version, by which some clients decide what they may use.
    pub version: String,
    /// Protocol number, 1: `INFO` may come at any time.
    pub proto: i64,
    /// Revision the server was built from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub git_commit: Option<String>,
    /// Version of Go that nats-server was built with; some clients want the field to be there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub go: Option<String>,
    /// Host the server listens on.
    pub host: String,
    /// Port the server listens on.
    pub port: u16,
    /// The server understands `HPUB` and sends `HMSG`.
    pub headers: bool,
    /// The client must give credentials.
    #[serde(skip_serializing_if = "is_false")]
    pub auth_required: bool,
    /// The client must start TLS after this.
    #[serde(skip_serializing_if = "is_false")]
    pub tls_required: bool,
    /// The client must show a certificate.
    #[serde(skip_serializing_if = "is_false")]
    pub tls_verify: bool,
    /// The client may start TLS after this.
    #[serde(skip_serializing_if = "is_false")]
    pub tls_available: bool,
    /// Most bytes of header block and payload.
    pub max_payload: usize,
    /// JetStream's API is answered.
    #[serde(skip_serializing_if = "is_false")]
    pub jetstream: bool,
    /// Number of the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<u64>,
    /// Address the client comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ip: Option<String>,
    /// What a client with an NKey must sign.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// Name of the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// JetStream domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// `host:port` of every server that clients may connect to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub connect_urls: Vec<String>,
    /// The same for WebSocket clients.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ws_connect_urls: Vec<String>,
    /// The server is in lame duck mode: it will stop soon, the client should go elsewhere.
    #[serde(skip_serializing_if = "is_false")]
    pub ldm: bool,
    /// This is the answer to `CONNECT`.
    #[serde(skip_serializing_if = "is_false")]
    pub connect_info: bool,
    /// The account that the client is in; only in the answer to `CONNECT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_account: Option<String>,
}

impl ServerInfo {
    /// Appends the whole `INFO {…}` line.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"INFO ");
        serde_json::to_writer(&mut *out, self).expect("strings, numbers and flags always become JSON");
        out.extend_from_slice(b"\r\n");
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(info: &ServerInfo, line: &str) {
        let mut out = Vec::new();
        info.write(&mut out);
        assert_eq!(String::from_utf8_lossy(&out), line);
        let json = line.trim_end().strip_prefix("INFO ").expect("an INFO line");
        assert_eq!(&serde_json::from_str::<ServerInfo>(json).expect("reads what it wrote"), info);
    }

    #[test]
    fn info_leaves_out_what_is_not_set() {
        check(
            &ServerInfo {
                server_id: "ID".into(),
                server_name: "bus".into(),
                version: "2.15.0".into(),
                proto: 1,
                host: "127.0.0.1".into(),
                port: 4222,
                headers: true,
                max_payload: 1_048_576,
                ..ServerInfo::default()
            },
            "INFO {\"server_id\":\"ID\",\"server_name\":\"bus\",\"version\":\"2.15.0\",\"proto\":1,\
             \"host\":\"127.0.0.1\",\"port\":4222,\"headers\":true,\"max_payload\":1048576}\r\n",
        );
    }

    #[test]
    fn info_writes_every_field_under_its_wire_name() {
        check(
            &ServerInfo {
                server_id: "ID".into(),
                server_name: "bus \"1\"".into(),
                version: "2.15.0".into(),
                proto: 1,
                git_commit: Some("abc".into()),
                go: Some("go1.24".into()),
                host: "::1".into(),
                port: 1,
                headers: true,
                auth_required: true,
                tls_required: true,
                tls_verify: true,
                tls_available: true,
                max_payload: 64,
                jetstream: true,
                client_id: Some(5),
                client_ip: Some("10.0.0.9".into()),
                nonce: Some("n0".into()),
                cluster: Some("c".into()),
                domain: Some("d".into()),
                connect_urls: vec!["a:1".into(), "b:2".into()],
                ws_connect_urls: vec!["w:3".into()],
                ldm: true,
                connect_info: true,
                remote_account: Some("$G".into()),
            },
            "INFO {\"server_id\":\"ID\",\"server_name\":\"bus \\\"1\\\"\",\"version\":\"2.15.0\",\"proto\":1,\
             \"git_commit\":\"abc\",\"go\":\"go1.24\",\"host\":\"::1\",\"port\":1,\"headers\":true,\
             \"auth_required\":true,\"tls_required\":true,\"tls_verify\":true,\"tls_available\":true,\
             \"max_payload\":64,\"jetstream\":true,\"client_id\":5,\"client_ip\":\"10.0.0.9\",\"nonce\":\"n0\",\
             \"cluster\":\"c\",\"domain\":\"d\",\"connect_urls\":[\"a:1\",\"b:2\"],\"ws_connect_urls\":[\"w:3\"],\
             \"ldm\":true,\"connect_info\":true,\"remote_account\":\"$G\"}\r\n",
        );
    }
}
