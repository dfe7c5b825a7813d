//! Components in Rust, Python and JavaScript hold conversations over a nats-server, in every combination.

use std::sync::Arc;

use trunkline::backend::nats::{NatsBackend, NatsOptions};
use trunkline::{Bus, BusOptions};
use trunkline_testkit::{NatsServer, check_conversations};

#[test]
fn components_of_all_languages_hold_conversations() {
    check(&NatsServer::start::<&str>([]));
}

#[test]
fn components_of_all_languages_hold_conversations_over_nats_2_9() {
    check(&NatsServer::start_2_9::<&str>([]));
}

fn check(server: &NatsServer) {
    check_conversations(server.url(), |part| {
        let options = NatsOptions::new([server.url()]);
        Box::pin(async move {
            let backend = NatsBackend::connect(options).await.expect("the server is up");
            let options = BusOptions { source: part.to_owned(), ..BusOptions::default() };
            Bus::with_backend(Arc::new(backend), options)
        })
    });
}
