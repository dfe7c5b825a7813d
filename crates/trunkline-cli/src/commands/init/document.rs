//! The text of a new configuration, with a word on each choice.

use trunkline::config::Backend;

use super::answers::{Answers, Preset};

/// A stream of a preset.
struct Stream {
    name: &'static str,
    /// Below the root.
    subjects: &'static [&'static str],
    max_age: &'static str,
    max_messages: Option<u64>,
    why: &'static str,
}

const TASKS: Stream = Stream {
    name: "tasks",
    subjects: &["tool.*.task"],
    max_age: "7d",
    max_messages: Some(1_000_000),
    why: "work for tools: consumers share it, and what fails comes again",
};
const CHANNELS: Stream = Stream {
    name: "channels",
    subjects: &["channel.*.inbound", "channel.*.outbound"],
    max_age: "7d",
    max_messages: Some(1_000_000),
    why: "what people write, and what they are answered",
};
const RESULTS: Stream = Stream {
    name: "results",
    subjects: &["tool.*.result"],
    max_age: "7d",
    max_messages: Some(1_000_000),
    why: "a copy of each result of a tool",
};
const AUDIT: Stream =
    Stream { name: "audit", subjects: &["audit.>"], max_age: "90d", max_messages: None, why: "who did what" };
const DEAD: Stream = Stream {
    name: "dead",
    subjects: &["dead.>"],
    max_age: "90d",
    max_messages: None,
    why: "dead letters: work that never succeeded",
};

/// Ten years.
const LONG: &str = "3650d";

fn streams(preset: Preset) -> Vec<Stream> {
    let long = |stream: Stream| Stream { max_age: LONG, max_messages: None, ..stream };
    match preset {
        Preset::Personal => Vec::new(),
        Preset::Developer => {
            vec![Stream { max_age: "1d", max_messages: Some(100_000), ..TASKS }]
        }
        Preset::Enterprise => vec![TASKS, CHANNELS, RESULTS],
        Preset::Regulatory => [TASKS, CHANNELS, RESULTS, AUDIT, DEAD].into_iter().map(long).collect(),
        Preset::Nats => vec![TASKS, CHANNELS, RESULTS, AUDIT],
    }
}

/// The whole file.
pub(super) fn text(answers: &Answers) -> String {
    let mut text = format!(
        "# Written by `trunkline init`, preset {}. `trunkline config keys` lists every key, `trunkline doctor` checks this.\n\n",
        answers.preset.name()
    );
    text.push_str("messaging:\n");
    messaging(answers, &mut text);
    if answers.preset.backend() != Backend::Nats {
        text.push_str("\nserver:\n");
        text.push_str(
            "  # Where NATS clients connect. Other machines need users and TLS first: docs/security.md.\n",
        );
        text.push_str(&format!("  listen: {}\n", quoted(&answers.listen.to_string())));
        text.push_str("  # Health, metrics, the admin API that commands use.\n");
        text.push_str(&format!("  http: {}\n", quoted(&answers.http.to_string())));
    }
    text.push_str("\n# Conversations are recorded, payloads included: docs/observing.md. What nobody is to see is named here.\n");
    text.push_str("# observe:\n#   redact: [password, api_key]\n");
    text
}

fn messaging(answers: &Answers, text: &mut String) {
    let preset = answers.preset;
    let line = |text: &mut String, key: &str, value: &str| text.push_str(&format!("  {key}: {value}\n"));
    let note = |text: &mut String, note: &str| text.push_str(&format!("  # {note}\n"));
    match preset.backend() {
        Backend::InMemory => {
            note(
                text,
                "In this process: nothing to install. What is stored lives as long as `trunkline up`.",
            );
            line(text, "backend", "in_memory");
        }
        Backend::Redis => {
            note(text, "Redis Streams: durable as far as the server's appendfsync goes (docs/redis.md).");
            line(text, "backend", "redis");
            place(answers, text, "redis_url", "REDIS_URL");
            note(text, "What every key on the server begins with.");
            line(text, "stream_prefix", &quoted(&answers.stream_prefix));
            match preset {
                Preset::Developer => {
                    note(
                        text,
                        "Without Redis: start all the same, in memory, and say so. `fail` refuses to start.",
                    );
                    line(text, "fallback", "in_memory");
                }
                _ => {
                    note(text, "Without Redis: refuse to start, since memory would lose what must be kept.");
                    line(text, "fallback", "fail");
                }
            }
        }
        Backend::Nats => {
            note(
                text,
                "NATS servers with JetStream: clients connect to them, not to `trunkline up` (docs/nats.md).",
            );
            line(text, "backend", "nats");
            place(answers, text, "nats_url", "NATS_URL");
            note(text, "What the names of streams begin with there.");
            line(text, "stream_prefix", &quoted(&answers.stream_prefix));
            note(text, "Without NATS: refuse to start, since memory would lose what must be kept.");
            line(text, "fallback", "fail");
        }
    }
    note(text, "First token of the platform's subjects.");
    line(text, "subject_root", &quoted(&answers.subject_root));
    let streams = streams(preset);
    if streams.is_empty() {
        return;
    }
    note(text, "What is stored, and for how long. Limits win over unread messages, which are then counted.");
    text.push_str("  streams:\n");
    for stream in streams {
        let subjects: Vec<String> =
            stream.subjects.iter().map(|subject| format!("\"{}.{subject}\"", answers.subject_root)).collect();
        text.push_str(&format!("    # {}\n", stream.why));
        text.push_str(&format!("    - name: {}\n", stream.name));
        text.push_str(&format!("      subjects: [{}]\n", subjects.join(", ")));
        text.push_str(&format!("      max_age: {}\n", stream.max_age));
        if let Some(most) = stream.max_messages {
            text.push_str(&format!("      max_messages: {most}\n"));
        }
        if preset.backend() == Backend::Nats && answers.replicas > 1 {
            text.push_str(&format!("      replicas: {}\n", answers.replicas));
        }
    }
}

