//! Tests of the library against real servers.

mod jetstream;
mod nats;
mod outbox;
#[cfg(feature = "redis")]
mod redis;
