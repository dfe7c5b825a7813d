//! Stock clients in other languages, run as scripts from `clients/` of this crate against any
//! server that speaks the protocol.
//!
//! A script runs one scenario, by name. It prints `ok NAME` and exits with 0 when the scenario
//! holds; lines that start with `{` are events, one JSON object each; other lines are cues to the
//! test, such as `ready-for-restart`.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::environment;
use crate::process::{ServerProcess, end};

/// Longest run of one scenario. Each takes well under a second, a restart of the server included;
/// the bound leaves room for a machine that is busy with other tests, and lies above the patience
/// of the scripts, which then say better what they were waiting for.
const SCENARIO_PATIENCE: Duration = Duration::from_secs(30);

/// Lines of a script that wait to be read; a script that prints more is held up until the test has
/// read them.
const LINES_WAITING_MAX: usize = 256;

/// A client library that components use as it is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientLibrary {
    /// `nats-py`, for Python's asyncio.
    NatsPy,
    /// `nats` 2.x for Node, the classic nats.js.
    NatsJs,
    /// `@nats-io/transport-node` 3.x, its successor.
    TransportNode,
    /// `@nats-io/nats-core` 3.x on the platform's WebSocket, as browsers use it.
    WebSocket,
}

impl ClientLibrary {
    /// All of them that speak TCP.
    pub const ALL: [ClientLibrary; 3] =
        [ClientLibrary::NatsPy, ClientLibrary::NatsJs, ClientLibrary::TransportNode];

    /// The names of the scenarios that this client's script knows, in the order of the script.
    ///
    /// # Panics
    /// When the script cannot be run.
    pub fn scenario_names(self) -> Vec<String> {
        let mut command = self.command();
        let output = command
            .arg("--list")
            .output()
            .unwrap_or_else(|error| panic!("{command:?} could not be run: {error}"));
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{command:?} ended with {}:\n{stdout}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        stdout.lines().map(str::to_owned).collect()
    }

    fn command(self) -> Command {
        match self {
            ClientLibrary::NatsPy => {
                let mut command = Command::new(environment::python());
                // The scripts lie in the source tree, where compiled copies of them have no
                // business.
                command.env("PYTHONDONTWRITEBYTECODE", "1").arg(script("python/scenarios.py"));
                command
            }
            ClientLibrary::NatsJs => node("nats"),
            ClientLibrary::TransportNode => node("transport-node"),
            ClientLibrary::WebSocket => node_with(Some(WITH_WEBSOCKET), "websocket"),
        }
    }
}

fn node(client: &str) -> Command {
    node_with(None, client)
}

/// Node has a WebSocket of its own from 22 on, and behind this flag since 20.
pub(crate) const WITH_WEBSOCKET: &str = "--experimental-websocket";

fn node_with(flag: Option<&str>, client: &str) -> Command {
    let mut command = Command::new("node");
    command
        .args(flag)
        .env("NODE_PATH", environment::node_path().join("node_modules"))
        .arg(script("node/scenarios.mjs"))
        .args(["--client", client]);
    command
}

/// A file below `clients/` of this crate.
pub(crate) fn script(path: &str) -> PathBuf {
    environment::clients().join(path)
}

/// Runs one scenario of one client against a server, restarting the server where the scenario asks
/// for it. Returns the events that the script reported.
///
/// # Panics
/// When the scenario does not hold; the message has everything the script printed.
pub fn check_scenario(library: ClientLibrary, scenario: &str, server: &mut ServerProcess) -> Vec<Value> {
    check_run(ScenarioRun::start(library, scenario, server.url()), server)
}

/// As [`check_scenario`], for a server in front of a backend of its own. There a PONG says what came of the client's own
/// operations and not that everything published by others has arrived, and order holds within each subscription; the
/// scripts rely on no more than that.
///
/// # Panics
/// As [`check_scenario`].
pub fn check_scenario_on_bridge(
    library: ClientLibrary,
    scenario: &str,
    server: &mut ServerProcess,
) -> Vec<Value> {
    check_run(ScenarioRun::start_on_bridge(library, scenario, server.url()), server)
}

