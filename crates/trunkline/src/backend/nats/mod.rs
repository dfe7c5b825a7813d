//! The `nats` backend: core NATS through the client library.
