//! The `nats` backend keeps every guarantee of the column with JetStream on the nats-server 2.9 that Debian 12 has: what that version
//! lacks, the bus does in another way. Before 2.10.15 a redelivery that finds only requests whose time is over makes the server give
//! out the newest delivery once more, under its old number; of messages that this befalls, less is expected, and order by key is refused.

use trunkline_testkit::NatsServer;
use trunkline_testkit::conformance::process::nats_jetstream;

trunkline_testkit::conformance!(nats_jetstream(NatsServer::start_2_9(["-js"])).that_repeats_deliveries());
