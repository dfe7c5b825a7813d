//! The `nats` backend keeps every guarantee of its column on the nats-server 2.9 that Debian 12 has.

use trunkline_testkit::NatsServer;
use trunkline_testkit::conformance::process::nats_core;

trunkline_testkit::conformance!(nats_core(NatsServer::start_2_9::<&str>([])));
