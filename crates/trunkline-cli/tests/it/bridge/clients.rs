//! Every client scenario on a bridge.

use trunkline_testkit::RedisServer;
use trunkline_testkit::clients::{ClientLibrary, check_scenario_on_bridge};

use super::Bridge;

fn check(library: ClientLibrary, scenario: &str) {
    let redis = RedisServer::start_volatile();
    check_scenario_on_bridge(library, scenario, &mut Bridge::start(&redis));
}

mod nats_py {
    use trunkline_testkit::client_scenarios;
    use trunkline_testkit::clients::ClientLibrary;

    client_scenarios!(ClientLibrary::NatsPy, super::check);
}

mod nats_js {
    use trunkline_testkit::client_scenarios;
    use trunkline_testkit::clients::ClientLibrary;

    client_scenarios!(ClientLibrary::NatsJs, super::check);
}

mod transport_node {
    use trunkline_testkit::client_scenarios;
    use trunkline_testkit::clients::ClientLibrary;

    client_scenarios!(ClientLibrary::TransportNode, super::check);
}
