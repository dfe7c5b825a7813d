//! Texts and what they are read as, and that whatever is written can be read again.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use proptest::prelude::*;

use super::{Entry, Map, Surroundings, Value, parse};

/// Files and variables of a test.
#[derive(Default)]
struct Given {
    files: HashMap<&'static str, &'static str>,
    variables: HashMap<&'static str, &'static str>,
}

impl Surroundings for Given {
    fn include(&self, _: &str, name: &str) -> io::Result<(Arc<str>, String)> {
        let text = self.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok((name.into(), (*text).to_owned()))
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).map(|text| (*text).to_owned())
    }
}

/// The tree in one line.
fn shown(map: &Map) -> String {
    fn value(value: &Value) -> String {
        match value {
            Value::Text(text) => format!("{text:?}"),
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => format!("{number:?}"),
            Value::Bool(flag) => flag.to_string(),
            Value::List(list) => format!(
                "[{}]",
                list.iter().map(|node| self::shown_value(&node.value)).collect::<Vec<_>>().join(" ")
            ),
            Value::Map(map) => format!("{{{}}}", shown(map)),
        }
    }
    let entry = |entry: &Entry| format!("{}={}", entry.key, value(&entry.node.value));
    map.entries.iter().map(entry).collect::<Vec<_>>().join(" ")
}

fn shown_value(value: &Value) -> String {
    let node =
        super::Node { value: value.clone(), place: super::Place { file: "".into(), line: 1, column: 0 } };
    let entry = Entry { key: String::new(), place: node.place.clone(), node, is_variable: false };
    shown(&Map { entries: vec![entry] })[1..].to_owned()
}

#[track_caller]
fn check(text: &str, tree: &str) {
    let given = Given {
        files: HashMap::from([("users", "users: [a]\nb 2"), ("loop", "include loop")]),
        variables: HashMap::from([
            ("PORT", "4222"),
            ("NAME", "x y"),
            ("A", "$B"),
            ("B", "\"7\""),
            ("C", "$C"),
        ]),
    };
    match parse("t.conf", text, &given) {
        Ok(map) => assert_eq!(shown(&map), tree, "{text}"),
        Err(error) => assert_eq!(error.to_string(), tree, "{text}"),
    }
}

#[test]
fn keys_and_values_are_separated_in_every_allowed_way() {
    check("a: 1\nb = 2\nc 3\n\"d e\": 4", "a=1 b=2 c=3 d e=4");
    check("a=1;b=2,c=3", "a=1 b=2 c=3");
    check("m{a 1\nb{c:2}}", "m={a=1 b={c=2}}");
    check("m\n{\n  a: x # y\n  // z\n}\n", "m={a=\"x\"}");
    check("{\"a\": {\"b\": [1, 2, \"3\"]}}", "a={b=[1 2 \"3\"]}");
    check("l = [ a\n b, c\n # d\n {e: f}\n]", "l=[\"a\" \"b\" \"c\" {e=\"f\"}]");
}

#[test]
fn text_is_bare_quoted_or_a_block() {
    check(
        r#"a: "x\t\"\x41\\", b: 'raw \n', c: nats://h:1/#x"#,
        r#"a="x\t\"A\\" b="raw \\n" c="nats://h:1/#x""#,
    );
    check("a (\n one\n two )\n)\nb: 1", r#"a="\n one\n two )\n" b=1"#);
    check("a: $2a$11$abc", "a=\"$2a$11$abc\"");
    check(
        r#"a: "\q""#,
        r#"Parse error on line 1: 'Invalid escape character 'q'. Only the following escape characters are allowed: \xXX, \t, \n, \r, \", \\.'"#,
    );
}

#[test]
fn variables_come_from_around_or_from_the_environment() {
    check("a: 1\nm { b: $a, a: 2, c: $a }", "a=1 m={b=1 a=2 c=2}");
    check("p: $PORT, n: $NAME, a: $A, q: \"$PORT\"", "p=4222 n=\"x y\" a=\"7\" q=\"$PORT\"");
    check("\nx: $NONE", "variable reference for 'NONE' on line 2 can not be found");
    check("x: $C", "variable reference cycle for 'C'");
}

#[test]
fn files_are_included_where_they_stand() {
    check("m { include users\n c: 3 }", "m={users=[\"a\"] b=2 c=3}");
    check("include 'users'", "users=[\"a\"] b=2");
    check("include nothing", "error parsing include file 'nothing', entity not found");
    let error = parse(
        "t.conf",
        "include loop",
        &Given { files: HashMap::from([("loop", "include loop")]), ..Given::default() },
    );
    assert!(error.is_err_and(|error| error.to_string().contains("Files include each other")));
}

#[test]
fn nesting_has_a_bound() {
    let deep = format!("a: {}", "[".repeat(100_000));
    check(&deep, "Parse error on line 1: 'Maps and lists are nested more than 64 deep.'");
}

#[test]
fn places_are_counted_as_by_nats_server() {
    let map = parse("f", "ab: 1\n cd: 2", &Given::default()).unwrap();
    let places: Vec<_> = map.entries.iter().map(|entry| entry.place.to_string()).collect();
    assert_eq!(places, ["f:1:0", "f:2:2"]);
}

/// A value as it may be written, and what it is shown as when it was read.
fn written() -> impl Strategy<Value = (String, String)> {
    let quoted = "[a-z $#{}:/]{0,12}".prop_map(|text| (format!("\"{text}\""), format!("{text:?}")));
    let raw = "[a-z\\\\$#]{0,12}".prop_map(|text| (format!("'{text}'"), format!("{text:?}")));
    let number = any::<i32>().prop_map(|number| (number.to_string(), number.to_string()));
    let flag = any::<bool>().prop_map(|flag| (flag.to_string(), flag.to_string()));
    let leaf = prop_oneof![quoted, raw, number, flag];
    leaf.prop_recursive(4, 32, 4, |inner| {
        let list = (prop::collection::vec(inner.clone(), 0..4), prop_oneof![Just(", "), Just("\n")])
            .prop_map(|(items, between)| {
                let (written, shown): (Vec<_>, Vec<_>) = items.into_iter().unzip();
                (format!("[{}]", written.join(between)), format!("[{}]", shown.join(" ")))
            });
        let map = (
            prop::collection::vec(("k[a-z]{0,5}", inner), 0..4),
            prop_oneof![Just(": "), Just(" = "), Just(" ")],
            prop_oneof![Just(", "), Just("\n"), Just(" # c\n")],
        )
            .prop_map(|(entries, is, between)| {
                let written: Vec<_> =
                    entries.iter().map(|(key, (text, _))| format!("{key}{is}{text}")).collect();
                let shown: Vec<_> = entries.iter().map(|(key, (_, tree))| format!("{key}={tree}")).collect();
                (format!("{{{}\n}}", written.join(between)), format!("{{{}}}", shown.join(" ")))
            });
        prop_oneof![list, map]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read((text, tree) in written()) {
        let map = parse("f", &format!("value: {text}\n"), &Given::default()).expect("it is well formed");
        prop_assert_eq!(shown(&map), format!("value={tree}"));
    }

    #[test]
    fn no_text_makes_it_panic_or_go_on_for_ever(text in "[ab12\"'(){}\\[\\]:=,;#/$\\\\\n\t é-]{0,60}") {
        let _ = parse("f", &text, &Given::default());
    }

    #[test]
    fn no_unicode_does_either(text in any::<String>()) {
        let _ = parse("f", &text, &Given::default());
    }
}
