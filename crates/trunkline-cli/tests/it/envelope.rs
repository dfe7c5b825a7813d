//! Components in different languages understand each other's envelopes.

use trunkline_testkit::clients::{ClientLibrary, check_envelope_between};

#[test]
fn components_of_any_two_languages_share_the_envelope() {
    let server = crate::server();
    for asking in ClientLibrary::ALL {
        for answering in ClientLibrary::ALL {
            check_envelope_between(asking, answering, &server);
        }
    }
}
