//! Configuration.

/// Which backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// In this process.
    InMemory,
    /// Redis Streams.
    Redis,
    /// NATS.
    Nats,
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::InMemory => "in_memory",
            Self::Redis => "redis",
            Self::Nats => "nats",
        })
    }
}
