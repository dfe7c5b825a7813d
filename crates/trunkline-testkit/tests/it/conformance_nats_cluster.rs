//! The `nats` backend keeps every guarantee of the column with JetStream on a cluster of three servers with three copies of
//! every stream. They take seconds to become one, so the properties share them.

use std::sync::{Arc, Mutex};

use trunkline_testkit::NatsCluster;
use trunkline_testkit::conformance::process::nats_cluster;
use trunkline_testkit::conformance::{Need, check_all};

/// Whether the property hurts the servers, and so needs them for itself.
fn hurts(need: Need) -> bool {
    matches!(need, Need::Server | Need::Durable)
}

#[test]
fn cluster_keeps_every_guarantee() {
    let cluster = Arc::new(Mutex::new(NatsCluster::start()));
    check_all(4, |need| !hurts(need), || async { nats_cluster(&cluster) });
}

#[test]
fn cluster_keeps_every_guarantee_through_faults() {
    let cluster = Arc::new(Mutex::new(NatsCluster::start()));
    check_all(1, hurts, || async { nats_cluster(&cluster) });
}
