//! What is asked of those who come: handshakes that never end, and storms of wrong passwords.

use std::io::Write as _;

use trunkline_testkit::certificates::Authority;

use super::{Bystander, Target, Wire};
use crate::command::text;

/// A hundred connections that all begin in this way, and somebody who asks in between.
fn storm(target: &Target, bystander: &mut Bystander, begin: impl Fn(&mut Wire)) -> Vec<Wire> {
    (0..100)
        .map(|n| {
            let mut wire = Wire::connect(target.address());
            begin(&mut wire);
            if n % 20 == 0 {
                bystander.asks();
            }
            wire
        })
        .collect()
}

#[test]
fn handshakes_that_never_end_are_given_up_and_hold_nobody_up() {
    let authority = Authority::make();
    let certificate = authority.sign(&["localhost"]);
    let (cert, key) = (text(&certificate.cert_file).to_owned(), text(&certificate.key_file).to_owned());
    let tls = format!("{{cert_file: '{cert}', key_file: '{key}', allow_non_tls: true, timeout: 1s}}");
    let target = Target::start(&format!("server: {{tls: {tls}}}"));
    let mut bystander = Bystander::new(&target);
    let mut storm = storm(&target, &mut bystander, |wire| {
        assert!(wire.line().is_some_and(|line| line.starts_with("INFO ")));
        // A record of 512 bytes that begins a ClientHello, and no more of it.
        let _ = wire.stream.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc]);
    });
    bystander.is_fine();
    for wire in &mut storm {
        wire.last_words();
    }
    target.metric_reaches("trunkline_connections_closed_total{reason=\"handshake\"}", 100.0);
    bystander.is_fine();
    target.is_within_its_memory();
}

#[test]
fn a_storm_of_wrong_passwords_is_told_so_counted_and_holds_nobody_up() {
    let hash = bcrypt::hash("right", 8).expect("a hash");
    let users = format!("[{{user: ann, password: '{hash}'}}, {{user: guest, password: '{hash}'}}]");
    let auth = "{no_auth_user: guest}";
    let limits = "{auth_timeout: 30s}";
    let target = Target::start(&format!("server: {{auth: {auth}, users: {users}, limits: {limits}}}"));
    let mut bystander = Bystander::new(&target);
    let mut storm = storm(&target, &mut bystander, |wire| {
        wire.send(b"CONNECT {\"user\":\"ann\",\"pass\":\"wrong\"}\r\nPING\r\n");
    });
    bystander.is_fine();
    for wire in &mut storm {
        assert!(wire.last_words().ends_with("-ERR 'Authorization Violation'\r\n"));
    }
    let failed =
        |reason: &str| target.metric(&format!("trunkline_server_auth_failures_total{{reason=\"{reason}\"}}"));
    // Some thirty were checked; the others were refused without.
    assert!(failed("credentials") >= 30.0, "{}", failed("credentials"));
    assert_eq!(failed("credentials") + failed("too_many"), 100.0);
    bystander.is_fine();
    target.is_within_its_memory();
}
