//! `trunkline init`: what it writes, what it never does, and its questions at a real terminal.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use trunkline_testkit::{NatsServer, RedisServer, environment};

use crate::command::{Ended, command, start};

/// Sends each answer when its question is there and the terminal is ready for it, and prints all that was shown.
const TYPIST: &str = r#"
import json, os, pty, select, sys, termios, time
steps = json.loads(sys.argv[1])
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[2], sys.argv[2:])
shown, seen, deadline = b"", 0, time.monotonic() + 60
def echoes():
    return termios.tcgetattr(terminal)[3] & termios.ECHO
def take():
    global shown
    if time.monotonic() > deadline:
        sys.exit("too late, and there was only: " + repr(shown))
    if select.select([terminal], [], [], 0.02)[0]:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            data = b""
        if not data:
            return False
        shown += data
    return True
for question, answer in steps:
    while shown.find(question.encode(), seen) < 0 or echoes():
        if not take():
            sys.exit("it ended before it asked %r: %r" % (question, shown))
    seen = shown.find(question.encode(), seen) + len(question)
    os.write(terminal, answer.encode())
while take():
    pass
sys.stdout.buffer.write(shown)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

/// An empty directory to start in.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command.current_dir(self.0.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        start(self.command(arguments), b"").end()
    }

    /// At a terminal: these answers to these questions, with these arguments.
    fn typed(&self, arguments: &[&str], steps: &[(&str, &str)]) -> Ended {
        let mut python = Command::new(environment::python());
        python.args(["-c", TYPIST, &json!(steps).to_string(), env!("CARGO_BIN_EXE_trunkline"), "init"]);
        python.args(arguments).current_dir(self.0.path()).env("TERM", "xterm").env("NO_COLOR", "1");
        for name in ["REDIS_URL", "NATS_URL", "TRUNKLINE_URL", "TRUNKLINE_CONFIG"] {
            python.env_remove(name);
        }
        start(python, b"").end()
    }

    /// `up` from the file in this directory and with a component on it, until both are ready; then what commands see of it.
    fn goes_up(&self, ready: &str, streams: &[&str]) {
        let component = format!(
            "\ncomponents:\n  echo:\n    command: [{}, reply, test.echo, --echo]\n    ready: responder:test.echo\n",
            env!("CARGO_BIN_EXE_trunkline")
        );
        std::fs::write(self.path("config.yaml"), self.read("config.yaml") + &component).unwrap();
        let mut up = start(self.command(&["up"]), b"");
        up.until_it_says("is ready");
        up.until_it_says(ready);
        up.until_it_says("ready component=\"echo\"");
        let asked = self.run(&["request", "test.echo", "hello"]);
        assert_eq!(String::from_utf8_lossy(&asked.ok()).trim_end(), "hello");
        let listed = self.run(&["stream", "ls", "--json"]).json();
        for stream in streams {
            assert!(listed.iter().any(|line| line["name"] == *stream), "{stream} is not in {listed:?}");
        }
        up.signal(Signal::SIGTERM);
        up.end().ok();
    }
}

/// Two ports for the embedded server that were free a moment ago.
fn addresses() -> [String; 2] {
    let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().to_string())
}

#[test]
fn presets_start_at_once_from_an_empty_directory() {
    let [listen, http] = addresses();
    let place = Place::new();
    let flags = ["--listen", &listen, "--http", &http];
    let ended = place.run(&[&["init", "--preset", "personal"], &flags[..]].concat());
    assert!(ended.code() == 0 && ended.stderr.contains("wrote config.yaml"), "{ended:?}");
    place.goes_up("backend   in_memory", &[]);

    let redis = RedisServer::start();
    for (preset, streams) in [
        ("developer", &["tasks"][..]),
        ("enterprise", &["tasks", "channels", "results"]),
        ("regulatory", &["tasks", "channels", "results", "audit", "dead"]),
    ] {
        let place = Place::new();
        let preset = ["init", "--preset", preset, "--redis-url", redis.url()];
        let ended = place.run(&[&preset, &flags[..]].concat());
        assert_eq!(ended.code(), 0, "{ended:?}");
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        for line in ["ok    backend ", "ok    persistence ", "ok    permissions "] {
            assert!(said.contains(line), "{ended:?}");
        }
        place.goes_up("backend   redis", streams);
    }

    let nats = NatsServer::start(["-js"]);
    let place = Place::new();
    let ended = place.run(&["init", "--preset", "nats", "--nats-url", nats.url()]);
    assert!(
        ended.code() == 0 && String::from_utf8_lossy(&ended.stdout).contains("ok    persistence"),
        "{ended:?}"
    );
    place.goes_up("backend   nats", &["tasks", "channels", "results", "audit"]);
}

