//! Tests of the `trunkline` binary from outside, as its users meet it: its commands, and stock clients against
//! `trunkline up`.

mod auth;
mod behaviours;
mod bench;
mod bench_hostile;
mod bridge;
mod browser;
mod clients_node;
mod clients_python;
mod command;
mod components;
mod conformance;
mod conversation;
mod dashboard;
mod demo;
mod doctor;
mod envelope;
mod errors;
mod export;
mod fallback;
mod hostile;
mod init;
mod jetstream;
mod messages;
mod nats_access;
mod nats_page;
mod nats_server;
mod observability;
mod observe;
mod observe_work;
mod observed;
mod readme;
mod redis;
mod stored;
mod streams;
mod tls;
mod traces;
mod up;

use std::path::Path;

use trunkline_testkit::clients::{ClientLibrary, check_scenario};
use trunkline_testkit::servers::TrunklineServer;

/// A server of our own, on free ports and with the default configuration.
fn server() -> TrunklineServer {
    TrunklineServer::start::<&str>(Path::new(env!("CARGO_BIN_EXE_trunkline")), [])
}

/// Runs one scenario of one client against a server of its own.
fn check(library: ClientLibrary, scenario: &str) {
    check_scenario(library, scenario, &mut server());
}