fn check_run(mut run: ScenarioRun, server: &mut ServerProcess) -> Vec<Value> {
    if run.scenario == "subscriptions_resume_after_a_restart" {
        run.wait_for_line("ready-for-restart");
        server.restart();
    }
    run.finish()
}

/// Lets two components call each other with the JSON envelope: `asking` makes the call, `answering`
/// replies.
///
/// # Panics
/// When either half does not hold; the message has everything its script printed.
pub fn check_envelope_between(asking: ClientLibrary, answering: ClientLibrary, server: &ServerProcess) {
    check_envelope_across((asking, server), (answering, server));
}

/// As [`check_envelope_between`], with each component on a server of its own.
///
/// # Panics
/// As [`check_envelope_between`].
pub fn check_envelope_across(
    (asking, at): (ClientLibrary, &ServerProcess),
    (answering, server): (ClientLibrary, &ServerProcess),
) {
    let mut answer = ScenarioRun::start(answering, "envelope_answer", server.url());
    answer.wait_for_line("ready-for-call");
    ScenarioRun::start(asking, "envelope_ask", at.url()).finish();
    answer.finish();
}

/// A script that is running one scenario. Dropping it kills the script.
pub struct ScenarioRun {
    what: String,
    scenario: String,
    child: Child,
    /// Filled by two threads, one for each pipe of the child. They end with the pipes, which close
    /// when the child ends, and the channel with them; nobody needs to join them.
    lines: Receiver<Line>,
    deadline: Instant,
    seen: Vec<Line>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    Stdout(String),
    Stderr(String),
}

impl ScenarioRun {
    /// Starts the script against the server at `url`.
    ///
    /// # Panics
    /// When the client is not installed; the message says how to get it.
    pub fn start(library: ClientLibrary, scenario: &str, url: &str) -> ScenarioRun {
        ScenarioRun::launch(library.command(), library, scenario, url)
    }

    /// Starts the script with these variables of its own, such as a credential that the test has made.
    ///
    /// # Panics
    /// As [`ScenarioRun::start`].
    pub fn start_with(
        library: ClientLibrary,
        scenario: &str,
        url: &str,
        variables: &[(&str, &str)],
    ) -> ScenarioRun {
        let mut command = library.command();
        command.envs(variables.iter().copied());
        ScenarioRun::launch(command, library, scenario, url)
    }