#[test]
fn a_file_that_is_there_stays_and_a_backup_is_never_overwritten() {
    let place = Place::new();
    std::fs::write(place.path("config.yaml"), "# mine\n").unwrap();
    std::fs::write(place.path("config.yaml.bak-1"), "# older\n").unwrap();
    let preset = ["init", "--preset", "personal"];
    let refused = place.run(&preset);
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(
        refused.stderr.contains("config.yaml exists") && refused.stderr.contains("--force"),
        "{refused:?}"
    );
    let printed = place.run(&[&preset[..], &["--dry-run"]].concat()).ok();
    assert!(String::from_utf8_lossy(&printed).contains("backend: in_memory"));
    assert_eq!((place.read("config.yaml").as_str(), place.files().len()), ("# mine\n", 2));

    let replaced = place.run(&[&preset[..], &["--force"]].concat());
    assert!(replaced.code() == 0 && replaced.stderr.contains("config.yaml.bak-2"), "{replaced:?}");
    assert_eq!(
        (place.read("config.yaml.bak-1"), place.read("config.yaml.bak-2")),
        ("# older\n".into(), "# mine\n".into())
    );
    assert!(place.read("config.yaml").contains("backend: in_memory"));
    assert_eq!(place.files(), ["config.yaml", "config.yaml.bak-1", "config.yaml.bak-2"]);
}

#[test]
fn without_a_terminal_flags_have_to_say_it_and_what_they_say_is_checked() {
    let place = Place::new();
    for (arguments, said) in [
        (&["init"][..], "--preset personal, developer"),
        (&["init", "--preset", "personal", "--listen", "0.0.0.0:4222"], "docs/security.md"),
        (&["init", "--preset", "developer", "--redis-url", "http://x"], "--redis-url"),
        (&["init", "--preset", "nats", "--stream-prefix", "a b"], "--stream-prefix"),
        (&["init", "--preset", "personal", "--subject-root", "a.b"], "--subject-root"),
        (&["init", "--preset", "personal", "--file", "config.toml"], "YAML"),
        (&["init", "--preset", "huge"], "regulatory"),
    ] {
        let ended = place.run(arguments);
        assert!(ended.code() == 2 && ended.stderr.contains(said), "{arguments:?}: {ended:?}");
    }
    assert!(place.files().is_empty());
}

#[test]
fn a_backend_that_is_away_is_told_and_the_file_stays() {
    let mut redis = RedisServer::start();
    redis.kill();
    let place = Place::new();
    let preset = ["init", "--preset", "enterprise", "--redis-url", redis.url(), "--timeout", "300ms"];
    let ended = place.run(&preset);
    assert_eq!(ended.code(), 1, "{ended:?}");
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(said.contains("fail  backend") && said.contains("fix: start the server"), "{said}");
    assert!(ended.stderr.contains("config.yaml is written") && ended.stderr.contains("hint: "), "{ended:?}");
    assert!(place.read("config.yaml").contains("fallback: fail"));
    let unchecked = place.run(&[&preset[..], &["--force", "--no-check"]].concat());
    assert!(unchecked.code() == 0 && unchecked.stdout.is_empty(), "{unchecked:?}");
}

