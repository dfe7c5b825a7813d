//! The `nats` backend on this project's own server: what the suite asks of it on a nats-server, it is asked here too.

trunkline_testkit::conformance!(trunkline_testkit::conformance::process::nats_core(crate::server()));
