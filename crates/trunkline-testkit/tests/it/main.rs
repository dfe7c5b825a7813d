//! Tests of the testkit itself: the client scenarios hold on the real `nats-server`, so a failure
//! elsewhere is the other server's; and servers and proxy do what they say.

mod clients_node;
mod clients_python;
mod conformance_jetstream;
mod conformance_jetstream_2_9;
mod conformance_memory;
mod conformance_nats;
mod conformance_nats_2_9;
mod conformance_nats_cluster;
mod conformance_redis;
mod conformance_redis_cluster;
mod conversation;
mod envelope;
mod nats_cluster;
mod nats_server;
mod redis_fallback;
mod redis_faults;
mod redis_page;
mod redis_server;
mod sabotage;
mod scenario_run;
mod tcp_proxy;

use trunkline_testkit::clients::{ClientLibrary, check_scenario};
use trunkline_testkit::servers::NatsServer;

/// Runs one scenario of one client against a `nats-server` of its own.
fn check(library: ClientLibrary, scenario: &str) {
    check_scenario(library, scenario, &mut NatsServer::start::<&str>([]));
}
