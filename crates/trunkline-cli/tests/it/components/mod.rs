//! `trunkline up` with `components:`: started in order, looked after, told about, and never left behind.

mod auth;
mod backends;
mod ends;
mod logs;
mod mistakes;
mod order;
mod status;

use std::path::Path;
use std::time::Instant;

use tempfile::TempDir;

use crate::command::{PATIENCE, Running, command, start, text};

/// A directory with a configuration; `up` runs in it.
struct Platform {
    directory: TempDir,
}

impl Platform {
    /// The sections as they are, and listeners on free ports.
    fn new(yaml: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let platform = Self { directory };
        platform.write("config.yaml", yaml);
        platform
    }

    /// Components alone, on an in-memory bus on free ports.
    fn of(components: &str) -> Self {
        Self::new(&format!(
            "server: {{listen: '127.0.0.1:0', http: '127.0.0.1:0'}}\ncomponents:\n{components}"
        ))
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path().join(name), content).unwrap();
    }

    /// What a component wrote to a file, once it is there and complete.
    #[track_caller]
    fn read(&self, name: &str) -> String {
        let path = self.path().join(name);
        let read = || std::fs::read_to_string(&path).ok().filter(|content| content.ends_with('\n'));
        eventually(&format!("{name} is written"), || read().is_some());
        read().expect("it was there").trim().to_owned()
    }

    fn up(&self, arguments: &[&str]) -> Running {
        let ports = self.path().join("ports.json");
        let mut up = command(&[&["up", "--ports-file", text(&ports)], arguments].concat());
        up.current_dir(self.path());
        start(up, b"")
    }

    /// Where the running `up` answers: clients, HTTP.
    fn ports(&self) -> (String, String) {
        let ports: serde_json::Value = serde_json::from_str(&self.read("ports.json")).unwrap();
        let url = |name: &str| ports[name].as_str().unwrap_or_default().to_owned();
        (url("nats"), url("http"))
    }
}

/// Waits until something holds that no event tells about: what another process does to files or processes.
#[track_caller]
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "it never came about that {what}");
        std::thread::yield_now();
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
}

/// Whether a process runs. One that has ended and that nobody waits for does not.
fn runs(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
