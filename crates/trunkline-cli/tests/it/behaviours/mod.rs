//! How the official clients behave where a server shows itself: at the door, under TLS, when it goes away or cuts somebody
//! off. Each behaviour is seen with each client on the real nats-server and on our binary under that name, with the same
//! configuration file and the same assertions; those of TLS on `trunkline up`, too, whose configuration has keys of its own
//! for it. What the runs reported is compared on top.

mod rust_client;
mod scene;
mod site;
mod tampering;

use serde_json::Value;
use trunkline_testkit::BehaviourProgram;

use self::scene::{Scene, Which};
use self::site::Site;

/// Makes a test of every behaviour for every client.
macro_rules! behaviours {
    ($($name:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];

        behaviours! { @program nats_py BehaviourProgram::NatsPy, NAMES, $($name)* }
        behaviours! { @program nats_js BehaviourProgram::NatsJs, NAMES, $($name)* }
        behaviours! { @program transport_node BehaviourProgram::TransportNode, NAMES, $($name)* }
        behaviours! { @program c BehaviourProgram::C, NAMES, $($name)* }

        mod rust {
            $(
                #[test]
                fn $name() {
                    super::compare(super::site::is_seen_on_up(stringify!($name)), |which| {
                        let scene = super::Scene::start(which, stringify!($name), super::Site::make());
                        super::rust_client::run(scene, super::rust_client::$name)
                    });
                }
            )*
        }
    };
    (@web $($name:ident)*) => {
        const WEB_NAMES: &[&str] = &[$(stringify!($name)),*];

        behaviours! { @program web BehaviourProgram::WebSocket, WEB_NAMES, $($name)* }
    };
    (@program $module:ident $program:expr, $names:ident, $($name:ident)*) => {
        mod $module {
            use trunkline_testkit::BehaviourProgram;

            $(
                #[test]
                fn $name() {
                    super::check($program, stringify!($name));
                }
            )*

            #[test]
            fn every_behaviour_of_the_program_is_tested() {
                let mut known = $program.names();
                known.sort_unstable();
                let mut tested = super::$names.to_vec();
                tested.sort_unstable();
                assert_eq!(known, tested);
            }
        }
    };
}

behaviours! {
    user_and_password_open_the_door
    a_token_opens_the_door
    an_nkey_opens_the_door
    no_auth_user_is_who_says_nothing
    violations_of_permissions_reach_the_error_handler
    tls_is_required
    tls_is_optional
    tls_comes_first
    tls_comes_first_for_who_begins_with_it
    a_client_certificate_is_verified
    a_client_certificate_names_a_user
    a_secure_connection_comes_back
    subscriptions_and_callbacks_live_through_a_restart
    a_drained_subscription_loses_nothing
    a_drained_connection_loses_nothing
    lame_duck_mode_is_told
    shutdown_closes_the_connection
    a_silent_client_is_cut_off
    a_silent_server_is_left
    a_slow_subscription_drops_in_the_client
    a_slow_client_is_cut_off
    too_large_a_payload_is_refused_in_the_client
    too_large_a_payload_ends_the_connection
    one_connection_too_many_is_refused
    one_subscription_too_many_is_refused
    what_connect_asks_for_is_honoured
    a_request_without_responders_fails_at_once
    a_request_has_many_replies
    services_are_discovered
}

// A page has neither a certificate of its own nor a say in when the handshake comes; and its platform waits for a server that
// stands still.
behaviours! { @web
    user_and_password_open_the_door
    a_token_opens_the_door
    an_nkey_opens_the_door
    no_auth_user_is_who_says_nothing
    violations_of_permissions_reach_the_error_handler
    tls_is_required
    a_secure_connection_comes_back
    subscriptions_and_callbacks_live_through_a_restart
    a_drained_subscription_loses_nothing
    a_drained_connection_loses_nothing
    lame_duck_mode_is_told
    shutdown_closes_the_connection
    a_silent_client_is_cut_off
    a_slow_subscription_drops_in_the_client
    a_slow_client_is_cut_off
    too_large_a_payload_is_refused_in_the_client
    too_large_a_payload_ends_the_connection
    one_connection_too_many_is_refused
    one_subscription_too_many_is_refused
    what_connect_asks_for_is_honoured
    a_request_without_responders_fails_at_once
    a_request_has_many_replies
    services_are_discovered
}

/// Runs one behaviour of one program on both servers.
fn check(program: BehaviourProgram, name: &str) {
    let is_web = program == BehaviourProgram::WebSocket;
    compare(site::is_seen_on_up(name) && !is_web, |which| {
        let start = if is_web { Scene::start_web } else { Scene::start };
        let mut scene = start(which, name, Site::make());
        let mut run = program.start(name, &scene.url(), &scene.variables(), which.name());
        let pid = run.pid();
        while let Some(cue) = run.next_cue() {
            scene.act(&cue, Some(pid));
        }
        run.finish()
    });
}

/// Runs on the real server first: what does not hold there is a mistake of the test.
fn compare(is_seen_on_up: bool, mut run: impl FnMut(Which) -> Vec<Value>) {
    let mut run_on = |which: Which| {
        println!("on {}:", which.name());
        run(which)
    };
    let theirs = run_on(Which::Theirs);
    for which in [Which::Ours, Which::Up] {
        if which == Which::Up && !is_seen_on_up {
            continue;
        }
        assert_eq!(run_on(which), theirs, "what the client reported on {}, and on nats-server", which.name());
    }
}
