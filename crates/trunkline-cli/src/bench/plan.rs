//! What is to be measured: the command line, checked and spelled out as a list of workloads. No I/O.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::BenchArgs;
use super::body::Body;
use super::compare::ServerSpec;
use super::endpoint::Endpoint;
use super::error::BenchError;
use super::stamp::PUBLISHERS_MAX;
use super::units;

const RUNS_ALONE: usize = 3;
const RUNS_COMPARED: usize = 5;
const CONNECTIONS_MAX: u64 = 60_000;
const IN_FLIGHT_MAX: u64 = 1 << 16;
const IDLE_CONNECTIONS: usize = 1000;
const FAN_OUT: usize = 4;
const IN_FLIGHT: usize = 64;
const RUN_DURATION: Duration = Duration::from_secs(1);

/// Bytes of a `MSG` line around the payload, besides the subject.
const LINE_BYTES: usize = 16;

/// What the clients of a run do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scenario {
    /// Publishers alone, nobody subscribes; the end is confirmed by the server
    Pub,
    /// One publisher, one subscriber
    Sub,
    /// One publisher, N subscribers that each get every message
    Fanout,
    /// N publishers, N members of a queue group that share the messages
    Queue,
    /// Request and reply with K requests in flight
    Request,
    /// Memory of the server per idle connection
    Idle,
}

impl Scenario {
    /// Whether it can be measured without a server.
    pub(super) fn runs_in_process(self) -> bool {
        matches!(self, Self::Sub | Self::Fanout)
    }

    /// The name on the command line and in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pub => "pub",
            Self::Sub => "sub",
            Self::Fanout => "fanout",
            Self::Queue => "queue",
            Self::Request => "request",
            Self::Idle => "idle",
        }
    }
}

/// How much a run publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Amount {
    /// So many messages, all publishers together.
    Messages(u64),
    /// As many as go in this time.
    For(Duration),
}

impl Amount {
    /// The part of client `index` of `clients`; parts differ by one message at most.
    pub(super) fn share(self, index: usize, clients: usize) -> Self {
        let (index, clients) = (index as u64, clients.max(1) as u64);
        match self {
            Self::Messages(total) => Self::Messages(total / clients + u64::from(index < total % clients)),
            Self::For(duration) => Self::For(duration),
        }
    }
}

/// One row of the report: a scenario with everything that it depends on.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    pub(super) scenario: Scenario,
    pub(super) subject: String,
    pub(super) body: Body,
    /// The subject is one that is recorded where conversations are.
    pub(super) is_recorded: bool,
    pub(super) payload_bytes: usize,
    pub(super) publishers: usize,
    /// Subscribers, members of the queue group, or responders.
    pub(super) subscribers: usize,
    /// Requesters, or idle connections.
    pub(super) clients: usize,
    pub(super) in_flight: usize,
    pub(super) amount: Amount,
    pub(super) warm_up: Duration,
    pub(super) window: WindowLimit,
}

/// How far publishers may be ahead of the slowest subscriber; the tighter of the two counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct WindowLimit {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

impl Workload {
    /// The window in messages, at least four for each publisher.
    pub(super) fn window_messages(&self) -> u64 {
        let frame_bytes = (self.payload_bytes + self.subject.len() + LINE_BYTES) as u64;
        let fitting = self.window.bytes / frame_bytes;
        self.window.messages.min(fitting).max(4 * self.publishers as u64)
    }

    /// Scenario and payload, for people: `sub 16 B`.
    pub(super) fn title(&self) -> String {
        match self.scenario {
            Scenario::Idle => self.scenario.name().to_owned(),
            _ => format!("{} {}{}", self.scenario.name(), units::size(self.payload_bytes), self.kind()),
        }
    }

    /// What is sent, for people, where it is not what is always sent.
    fn kind(&self) -> &'static str {
        match (self.body, self.is_recorded) {
            (Body::Raw, false) => "",
            (Body::Raw, true) => ", recorded",
            (Body::Envelope, _) => ", recorded envelopes",
        }
    }

    /// Who talks to whom, for people: `1 → 4`.
    pub(super) fn shape(&self) -> String {
        self.ends() + self.kind()
    }

    fn ends(&self) -> String {
        match self.scenario {
            Scenario::Pub => format!("{} →", self.publishers),
            Scenario::Sub | Scenario::Fanout | Scenario::Queue => {
                format!("{} → {}", self.publishers, self.subscribers)
            }
            Scenario::Request => {
                format!("{} ⇄ {}, {} in flight", self.clients, self.subscribers, self.in_flight)
            }
            Scenario::Idle => format!("{} connections", self.clients),
        }
    }

    #[cfg(test)]
    pub(super) fn example(scenario: Scenario) -> Self {
        Self {
            scenario,
            subject: "bench.example".to_owned(),
            body: Body::Raw,
            is_recorded: false,
            payload_bytes: 16,
            publishers: 1,
            subscribers: 1,
            clients: 1,
            in_flight: 1,
            amount: Amount::Messages(1),
            warm_up: Duration::ZERO,
            window: WindowLimit { messages: 65_536, bytes: 16 << 20 },
        }
    }
}

