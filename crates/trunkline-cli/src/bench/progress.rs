//! A line on stderr that says what is being measured. Drawn between runs only: during a run it would be load.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::plan::Workload;

/// The progress of a benchmark: a bar on a terminal, one line elsewhere.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// A bar over so many runs.
    pub(super) fn new(steps: u64, wanted: bool) -> Self {
        let visible = wanted && std::io::stderr().is_terminal();
        if wanted && !visible {
            // Where no bar can be drawn, one line says that there is something to wait for.
            eprintln!("bench: {steps} runs ahead");
        }
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(steps), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// Shows the run that is about to begin.
    pub(super) fn step(&self, workload: &Workload, server: &str, run: usize) {
        self.0.set_message(format!("{}, {server}, run {}", workload.title(), run + 1));
        self.0.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
