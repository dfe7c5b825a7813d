//! Start and stop.

use nix::sys::signal::Signal;
use trunkline_testkit::Authority;

use super::Platform;

/// Waits for the end in the way of a shell that is asked to end.
const UNTIL_TERM: &str =
    "trap 'echo ending $NAME; exit 0' TERM; echo running $NAME; while :; do sleep 0.05; done";

#[test]
fn components_start_in_the_order_of_their_dependencies_and_stop_in_the_reverse() {
    let component = |name: &str, more: &str| {
        format!(
            "  {name}: {{command: [sh, -c, \"{UNTIL_TERM}\"], env: {{NAME: {name}}}, ready: 'log:running {name}'{more}}}\n"
        )
    };
    let platform = Platform::of(
        &[
            component("channel", ", depends_on: [gateway]"),
            component("gateway", ", depends_on: [tools]"),
            component("tools", ""),
        ]
        .concat(),
    );
    let mut up = platform.up(&[]);
    up.until_it_says("is ready");
    for name in ["tools", "gateway", "channel"] {
        up.until_it_says(&format!("| running {name}"));
    }
    up.signal(Signal::SIGTERM);
    let ended = up.end();
    assert!(ended.status.success(), "{ended:?}");
    let at = |text: &str| {
        let place = ended.stderr.find(text);
        place.unwrap_or_else(|| panic!("{text} is missing: {}", ended.stderr))
    };
    let order = [
        "trunkline 0",
        "| running tools",
        "| running gateway",
        "| running channel",
        "| ending channel",
        "| ending gateway",
        "| ending tools",
    ];
    assert!(order.map(at).is_sorted(), "{}", ended.stderr);
}

#[test]
fn one_that_does_not_end_is_killed_and_the_stop_goes_on() {
    let platform = Platform::of(
        "  deaf: {command: [sh, -c, \"trap '' TERM; echo deaf; while :; do sleep 0.05; done\"], stop_timeout: 300ms}\n",
    );
    let mut up = platform.up(&[]);
    up.until_it_says("| deaf");
    up.signal(Signal::SIGINT);
    let ended = up.end();
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stderr.contains("did not end within 300ms, is killed (stop_timeout)"), "{}", ended.stderr);
}

#[test]
fn a_second_signal_kills_all_at_once() {
    let platform = Platform::of(
        "  deaf: {command: [sh, -c, \"trap '' TERM; echo $$ >pid; echo deaf; while :; do sleep 0.05; done\"], stop_timeout: 1h}\n",
    );
    let mut up = platform.up(&[]);
    up.until_it_says("| deaf");
    up.signal(Signal::SIGINT);
    up.until_it_says("stopping components");
    up.signal(Signal::SIGINT);
    up.end();
    let pid = platform.read("pid");
    super::eventually("the component is gone", || !super::runs(&pid));
}

#[test]
fn readiness_is_asked_for_in_the_way_that_is_configured() {
    let trunkline = env!("CARGO_BIN_EXE_trunkline");
    // A server that answers HTTP, found by its port, stands for any component that serves.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nats_server = format!("{trunkline}, nats-server, -a, 127.0.0.1, -p, '{other}', -m, '{port}'");
    let platform = Platform::of(&format!(
        "  echo: {{command: [{trunkline}, reply, test.echo, --echo], ready: 'responder:test.echo'}}\n  \
         web: {{command: [{nats_server}], ready: 'http://127.0.0.1:{port}/healthz', depends_on: [echo]}}\n  \
         nats: {{command: [sh, -c, 'sleep 1000'], ready: 'tcp://127.0.0.1:{other}', depends_on: [web]}}\n  \
         never: {{command: [sh, -c, 'sleep 1000'], ready: 'tcp://127.0.0.1:1', ready_timeout: 200ms, restart: 'no', depends_on: [nats]}}\n"
    ));
    let mut up = platform.up(&[]);
    for name in ["echo", "web", "nats"] {
        up.until_it_says(&format!("ready component=\"{name}\""));
    }
    up.until_it_says("not ready within 200ms");
    up.until_it_says("failed, is not started again component=\"never\"");
    up.signal(Signal::SIGTERM);
    assert!(up.end().status.success());
}

#[test]
fn a_component_that_serves_https_is_ready_whoever_signed_its_certificate() {
    let authority = Authority::make();
    let certificate = authority.sign(&["localhost"]);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let platform = Platform::of(&format!(
        "  web: {{command: [{}, up, --config, inner.yaml], env: {{TRUNKLINE_URL: '', NATS_URL: ''}}, ready: 'https://127.0.0.1:{port}/healthz'}}\n",
        env!("CARGO_BIN_EXE_trunkline"),
    ));
    let inner = format!(
        "server: {{listen: '127.0.0.1:0', http: '127.0.0.1:{port}', tls: {{cert_file: {}, key_file: {}, http: true}}}}\n",
        certificate.cert_file.display(),
        certificate.key_file.display()
    );
    platform.write("inner.yaml", &inner);
    let mut up = platform.up(&[]);
    up.until_it_says("ready component=\"web\"");
    up.signal(Signal::SIGTERM);
    assert!(up.end().status.success());
}
