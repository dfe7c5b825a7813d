//! What can be checked of a configuration, its backend and this machine, without changing any of them.
//!
//! `trunkline doctor` runs all of it, `trunkline init` the part about the backend. Every check gives findings: one line each,
//! with what to do where something is wrong. Nothing here prints, and every wait has a bound.

pub(crate) mod backend;
pub(crate) mod certificates;
pub(crate) mod clock;
pub(crate) mod disk;
mod finding;
mod nats;
mod nats_permissions;
pub(crate) mod processes;
mod redis;
mod redis_permissions;

pub(crate) use finding::{Finding, Findings, Verdict};