/// Which servers are measured.
#[derive(Debug)]
pub(super) enum Servers {
    /// One that runs already; its process, if the user named it.
    Running { endpoint: Endpoint, pid: Option<i32> },
    /// Several that bench starts. The first is the baseline.
    Started(Vec<ServerSpec>),
    /// None: the library in this process.
    InProcess,
}

/// The whole benchmark.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) workloads: Vec<Workload>,
    pub(super) servers: Servers,
    pub(super) runs: usize,
    pub(super) timeout: Duration,
}

impl Plan {
    /// Checks the command line and fills in the defaults of each scenario.
    ///
    /// # Errors
    /// An error of kind usage for what makes no sense together or is out of range.
    pub(super) fn new(args: &BenchArgs) -> Result<Self, BenchError> {
        check_ranges(args)?;
        let servers = servers(args)?;
        let process_known = matches!(servers, Servers::Running { pid: Some(_), .. } | Servers::Started(_));
        let subject = match &args.subject {
            Some(subject) => checked_subject(subject)?,
            None => random_subject(),
        };
        let mut scenarios = args.scenarios.clone();
        if matches!(servers, Servers::InProcess) {
            if let Some(scenario) = scenarios.iter().find(|scenario| !scenario.runs_in_process()) {
                return Err(BenchError::NotInProcess { scenario: scenario.name() });
            }
            if scenarios.is_empty() {
                scenarios = vec![Scenario::Sub, Scenario::Fanout];
            }
        } else if scenarios.is_empty() && args.observe {
            scenarios = vec![Scenario::Sub, Scenario::Fanout, Scenario::Queue, Scenario::Request];
        } else if scenarios.is_empty() {
            scenarios.extend([
                Scenario::Pub,
                Scenario::Sub,
                Scenario::Fanout,
                Scenario::Queue,
                Scenario::Request,
            ]);
            scenarios.extend(process_known.then_some(Scenario::Idle));
        } else if scenarios.contains(&Scenario::Idle) && !process_known {
            return Err(BenchError::IdleWithoutProcess);
        }
        let mut workloads = Vec::new();
        for scenario in scenarios {
            let payloads: &[usize] = if scenario == Scenario::Idle { &[0] } else { &args.payload };
            for &payload in payloads {
                let alone = workload(args, &subject, scenario, payload);
                let recorded = args.observe.then(|| recorded(&alone));
                workloads.push(alone);
                workloads.extend(recorded);
            }
        }
        let runs_default = match servers {
            Servers::Running { .. } | Servers::InProcess => RUNS_ALONE,
            Servers::Started(_) => RUNS_COMPARED,
        };
        Ok(Self { workloads, servers, runs: args.runs.unwrap_or(runs_default), timeout: args.timeout })
    }
}

/// The same on a subject that is recorded where conversations are; with envelopes, as far as the scenario can check them.
fn recorded(alone: &Workload) -> Workload {
    let fits = alone.payload_bytes >= Body::ENVELOPE_BYTES_MIN;
    let body = match alone.scenario {
        Scenario::Request | Scenario::Idle => Body::Raw,
        _ if fits => Body::Envelope,
        _ => Body::Raw,
    };
    // The root is the default one, as the servers are started without configuration.
    Workload { subject: format!("nachos.{}", alone.subject), body, is_recorded: true, ..alone.clone() }
}

/// This program, which records no conversations or does.
fn observed() -> Vec<ServerSpec> {
    let program = std::env::current_exe().unwrap_or_else(|_| "trunkline".into());
    let program = program.to_string_lossy();
    let spec = |name, value: &str| {
        let (listen, variable) = ("127.0.0.1:{port}", format!("TRUNKLINE_OBSERVE_ENABLED={value}"));
        ServerSpec::new(
            name,
            &["env", &variable, &program, "up", "--listen", listen, "--http", "127.0.0.1:0"],
        )
    };
    vec![spec("off", "false"), spec("on", "true")]
}

