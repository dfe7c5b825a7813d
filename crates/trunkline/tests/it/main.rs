//! Tests of the library against real servers.

mod jetstream;
mod nats;
#[cfg(feature = "redis")]
mod redis;
