//! A scenario that does not hold fails its test, and the test then shows what the script said.

use std::panic;

use trunkline_testkit::clients::{ClientLibrary, ScenarioRun};
use trunkline_testkit::servers::NatsServer;

fn panic_message(run: impl FnOnce() + panic::UnwindSafe) -> String {
    let payload = panic::catch_unwind(run).expect_err("the scenario cannot hold");
    *payload.downcast::<String>().expect("the message is formatted")
}

#[test]
fn scenario_that_does_not_hold_shows_the_output_of_its_script() {
    let server = NatsServer::start_with_config("max_payload: 512");
    let url = server.url();
    for library in ClientLibrary::ALL {
        let message = panic_message(|| {
            ScenarioRun::start(library, "client_refuses_more_than_max_payload", url).finish();
        });
        assert!(message.contains("ended with exit status: 1"), "{message}");
        assert!(message.contains("INFO says max_payload 512"), "{message}");
    }
}

#[test]
fn unknown_scenario_is_a_usage_error() {
    for library in ClientLibrary::ALL {
        let message = panic_message(|| {
            ScenarioRun::start(library, "no_such_scenario", "nats://127.0.0.1").finish();
        });
        assert!(message.contains("ended with exit status: 2"), "{message}");
        assert!(message.contains("usage: scenarios."), "{message}");
    }
}

#[test]
fn script_that_ends_before_its_cue_is_an_error() {
    let server = NatsServer::start::<&str>([]);
    let url = server.url();
    let message = panic_message(|| {
        let mut run = ScenarioRun::start(ClientLibrary::NatsJs, "flush_and_rtt_are_answered", url);
        run.wait_for_line("ready-for-restart");
    });
    assert!(message.contains(r#"ended without the line "ready-for-restart""#), "{message}");
    assert!(message.contains("ok flush_and_rtt_are_answered"), "{message}");
}

#[test]
fn events_of_a_script_reach_the_test() {
    let server = NatsServer::start::<&str>([]);
    let run = ScenarioRun::start(ClientLibrary::NatsPy, "client_refuses_more_than_max_payload", server.url());
    let events = run.finish();
    assert_eq!(events, [serde_json::json!({"event": "max_payload", "bytes": 1_048_576})]);
}
