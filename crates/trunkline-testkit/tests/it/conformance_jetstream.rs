//! The `nats` backend keeps every guarantee of the column with JetStream on a real `nats-server` that stores on disk.

use trunkline_testkit::NatsServer;
use trunkline_testkit::conformance::process::nats_jetstream;

trunkline_testkit::conformance!(nats_jetstream(NatsServer::start(["-js"])));
