//! `trunkline export`: what it writes is valid for who reads it, holds what it promises, and runs.

mod composed;
mod containers;
mod formats;
mod machine;
mod refusals;
mod running;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::command::{Ended, command, start, text};

/// A platform: stored work, an audit stream, a tool with permissions of its own, and a gateway that waits for it.
pub(crate) const PLATFORM: &str = r#"
messaging:
  streams:
    - { name: tasks, subjects: ["nachos.tool.*.task"], max_age: 7d }
    - { name: audit, subjects: ["nachos.audit.log"], replicas: 1 }
server:
  listen: 127.0.0.1:4222
  auth: { admin_token: configured-admin-token }
  users:
    - { user: ann, password: configured-password-of-ann }
    - user: search
      password: configured-password-of-search
      permissions:
        publish: ["nachos.tool.search.result", "_INBOX.>", "$JS.API.INFO", "$JS.API.STREAM.LIST"]
        subscribe: ["nachos.tool.search.call", "_INBOX.>"]
        allow_responses: true
components:
  search:
    command: python3 -c "print('100% of $HOME')"
    env: { API_KEY: "configured key, with $ign and 'quotes'" }
    env_file: search.env
    ready: tcp://127.0.0.1:9000
    image: registry.example/search:1.4
  gateway:
    command: [sleep, "60"]
    depends_on: [search]
    restart: always
    stop_timeout: 20s
    image: registry.example/gateway:2
  migrate_once:
    command: "true"
    restart: "no"
    image: registry.example/migrate:1
"#;

/// Every backend with what the file needs for it.
pub(crate) const BACKENDS: [&str; 3] = ["in_memory", "redis", "nats"];

/// A deployment that was written.
pub(crate) struct Exported {
    /// Holds the configuration and, in `out`, the deployment.
    pub(crate) directory: TempDir,
}

impl Exported {
    pub(crate) fn out(&self) -> PathBuf {
        self.directory.path().join("out")
    }

    pub(crate) fn read(&self, path: &str) -> String {
        let path = self.out().join(path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// All files, below `out`.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut directories = vec![self.out()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).expect("a directory that was written") {
                let path = entry.expect("an entry").path();
                match path.is_dir() {
                    true => directories.push(path),
                    false => files.push(path),
                }
            }
        }
        files.sort();
        files
    }
}

/// A directory with a configuration.
pub(crate) fn project(config: &str, backend: &str) -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config.replacen("messaging:\n", &format!("messaging:\n  backend: {backend}\n"), 1);
    let config = config.replacen("messaging: {}", &format!("messaging: {{ backend: {backend} }}"), 1);
    fs::write(directory.path().join("config.yaml"), config).expect("the file is written");
    fs::write(directory.path().join("search.env"), "REGION=north\n").expect("the file is written");
    directory
}

/// Runs `trunkline export` in a directory, with `--out out`.
pub(crate) fn export_in(directory: &Path, target: &str, arguments: &[&str]) -> Ended {
    let out = directory.join("out");
    let mut all = vec!["export", target, "--out", text(&out)];
    all.extend(arguments);
    let mut command = command(&all);
    command.current_dir(directory);
    start(command, b"").end()
}

/// The platform, exported.
#[track_caller]
pub(crate) fn export(config: &str, backend: &str, target: &str, arguments: &[&str]) -> Exported {
    let directory = project(config, backend);
    export_in(directory.path(), target, arguments).ok();
    Exported { directory }
}

/// Nothing that is secret stands in a file that others may read, and every file with a secret is its owner's alone.
#[track_caller]
pub(crate) fn check_secrets(exported: &Exported) {
    let files = exported.files();
    let is_secret = |path: &Path| path.parent().is_some_and(|parent| parent.ends_with("secrets"));
    let mut secrets = vec![
        "configured-password-of-ann".to_owned(),
        "configured-password-of-search".to_owned(),
        "configured-admin-token".to_owned(),
        "configured key".to_owned(),
    ];
    for path in files.iter().filter(|path| is_secret(path)) {
        let mode = fs::metadata(path).expect("metadata").mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
        let content = fs::read_to_string(path).expect("text");
        // Passwords stand between colon and at sign.
        secrets.extend(content.split('@').filter_map(|part| {
            let password = part.rsplit_once(':')?.1;
            (password.len() >= 32 && !password.contains(['/', ' '])).then(|| password.to_owned())
        }));
        if !content.trim().contains(['\n', ' ']) && !content.contains("://") {
            secrets.push(content.trim().to_owned());
        }
    }
    let directory =
        files.iter().find(|path| is_secret(path)).and_then(|path| path.parent()).expect("secrets");
    assert_eq!(fs::metadata(directory).expect("metadata").mode() & 0o777, 0o700);
    assert!(secrets.len() > 6, "the deployment has passwords: {}", secrets.len());
    for path in files.iter().filter(|path| !is_secret(path)) {
        let content = fs::read_to_string(path).expect("text");
        for secret in &secrets {
            assert!(!content.contains(secret.as_str()), "{} has a secret", path.display());
        }
    }
}

/// The value at a JSON pointer, which must be there.
#[track_caller]
pub(crate) fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {value:#}"))
}
