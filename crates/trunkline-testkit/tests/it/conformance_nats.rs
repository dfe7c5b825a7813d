//! The `nats` backend keeps every guarantee of its column on a real `nats-server`.

use trunkline_testkit::NatsServer;
use trunkline_testkit::conformance::process::nats_core;

trunkline_testkit::conformance!(nats_core(NatsServer::start::<&str>([])));
