//! Trunkline: server.
