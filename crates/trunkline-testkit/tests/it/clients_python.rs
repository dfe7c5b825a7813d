//! Every client scenario with `nats-py`.

use trunkline_testkit::client_scenarios;
use trunkline_testkit::clients::ClientLibrary;

client_scenarios!(ClientLibrary::NatsPy, crate::check);
