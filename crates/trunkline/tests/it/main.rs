//! Tests of the library against real servers.

mod jetstream;
mod jetstream_cluster;
mod nats;
mod outbox;
#[cfg(feature = "redis")]
mod redis;
