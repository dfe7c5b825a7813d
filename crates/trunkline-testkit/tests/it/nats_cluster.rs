//! A cluster of NATS servers breaks and heals the way `NatsCluster` says.

use trunkline_testkit::NatsCluster;

/// One that is cut off is not the leader any more, and follows again when it is healed; one that was killed comes back.
#[test]
fn cluster_goes_on_without_one_of_its_servers_and_takes_it_back() {
    let mut cluster = NatsCluster::start();
    let first = cluster.meta_leader().expect("all agree");
    cluster.cut(first);
    let second = loop {
        match cluster.meta_leader() {
            Some(leader) if leader != first => break leader,
            _ => std::thread::yield_now(),
        }
    };
    cluster.heal(first);
    cluster.wait_until_ready();
    cluster.kill(second);
    let third = loop {
        match cluster.meta_leader() {
            Some(leader) if leader != second => break leader,
            _ => std::thread::yield_now(),
        }
    };
    assert_ne!(third, second);
    cluster.restart(second);
    cluster.wait_until_ready();
}
