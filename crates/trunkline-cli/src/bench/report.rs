//! Results as programs read them: medians over the runs, and ratios of medians to the first server. For people they are
//! laid out in `table`.

use serde::Serialize;

use super::matrix::{Results, Row};
use super::measure::{Flow, Idle, Sample};
use super::plan::Scenario;
use super::stats::{Summary, ratio};

/// A finished benchmark.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    pub(super) runs: usize,
    /// What the ratios are to; absent where one server was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) baseline: Option<&'a str>,
    pub(super) servers: Vec<ServerEntry<'a>>,
    pub(super) results: Vec<ResultRow<'a>>,
}

#[derive(Serialize)]
pub(super) struct ServerEntry<'a> {
    pub(super) name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) command: Option<&'a str>,
}

/// One workload.
#[derive(Serialize)]
pub(super) struct ResultRow<'a> {
    pub(super) scenario: Scenario,
    pub(super) payload_bytes: usize,
    pub(super) shape: String,
    pub(super) servers: Vec<Cell<'a>>,
}

/// One workload on one server.
#[derive(Serialize)]
pub(super) struct Cell<'a> {
    pub(super) name: &'a str,
    #[serde(flatten)]
    pub(super) values: Values,
    /// To the baseline; absent for the baseline itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ratio: Option<Ratios>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Values {
    Flow(FlowValues),
    Idle(IdleValues),
}

#[derive(Serialize)]
pub(super) struct FlowValues {
    /// Messages that clients sent in all runs together.
    pub(super) published: u64,
    /// Messages of all runs together, every one of which was checked; what all rates and costs count.
    pub(super) messages: u64,
    pub(super) messages_per_second: Summary,
    /// Payload alone, in millions of bytes.
    pub(super) megabytes_per_second: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) server_cpu_us_per_message: Option<Summary>,
    pub(super) load_cpu_us_per_message: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) server_rss_bytes: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) latency_us: Option<LatencyValues>,
}

#[derive(Serialize)]
pub(super) struct LatencyValues {
    pub(super) p50: Summary,
    pub(super) p90: Summary,
    pub(super) p99: Summary,
    pub(super) max: Summary,
}

#[derive(Serialize)]
pub(super) struct IdleValues {
    pub(super) connections: u64,
    pub(super) bytes_per_connection: Summary,
    pub(super) server_rss_bytes_before: Summary,
    pub(super) server_rss_bytes_after: Summary,
}

#[derive(Default, Serialize)]
pub(super) struct Ratios {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) messages_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) server_cpu_us_per_message: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) server_rss_bytes: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) latency_p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) latency_p99: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bytes_per_connection: Option<f64>,
}

impl<'a> Report<'a> {
    /// Summarises the samples.
    pub(super) fn new(results: &'a Results, runs: usize) -> Self {
        let servers = results.servers.iter().map(|server| ServerEntry {
            name: &server.name,
            version: server.version.as_deref(),
            command: server.command.as_deref(),
        });
        let names: Vec<&str> = results.servers.iter().map(|server| server.name.as_str()).collect();
        Self {
            runs,
            baseline: names.first().copied().filter(|_| names.len() > 1),
            servers: servers.collect(),
            results: results.rows.iter().map(|row| ResultRow::new(row, &names)).collect(),
        }
    }

    /// One document with everything.
    pub(super) fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report has string keys and finite numbers")
    }
}

impl<'a> ResultRow<'a> {
    fn new(row: &'a Row, names: &[&'a str]) -> Self {
        let mut servers: Vec<Cell<'a>> = Vec::with_capacity(names.len());
        for (name, samples) in names.iter().zip(&row.samples) {
            let Some(values) = Values::of(samples, row.workload.payload_bytes) else {
                continue;
            };
            let ratio = servers.first().map(|baseline| Ratios::new(&values, &baseline.values));
            servers.push(Cell { name, values, ratio });
        }
        Self {
            scenario: row.workload.scenario,
            payload_bytes: row.workload.payload_bytes,
            shape: row.workload.shape(),
            servers,
        }
    }
}

impl Values {
    /// The summary of all samples, which are of one kind; `None` when there are none.
    fn of(samples: &[Sample], payload_bytes: usize) -> Option<Self> {
        let mut flows = Vec::new();
        let mut idles = Vec::new();
        for sample in samples {
            match sample {
                Sample::Flow(flow) => flows.push(flow),
                Sample::Idle(idle) => idles.push(idle),
            }
        }
        if idles.is_empty() {
            flow_values(&flows, payload_bytes).map(Self::Flow)
        } else {
            idle_values(&idles).map(Self::Idle)
        }
    }
}

