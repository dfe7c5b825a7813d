//! Tests of the library against real servers.

mod nats;
mod outbox;
#[cfg(feature = "redis")]
mod redis;
