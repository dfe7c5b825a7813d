//! A report as people read it: tables and a line that says how to read them.

use comfy_table::{CellAlignment, Table, presets};

use super::report::{Cell, FlowValues, Report, ResultRow, Values};
use super::stats::Summary;
use super::units;

impl Report<'_> {
    /// A table for each kind of result, and a line that says how to read them.
    pub(super) fn text(&self) -> String {
        let mut parts = vec![self.flow_table(), self.latency_table(), self.idle_table()];
        parts.push(Some(self.legend()));
        parts.into_iter().flatten().collect::<Vec<_>>().join("\n\n")
    }

    fn flow_table(&self) -> Option<String> {
        let header = [
            "scenario",
            "",
            "payload",
            "server",
            "msg/s",
            "ratio",
            "spread",
            "MB/s",
            "cpu µs/msg",
            "ratio",
            "load µs/msg",
            "rss MiB",
        ];
        self.table(&header, 4, |row, cell| {
            let Values::Flow(flow) = &cell.values else {
                return None;
            };
            let ratios = cell.ratio.as_ref();
            Some(vec![
                row.scenario.name().to_owned(),
                row.shape.clone(),
                units::size(row.payload_bytes),
                cell.name.to_owned(),
                units::grouped(flow.messages_per_second.median),
                times(ratios.and_then(|ratios| ratios.messages_per_second)),
                percent(flow.messages_per_second.spread()),
                format!("{:.1}", flow.megabytes_per_second.median),
                decimals(flow.server_cpu_us_per_message),
                times(ratios.and_then(|ratios| ratios.server_cpu_us_per_message)),
                decimals(Some(flow.load_cpu_us_per_message)),
                mebibytes(flow.server_rss_bytes),
            ])
        })
    }

    fn latency_table(&self) -> Option<String> {
        let header =
            ["latency", "", "payload", "server", "p50 µs", "ratio", "p90 µs", "p99 µs", "ratio", "max µs"];
        self.table(&header, 4, |row, cell| {
            let Values::Flow(FlowValues { latency_us: Some(latency), .. }) = &cell.values else {
                return None;
            };
            let ratios = cell.ratio.as_ref();
            let shown = |summary: Summary| format!("{:.1}", summary.median);
            Some(vec![
                row.scenario.name().to_owned(),
                row.shape.clone(),
                units::size(row.payload_bytes),
                cell.name.to_owned(),
                shown(latency.p50),
                times(ratios.and_then(|ratios| ratios.latency_p50)),
                shown(latency.p90),
                shown(latency.p99),
                times(ratios.and_then(|ratios| ratios.latency_p99)),
                shown(latency.max),
            ])
        })
    }

    fn idle_table(&self) -> Option<String> {
        let header = ["memory", "", "server", "KiB/connection", "ratio", "before MiB", "after MiB"];
        self.table(&header, 3, |row, cell| {
            let Values::Idle(idle) = &cell.values else {
                return None;
            };
            Some(vec![
                row.scenario.name().to_owned(),
                row.shape.clone(),
                cell.name.to_owned(),
                format!("{:.1}", idle.bytes_per_connection.median / 1024.0),
                times(cell.ratio.as_ref().and_then(|ratios| ratios.bytes_per_connection)),
                mebibytes(Some(idle.server_rss_bytes_before)),
                mebibytes(Some(idle.server_rss_bytes_after)),
            ])
        })
    }

    /// A table of the cells for which `line` has an answer, `None` if there are none.
    fn table(
        &self,
        header: &[&str],
        text_columns: usize,
        line: impl Fn(&ResultRow<'_>, &Cell<'_>) -> Option<Vec<String>>,
    ) -> Option<String> {
        let cells = self.results.iter().flat_map(|row| row.servers.iter().map(move |cell| (row, cell)));
        let lines: Vec<_> = cells.filter_map(|(row, cell)| line(row, cell)).collect();
        if lines.is_empty() {
            return None;
        }
        // A column without a single value, such as ratios of one server, says nothing.
        let used: Vec<usize> = (0..header.len())
            .filter(|&column| lines.iter().any(|line| line.get(column).is_some_and(|text| !text.is_empty())))
            .collect();
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(used.iter().map(|&column| header[column]));
        for line in &lines {
            table.add_row(used.iter().filter_map(|&column| line.get(column)));
        }
        let numbers = used.iter().filter(|&&column| column >= text_columns).count();
        for column in table.column_iter_mut().skip(used.len() - numbers) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        Some(table.trim_fmt())
    }

    fn legend(&self) -> String {
        let runs =
            if self.runs == 1 { "one run".to_owned() } else { format!("medians of {} runs", self.runs) };
        let servers: Vec<_> = self
            .servers
            .iter()
            .map(|server| match server.version {
                Some(version) if !version.is_empty() => format!("{} is {version}", server.name),
                _ => server.name.to_owned(),
            })
            .collect();
        let mut legend = format!("{runs}, every message checked; {}", servers.join(", "));
        if let Some(baseline) = self.baseline {
            legend.push_str(&format!("; ratios are to {baseline}"));
        }
        legend
    }
}

fn times(ratio: Option<f64>) -> String {
    ratio.map(|ratio| format!("{ratio:.2}×")).unwrap_or_default()
}

fn percent(part: Option<f64>) -> String {
    part.map(|part| format!("{:.0} %", part * 100.0)).unwrap_or_default()
}

fn decimals(summary: Option<Summary>) -> String {
    summary.map(|summary| format!("{:.3}", summary.median)).unwrap_or_default()
}

fn mebibytes(summary: Option<Summary>) -> String {
    summary.map(|summary| format!("{:.1}", summary.median / f64::from(1 << 20))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::results;
    use super::*;

    #[test]
    fn tables_show_what_there_is_and_nothing_else() {
        let results = results();
        let text = Report::new(&results, 3).text();
        for part in ["2 000 000", "2.00×", "1.0", "ratios are to a", "medians of 3 runs"] {
            assert!(text.contains(part), "`{part}` is missing in\n{text}");
        }
        assert!(!text.contains("p99"), "{text}");
    }
}
