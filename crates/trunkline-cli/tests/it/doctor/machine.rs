//! Configuration, ports and this machine.

use std::net::TcpListener;

use trunkline_testkit::{Authority, TrunklineServer};

use super::{Diagnosis, Patient};
use crate::command::{command, start};

#[test]
fn lines_are_for_people_and_say_what_to_do() {
    let patient = Patient::with_messaging("backend: in_memory");
    let ended = start(patient.command(&["doctor"]), b"").end();
    assert_eq!(ended.code(), 0, "{ended:?}");
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(text.starts_with("ok    config         "), "{text}");
    assert!(ended.stderr.contains(" ok, "), "{ended:?}");

    let patient = Patient::new("mesaging: {backend: redis}\n");
    let ended = start(patient.command(&["doctor"]), b"").end();
    assert_eq!(ended.code(), 1, "{ended:?}");
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(text.starts_with("fail  config         ") && text.contains("did you mean"), "{text}");
    assert!(text.contains("\n                     fix: "), "{text}");
}

#[test]
fn a_configuration_is_held_against_what_it_can_do() {
    Patient::new("messaging: {backend: in_memory, stream_prefix: other}\n").examine().says(
        "config",
        "warn",
        "messaging.stream_prefix has no effect",
    );
    let nothing = Patient::new("");
    std::fs::remove_file(nothing.file()).unwrap();
    nothing.examine().is_ill().says("config", "fail", "cannot be read");
}

#[test]
fn ports_are_free_ours_or_of_somebody_else() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let patient = Patient::new(&format!("server: {{listen: '{address}', http: off}}\n"));
    let pid = std::process::id().to_string();
    patient.examine().is_ill().says("ports", "fail", &format!("taken by process {pid}"));
    drop(taken);
    patient.examine().is_well().says("ports", "ok", "is free");

    let up = TrunklineServer::start::<&str>(std::path::Path::new(env!("CARGO_BIN_EXE_trunkline")), []);
    let http = up.http().trim_start_matches("http://").to_owned();
    let patient = Patient::new(&format!("server: {{listen: '127.0.0.1:{}', http: '{http}'}}\n", up.port()));
    let diagnosis = patient.examine();
    diagnosis.is_well().says("ports", "ok", &format!("running trunkline, process {}", up.pid()));
    // It is asked for its consumers, and its own limits are those that count.
    diagnosis.says("consumers", "ok", "no consumers");

    let elsewhere = Patient::new("server: {listen: '192.0.2.1:4222', http: off}\n");
    elsewhere.examine().is_ill().says("ports", "fail", "no authentication").says(
        "ports",
        "fail",
        "an address that this machine has",
    );
}

#[test]
fn certificates_in_files_are_looked_at() {
    let authority = Authority::make();
    let certificate = authority.sign(&["localhost"]);
    let (cert, key) = (certificate.cert_file.display(), certificate.key_file.display());
    let configured = |cert: &str| {
        Patient::new(&format!(
            "server: {{listen: '127.0.0.1:0', http: off, tls: {{cert_file: '{cert}', key_file: '{key}'}}}}\n"
        ))
    };
    configured(&cert.to_string()).examine().is_well().says("tls", "ok", "server.tls.cert_file");
    configured(&key.to_string()).examine().is_ill().says("tls", "fail", "has no certificate");
}

#[test]
fn few_file_descriptors_and_too_much_memory_are_told() {
    let patient = Patient::with_messaging("backend: in_memory");
    let inner = patient.command(&["doctor", "--json"]);
    let limited = |limit: &str| {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\"")]);
        shell.arg(inner.get_program()).args(inner.get_args()).env("NO_COLOR", "1");
        Diagnosis::of(shell)
    };
    limited("100").is_ill().says("files", "fail", "may open 100 files");
    limited("1024").is_well().says("files", "warn", "some 512 clients");

    let mut large = patient.command(&["doctor", "--json"]);
    large.env("TRUNKLINE_RUNTIME_RESOURCES_MEMORY", "16TiB");
    Diagnosis::of(large).is_ill().says("memory", "fail", "the kernel would end the bus first");
    let little =
        "runtime: {resources: {memory: 64MiB}}\nserver: {limits: {max_payload: 60MiB, max_pending: 60MiB}}\n";
    let diagnosis = Patient::new(little).examine();
    diagnosis.is_well().says("memory", "warn", "server.limits.max_payload is 60.0 MiB").says(
        "memory",
        "warn",
        "runtime.resources.memory (64.0 MiB)",
    );
    patient.examine().is_well();
}

#[test]
fn help_and_hints_lead_to_it() {
    let ended = start(command(&["doctor", "--help"]), b"").end();
    assert!(String::from_utf8_lossy(&ended.ok()).contains("Exit code 1 when a check fails"));
}
