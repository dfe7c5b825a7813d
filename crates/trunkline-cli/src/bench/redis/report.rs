//! The result: medians of each side, and ratios to raw.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::super::measure::Flow;
use super::super::stats::{Summary, ratio};
use super::super::units;
use super::{RedisArgs, Row, Scenario, Side};

/// A finished comparison.
#[derive(Serialize)]
pub(super) struct Report {
    redis_version: String,
    runs: usize,
    payload_bytes: usize,
    in_flight: usize,
    batch: usize,
    results: Vec<Line>,
}

/// One side of one scenario.
#[derive(Serialize)]
struct Line {
    scenario: Scenario,
    side: Side,
    messages_per_second: Summary,
    client_cpu_us_per_message: Summary,
    server_cpu_us_per_message: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_p50_us: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_p99_us: Option<Summary>,
    /// Of what the scenario is about: messages per second, or the median latency. Absent for raw.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
}

impl Line {
    fn new(scenario: Scenario, side: Side, flows: &[Flow]) -> Option<Self> {
        let each = |value: &dyn Fn(&Flow) -> f64| Summary::of(flows.iter().map(value));
        let quantile = |q: f64| {
            let values: Option<Vec<f64>> = flows
                .iter()
                .map(|flow| Some(flow.latency.as_ref()?.value_at_quantile(q) as f64 / 1e3))
                .collect();
            values.and_then(Summary::of)
        };
        Some(Self {
            scenario,
            side,
            messages_per_second: each(&Flow::rate)?,
            client_cpu_us_per_message: each(&|flow| flow.per_message_us(flow.load_cpu))?,
            server_cpu_us_per_message: each(&|flow| {
                flow.server.map_or(0.0, |server| flow.per_message_us(server.cpu))
            })?,
            latency_p50_us: quantile(0.5),
            latency_p99_us: quantile(0.99),
            ratio: None,
        })
    }

    fn measured(&self) -> f64 {
        self.latency_p50_us.unwrap_or(self.messages_per_second).median
    }
}

impl Report {
    pub(super) fn new(args: &RedisArgs, rows: &[Row], redis_version: String) -> Self {
        let mut results = Vec::new();
        for row in rows {
            let mut raw = None;
            for (side, flows) in &row.samples {
                let Some(mut line) = Line::new(row.scenario, *side, flows) else { continue };
                match raw {
                    None => raw = Some(line.measured()),
                    Some(raw) => line.ratio = ratio(line.measured(), raw),
                }
                results.push(line);
            }
        }
        Self {
            redis_version,
            runs: args.runs,
            payload_bytes: args.payload,
            in_flight: args.in_flight,
            batch: args.batch,
            results,
        }
    }

    /// One document with everything.
    pub(super) fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report has string keys and finite numbers")
    }

    /// A table, and a line that says how to read it.
    pub(super) fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "scenario",
            "side",
            "msg/s",
            "p50 µs",
            "p99 µs",
            "ratio",
            "spread",
            "client µs/msg",
            "server µs/msg",
        ]);
        for line in &self.results {
            let latency = |summary: Option<Summary>| {
                summary.map(|summary| format!("{:.1}", summary.median)).unwrap_or_default()
            };
            let spread = line.latency_p50_us.unwrap_or(line.messages_per_second).spread();
            table.add_row([
                name(line.scenario),
                name(line.side),
                units::grouped(line.messages_per_second.median),
                latency(line.latency_p50_us),
                latency(line.latency_p99_us),
                line.ratio.map(|ratio| format!("{ratio:.2}×")).unwrap_or_default(),
                spread.map(|spread| format!("{:.0} %", spread * 100.0)).unwrap_or_default(),
                format!("{:.2}", line.client_cpu_us_per_message.median),
                format!("{:.2}", line.server_cpu_us_per_message.median),
            ]);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!(
            "{}\n\nredis {}, {} payload, {} in flight, batches of {}; medians of {} runs in turns, ratios are to raw",
            table.trim_fmt(),
            self.redis_version,
            units::size(self.payload_bytes),
            self.in_flight,
            self.batch,
            self.runs
        )
    }
}

/// The name on the command line and in JSON.
fn name(value: impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}
