//! What the README shows is what the examples are, and the examples work.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use trunkline_testkit::environment;

use crate::command::{PATIENCE, run};
use crate::server;

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn text_of(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A component that runs beside the bus; dropping it kills it.
struct Component(Child);

impl Component {
    fn start(mut command: Command, url: &str) -> Self {
        let child = command.env("NATS_URL", url).stdin(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks the weather tool, until somebody answers.
fn ask_weather(url: &str) -> String {
    let started = Instant::now();
    let arguments = ["request", "--url", url, "nachos.tool.weather.call", r#"{"arguments":{"city":"Oslo"}}"#];
    loop {
        let ended = run(&[&arguments[..], &["--conversation", "c-42"]].concat());
        if ended.status.success() || started.elapsed() > PATIENCE {
            return String::from_utf8(ended.ok()).expect("the reply is text");
        }
    }
}

#[test]
fn programs_in_the_readme_are_the_examples() {
    let readme = text_of("README.md");
    let rust = text_of("examples/rust/src/main.rs");
    let (_, program) = rust.split_once("\n\n").expect("a module comment, then the program");
    assert!(readme.contains(program), "the Rust program differs from examples/rust");
    assert!(
        readme.contains(&text_of("examples/python/weather.py")),
        "the Python tool differs from examples/python"
    );
    let platform = text_of("examples/platform.yaml");
    let (_, platform) = platform.split_once('\n').expect("a comment, then the platform");
    for page in ["README.md", "docs/up.md"] {
        assert!(
            text_of(page).contains(platform),
            "the platform in {page} differs from examples/platform.yaml"
        );
    }
}

#[test]
fn python_example_answers_a_request_from_the_shell() {
    let server = server();
    let mut python = Command::new(environment::python());
    python.arg(repository().join("examples/python/weather.py"));
    let _tool = Component::start(python, server.url());
    assert_eq!(ask_weather(server.url()).trim_end(), r#"{"output": "sunny in Oslo"}"#);
}

#[test]
fn node_example_answers_a_request_from_the_shell() {
    let server = server();
    // Modules are looked up beside the script, and those of the tests live elsewhere.
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(repository().join("examples/node/weather.mjs"), directory.path().join("weather.mjs"))
        .unwrap();
    let modules = environment::node_path().join("node_modules");
    std::os::unix::fs::symlink(modules, directory.path().join("node_modules")).unwrap();
    let mut node = Command::new("node");
    node.arg(directory.path().join("weather.mjs"));
    let _tool = Component::start(node, server.url());
    assert_eq!(ask_weather(server.url()).trim_end(), r#"{"output":"sunny in Oslo"}"#);
}
