//! The keys of a configuration file's top level.

use std::time::Duration;

use super::super::conf::{Entry, Map, Node, Value};
use super::read::Mistakes;
use super::{Settings, absent, auth, shown_duration, tls, websocket};

/// Largest `max_payload`.
const PAYLOAD_MAX: i64 = 64 << 20;

/// Most tokens that a limit to them can name, as on nats-server.
const SUBSCRIPTION_TOKENS_MAX: i64 = 255;
/// Most clients that left and are remembered; each takes half a kilobyte.
const CLOSED_MAX: i64 = 1_000_000;

/// Reads the keys of the top level.
pub(super) fn read(map: &Map, settings: &mut Settings, mistakes: &mut Mistakes) {
    for entry in &map.entries {
        let key = entry.key.to_ascii_lowercase();
        let known = read_listening(&key, entry, map, settings, mistakes)
            || read_log(&key, entry, settings, mistakes)
            || read_limits(&key, entry, settings, mistakes)
            || auth::read(&key, entry, &mut settings.auth, mistakes)
            || absent::read(&key, entry, settings, mistakes);
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
        "http_base_path" => settings.http_base_path = base_path(entry, mistakes).unwrap_or_default(),
        "no_header_support" => settings.headers = !mistakes.bool(entry).unwrap_or(!settings.headers),
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
            if let Some(duration) = mistakes.duration_with_unit(entry) {
                settings.lame_duck.duration = duration;
            }
        }
        "lame_duck_grace_period" => {
            if let Some(period) = mistakes.duration_with_unit(entry) {
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
        "max_sub_tokens" | "max_subscription_tokens" => match mistakes.integer(entry) {
            Some(none) if none < 1 => {
                mistakes.note(&entry.place, format!("{key} value can not be negative"));
            }
            Some(count) if count > SUBSCRIPTION_TOKENS_MAX => {
                mistakes.note(&entry.place, format!("{key} value is too big"));
            }
            count => limits.max_subscription_tokens = count.and_then(|count| usize::try_from(count).ok()),
        },
        // 0 is what is not set.
        "max_closed_clients" => {
            if let Some(count) = mistakes.within(entry, 0, CLOSED_MAX).filter(|count| *count > 0) {
                limits.closed_connections = count;
            }
        }
        "ping_interval" => {
            if let Some(interval) = mistakes.duration_with_unit(entry).filter(|interval| !interval.is_zero())
            {
                limits.ping_interval = interval;
            }
        }
        "ping_max" => {
            if let Some(count) = mistakes.within(entry, 1, 1_000_000) {
                limits.ping_max = u32::try_from(count).unwrap_or(u32::MAX);
            }
        }
        "write_deadline" => {
            if let Some(deadline) = mistakes.duration_with_unit(entry).filter(|deadline| !deadline.is_zero())
            {
                limits.write_deadline = deadline.max(Duration::from_millis(1));
            }
        }
        _ => return false,
    }
    true
}

/// A path with a slash in front and none behind; empty where it says nothing.
fn base_path(entry: &Entry, mistakes: &mut Mistakes) -> Option<String> {
    let text = mistakes.text(entry)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let parts: Vec<_> = text.split('/').filter(|part| !part.is_empty()).collect();
    if !text.bytes().all(is_plain) || parts.iter().any(|part| [".", ".."].contains(part)) {
        mistakes.note(&entry.place, format!("{} is no path for URLs: {text:?}", entry.key));
        return None;
    }
    Some(parts.iter().map(|part| format!("/{part}")).collect())
}

/// A list or a map without anything in it asks for nothing.
pub(super) fn says_nothing(node: &Node) -> bool {
    match &node.value {
        Value::List(list) => list.is_empty(),
        Value::Map(map) => map.entries.is_empty(),
        _ => false,
    }
}