fn servers(args: &BenchArgs) -> Result<Servers, BenchError> {
    if args.observe {
        return Ok(Servers::Started(observed()));
    }
    match args.compare.as_slice() {
        [] if args.in_process => Ok(Servers::InProcess),
        [] => Ok(Servers::Running { endpoint: Endpoint::parse(&args.url)?, pid: args.server_pid }),
        [_] => Err(BenchError::CompareAlone),
        given => {
            let mut specs: Vec<ServerSpec> = Vec::with_capacity(given.len());
            for text in given {
                let spec = ServerSpec::parse(text)?;
                if specs.iter().any(|other| other.name == spec.name) {
                    return Err(BenchError::CompareName { name: spec.name });
                }
                specs.push(spec);
            }
            Ok(Servers::Started(specs))
        }
    }
}

fn workload(args: &BenchArgs, subject: &str, scenario: Scenario, payload_bytes: usize) -> Workload {
    let (publishers, subscribers) = match scenario {
        Scenario::Pub => (1, 0),
        Scenario::Sub | Scenario::Request | Scenario::Idle => (1, 1),
        Scenario::Fanout => (1, FAN_OUT),
        Scenario::Queue => (FAN_OUT, FAN_OUT),
    };
    let (publishers, subscribers) = match scenario {
        // What these two are is in their names: more of either end is a fan-out or a queue group.
        Scenario::Sub => (1, 1),
        Scenario::Pub => (args.publishers.unwrap_or(publishers), 0),
        _ => (args.publishers.unwrap_or(publishers), args.subscribers.unwrap_or(subscribers)),
    };
    let clients = if scenario == Scenario::Idle { IDLE_CONNECTIONS } else { 1 };
    let amount = match (args.messages, args.duration) {
        (Some(messages), _) => Amount::Messages(messages),
        (None, duration) => Amount::For(duration.unwrap_or(RUN_DURATION)),
    };
    Workload {
        scenario,
        subject: subject.to_owned(),
        body: Body::Raw,
        is_recorded: false,
        payload_bytes,
        publishers,
        subscribers,
        clients: args.clients.unwrap_or(clients),
        in_flight: args.in_flight.unwrap_or(IN_FLIGHT),
        amount,
        warm_up: args.warm_up,
        window: WindowLimit { messages: args.window_messages, bytes: args.window_bytes as u64 },
    }
}

fn check_ranges(args: &BenchArgs) -> Result<(), BenchError> {
    let some = |value: Option<usize>| value.map(|value| value as u64);
    let ranges = [
        ("--publishers", some(args.publishers), 1, PUBLISHERS_MAX.min(1000)),
        ("--subscribers", some(args.subscribers), 1, 1000),
        ("--clients", some(args.clients), 1, CONNECTIONS_MAX),
        ("--in-flight", some(args.in_flight), 1, IN_FLIGHT_MAX),
        ("--runs", some(args.runs), 1, 1000),
        ("--messages", args.messages, 1, 1 << 40),
        ("--duration (ms)", args.duration.map(|duration| duration.as_millis() as u64), 1, 86_400_000),
        ("--timeout (ms)", Some(args.timeout.as_millis() as u64), 100, 86_400_000),
        ("--window-messages", Some(args.window_messages), 1, 1 << 40),
        ("--window-bytes", some(Some(args.window_bytes)), 1, 1 << 40),
    ];
    for (option, given, min, max) in ranges {
        if let Some(given) = given.filter(|given| !(min..=max).contains(given)) {
            return Err(BenchError::Range { option, given, min, max });
        }
    }
    for &payload in &args.payload {
        let (given, max) = (payload as u64, 64 << 20);
        if given > max {
            return Err(BenchError::Range { option: "--payload", given, min: 0, max });
        }
    }
    Ok(())
}

fn checked_subject(subject: &str) -> Result<String, BenchError> {
    let token = |token: &str| {
        !token.is_empty()
            && token != "*"
            && token != ">"
            && token.chars().all(|c| !c.is_whitespace() && !c.is_control())
    };
    if subject.len() <= 256 && subject.split('.').all(token) {
        Ok(subject.to_owned())
    } else {
        Err(BenchError::Subject { subject: subject.to_owned() })
    }
}

