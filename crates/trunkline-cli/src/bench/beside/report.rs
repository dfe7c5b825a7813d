//! The result: medians of each side, and ratios to the first.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::super::measure::Flow;
use super::super::stats::{Summary, ratio};
use super::super::units;
use super::{BesideArgs, Measured, Row, Rows};

/// A finished comparison.
#[derive(Serialize)]
pub(in crate::bench) struct Report {
    /// What the server says it is.
    server: String,
    runs: usize,
    payload_bytes: usize,
    in_flight: usize,
    batch: usize,
    results: Vec<Line>,
}

/// One side of one scenario.
#[derive(Serialize)]
struct Line {
    scenario: String,
    side: String,
    messages_per_second: Summary,
    client_cpu_us_per_message: Summary,
    /// Absent where the server's process is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    server_cpu_us_per_message: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_p50_us: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_p99_us: Option<Summary>,
    /// Of what the scenario is about: messages per second, or the median latency. Absent for the first side.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip)]
    measured: Measured,
}

impl Line {
    fn new(row: &Row, side: &str, flows: &[Flow]) -> Option<Self> {
        let each = |value: &dyn Fn(&Flow) -> f64| Summary::of(flows.iter().map(value));
        let quantile = |q: f64| {
            let values: Option<Vec<f64>> = flows
                .iter()
                .map(|flow| Some(flow.latency.as_ref()?.value_at_quantile(q) as f64 / 1e3))
                .collect();
            values.and_then(Summary::of)
        };
        Some(Self {
            scenario: row.scenario.clone(),
            side: side.to_owned(),
            messages_per_second: each(&Flow::rate)?,
            client_cpu_us_per_message: each(&|flow| flow.per_message_us(flow.load_cpu))?,
            server_cpu_us_per_message: {
                let costs = flows.iter().map(|flow| Some(flow.per_message_us(flow.server?.cpu)));
                costs.collect::<Option<Vec<_>>>().and_then(Summary::of)
            },
            latency_p50_us: quantile(0.5),
            latency_p99_us: quantile(0.99),
            ratio: None,
            measured: row.measured,
        })
    }

    /// What the scenario is about.
    fn summary(&self) -> Summary {
        match self.measured {
            Measured::Rate => self.messages_per_second,
            Measured::Latency => self.latency_p50_us.unwrap_or(self.messages_per_second),
        }
    }
}

impl Report {
    pub(in crate::bench) fn new(args: &BesideArgs, rows: &Rows, server: String) -> Self {
        let mut results = Vec::new();
        for row in &rows.0 {
            let mut first = None;
            for (side, flows) in &row.samples {
                let Some(mut line) = Line::new(row, side, flows) else { continue };
                match first {
                    None => first = Some(line.summary().median),
                    Some(first) => line.ratio = ratio(line.summary().median, first),
                }
                results.push(line);
            }
        }
        Self {
            server,
            runs: args.runs,
            payload_bytes: args.payload,
            in_flight: args.in_flight,
            batch: args.batch,
            results,
        }
    }

    /// One document with everything.
    pub(in crate::bench) fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report has string keys and finite numbers")
    }

    /// A table, and a line that says how to read it.
    pub(in crate::bench) fn text(&self) -> String {
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
            let spread = line.summary().spread();
            table.add_row([
                line.scenario.clone(),
                line.side.clone(),
                units::grouped(line.messages_per_second.median),
                latency(line.latency_p50_us),
                latency(line.latency_p99_us),
                line.ratio.map(|ratio| format!("{ratio:.2}×")).unwrap_or_default(),
                spread.map(|spread| format!("{:.0} %", spread * 100.0)).unwrap_or_default(),
                format!("{:.2}", line.client_cpu_us_per_message.median),
                line.server_cpu_us_per_message.map(|cost| format!("{:.2}", cost.median)).unwrap_or_default(),
            ]);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!(
            "{}\n\n{}, {} payload, {} in flight, batches of {}; medians of {} runs in turns, ratios are to the first side",
            table.trim_fmt(),
            self.server,
            units::size(self.payload_bytes),
            self.in_flight,
            self.batch,
            self.runs
        )
    }
}
