//! The keys of a configuration file's top level.

use std::time::Duration;

use super::super::conf::{Entry, Map, Node, Value};
use super::read::Mistakes;
use super::{Settings, auth, shown_duration, tls, websocket};

/// Keys of what this server does not have and does without: they say nothing that a client could rely on.
const IGNORED: [&str; 18] = [
    "connect_error_reports",
    "disable_sublist_cache",
    "feature_flags",
    "max_closed_clients",
    "no_auth_warning",
    "no_fast_producer_stall",
    "no_sublist_cache",
    "no_sys_acc",
    "no_system",
    "no_system_account",
    "prof_block_rate",
    "prof_port",
    "reconnect_error_reports",
    "store_dir",
    "system",
    "system_account",
    "write_timeout",
    // Of a staple that is made for who asks for one.
    "ocsp_cache",
];

/// Keys that would make it another server than it is, and why it cannot be that.
const REFUSED: [(&str, &str); 17] = [
    ("cluster", NO_CLUSTER),
    ("gateway", NO_CLUSTER),
    ("mqtt", "it does not speak MQTT"),
    ("operator", NO_JWT),
    ("operators", NO_JWT),
    ("roots", NO_JWT),
    ("root", NO_JWT),
    ("root_operators", NO_JWT),
    ("root_operator", NO_JWT),
    ("trusted", NO_JWT),
    ("trusted_keys", NO_JWT),
    ("resolver", NO_JWT),
    ("resolver_preload", NO_JWT),
    ("resolver_tls", NO_JWT),
    ("default_js_domain", "it has no JetStream"),
    ("default_sentinel", NO_JWT),
    ("proxies", "it trusts no proxy to say who a client is"),
];

/// What is only asked for where it is on, and why it is not here.
const SWITCHES: [(&str, &str); 5] = [
    ("no_header_support", "headers are always understood"),
    ("ocsp", "it staples nothing to its certificate"),
    ("proxy_protocol", "it takes the address of a connection for that of its client"),
    ("strict_jetstream", "it has no JetStream"),
    ("syslog", NO_SYSLOG),
];
const NO_SYSLOG: &str = "it logs to stderr or to log_file";

const NO_CLUSTER: &str = "it does not cluster";
const NO_JWT: &str = "it has no operators and JWTs, only users in this file";
/// Largest `max_payload`.
const PAYLOAD_MAX: i64 = 64 << 20;

/// Reads the keys of the top level.
pub(super) fn read(map: &Map, settings: &mut Settings, mistakes: &mut Mistakes) {
    for entry in &map.entries {
        let key = entry.key.to_ascii_lowercase();
        let known = read_listening(&key, entry, map, settings, mistakes)
            || read_log(&key, entry, settings, mistakes)
            || read_limits(&key, entry, settings, mistakes)
            || auth::read(&key, entry, &mut settings.auth, mistakes)
            || read_absent(&key, entry, settings, mistakes);
        if !known {
            mistakes.unknown(entry);
        }
    }
    settings.says_auth_timeout = map
        .get("authorization")
        .and_then(|node| match &node.value {
            Value::Map(section) => section.get("timeout"),
            _ => None,
        })
        .is_some();
    auth::check(map, &settings.auth, mistakes);
    let lame_duck = settings.lame_duck;
    if let Some(node) = map.get("lame_duck_grace_period")
        && lame_duck.grace_period >= lame_duck.duration
    {
        mistakes.note(
            &node.place,
            format!(
                "lame duck grace period ({}) should be strictly lower than lame duck duration ({})",
                shown_duration(lame_duck.grace_period),
                shown_duration(lame_duck.duration)
            ),
        );
    }
}

