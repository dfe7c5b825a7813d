//! nats-server's configuration files, with files that include each other and variables of the environment.

use std::io;
use std::sync::Arc;

#[path = "../../trunkline-cli/src/nats_server/conf/mod.rs"]
#[allow(dead_code, reason = "what only the command needs comes along")]
mod conf;

use conf::{Map, Surroundings, Value};

/// Files and variables that the input may name.
struct Given;

impl Surroundings for Given {
    fn include(&self, _: &str, name: &str) -> io::Result<(Arc<str>, String)> {
        let text = match name {
            "a" => "x: 1, y: [2, three]",
            "b" => "include a\nz { w: $x }",
            "loop" => "include loop",
            "bad" => "x: {",
            _ => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok((name.into(), text.to_owned()))
    }

    fn variable(&self, name: &str) -> Option<String> {
        let text = match name {
            "A" => "7",
            "B" => "$A",
            "C" => "[1, {k: $B}]",
            "D" => "$D",
            "E" => "}",
            _ => return None,
        };
        Some(text.to_owned())
    }
}

/// How many values there are.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::List(list) => list.iter().map(|node| count(&node.value)).sum(),
        Value::Map(map) => count_map(map),
        _ => 0,
    }
}

fn count_map(map: &Map) -> usize {
    map.entries.iter().map(|entry| count(&entry.node.value)).sum()
}

/// Whatever the text, there is a tree or a message; the same each time.
pub(crate) fn config_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let first = conf::parse("test.conf", text, &Given);
    match (&first, conf::parse("test.conf", text, &Given)) {
        (Ok(map), Ok(again)) => {
            assert_eq!(*map, again);
            // A file or a list that a variable stands for is repeated by a word.
            assert!(
                count_map(map) <= 16 * text.len() + 16,
                "{} values of {} bytes",
                count_map(map),
                text.len()
            );
        }
        (Err(error), Err(again)) => {
            assert_eq!(error.to_string(), again.to_string());
            assert!(!error.to_string().is_empty());
        }
        (first, again) => panic!("{first:?}, and then {again:?}"),
    }
}
