//! `trunkline doctor` against real servers, in good order and out of it.

mod clock;
mod machine;
mod nats;
mod redis;
mod work;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tempfile::TempDir;
use trunkline_testkit::certificates::CertificateParams;

use crate::command::{command, start, text};

/// Has a certificate end so many days from now.
pub(super) fn ends_in(params: &mut CertificateParams, days: i64) {
    // Unless said otherwise a certificate begins with the year 1975.
    const BEGIN: i64 = 157_766_400;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seconds = i64::try_from(now).unwrap() - BEGIN + days * 24 * 60 * 60 + 60;
    params.not_after = params.not_before + Duration::from_secs(u64::try_from(seconds).unwrap());
}

/// A configuration in a directory of its own.
pub(super) struct Patient {
    directory: TempDir,
}

/// What the doctor said.
pub(super) struct Diagnosis {
    pub(super) code: i32,
    document: Value,
}

impl Patient {
    pub(super) fn new(configuration: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.yaml"), configuration).unwrap();
        Self { directory }
    }

    /// With an embedded server on any free ports, and these lines in the section `messaging`.
    pub(super) fn with_messaging(lines: &str) -> Self {
        Self::new(&format!(
            "messaging:\n  {}\nserver: {{listen: '127.0.0.1:0', http: '127.0.0.1:0'}}\n",
            lines.trim().replace('\n', "\n  ")
        ))
    }

    pub(super) fn file(&self) -> PathBuf {
        self.directory.path().join("config.yaml")
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let file = self.file();
        let mut command = command(&[&["--config", text(&file)], arguments].concat());
        command.current_dir(self.directory.path());
        command
    }

    #[track_caller]
    pub(super) fn examine(&self) -> Diagnosis {
        Diagnosis::of(self.command(&["doctor", "--json"]))
    }
}

impl Diagnosis {
    #[track_caller]
    pub(super) fn of(command: Command) -> Self {
        let ended = start(command, b"").end();
        let document =
            serde_json::from_slice(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
        Self { code: ended.code(), document }
    }

    /// Verdict, text and fix of each line of a check.
    fn lines(&self, check: &str) -> Vec<(String, String, String)> {
        let all = self.document["checks"].as_array().expect("a list");
        let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
        all.iter()
            .filter(|line| line["check"] == check)
            .map(|line| (text(line, "verdict"), text(line, "text"), text(line, "fix")))
            .collect()
    }

    /// That a line of this check has this verdict and says this; what is not in order says what to do.
    #[track_caller]
    pub(super) fn says(&self, check: &str, verdict: &str, said: &str) -> &Self {
        let lines = self.lines(check);
        let found = lines.iter().any(|(is, text, fix)| {
            is == verdict && (text.contains(said) || fix.contains(said)) && (is == "ok") == fix.is_empty()
        });
        assert!(found, "{check} does not say {verdict} with {said:?}: {:#}", self.document);
        self
    }

    /// That nothing but good was found.
    #[track_caller]
    pub(super) fn is_well(&self) -> &Self {
        assert_eq!((self.code, &self.document["fail"]), (0, &Value::from(0)), "{:#}", self.document);
        self
    }

    /// That something failed, and the command with it.
    #[track_caller]
    pub(super) fn is_ill(&self) -> &Self {
        assert_eq!(self.code, 1, "{:#}", self.document);
        assert_ne!(self.document["fail"], Value::from(0), "{:#}", self.document);
        self
    }

    /// That no line of this check is anything but good.
    #[track_caller]
    pub(super) fn has_nothing_against(&self, check: &str) -> &Self {
        let lines = self.lines(check);
        assert!(!lines.is_empty() && lines.iter().all(|line| line.0 == "ok"), "{:#}", self.document);
        self
    }
}