fn read_listening(
    key: &str,
    entry: &Entry,
    map: &Map,
    settings: &mut Settings,
    mistakes: &mut Mistakes,
) -> bool {
    match key {
        "listen" => {
            if let Some(listen) = mistakes.listen(entry) {
                settings.host = listen.host.or(settings.host.take());
                settings.port = listen.port;
            }
        }
        "port" => {
            if let Some(port) = mistakes.integer(entry).and_then(|number| mistakes.port(entry, number)) {
                settings.port = port;
            }
        }
        "host" | "net" => settings.host = mistakes.word(entry),
        "http" | "http_port" | "monitor_port" => settings.http = mistakes.listen(entry),
        "https" | "https_port" => settings.https = mistakes.listen(entry),
        "tls" => settings.tls = tls::read(entry, &mut settings.ignored, mistakes),
        "allow_non_tls" => settings.allow_non_tls = mistakes.bool(entry).unwrap_or(settings.allow_non_tls),
        "websocket" | "ws" => websocket::read(entry, map, settings, mistakes),
        "server_name" => {
            settings.name = mistakes.word(entry);
            if settings.name.as_ref().is_some_and(|name| name.contains(char::is_whitespace)) {
                mistakes.note(&entry.place, "server name cannot contain spaces");
                settings.name = None;
            }
        }
        "server_tags" => settings.tags = mistakes.texts(entry).unwrap_or_default(),
        "client_advertise" => settings.advertise = mistakes.advertised(entry),
        "server_metadata" => settings.metadata = mistakes.words(entry).unwrap_or_default(),
        "pid_file" | "pidfile" => settings.pid_file = mistakes.word(entry).map(Into::into),
        "ports_file_dir" => settings.ports_file_dir = mistakes.word(entry).map(Into::into),
        "lame_duck_duration" => {
            if let Some(duration) = mistakes.duration(entry) {
                settings.lame_duck.duration = duration;
            }
        }
        "lame_duck_grace_period" => {
            if let Some(period) = mistakes.duration(entry) {
                settings.lame_duck.grace_period = period;
            }
        }
        _ => return false,
    }
    true
}

fn read_log(key: &str, entry: &Entry, settings: &mut Settings, mistakes: &mut Mistakes) -> bool {
    let log = &mut settings.log;
    match key {
        "log_file" | "logfile" => log.file = mistakes.word(entry).map(Into::into),
        // Less than 1 is no limit.
        "logfile_size_limit" | "log_size_limit" => {
            let bytes = mistakes.integer(entry).unwrap_or_default();
            log.rotation.bytes_max = u64::try_from(bytes).unwrap_or_default();
        }
        "logfile_max_num" | "log_max_num" => {
            let files = mistakes.integer(entry).unwrap_or_default();
            log.rotation.files_max = usize::try_from(files).unwrap_or_default();
        }
        "max_traced_msg_len" => {
            let bytes = mistakes.integer(entry).unwrap_or_default();
            log.traced_bytes_max = usize::try_from(bytes).unwrap_or_default();
        }
        "trace_headers" => log.trace_headers = mistakes.bool(entry).unwrap_or(log.trace_headers),
        "logtime" => log.time = mistakes.bool(entry).unwrap_or(log.time),
        "logtime_utc" => log.utc = mistakes.bool(entry).unwrap_or(log.utc),
        "debug" => log.debug = mistakes.bool(entry).unwrap_or(log.debug),
        "trace" | "trace_verbose" => log.trace = mistakes.bool(entry).unwrap_or(log.trace),
        _ => return false,
    }
    true
}