/// A subject that two benchmarks on one server do not share.
fn random_subject() -> String {
    let tail = std::iter::repeat_with(|| fastrand::digit(36)).take(6);
    format!("bench.{}", tail.collect::<String>())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::bench::error::ErrorKind;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn plan(args: &[&str]) -> Result<Plan, BenchError> {
        let cli = Cli::try_parse_from([&["bench"], args].concat()).expect("clap accepts it");
        Plan::new(&cli.bench)
    }

    #[test]
    fn the_record_of_conversations_is_measured_on_subjects_inside_and_outside_of_it() {
        let plan = plan(&["--observe", "sub", "request", "--payload", "16,128"]).unwrap();
        let Servers::Started(specs) = &plan.servers else { panic!("{:?}", plan.servers) };
        let lines: Vec<String> = specs.iter().map(ServerSpec::line).collect();
        assert!(lines[0].starts_with("env TRUNKLINE_OBSERVE_ENABLED=false /"), "{lines:?}");
        assert!(lines[1].starts_with("env TRUNKLINE_OBSERVE_ENABLED=true /"), "{lines:?}");
        let titles: Vec<String> = plan.workloads.iter().map(Workload::title).collect();
        assert_eq!(
            titles,
            [
                "sub 16 B",
                "sub 16 B, recorded",
                "sub 128 B",
                "sub 128 B, recorded envelopes",
                "request 16 B",
                "request 16 B, recorded",
                "request 128 B",
                "request 128 B, recorded",
            ]
        );
        assert!(plan.workloads.iter().all(|it| it.is_recorded == it.subject.starts_with("nachos.bench.")));
    }

    #[test]
    fn what_clap_cannot_read_exits_with_2() {
        for args in [
            &["sideways"][..],
            &["--payload", "1x"],
            &["--runs", "many"],
            &["--duration", "soon"],
            &["--messages", "1", "--duration", "1s"],
            &["--url", "nats://h", "--compare", "a=b"],
            &["--nonsense"],
        ] {
            let Err(error) = Cli::try_parse_from([&["bench"], args].concat()) else {
                panic!("{args:?} is accepted");
            };
            assert_eq!(error.exit_code(), 2, "{args:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_exits_with_2() {
        for args in [
            &["--url", "tls://h"][..],
            &["--compare", "a=nats-server"],
            &["--compare", "a=nats-server", "--compare", "a=nats-server"],
            &["--compare", "a=nats-server", "--compare", "nats-server"],
            &["--compare", "a=nats-server", "--compare", "b=other"],
            &["idle"],
            &["queue", "--in-process"],
            &["--subject", "a..b"],
            &["--subject", "a.*"],
            &["--publishers", "0"],
            &["--in-flight", "65537"],
            &["--payload", "1G"],
            &["--runs", "0"],
            &["--messages", "0"],
            &["--duration", "0"],
        ] {
            let error = plan(args).expect_err(&format!("{args:?}"));
            assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Usage, 2), "{args:?}: {error}");
        }
    }

    #[test]
    fn without_arguments_all_scenarios_run_that_a_url_allows() {
        let plan = plan(&[]).expect("defaults are valid");
        let names: Vec<_> = plan.workloads.iter().map(|workload| workload.scenario.name()).collect();
        let expected = ["pub", "sub", "fanout", "queue", "request"].map(|name| [name; 4]).concat();
        assert_eq!(names, expected);
        assert_eq!(plan.runs, RUNS_ALONE);
    }

    #[test]
    fn compared_servers_also_show_their_memory() {
        let args = ["--compare", "a=nats-server", "--compare", "b=trunkline", "--payload", "8"];
        let plan = plan(&args).expect("valid");
        assert_eq!(plan.workloads.last().map(|workload| workload.scenario), Some(Scenario::Idle));
        assert_eq!(plan.runs, RUNS_COMPARED);
    }

    #[test]
    fn the_tighter_window_counts_but_no_publisher_is_starved() {
        let mut workload = Workload::example(Scenario::Queue);
        assert_eq!(workload.window_messages(), 65_536);
        workload.payload_bytes = (1 << 20) - workload.subject.len() - LINE_BYTES;
        assert_eq!(workload.window_messages(), 16);
        workload.publishers = 8;
        assert_eq!(workload.window_messages(), 32);
    }

    #[test]
    fn shares_add_up() {
        let shares = (0..3).map(|index| Amount::Messages(11).share(index, 3));
        assert_eq!(shares.collect::<Vec<_>>(), [4, 4, 3].map(Amount::Messages));
    }
}
