//! Tests of the library against real servers.

mod jetstream;
mod nats;
mod nats_permissions;
mod outbox;
#[cfg(feature = "redis")]
mod redis;
