//! What a check has found, and how a list of that is shown.

use std::borrow::Cow;
use std::fmt;
use std::io::IsTerminal as _;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

use crate::output::{self, OutputError};

const OK: Style = AnsiColor::Green.on_default();
const WARN: Style = AnsiColor::Yellow.on_default().bold();
const FAIL: Style = AnsiColor::Red.on_default().bold();
const DIM: Style = Style::new().dimmed();

/// How often the sign of life on a terminal moves.
const TICK: Duration = Duration::from_millis(100);

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and somebody should look at it.
    Warn,
    /// The configuration does not do here what it says.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// One line: what was looked at, what was seen, what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) check: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) text: String,
    /// What to do; everything that is not in order has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fix: Option<Cow<'static, str>>,
}

impl Finding {
    pub(crate) fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, text: text.into(), fix: None }
    }

    pub(crate) fn warn(
        check: &'static str,
        text: impl Into<String>,
        fix: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { check, verdict: Verdict::Warn, text: text.into(), fix: Some(fix.into()) }
    }

    pub(crate) fn fail(
        check: &'static str,
        text: impl Into<String>,
        fix: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { check, verdict: Verdict::Fail, text: text.into(), fix: Some(fix.into()) }
    }

    /// As a warning or a failure, as the case may be.
    pub(crate) fn bad(
        verdict: Verdict,
        check: &'static str,
        text: impl Into<String>,
        fix: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { check, verdict, text: text.into(), fix: Some(fix.into()) }
    }

    fn line(&self) -> String {
        let style = match self.verdict {
            Verdict::Ok => OK,
            Verdict::Warn => WARN,
            Verdict::Fail => FAIL,
        };
        let (verdict, check) = (self.verdict, self.check);
        // What a server says may be longer than a line, and must not steer the terminal.
        let text = crate::show::payload_text(self.text.as_bytes()).replace('\n', "\n                     ");
        let mut line = format!("{style}{verdict:<5}{style:#} {check:<14} {text}");
        if let Some(fix) = &self.fix {
            line.push_str(&format!("\n                     {DIM}fix:{DIM:#} {fix}"));
        }
        line
    }
}

/// Findings as they come: shown at once as text, or kept for one JSON document. Meanwhile a terminal shows what is looked at.
pub(crate) struct Findings {
    found: Vec<Finding>,
    json: bool,
    progress: ProgressBar,
}

impl Findings {
    pub(crate) fn new(json: bool) -> Self {
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let progress = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            progress.set_style(style);
        }
        progress.enable_steady_tick(TICK);
        Self { found: Vec::new(), json, progress }
    }

    /// Says on a terminal what is looked at next.
    pub(crate) fn looking_at(&self, what: &'static str) {
        self.progress.set_message(what);
    }

    /// Takes findings, and shows them where they are shown as text.
    ///
    /// # Errors
    /// stdout is closed or full.
    pub(crate) fn add(&mut self, found: impl IntoIterator<Item = Finding>) -> Result<(), OutputError> {
        for finding in found {
            if !self.json {
                self.progress.suspend(|| output::line(&finding.line()))?;
            }
            self.found.push(finding);
        }
        Ok(())
    }

    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.found.iter().filter(|finding| finding.verdict == verdict).count()
    }

    /// Clears the sign of life.
    pub(crate) fn done(&self) {
        self.progress.finish_and_clear();
    }

    /// All of it as one document.
    pub(crate) fn document(&self) -> Value {
        json!({
            "ok": self.count(Verdict::Ok),
            "warn": self.count(Verdict::Warn),
            "fail": self.count(Verdict::Fail),
            "checks": self.found,
        })
    }

    /// The counts in words.
    pub(crate) fn sum(&self) -> String {
        let (ok, warn, fail) =
            (self.count(Verdict::Ok), self.count(Verdict::Warn), self.count(Verdict::Fail));
        format!("{ok} ok, {warn} warn, {fail} fail")
    }
}

impl Drop for Findings {
    fn drop(&mut self) {
        self.done();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_verdict_first_and_the_fix_below() {
        let plain = |finding: Finding| anstream::adapter::strip_str(&finding.line()).to_string();
        assert_eq!(plain(Finding::ok("config", "it loads")), "ok    config         it loads");
        assert_eq!(
            plain(Finding::fail("ports", "taken", "take another")),
            "fail  ports          taken\n                     fix: take another"
        );
        assert!(!plain(Finding::ok("backend", "says \u{1b}[2J")).contains('\u{1b}'));
    }
}
