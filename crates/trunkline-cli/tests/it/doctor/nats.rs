//! NATS as it should be, and as it should not.

use trunkline_testkit::{Authority, NatsServer};

use super::{Patient, ends_in};

const STREAMS: &str = "streams: [{name: tasks, subjects: ['nachos.tool.*.task']}]";

fn patient(url: &str) -> Patient {
    Patient::with_messaging(&format!("backend: nats\nnats_url: '{url}'\n{STREAMS}"))
}

#[test]
fn a_server_with_jetstream_is_well() {
    let server = NatsServer::start(["-js"]);
    let patient = patient(server.url());
    patient
        .examine()
        .is_well()
        .says("backend", "ok", "nats-server 2.")
        .says("persistence", "ok", "has JetStream")
        .says("clock", "ok", "agrees")
        .says("permissions", "ok", "may do what the bus needs")
        .says("consumers", "ok", "no consumers");
    let streams = patient.command(&["stream", "ls", "--json"]);
    let listed = crate::command::start(streams, b"").end().ok();
    assert!(listed.is_empty(), "the doctor made a stream: {}", String::from_utf8_lossy(&listed));
}

#[test]
fn without_jetstream_streams_cannot_be() {
    let server = NatsServer::start::<&str>([]);
    patient(server.url()).examine().is_ill().says("persistence", "fail", "runs without JetStream").says(
        "persistence",
        "fail",
        "nats-server --jetstream",
    );
    Patient::with_messaging(&format!("backend: nats\nnats_url: '{}'", server.url()))
        .examine()
        .is_well()
        .says("persistence", "warn", "nothing is stored");
}

#[test]
fn an_account_without_jetstream_or_without_room_is_told() {
    let server = NatsServer::start_with_config(
        "jetstream: enabled
         accounts {
           NONE { users: [ { user: none, password: secret } ] }
           FULL { jetstream { max_file: 1MB, max_streams: 0 }, users: [ { user: full, password: secret } ] }
         }",
    );
    let url = |user: &str| server.url().replacen("://", &format!("://{user}:secret@"), 1);
    patient(&url("none")).examine().is_ill().says("persistence", "fail", "not for this user's account");
    patient(&url("full")).examine().says("persistence", "ok", "of at most 1.0 MiB");
    let wrong = patient(&url("nobody")).examine();
    wrong.is_ill().says("backend", "fail", "refused the credentials");
}

#[test]
fn a_user_without_the_rights_of_an_operator_is_told_what_is_missing() {
    let server = NatsServer::start_with_config(
        r#"jetstream: enabled
           authorization { users: [ { user: bus, password: secret, permissions: {
             publish: [ "$JS.API.INFO", "$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO.*", "_INBOX.>" ]
             subscribe: [ "_INBOX.>" ] } } ] }"#,
    );
    let url = server.url().replacen("://", "://bus:secret@", 1);
    let diagnosis = patient(&url).examine();
    diagnosis
        .is_ill()
        .says("permissions", "fail", "$JS.API.STREAM.CREATE.atlas_bus_tasks")
        .says("permissions", "warn", "$JS.API.STREAM.NAMES")
        .says("permissions", "warn", "may not subscribe to nachos.>");
    let server = NatsServer::start_with_config(
        r#"jetstream: enabled
           authorization { users: [ { user: bus, password: secret, permissions: {
             publish: [ "$SYS.REQ.USER.INFO", "$JS.API.>", "_INBOX.>", "nachos.tool.>" ]
             subscribe: [ ">" ] } } ] }"#,
    );
    let url = server.url().replacen("://", "://bus:secret@", 1);
    patient(&url).examine().says("permissions", "warn", "may not publish on nachos.system.trace");
}

#[test]
fn an_old_server_and_one_that_is_away_are_told() {
    let mut server = NatsServer::start_2_9(["-js"]);
    patient(server.url()).examine().is_well().says("backend", "warn", "order by key");
    server.kill();
    patient(server.url()).examine().is_ill().says("backend", "fail", "start the server");
}

#[test]
fn the_certificate_that_a_server_shows_is_looked_at() {
    let authority = Authority::make();
    for (days, verdict, said) in
        [(300, "ok", "is good until"), (10, "warn", "in 10 days"), (-3, "fail", "expired on")]
    {
        let certificate = authority.sign_with(&["localhost", "127.0.0.1"], |params| ends_in(params, days));
        let server = NatsServer::start_with_config(&format!(
            "jetstream: enabled\ntls {{ cert_file: '{}', key_file: '{}' }}",
            certificate.cert_file.display(),
            certificate.key_file.display()
        ));
        let lines = format!(
            "backend: nats\nnats_url: 'tls://localhost:{}'\nnats_tls: {{ca_file: '{}'}}",
            server.port(),
            authority.ca_file().display()
        );
        let diagnosis = Patient::with_messaging(&lines).examine();
        diagnosis.says("tls", verdict, said);
        match days > 0 {
            true => diagnosis.is_well().says("backend", "ok", "answers"),
            false => diagnosis.is_ill().says("backend", "fail", "messaging.nats_tls"),
        };
    }
}
