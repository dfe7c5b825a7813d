//! Tests of the protocol through its public surface.

mod client_ops;
mod properties;
mod server_ops;
