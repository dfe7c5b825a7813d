//! What the server says about itself.

use super::NatsBackend;

/// What the NATS server of a connection says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NatsServerInfo {
    /// Its id, another one after each start.
    pub server_id: String,
    /// Its name; its id, unless it is given one.
    pub server_name: String,
    /// Its version, such as `2.15.1`.
    pub version: String,
    /// Most bytes of one message.
    pub max_payload: usize,
    /// Whether it takes messages with headers.
    pub headers: bool,
    /// Whether it has JetStream; the user's account may be without all the same.
    pub jetstream: bool,
    /// Whether it wants to know who connects.
    pub auth_required: bool,
    /// Whether it demands TLS.
    pub tls_required: bool,
    /// Whether it is about to stop, and wants its clients to go elsewhere.
    pub lame_duck: bool,
}

impl NatsBackend {
    /// What the server of the newest connection says about itself.
    pub fn server_info(&self) -> NatsServerInfo {
        let info = self.link.client.server_info();
        NatsServerInfo {
            server_id: info.server_id,
            server_name: info.server_name,
            version: info.version,
            max_payload: info.max_payload,
            headers: info.headers,
            jetstream: info.jetstream,
            auth_required: info.auth_required,
            tls_required: info.tls_required,
            lame_duck: info.lame_duck_mode,
        }
    }
}
