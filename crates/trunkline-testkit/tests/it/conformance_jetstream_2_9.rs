//! The `nats` backend keeps every guarantee of the column with JetStream on the nats-server 2.9 that Debian 12 has: what that version
//! lacks, the bus does in another way.

use trunkline_testkit::NatsServer;
use trunkline_testkit::conformance::process::nats_jetstream;

trunkline_testkit::conformance!(nats_jetstream(NatsServer::start_2_9(["-js"])));
