//! Keys of what is not here: those that change nothing, and those that would make it another server than it is.

use super::super::conf::{Entry, Map, Value};
use super::Settings;
use super::read::Mistakes;
use super::top::says_nothing;

/// Keys of what this server does not have and does without: they say nothing that a client could rely on. Their values are
/// looked at all the same.
const IGNORED: [(&str, Form); 18] = [
    ("connect_error_reports", Form::Integer),
    ("disable_sublist_cache", Form::Bool),
    ("feature_flags", Form::Switches),
    ("no_fast_producer_stall", Form::Bool),
    ("no_sublist_cache", Form::Bool),
    ("no_sys_acc", Form::Bool),
    ("no_system", Form::Bool),
    ("no_system_account", Form::Bool),
    ("prof_block_rate", Form::Integer),
    ("prof_port", Form::Integer),
    ("reconnect_error_reports", Form::Integer),
    ("resolver_pinned_accounts", Form::Texts),
    ("store_dir", Form::Text),
    ("storedir", Form::Text),
    ("system", Form::Text),
    ("system_account", Form::Text),
    ("write_timeout", Form::OneOf(&["default", "close", "retry"])),
    // Of a staple that is made for who asks for one.
    ("ocsp_cache", Form::SwitchOrMap),
];

/// Keys of section `leafnodes`, of which nothing is here.
const LEAFNODES: [(&str, Form); 17] = [
    ("advertise", Form::Text),
    ("authorization", Form::Map),
    ("compression", Form::Any),
    ("host", Form::Text),
    ("isolate", Form::Bool),
    ("isolate_leafnode_interest", Form::Bool),
    ("listen", Form::Listen),
    ("min_version", Form::Text),
    ("net", Form::Text),
    ("no_advertise", Form::Bool),
    ("port", Form::Integer),
    ("reconnect", Form::Duration),
    ("reconnect_delay", Form::Duration),
    ("reconnect_interval", Form::Duration),
    ("tls", Form::Map),
    ("write_deadline", Form::Duration),
    ("write_timeout", Form::OneOf(&["default", "close", "retry"])),
];

/// What a value that changes nothing has to look like.
#[derive(Clone, Copy)]
enum Form {
    Any,
    Bool,
    Integer,
    Text,
    Texts,
    Map,
    Listen,
    Duration,
    OneOf(&'static [&'static str]),
    /// A map of what is on and off.
    Switches,
    SwitchOrMap,
}

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
const SWITCHES: [(&str, &str); 4] = [
    ("ocsp", "it staples nothing to its certificate"),
    ("proxy_protocol", "it takes the address of a connection for that of its client"),
    ("strict_jetstream", "it has no JetStream"),
    ("syslog", NO_SYSLOG),
];
const NO_SYSLOG: &str = "it logs to stderr or to log_file";

const NO_CLUSTER: &str = "it does not cluster";
const NO_JWT: &str = "it has no operators and JWTs, only users in this file";

/// Keys of what is not here.
pub(super) fn read(key: &str, entry: &Entry, settings: &mut Settings, mistakes: &mut Mistakes) -> bool {
    let refuse = |mistakes: &mut Mistakes, reason: &str| {
        mistakes.note(&entry.place, format!("{:?} is not supported by this server: {reason}", entry.key));
    };
    if let Some((_, form)) = IGNORED.iter().find(|(ignored, _)| *ignored == key) {
        look_at(entry, *form, mistakes);
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
                look_at_leafnodes(map, mistakes);
                settings.ignored.push(entry.key.clone());
            }
            _ => refuse(mistakes, "it does not connect to others as a leaf node"),
        },
        "mappings" | "maps" if says_nothing(&entry.node) => {}
        "mappings" | "maps" => refuse(mistakes, "it does not map subjects"),
        "remote_syslog" => refuse(mistakes, NO_SYSLOG),
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

/// Notes what is wrong with a value, whatever it would mean.
fn look_at(entry: &Entry, form: Form, mistakes: &mut Mistakes) {
    match form {
        Form::Any => {}
        Form::Bool => _ = mistakes.bool(entry),
        Form::Integer => _ = mistakes.integer(entry),
        Form::Text => _ = mistakes.text(entry),
        Form::Texts => _ = mistakes.texts(entry),
        Form::Map => _ = mistakes.map(entry),
        Form::Listen => _ = mistakes.listen(entry),
        Form::Duration => _ = mistakes.duration_with_unit(entry),
        Form::OneOf(words) => {
            let given = mistakes.text(entry);
            if given.is_some_and(|given| !words.iter().any(|word| given.eq_ignore_ascii_case(word))) {
                let words: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
                mistakes.note(&entry.place, format!("{} must be one of {}", entry.key, words.join(", ")));
            }
        }
        Form::Switches => {
            for switch in mistakes.map(entry).into_iter().flat_map(|map| &map.entries) {
                mistakes.bool(switch);
            }
        }
        Form::SwitchOrMap => match &entry.node.value {
            Value::Map(_) => {}
            _ => _ = mistakes.bool(entry),
        },
    }
}

fn look_at_leafnodes(map: &Map, mistakes: &mut Mistakes) {
    for entry in &map.entries {
        let key = entry.key.to_ascii_lowercase();
        match LEAFNODES.iter().find(|(known, _)| *known == key) {
            Some((_, form)) => look_at(entry, *form, mistakes),
            None if key == "remotes" => {}
            None => mistakes.unknown(entry),
        }
    }
}

/// Whether a section says of itself that it is off.
fn is_off(map: &Map) -> bool {
    ["enabled", "enable"].iter().any(|key| map.get(key).is_some_and(|node| node.value == Value::Bool(false)))
}
