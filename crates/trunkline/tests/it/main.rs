//! Tests of the library against real servers.

mod jetstream;
mod jetstream_cluster;
mod nats;
mod nats_2_9;
mod nats_access;
mod nats_memory;
mod nats_slow;
mod outbox;
#[cfg(feature = "redis")]
mod redis;