#[test]
fn the_wizard_asks_with_arrow_keys_and_keeps_the_password_to_itself() {
    let redis = RedisServer::start();
    redis.ask("ACL SETUSER bus on >geheim@19 allkeys allchannels +@all");
    let [listen, http] = addresses();
    let place = Place::new();
    let answer = |text: &str| format!("{text}\r");
    let (url, listen_typed, http_typed) = (answer(redis.url()), answer(&listen), answer(&http));
    let ended = place.typed(
        &[],
        &[
            ("What is this bus for?", "\u{1b}[B\r"),
            ("Where is Redis?", &url),
            ("User of Redis", "bus\r"),
            ("Its password", "geheim@19\r"),
            ("Prefix of all keys", "\r"),
            ("First token", "platform\r"),
            ("Address for NATS clients", &listen_typed),
            ("Address for health", &http_typed),
            ("Write this to", "y"),
        ],
    );
    assert_eq!(ended.code(), 0, "{ended:?}");
    let shown = String::from_utf8_lossy(&ended.stdout).into_owned();
    for expected in
        ["Redis on this machine", "ok    backend", "export TRUNKLINE_REDIS_URL='redis://bus:PASSWORD@"]
    {
        assert!(shown.contains(expected), "{expected:?} is missing in {shown}");
    }
    let written = place.read("config.yaml");
    for secret in ["geheim", "geheim%4019"] {
        assert!(!shown.contains(secret) && !written.contains(secret), "{shown}\n{written}");
    }
    for expected in ["atlas-dev", "platform.tool.*.task", "fallback: in_memory", &listen, &http] {
        assert!(written.contains(expected), "{expected:?} is missing in {written}");
    }
    // With the variable set, as it was told, the bus is on that Redis.
    let whole = redis.url().replacen("://", "://bus:geheim%4019@", 1);
    let mut up = place.command(&["up"]);
    up.env("TRUNKLINE_REDIS_URL", whole);
    let mut up = start(up, b"");
    up.until_it_says("backend   redis");
    up.signal(Signal::SIGTERM);
    up.end().ok();
}

#[test]
fn a_wizard_that_is_broken_off_writes_nothing_and_gives_the_terminal_back() {
    let place = Place::new();
    for steps in [
        &[("What is this bus for?", "\u{3}")][..],
        &[("What is this bus for?", "\r"), ("First token", "\u{3}")],
        &[
            ("What is this bus for?", "\r"),
            ("First token", "\r"),
            ("Address for NATS", "\r"),
            ("Address for health", "\r"),
            ("Write this to", "n"),
        ],
    ] {
        let ended = place.typed(&[], steps);
        assert_eq!(ended.code(), 1, "{ended:?}");
        let shown = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert!(shown.contains("broken off, and nothing was written"), "{shown}");
        // The cursor was hidden for the choice, and the last word on it is that it is to be seen.
        let last = shown.rfind("\u{1b}[?25h").expect("the cursor is shown again");
        assert!(shown.rfind("\u{1b}[?25l").is_none_or(|hidden| hidden < last), "{shown:?}");
        assert!(place.files().is_empty());
    }
}

#[test]
fn the_wizard_does_not_begin_where_a_file_is_in_the_way() {
    let place = Place::new();
    std::fs::write(place.path("config.toml"), "").unwrap();
    let ended = place.typed(&[], &[]);
    let shown = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(ended.code() == 1 && shown.contains("config.toml exists too"), "{ended:?}");
}

/// That the documented presets are those of the command.
#[test]
fn the_presets_of_the_readme_are_those_of_the_command() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    for preset in ["personal", "developer", "enterprise", "regulatory", "nats"] {
        assert!(readme.contains(&format!("`{preset}`")), "{preset}");
        let place = Place::new();
        let printed = place.run(&["init", "--preset", preset, "--dry-run"]).ok();
        std::fs::write(place.path("config.yaml"), printed).unwrap();
        let shown = place.run(&["config", "show", "--json"]);
        assert!(shown.stderr.trim().is_empty(), "{preset}: {shown:?}");
        let entries: Vec<Value> = serde_json::from_slice(&shown.ok()).unwrap();
        assert!(entries.iter().any(|entry| entry["key"] == "messaging.backend"));
    }
}