fn read_limits(key: &str, entry: &Entry, settings: &mut Settings, mistakes: &mut Mistakes) -> bool {
    let limits = &mut settings.limits;
    let set = |limit: &mut usize, value: Option<usize>| {
        if let Some(value) = value {
            *limit = value;
        }
    };
    match key {
        // 0 is what is not set, as on nats-server.
        "max_payload" | "max_control_line" | "max_pending" | "ping_max"
            if entry.node.value == Value::Integer(0) => {}
        "max_payload" => set(&mut limits.max_payload, mistakes.within(entry, 1, PAYLOAD_MAX)),
        "max_control_line" => set(&mut limits.max_control_line, mistakes.within(entry, 256, 1 << 20)),
        "max_pending" => set(&mut limits.max_pending, mistakes.within(entry, 1, i64::MAX)),
        // -1 and 0 are no limit, or the default of one.
        "max_connections" | "max_conn" => match mistakes.within(entry, -1, i64::MAX) {
            Some(0) | None => {
                if entry.node.value == Value::Integer(-1) {
                    limits.max_connections = usize::MAX;
                }
            }
            Some(count) => limits.max_connections = count,
        },
        "max_subscriptions" | "max_subs" => match mistakes.within(entry, -1, i64::MAX) {
            Some(0) | None => limits.max_subscriptions = usize::MAX,
            Some(count) => limits.max_subscriptions = count,
        },
        "ping_interval" => {
            if let Some(interval) = mistakes.duration(entry).filter(|interval| !interval.is_zero()) {
                limits.ping_interval = interval;
            }
        }
        "ping_max" => {
            if let Some(count) = mistakes.within(entry, 1, 1_000_000) {
                limits.ping_max = u32::try_from(count).unwrap_or(u32::MAX);
            }
        }
        "write_deadline" => {
            if let Some(deadline) = mistakes.duration(entry).filter(|deadline| !deadline.is_zero()) {
                limits.write_deadline = deadline.max(Duration::from_millis(1));
            }
        }
        _ => return false,
    }
    true
}

/// Keys of what is not here.
fn read_absent(key: &str, entry: &Entry, settings: &mut Settings, mistakes: &mut Mistakes) -> bool {
    let refuse = |mistakes: &mut Mistakes, reason: &str| {
        mistakes.note(&entry.place, format!("{:?} is not supported by this server: {reason}", entry.key));
    };
    if IGNORED.contains(&key) {
        settings.ignored.push(entry.key.clone());
        return true;
    }
    match key {
        "jetstream" => match &entry.node.value {
            Value::Bool(false) => {}
            Value::Text(text)
                if ["disabled", "disable"].iter().any(|word| text.eq_ignore_ascii_case(word)) => {}
            Value::Map(map) if is_off(map) => {}
            _ => refuse(mistakes, "it has no JetStream"),
        },
        "leaf" | "leafnodes" => match &entry.node.value {
            // A listener that nobody comes to is missed by nobody; connections that are asked for would be.
            Value::Map(map) if map.get("remotes").is_none_or(says_nothing) => {
                settings.ignored.push(entry.key.clone());
            }
            _ => refuse(mistakes, "it does not connect to others as a leaf node"),
        },
        "http_base_path" => {
            if mistakes.text(entry).is_some_and(|path| !path.trim_matches('/').is_empty()) {
                refuse(mistakes, "monitoring is served at the root");
            }
        }
        "mappings" | "maps" if says_nothing(&entry.node) => {}
        "mappings" | "maps" => refuse(mistakes, "it does not map subjects"),
        "remote_syslog" => refuse(mistakes, NO_SYSLOG),
        "max_sub_tokens" | "max_subscription_tokens" => {
            refuse(mistakes, "it does not limit the tokens of a subject")
        }
        _ => {
            if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| *refused == key) {
                refuse(mistakes, reason);
            } else if let Some((_, reason)) = SWITCHES.iter().find(|(switch, _)| *switch == key) {
                if entry.node.value != Value::Bool(false) {
                    refuse(mistakes, reason);
                }
            } else {
                return false;
            }
        }
    }
    true
}

/// A list or a map without anything in it asks for nothing.
pub(super) fn says_nothing(node: &Node) -> bool {
    match &node.value {
        Value::List(list) => list.is_empty(),
        Value::Map(map) => map.entries.is_empty(),
        _ => false,
    }
}

/// Whether a section says of itself that it is off.
fn is_off(map: &Map) -> bool {
    ["enabled", "enable"].iter().any(|key| map.get(key).is_some_and(|node| node.value == Value::Bool(false)))
}