    /// Starts another program that speaks as the scripts do; the command has its arguments already. `what` is how messages
    /// call it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_program(command: Command, scenario: &str, what: String) -> ScenarioRun {
        ScenarioRun::spawn(command, scenario, what)
    }

    /// Starts the script against a server in front of a backend of its own, see [`check_scenario_on_bridge`].
    ///
    /// # Panics
    /// As [`ScenarioRun::start`].
    pub fn start_on_bridge(library: ClientLibrary, scenario: &str, url: &str) -> ScenarioRun {
        let mut command = library.command();
        command.env("SCENARIO_BRIDGED", "1");
        ScenarioRun::launch(command, library, scenario, url)
    }

    fn launch(mut command: Command, library: ClientLibrary, scenario: &str, url: &str) -> ScenarioRun {
        command.args([url, scenario]);
        ScenarioRun::spawn(command, scenario, format!("{scenario} with {library:?}"))
    }

    fn spawn(mut command: Command, scenario: &str, what: String) -> ScenarioRun {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{command:?} could not be run: {error}; `cargo xtask setup` says what is missing")
            });
        let (sender, lines) = sync_channel(LINES_WAITING_MAX);
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        forward_lines(stdout, sender.clone(), Line::Stdout);
        forward_lines(stderr, sender, Line::Stderr);
        ScenarioRun {
            what,
            scenario: scenario.to_owned(),
            child,
            lines,
            deadline: Instant::now() + SCENARIO_PATIENCE,
            seen: Vec::new(),
        }
    }

    /// Waits until the script prints exactly this line.
    ///
    /// # Panics
    /// When it ends or its time is up before.
    pub fn wait_for_line(&mut self, expected: &str) {
        loop {
            match self.next_line() {
                Some(Line::Stdout(line)) if line == expected => return,
                Some(_) => {}
                None => self.fail(&format!("ended without the line {expected:?}")),
            }
        }
    }

    /// The process of the script.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the next cue of the script, past its events. `None` once it has said that its scenario holds, or has closed
    /// its output.
    ///
    /// # Panics
    /// When its time is up before.
    pub fn next_cue(&mut self) -> Option<String> {
        let ok = format!("ok {}", self.scenario);
        loop {
            match self.next_line()? {
                Line::Stdout(line) if line == ok => return None,
                Line::Stdout(line) if !line.starts_with('{') => return Some(line),
                _ => {}
            }
        }
    }

    /// Waits for the end of the script and returns the events it reported.
    ///
    /// # Panics
    /// When the scenario does not hold or its time is up.
    pub fn finish(mut self) -> Vec<Value> {
        while self.next_line().is_some() {}
        let status = self.child.wait().expect("a child can be waited for");
        if !status.success() {
            self.fail(&format!("ended with {status}"));
        }
        let ok = Line::Stdout(format!("ok {}", self.scenario));
        if self.seen.last() != Some(&ok) {
            self.fail("ended well, but not with its ok");
        }
        self.seen
            .iter()
            .filter_map(|line| match line {
                Line::Stdout(line) if line.starts_with('{') => Some(line),
                _ => None,
            })
            .map(|line| {
                serde_json::from_str(line)
                    .unwrap_or_else(|error| panic!("{}: bad event {line}: {error}", self.what))
            })
            .collect()
    }

    /// The next line, or `None` once the script has closed its output.
    fn next_line(&mut self) -> Option<Line> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => {
                let (Line::Stdout(text) | Line::Stderr(text)) = &line;
                println!("{}: {text}", self.what);
                self.seen.push(line.clone());
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => self.fail(&format!("did not end within {SCENARIO_PATIENCE:?}")),
        }
    }

    fn fail(&mut self, how: &str) -> ! {
        end(&mut self.child);
        // What was on its way is part of the story: often the very error.
        self.seen.extend(self.lines.iter());
        let output: String = self
            .seen
            .iter()
            .map(|line| match line {
                Line::Stdout(text) => format!("  {text}\n"),
                Line::Stderr(text) => format!("! {text}\n"),
            })
            .collect();
        panic!("{} {how}; its output (! marks stderr):\n{output}", self.what);
    }
}

impl Drop for ScenarioRun {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn forward_lines(pipe: impl Read + Send + 'static, lines: SyncSender<Line>, kind: fn(String) -> Line) {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if lines.send(kind(text)).is_err() {
                return;
            }
        }
    });
}

/// Makes a `#[test]` of every scenario for one client: `client_scenarios!(ClientLibrary::NatsPy,
/// crate::check)`, where `check` is a `fn(ClientLibrary, &str)`. One more test holds that the
/// client's script has exactly these scenarios.
#[macro_export]
macro_rules! client_scenarios {
    ($library:expr, $check:path) => {
        $crate::client_scenarios! { @tests $library, $check,
            wildcards_match_whole_tokens
            queue_group_members_share_each_message_once
            messages_of_one_publisher_keep_their_order
            own_messages_are_echoed_unless_refused
            request_gets_its_own_reply
            request_many_gets_every_reply
            headers_arrive_as_they_were_sent
            repeated_headers_are_forwarded_byte_for_byte
            request_that_nobody_answers_fails_at_once
            drained_subscription_handles_what_was_published
            drained_connection_handles_and_sends_everything
            auto_unsubscribe_stops_after_max
            subscriptions_resume_after_a_restart
            client_refuses_more_than_max_payload
            server_refuses_more_than_max_payload_and_closes
            flush_and_rtt_are_answered
            binary_payload_is_not_touched
            empty_payload_is_a_message
            payload_of_exactly_one_mebibyte_passes
            ten_thousand_subscriptions_get_their_own_messages
        }
    };
    (@tests $library:expr, $check:path, $($scenario:ident)*) => {
        $(
            #[test]
            fn $scenario() {
                $check($library, stringify!($scenario));
            }
        )*

        #[test]
        fn every_scenario_of_the_script_is_tested() {
            assert_eq!($library.scenario_names(), [$(stringify!($scenario)),*]);
        }
    };
}
