//! A cluster of NATS servers breaks and heals the way `NatsCluster` says.

use trunkline_testkit::NatsCluster;

/// One that is cut off is not the leader any more, and follows again when it is healed; one that was killed comes back.
#[test]
fn cluster_goes_on_without_one_of_its_servers_and_takes_it_back() {
    let mut cluster = NatsCluster::start();
    let first = cluster.meta_leader().expect("all agree");
    cluster.cut(first);
    let second = cluster.meta_leader_without(first);
    cluster.heal(first);
    cluster.wait_until_ready();
    cluster.kill(second);
    cluster.meta_leader_without(second);
    cluster.restart(second);
    cluster.wait_until_ready();
}
