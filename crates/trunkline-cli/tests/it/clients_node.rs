//! Every client scenario with both generations of nats.js.

mod nats_js {
    use trunkline_testkit::client_scenarios;
    use trunkline_testkit::clients::ClientLibrary;

    client_scenarios!(ClientLibrary::NatsJs, crate::check);
}

mod transport_node {
    use trunkline_testkit::client_scenarios;
    use trunkline_testkit::clients::ClientLibrary;

    client_scenarios!(ClientLibrary::TransportNode, crate::check);
}
