//! Components where the server asks who they are.

use nix::sys::signal::Signal;
use trunkline_testkit::{Authority, environment};

use super::Platform;
use crate::command::run;

#[test]
fn each_component_has_a_user_of_its_own_whose_password_is_shown_nowhere() {
    let trunkline = env!("CARGO_BIN_EXE_trunkline");
    let platform = Platform::new(&format!(
        "server:\n  listen: 127.0.0.1:0\n  http: 127.0.0.1:0\n  users:\n  \
         - {{user: ann, password: s3cret}}\n  \
         - {{user: echo, password: other, permissions: {{publish: [told], allow_responses: true, subscribe: ['test.echo', '_INBOX.>']}}}}\n\
         components:\n  \
         echo: {{command: [sh, -c, 'echo \"$NATS_PASSWORD\" >password; echo \"$NATS_USER\" >user; exec {trunkline} reply test.echo --echo'], ready: 'responder:test.echo'}}\n"
    ));
    let mut up = platform.up(&[]);
    up.until_it_says("ready component=\"echo\"");
    let password = platform.read("password");
    assert_eq!(platform.read("user"), "component-echo");
    assert!(password.len() >= 32, "{password}");
    let (nats, http) = platform.ports();
    let at = |user: &str| nats.replace("://", &format!("://{user}@"));
    let asked = run(&["request", "--url", &at("ann:s3cret"), "test.echo", "hello"]).ok();
    assert_eq!(String::from_utf8_lossy(&asked).trim_end(), "hello");
    assert_ne!(run(&["pub", "--url", &nats, "a", "x"]).code(), 0, "others are still asked");
    // What the user that is named alike may do, and no more.
    let made = at(&format!("component-echo:{password}"));
    run(&["pub", "--url", &made, "told", "x"]).ok();
    let denied = run(&["pub", "--url", &made, "secret.things", "x"]);
    assert_eq!(denied.code(), 1, "{denied:?}");
    for path in ["/varz", "/connz?auth=1", "/readyz", "/metrics"] {
        let answer = crate::fallback::get(&http, path);
        assert!(!answer.contains(&password), "{path} shows it");
    }
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let shown = String::from_utf8_lossy(&line).contains(&password);
        // Of this test's own commands, which have ended by now, none is left.
        assert!(!shown, "{:?} shows it", process.path());
    }
    // A reload keeps what was made.
    up.signal(Signal::SIGHUP);
    up.until_it_says("users and permissions");
    let asked = run(&["request", "--url", &at("ann:s3cret"), "test.echo", "again"]).ok();
    assert_eq!(String::from_utf8_lossy(&asked).trim_end(), "again");
    up.signal(Signal::SIGTERM);
    let ended = up.end();
    assert!(!ended.stderr.contains(&password), "{}", ended.stderr);
    // At the start and at the reload: those of the file, and not the one that was made.
    assert_eq!(ended.stderr.matches("passwords=2").count(), 2, "{}", ended.stderr);
}

/// A tool for Node, with the stock client, which says itself who it is.
const TOOL: &str = r#"
const { connect } = require("@nats-io/transport-node");
(async () => {
  const { NATS_URL, NATS_USER, NATS_PASSWORD } = process.env;
  const bus = await connect({ servers: NATS_URL, user: NATS_USER, pass: NATS_PASSWORD });
  bus.subscribe("test.node", {
    callback: (error, msg) => {
      if (error) throw error;
      msg.respond(`${NATS_USER} heard ${msg.string()}`);
    },
  });
  await bus.closed();
})();
"#;

#[test]
fn a_component_for_node_is_let_in_by_what_it_is_given() {
    let platform = Platform::new(&format!(
        "server:\n  listen: 127.0.0.1:0\n  http: 127.0.0.1:0\n  users: [{{user: ann, password: s3cret}}]\n\
         components:\n  \
         tool: {{command: [node, tool.cjs], env: {{NODE_PATH: {}}}, ready: 'responder:test.node'}}\n",
        environment::node_path().join("node_modules").display()
    ));
    platform.write("tool.cjs", TOOL);
    let mut up = platform.up(&[]);
    up.until_it_says("ready component=\"tool\"");
    let ann = platform.ports().0.replace("://", "://ann:s3cret@");
    let asked = run(&["request", "--url", &ann, "test.node", "hello"]).ok();
    assert_eq!(String::from_utf8_lossy(&asked).trim_end(), "component-tool heard hello");
    up.signal(Signal::SIGTERM);
    assert!(up.end().status.success());
}

#[test]
fn a_component_with_a_certificate_is_the_user_that_the_certificate_says() {
    let authority = Authority::make();
    let [server, echo, asker] =
        ["localhost", "echo.internal", "asker.internal"].map(|name| authority.sign(&[name]));
    let shown = |certificate: &trunkline_testkit::certificates::Certificate| {
        format!(
            "TRUNKLINE_MESSAGING_NATS_TLS_CA_FILE: {}, TRUNKLINE_MESSAGING_NATS_TLS_CERT_FILE: {}, TRUNKLINE_MESSAGING_NATS_TLS_KEY_FILE: {}",
            authority.ca_file().display(),
            certificate.cert_file.display(),
            certificate.key_file.display()
        )
    };
    let trunkline = env!("CARGO_BIN_EXE_trunkline");
    // The server's certificate is for this name and not for an address; where it listens is known once it does.
    let at_name =
        format!("TRUNKLINE_URL=$(echo \\\"$TRUNKLINE_URL\\\" | sed s/127.0.0.1/localhost/) exec {trunkline}");
    let platform = Platform::new(&format!(
        "server:\n  listen: 127.0.0.1:0\n  http: 127.0.0.1:0\n  \
         tls: {{cert_file: {}, key_file: {}, ca_file: {}, verify_and_map: true}}\n  users:\n  \
         - {{user: echo.internal, permissions: {{subscribe: [test.echo, _INBOX.>], allow_responses: true}}}}\n  \
         - {{user: asker.internal}}\n\
         components:\n  \
         echo: {{command: [sh, -c, \"{at_name} reply test.echo --echo\"], env: {{{}}}, ready: 'responder:test.echo'}}\n  \
         asker: {{command: [sh, -c, \"{at_name} request test.echo hello\"], env: {{{}}}, depends_on: [echo], ready: 'log:hello', restart: 'no'}}\n  \
         greedy: {{command: [sh, -c, \"{at_name} pub secret.things x\"], env: {{{}}}, depends_on: [asker], restart: 'no'}}\n",
        server.cert_file.display(),
        server.key_file.display(),
        authority.ca_file().display(),
        shown(&echo),
        shown(&asker),
        shown(&echo),
    ));
    let mut up = platform.up(&[]);
    up.until_it_says("greedy | error: publishing to secret.things was denied");
    up.signal(Signal::SIGTERM);
    let ended = up.end();
    let denied = |line: &str| line.contains("not permitted") && line.contains("user=\"echo.internal\"");
    assert!(ended.stderr.lines().any(denied), "{ended:?}");
}