fn flow_values(flows: &[&Flow], payload_bytes: usize) -> Option<FlowValues> {
    let each = |value: &dyn Fn(&Flow) -> f64| Summary::of(flows.iter().map(|flow| value(flow)));
    // Known for all runs or for none.
    let known = |value: &dyn Fn(&Flow) -> Option<f64>| {
        let values: Option<Vec<f64>> = flows.iter().map(|flow| value(flow)).collect();
        values.and_then(Summary::of)
    };
    let quantile = |q: f64| known(&|flow| Some(flow.latency.as_ref()?.value_at_quantile(q) as f64 / 1e3));
    let latency_us = match (quantile(0.5), quantile(0.9), quantile(0.99), quantile(1.0)) {
        (Some(p50), Some(p90), Some(p99), Some(max)) => Some(LatencyValues { p50, p90, p99, max }),
        _ => None,
    };
    Some(FlowValues {
        published: flows.iter().map(|flow| flow.published).sum(),
        messages: flows.iter().map(|flow| flow.messages).sum(),
        messages_per_second: each(&Flow::rate)?,
        megabytes_per_second: each(&|flow| flow.rate() * payload_bytes as f64 / 1e6)?,
        server_cpu_us_per_message: known(&|flow| Some(flow.per_message_us(flow.server?.cpu))),
        load_cpu_us_per_message: each(&|flow| flow.per_message_us(flow.load_cpu))?,
        server_rss_bytes: known(&|flow| Some(flow.server?.rss_bytes as f64)),
        latency_us,
    })
}

fn idle_values(idles: &[&Idle]) -> Option<IdleValues> {
    let each = |value: &dyn Fn(&Idle) -> f64| Summary::of(idles.iter().map(|idle| value(idle)));
    Some(IdleValues {
        connections: idles.first()?.connections,
        bytes_per_connection: each(&Idle::bytes_per_connection)?,
        server_rss_bytes_before: each(&|idle| idle.rss_bytes_before as f64)?,
        server_rss_bytes_after: each(&|idle| idle.rss_bytes_after as f64)?,
    })
}

impl Ratios {
    fn new(values: &Values, baseline: &Values) -> Self {
        let of = |value: Option<Summary>, baseline: Option<Summary>| ratio(value?.median, baseline?.median);
        match (values, baseline) {
            (Values::Flow(values), Values::Flow(baseline)) => {
                let latency = |flow: &FlowValues, pick: fn(&LatencyValues) -> Summary| {
                    flow.latency_us.as_ref().map(pick)
                };
                Self {
                    messages_per_second: of(
                        Some(values.messages_per_second),
                        Some(baseline.messages_per_second),
                    ),
                    server_cpu_us_per_message: of(
                        values.server_cpu_us_per_message,
                        baseline.server_cpu_us_per_message,
                    ),
                    server_rss_bytes: of(values.server_rss_bytes, baseline.server_rss_bytes),
                    latency_p50: of(latency(values, |l| l.p50), latency(baseline, |l| l.p50)),
                    latency_p99: of(latency(values, |l| l.p99), latency(baseline, |l| l.p99)),
                    bytes_per_connection: None,
                }
            }
            (Values::Idle(values), Values::Idle(baseline)) => Self {
                bytes_per_connection: of(
                    Some(values.bytes_per_connection),
                    Some(baseline.bytes_per_connection),
                ),
                ..Self::default()
            },
            _ => Self::default(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::matrix::ServerLabel;
    use crate::bench::measure::Usage;
    use crate::bench::plan::Workload;

    fn flow(messages: u64, cpu_ms: u64) -> Sample {
        Sample::Flow(Flow {
            published: messages,
            messages,
            elapsed: Duration::from_secs(1),
            load_cpu: Duration::from_millis(100),
            server: Some(Usage { cpu: Duration::from_millis(cpu_ms), rss_bytes: 2 << 20 }),
            latency: None,
        })
    }

    pub(in crate::bench) fn results() -> Results {
        let label = |name: &str| ServerLabel { name: name.to_owned(), version: None, command: None };
        let row = |scenario, samples| Row { workload: Workload::example(scenario), samples };
        let idle = |after| {
            vec![Sample::Idle(Idle { connections: 10, rss_bytes_before: 1024, rss_bytes_after: after })]
        };
        Results {
            servers: vec![label("a"), label("b")],
            rows: vec![
                row(
                    Scenario::Sub,
                    vec![
                        vec![flow(1_000_000, 500), flow(3_000_000, 500), flow(2_000_000, 500)],
                        vec![flow(5_000_000, 500), flow(4_000_000, 500), flow(3_000_000, 500)],
                    ],
                ),
                row(Scenario::Idle, vec![idle(11_264), idle(6_144)]),
            ],
        }
    }

    #[test]
    fn json_has_medians_and_ratios_to_the_first_server() {
        let results = results();
        let report: serde_json::Value =
            serde_json::from_str(&Report::new(&results, 3).json()).expect("valid JSON");
        assert_eq!(report["baseline"], "a");
        let [a, b] = [0, 1].map(|index| &report["results"][0]["servers"][index]);
        assert_eq!(a["messages_per_second"]["median"], 2e6);
        assert_eq!(a["server_cpu_us_per_message"]["median"], 0.25);
        assert_eq!(a["ratio"], serde_json::Value::Null);
        assert_eq!(b["ratio"]["messages_per_second"], 2.0);
        assert_eq!(b["ratio"]["server_cpu_us_per_message"], 0.5);
        assert_eq!(b["ratio"]["server_rss_bytes"], 1.0);
        assert_eq!(report["results"][1]["servers"][1]["ratio"]["bytes_per_connection"], 0.5);
    }
}
