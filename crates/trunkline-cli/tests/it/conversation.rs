//! Components in Rust, Python and JavaScript hold conversations over this server, in every combination.

use std::sync::Arc;

use trunkline::backend::nats::{NatsBackend, NatsOptions};
use trunkline::{Bus, BusOptions};
use trunkline_testkit::check_conversations;

#[test]
fn components_of_all_languages_hold_conversations() {
    let server = crate::server();
    check_conversations(server.url(), |part| {
        let nats = NatsOptions::new([server.url()]);
        Box::pin(async move {
            let backend = NatsBackend::connect(nats).await.expect("the server is up");
            let options = BusOptions { source: part.to_owned(), ..BusOptions::default() };
            Bus::with_backend(Arc::new(backend), options)
        })
    });
    crate::observed::check(&server, true);
}
