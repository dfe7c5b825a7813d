//! A real Prometheus, with our alerts, that scrapes what it is told to.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use trunkline_testkit::environment;

use super::{eventually, files, get};

/// Ends when it is dropped.
pub(super) struct Prometheus {
    child: Child,
    address: String,
    directory: TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// Scrapes these addresses every second as job `trunkline`, and has the alerts of the repository.
    pub(super) fn scraping(targets: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("the system's temporary directory takes another");
        let rules = files().join("trunkline.rules.yml");
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\n\
             scrape_configs:\n  - {{job_name: trunkline, static_configs: [{{targets: {targets:?}}}]}}\n",
            rules.display()
        );
        let file = directory.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("a temporary directory takes a file");
        // It takes no port 0 that it would tell of. Nobody else is given this one soon after.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("a free port").to_string();
        let child = Command::new(environment::prometheus().join("prometheus"))
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(directory.path().join("log")).expect("a file"))
            .spawn()
            .expect("Prometheus runs");
        let mut started = Self { child, address, directory };
        eventually("Prometheus", || started.is_up());
        started
    }

    fn is_up(&mut self) -> Result<(), String> {
        let log = || std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        if let Ok(Some(status)) = self.child.try_wait() {
            panic!("Prometheus ended with {status}: {}", log());
        }
        match std::net::TcpStream::connect(&self.address) {
            Ok(_) if get(&self.address, "/-/ready").0 == 200 => Ok(()),
            _ => Err(log()),
        }
    }

    /// The `data` of an answer of its API.
    pub(super) fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(parameters);
        let (_, body) = get(&self.address, &format!("/api/v1/{path}?{}", query.finish()));
        let answer: Value = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
        match answer["status"] == "success" {
            true => Ok(answer["data"].clone()),
            false => Err(answer.to_string()),
        }
    }

    /// The series that a query finds now.
    pub(super) fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        let found = self.ask("query", &[("query", query)])?;
        Ok(found["result"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until every target was scraped, and nothing was wrong with what it said.
    pub(super) fn until_scraped(&self, targets: usize) {
        eventually("a scrape of every target", || {
            let found = self.ask("targets", &[("state", "active")])?;
            let active = found["activeTargets"].as_array().cloned().unwrap_or_default();
            match active.len() == targets && active.iter().all(|target| target["health"] == "up") {
                true => Ok(()),
                false => Err(found.to_string()),
            }
        });
    }
}
