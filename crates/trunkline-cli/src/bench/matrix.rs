//! Runs every workload on every server, several times and interleaved (A B A B …), so that whatever else the machine
//! does meets all servers alike.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::compare::ServerSpec;
use super::endpoint::Endpoint;
use super::error::BenchError;
use super::halt::Halt;
use super::measure::{Flow, Sample};
use super::plan::{Plan, Scenario, Servers, Workload};
use super::process::Processes;
use super::progress::Progress;
use super::server::Server;
use super::{idle, inproc, load, request};

/// All samples of a benchmark.
pub(super) struct Results {
    /// In the order of the command line; the first is the baseline.
    pub(super) servers: Vec<ServerLabel>,
    pub(super) rows: Vec<Row>,
}

/// How a report calls a server.
pub(super) struct ServerLabel {
    pub(super) name: String,
    /// From INFO, where bench started the server.
    pub(super) version: Option<String>,
    pub(super) command: Option<String>,
}

/// One workload with the samples of each server, in the order of [`Results::servers`].
pub(super) struct Row {
    pub(super) workload: Workload,
    pub(super) samples: Vec<Vec<Sample>>,
}

/// A server of the matrix.
enum Target<'a> {
    Running { endpoint: &'a Endpoint, pid: Option<i32> },
    Started { spec: &'a ServerSpec, server: Server },
    InProcess,
}

/// Runs the plan.
///
/// # Errors
/// The first run that fails ends the benchmark: a number beside a lost message would be worth nothing.
pub(super) fn run(
    plan: &Plan,
    interrupted: &Arc<AtomicBool>,
    progress: &Progress,
) -> Result<Results, BenchError> {
    let halt = || Halt::new(interrupted, plan.timeout);
    let connections = plan
        .workloads
        .iter()
        .map(|workload| workload.clients + workload.crowd.connections)
        .max()
        .unwrap_or(0);
    idle::allow_connections(connections)?;
    let mut targets = targets(&plan.servers, &halt())?;
    let mut rows = Vec::with_capacity(plan.workloads.len());
    for workload in &plan.workloads {
        let mut samples: Vec<Vec<Sample>> = targets.iter().map(|_| Vec::new()).collect();
        for run in 0..runs_of(plan, workload) {
            for (target, samples) in targets.iter_mut().zip(&mut samples) {
                progress.step(workload, target.name(), run);
                let sample = target.measure(workload, &halt()).map_err(|source| match source {
                    BenchError::Interrupted => source,
                    source => BenchError::Run {
                        scenario: workload.title(),
                        server: target.name().to_owned(),
                        source: Box::new(source),
                    },
                })?;
                samples.push(sample);
            }
        }
        rows.push(Row { workload: workload.clone(), samples });
    }
    Ok(Results { servers: targets.iter().map(Target::label).collect(), rows })
}

/// How many samples the plan takes of each server together, for a progress bar.
pub(super) fn steps(plan: &Plan) -> u64 {
    let servers = match &plan.servers {
        Servers::Running { .. } | Servers::InProcess => 1,
        Servers::Started(specs) => specs.len(),
    };
    plan.workloads.iter().map(|workload| (runs_of(plan, workload) * servers) as u64).sum()
}

/// A server that keeps running shows the memory of its idle connections only once: what it has taken, it reuses.
fn runs_of(plan: &Plan, workload: &Workload) -> usize {
    match (&plan.servers, workload.scenario) {
        (Servers::Running { .. }, Scenario::Idle) => 1,
        _ => plan.runs,
    }
}

fn targets<'a>(servers: &'a Servers, halt: &Halt) -> Result<Vec<Target<'a>>, BenchError> {
    match servers {
        Servers::Running { endpoint, pid } => Ok(vec![Target::Running { endpoint, pid: *pid }]),
        Servers::InProcess => Ok(vec![Target::InProcess]),
        Servers::Started(specs) => specs
            .iter()
            .map(|spec| Ok(Target::Started { spec, server: Server::start(spec, halt)? }))
            .collect(),
    }
}

impl Target<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Running { .. } => "server",
            Self::Started { spec, .. } => &spec.name,
            Self::InProcess => inproc::NAME,
        }
    }

    fn label(&self) -> ServerLabel {
        match self {
            Self::Running { endpoint, .. } => {
                ServerLabel { name: endpoint.address(), version: None, command: None }
            }
            Self::InProcess => ServerLabel { name: inproc::NAME.to_owned(), version: None, command: None },
            Self::Started { spec, server } => ServerLabel {
                name: spec.name.clone(),
                version: Some(server.version().to_owned()),
                command: Some(spec.line()),
            },
        }
    }

    fn measure(&mut self, workload: &Workload, halt: &Halt) -> Result<Sample, BenchError> {
        match self {
            Self::Running { endpoint, pid } => {
                let processes = pid.map_or(Processes::Unknown, Processes::One);
                measure(workload, endpoint, processes, halt)
            }
            Self::InProcess => inproc::run(workload, halt).map(Sample::Flow),
            // Memory once used is seldom given back: idle connections are measured on a server of their own.
            Self::Started { spec, .. } if workload.scenario == Scenario::Idle => {
                let mut fresh = Server::start(spec, halt)?;
                let outcome = measure(workload, &fresh.endpoint(), fresh.processes(), halt);
                outcome.map_err(|error| fresh.explain(error))
            }
            Self::Started { server, .. } => {
                let outcome = measure(workload, &server.endpoint(), server.processes(), halt);
                outcome.map_err(|error| server.explain(error))
            }
        }
    }
}

fn measure(
    workload: &Workload,
    endpoint: &Endpoint,
    processes: Processes,
    halt: &Halt,
) -> Result<Sample, BenchError> {
    let crowd = |work: &dyn Fn() -> Result<Flow, BenchError>| {
        workload.crowd.around(&workload.subject, endpoint, halt, work).map(Sample::Flow)
    };
    match workload.scenario {
        Scenario::Pub | Scenario::Sub | Scenario::Fanout | Scenario::Queue => {
            crowd(&|| load::run(workload, endpoint, processes, halt))
        }
        Scenario::Request => crowd(&|| request::run(workload, endpoint, processes, halt)),
        Scenario::Idle => idle::run(workload, endpoint, processes, halt).map(Sample::Idle),
    }
}
