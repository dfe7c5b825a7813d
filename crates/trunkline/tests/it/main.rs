//! Tests of the library against real servers.

mod nats;
#[cfg(feature = "redis")]
mod redis;