/// Where the backend is, or who says it.
fn place(answers: &Answers, text: &mut String, key: &str, variable: &str) {
    for secret in &answers.secrets {
        text.push_str(&format!("  # {} carries what must not stand here.\n", secret.variable));
    }
    match &answers.url {
        Some(url) => text.push_str(&format!("  {key}: {}\n", quoted(url))),
        None => text.push_str(&format!("  # The variable {variable} says where it is.\n  # {key}: …\n")),
    }
}

/// Text as YAML takes it for just that.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use trunkline::config::{Config, Fallback, Loaded, Loader};

    use super::super::answers::{NATS_URL, REDIS_URL};
    use super::*;

    fn answers(preset: Preset) -> Answers {
        let mut answers = Answers {
            preset,
            url: None,
            stream_prefix: preset.stream_prefix().to_owned(),
            subject_root: "nachos".to_owned(),
            replicas: 1,
            listen: "127.0.0.1:4222".parse().unwrap(),
            http: "127.0.0.1:8222".parse().unwrap(),
            secrets: Vec::new(),
        };
        match preset.backend() {
            Backend::InMemory => {}
            Backend::Redis => answers.redis(REDIS_URL),
            Backend::Nats => answers.nats(NATS_URL),
        }
        answers
    }

    fn load(text: &str) -> Loaded {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        let nothing: [(&str, &str); 0] = [];
        Loader::new().env(nothing).file(path).load().unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    #[test]
    fn every_preset_loads_without_a_warning_and_without_a_key_that_does_nothing() {
        for preset in Preset::ALL {
            let loaded = load(&text(&answers(preset)));
            assert!(loaded.warnings.is_empty(), "{preset:?}: {:?}", loaded.warnings);
            assert!(
                loaded.config.without_effect().is_empty(),
                "{preset:?}: {:?}",
                loaded.config.without_effect()
            );
            assert_eq!(loaded.config.messaging.backend, preset.backend());
        }
    }

    #[test]
    fn presets_are_what_they_are_called() {
        let config = |preset| -> Config { load(&text(&answers(preset))).config };
        let developer = config(Preset::Developer);
        assert_eq!(developer.messaging.stream_prefix, "atlas-dev");
        assert_eq!(developer.messaging.fallback(), Fallback::InMemory);
        let names = |config: &Config| -> Vec<String> {
            config.messaging.streams.iter().map(|stream| stream.name.clone()).collect()
        };
        let enterprise = config(Preset::Enterprise);
        assert_eq!(enterprise.messaging.fallback(), Fallback::Fail);
        assert_eq!(names(&enterprise), ["tasks", "channels", "results"]);
        let regulatory = config(Preset::Regulatory);
        assert_eq!(regulatory.messaging.fallback(), Fallback::Fail);
        assert_eq!(names(&regulatory), ["tasks", "channels", "results", "audit", "dead"]);
        let years = |stream: &trunkline::config::Stream| stream.max_age.unwrap().as_secs() / 86_400;
        assert!(regulatory.messaging.streams.iter().all(|stream| years(stream) == 3650));
        let mut copies = answers(Preset::Nats);
        copies.replicas = 3;
        let nats = load(&text(&copies)).config;
        assert!(nats.messaging.streams.iter().all(|stream| stream.replicas == 3));
        assert_eq!(nats.messaging.fallback(), Fallback::Fail);
    }

    #[test]
    fn no_password_stands_in_the_file() {
        let mut redis = answers(Preset::Enterprise);
        redis.redis("redis://bus:geheim@h:1/0");
        let mut nats = answers(Preset::Nats);
        nats.nats("nats://bus:geheim@a,nats://b");
        nats.nats_user("bus".to_owned(), "geheim".to_owned());
        for answers in [redis, nats] {
            let text = text(&answers);
            assert!(!text.contains("geheim"), "{text}");
            assert!(answers.secrets.iter().all(|secret| text.contains(secret.variable)), "{text}");
            assert!(answers.secrets.iter().all(|secret| !secret.how.contains("geheim")));
            load(&text);
        }
    }
}
