//! Drawings of records made by hand: what people look for in them, and that nothing in them can break out of a drawing.

use anstream::adapter::strip_str;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use proptest::prelude::*;
use serde_json::{Value, json};
use trunkline::observe::{ConversationList, ConversationRecord, Observation};

use super::line::width;
use super::*;

/// Noon of the day on which all of this happened, in microseconds.
const NOON: i64 = 1_795_435_200_000_000;

fn time(micros: u64) -> String {
    Timestamp::from_microsecond(NOON + i64::try_from(micros).unwrap()).unwrap().to_string()
}

/// What happened after so many microseconds.
fn seen(micros: u64, what: &str, subject: &str, more: Value) -> Observation {
    let mut value = json!({"time": time(micros), "what": what, "subject": subject, "size": 100});
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(value).unwrap()
}

/// A message from one to another.
fn message(micros: u64, subject: &str, id: &str, cause: Option<&str>, flow: (&str, &str)) -> Observation {
    let mut seen = seen(micros, "published", subject, json!({"id": id, "from": flow.0, "to": [flow.1]}));
    seen.causation_id = cause.map(str::to_owned);
    seen
}

fn record(observations: Vec<Observation>) -> ConversationRecord {
    let last = observations.iter().map(|seen| seen.time).max().map_or(time(0), |last| last.to_string());
    let summary = json!({
        "id": "c-42", "first": time(0), "last": last, "messages": observations.len(), "bytes": 2345, "state": "quiet",
        "participants": ["web", "gateway"], "personas": [], "tools": ["search"], "skills": [],
        "retries": 0, "deadLetters": 0, "gaps": 0, "errors": 0, "omitted": 0,
    });
    ConversationRecord { summary: serde_json::from_value(summary).unwrap(), observations }
}

fn options(columns: usize) -> PageOptions {
    PageOptions { columns, all: false, payloads: false, zone: TimeZone::UTC, not_recorded: 0 }
}

fn text(record: &ConversationRecord, options: &PageOptions) -> String {
    strip_str(&page(record, options)).to_string()
}

/// Lines of the drawing that contain this.
#[track_caller]
fn lines_with<'t>(text: &'t str, part: &str) -> Vec<&'t str> {
    let found: Vec<&str> = text.lines().filter(|line| line.contains(part)).collect();
    assert!(!found.is_empty(), "{part:?} is not in\n{text}");
    found
}

#[track_caller]
fn check_columns(text: &str, columns: usize) {
    for line in strip_str(text).to_string().lines() {
        assert!(width(line) <= columns, "{} of {columns} columns: {line}", width(line));
    }
}

/// A question, the model, a tool that answers, and the answer.
fn turn() -> Vec<Observation> {
    let mut ask = message(4_000, "nachos.llm.request", "m2", Some("m1"), ("gateway", "llm"));
    ask.reply = Some("_INBOX.1.1".to_owned());
    let mut call = message(30_000, "nachos.tool.search.call", "m3", Some("m1"), ("gateway", "search"));
    call.reply = Some("_INBOX.1.2".to_owned());
    let mut list = vec![message(0, "nachos.channel.web.inbound", "m1", None, ("web", "gateway")), ask];
    for word in 0..5 {
        let more = json!({"from": "llm", "to": ["gateway"], "type": "llm.chunk"});
        list.push(seen(10_000 + word * 2_000, "published", "_INBOX.1.1", more));
    }
    list.push(call);
    list.push(seen(
        80_000,
        "published",
        "_INBOX.1.2",
        json!({"from": "search", "to": ["gateway"], "outcome": "answered"}),
    ));
    list.push(message(85_000, "nachos.channel.web.outbound", "m5", Some("m1"), ("gateway", "web")));
    list
}

/// Work that failed twice and became a dead letter.
fn failing_work() -> Vec<Observation> {
    let mut list = vec![seen(
        0,
        "published",
        "tasks.mail",
        json!({"id": "t1", "from": "app", "stream": "tasks", "offset": "7"}),
    )];
    for (attempt, at) in [(1, 20_000), (2, 1_040_000)] {
        list.push(seen(
            at,
            "handled",
            "tasks.mail",
            json!({
                "id": "t1", "to": ["mailer"], "consumer": "mailers", "attempt": attempt, "outcome": "nacked",
                "waitedUs": 5_000, "tookUs": 15_000, "reason": "no route to host",
            }),
        ));
    }
    list.push(seen(
        1_060_000,
        "deadLettered",
        "tasks.mail",
        json!({"id": "t1", "attempt": 2, "reason": "max_deliver"}),
    ));
    list
}

#[test]
fn a_conversation_is_a_tree_and_a_time_line() {
    let record = record(turn());
    let text = text(&record, &options(80));
    assert_eq!(text, include_str!("turn.txt").trim_end(), "it is:\n{text}\n");
}

#[test]
fn causes_stand_above_what_they_caused_whatever_came_first() {
    let straight = text(&record(turn()), &options(80));
    let mut turned = turn();
    turned.reverse();
    assert_eq!(text(&record(turned), &options(80)), straight);
}

#[test]
fn retries_and_dead_letters_stand_at_their_message() {
    let text = text(&record(failing_work()), &options(80));
    let tree: Vec<&str> =
        text.lines().skip_while(|line| !line.contains("who caused whom")).skip(1).take(4).collect();
    assert!(tree[0].starts_with("tasks.mail  app → mailer"), "{text}");
    assert!(
        tree[1].contains("✗ attempt 1 by mailer failed and comes again after 15.0 ms: no route to"),
        "{text}"
    );
    assert!(tree[2].contains("host (+35.0 ms)") && tree[3].contains("✗ attempt 2 by mailer"), "{text}");
    lines_with(&text, "✗ dead letter after attempt 2: max_deliver");
    let bar = lines_with(&text, "2 attempts ✗")[0];
    assert!(bar.contains("╌╌╌") && bar.contains('✗'), "{bar}");
    check_columns(&text, 80);
}

#[test]
fn what_is_not_known_is_said() {
    let mut list = vec![
        message(0, "a.first", "m1", Some("lost"), ("x", "y")),
        message(10, "a.second", "m2", Some("lost"), ("x", "y")),
        seen(
            20,
            "handled",
            "a.third",
            json!({"id": "m3", "to": ["z"], "attempt": 1, "outcome": "acked", "tookUs": 5}),
        ),
        seen(30, "gap", "a.>", json!({"to": ["watcher"], "missed": 3, "reason": "slow"})),
        seen(40, "gap", "a.first", json!({"id": "m1", "to": ["w"], "missed": 1})),
        seen(50, "published", "a.ask", json!({"id": "m4", "from": "x", "to": ["y"], "reply": "_INBOX.x"})),
        seen(60, "published", "a.none", json!({"id": "m5", "from": "x", "reply": "_INBOX.y"})),
        // As a library tells it, which knows the message no more.
        seen(60, "noResponders", "a.none", json!({"from": "x", "reply": "_INBOX.y"})),
    ];
    list[1].body = Some(trunkline::observe::Body::Omitted(70_000));
    let mut record = record(list);
    record.summary.omitted = 12;
    let options = PageOptions { payloads: true, not_recorded: 1, ..options(100) };
    let text = text(&record, &options);
    assert_eq!(lines_with(&text, "message lost (not recorded)").len(), 1);
    for said in [
        "├─ a.first",
        "└─ a.second",
        "(68.4 KiB not kept)",
        "its publication is not recorded",
        "gap: 3 messages missed by watcher: slow",
        "gap: 1 message missed by w",
        "no answer was seen",
        "nobody answers there",
        "12 observations of this conversation",
        "1 message of any conversation went by",
        "1 cause is named that nobody saw",
        "1 message was seen at work, but not when published",
    ] {
        lines_with(&text, said);
    }
    check_columns(&text, 100);
}

#[test]
fn two_beginnings_are_two_trees() {
    let list = vec![
        message(0, "a.one", "m1", None, ("x", "y")),
        message(10, "b.one", "m2", None, ("z", "y")),
        message(20, "a.two", "m3", Some("m1"), ("y", "x")),
        message(5_000_000, "b.two", "m4", Some("m2"), ("y", "z")),
    ];
    let text = text(&record(list), &options(80));
    let tree: Vec<&str> =
        text.lines().skip_while(|line| !line.contains("who caused")).skip(1).take(4).collect();
    let begins = ["a.one", "└─ a.two", "b.one", "└─ b.two"];
    for (line, begin) in tree.iter().zip(begins) {
        assert!(line.starts_with(begin), "{text}");
    }
    // The long pause is said and not drawn: what came before it is still told apart.
    lines_with(&text, "⋮ 5.0 s without anything");
}

#[test]
fn a_thousand_messages_are_drawn_when_asked_for() {
    let list: Vec<Observation> = (0..1000)
        .map(|n| message(n * 10, &format!("a.s{n}"), &format!("m{n}"), Some("m0"), ("x", "y")))
        .collect();
    let record = record(list);
    let short = text(&record, &options(80));
    assert_eq!(lines_with(&short, "… 800 more rows are not drawn (--all draws them)").len(), 2);
    let all = text(&record, &PageOptions { all: true, ..options(80) });
    assert_eq!(lines_with(&all, "─ a.s").len(), 999);
    check_columns(&all, 80);
}

#[test]
fn words_of_a_model_share_a_row_unless_asked_for() {
    let record = record(turn());
    assert_eq!(lines_with(&text(&record, &options(80)), "answer (llm.chunk) ×5").len(), 2);
    let all = text(&record, &PageOptions { all: true, ..options(80) });
    assert_eq!(lines_with(&all, "answer (llm.chunk)").len(), 10);
}

#[test]
fn an_answer_without_a_name_comes_from_who_handled_its_request() {
    let list = vec![
        seen(
            0,
            "published",
            "a.ask",
            json!({"id": "m1", "from": "x", "to": ["y", "z"], "reply": "_INBOX.1"}),
        ),
        seen(
            50,
            "handled",
            "a.ask",
            json!({"id": "m1", "to": ["y"], "attempt": 1, "outcome": "answered", "tookUs": 900}),
        ),
        seen(940, "published", "_INBOX.1", json!({"to": ["x"], "size": 40})),
    ];
    let text = text(&record(list), &options(80));
    lines_with(&text, "└─ ↩ answer  y → x");
    // The time of a handler is that of its beginning.
    assert!(lines_with(&text, "a.ask  x → y, z")[0].ends_with("950 µs"), "{text}");
}

#[test]
fn circles_and_long_chains_come_to_an_end() {
    let mut list: Vec<Observation> = (0..3000)
        .map(|n: u64| {
            let cause = n.checked_sub(1).map(|n| format!("m{n}"));
            message(n, "a.b", &format!("m{n}"), cause.as_deref(), ("x", "y"))
        })
        .collect();
    list.push(message(9, "c.d", "p", Some("q"), ("x", "y")));
    list.push(message(8, "c.e", "q", Some("p"), ("x", "y")));
    list.push(message(7, "c.f", "r", Some("r"), ("x", "y")));
    let text = text(&record(list), &PageOptions { all: true, ..options(60) });
    lines_with(&text, "└(2999) ");
    lines_with(&text, "└─ c.d");
    check_columns(&text, 60);
}

#[test]
fn wide_characters_keep_the_columns() {
    let list = vec![
        message(0, "天気.予報.東京の天気予報はどこですか", "m1", None, ("天気予報の道具", "門")),
        message(900, "天気.答え", "m2", Some("m1"), ("門", "天気予報の道具")),
    ];
    for columns in [60, 80, 133] {
        let text = text(&record(list.clone()), &options(columns));
        check_columns(&text, columns);
        let ends: Vec<usize> = lines_with(&text, "+900 µs").iter().map(|line| width(line)).collect();
        assert!(ends.iter().all(|end| *end <= columns), "{text}");
    }
}

#[test]
fn nothing_that_was_sent_steers_the_terminal() {
    let evil = "\x1b]0;owned\x07\u{9b}31m\u{202e}\r\n";
    let mut record = record(vec![
        seen(
            0,
            "published",
            evil,
            json!({"id": evil, "from": evil, "to": [evil], "type": evil, "body": {"json": {"a": evil}}}),
        ),
        seen(
            1,
            "handled",
            evil,
            json!({"id": evil, "to": [evil], "attempt": 2, "outcome": "nacked", "reason": evil}),
        ),
    ]);
    record.summary.id = evil.to_owned();
    record.summary.tools = vec![evil.to_owned()];
    let one: ConversationList = serde_json::from_value(json!({
        "enabled": true, "conversations": [record.summary], "total": 1, "notRecorded": 0,
    }))
    .unwrap();
    let mut drawn = page(&record, &PageOptions { payloads: true, ..options(80) });
    drawn += &mermaid(&record, true);
    drawn += &list(&one, 80, &TimeZone::UTC);
    drawn += &record.observations.iter().map(|seen| live(seen, &TimeZone::UTC, true)).collect::<String>();
    // What is left of escapes are our own colours.
    let left = drawn.replace("\x1b[", "");
    assert!(!left.contains(|c| c != '\n' && is_steering(c)), "{left:?}");
    assert!(!strip_str(&drawn).to_string().contains('\x1b'));
    check_columns(&drawn.lines().filter(|line| !line.contains("p0")).collect::<Vec<_>>().join("\n"), 200);
}

#[test]
fn the_list_fits_and_says_what_it_leaves_out() {
    let mut one = record(turn()).summary;
    one.retries = 2;
    one.id = "0199f3c2-1111-7222-8333-444455556666-and-more".to_owned();
    let found: ConversationList = serde_json::from_value(json!({
        "enabled": true, "conversations": [one], "total": 7, "notRecorded": 3,
    }))
    .unwrap();
    let text = strip_str(&list(&found, 80, &TimeZone::UTC)).to_string();
    check_columns(&text, 80);
    for said in
        ["CONVERSATION", "0199f3c2-1111", "quiet", "85.0 ms", "1 of 7", "3 messages went by unrecorded"]
    {
        lines_with(&text, said);
    }
    let wide = strip_str(&list(&found, 140, &TimeZone::UTC)).to_string();
    lines_with(&wide, "2 retries  web, gateway");
}

#[test]
fn live_lines_say_who_what_and_how_it_ended() {
    let list = [turn(), failing_work()].concat();
    let line = |seen: &Observation| strip_str(&live(seen, &TimeZone::UTC, true)).to_string();
    assert_eq!(
        line(&list[0]),
        "12:00:00.000  -              nachos.channel.web.inbound  web → gateway  100 B"
    );
    let mut with_body = list[1].clone();
    with_body.conversation_id = Some("0199f3c2-1111-7222".to_owned());
    with_body.body = Some(trunkline::observe::Body::Json(json!({"q": 1})));
    assert_eq!(
        line(&with_body),
        "12:00:00.004  0199f3c2-111…  nachos.llm.request  gateway → llm  100 B\n              {\"q\":1}"
    );
    let handled = line(&list[list.len() - 2]);
    assert!(
        handled.ends_with(
            "tasks.mail  attempt 2 by mailer failed and comes again after 15.0 ms: no route to host"
        ),
        "{handled}"
    );
    assert!(line(&list[list.len() - 1]).ends_with("tasks.mail  dead letter after attempt 2: max_deliver"));
}

#[test]
fn the_diagram_has_participants_in_order_and_notes_for_trouble() {
    let drawn = mermaid(&record([turn(), failing_work()].concat()), false);
    check_mermaid(&drawn);
    let names: Vec<&str> =
        drawn.lines().filter_map(|line| line.trim().strip_prefix("participant ")).collect();
    assert_eq!(names[..4], ["p0 as web", "p1 as gateway", "p2 as app", "p3 as mailer"]);
    for said in [
        "p0-)p1: nachos.channel.web.inbound (+0 µs)",
        "p1->>",
        "-->>p1: answer (llm.chunk) ×5 (+10.0 ms)",
        "Note over p3: attempt 1 by mailer failed and comes again after 15.0 ms#58; no route to host",
        "Note over p3: dead letter after attempt 2#58; max_deliver",
    ] {
        lines_with(&drawn, said);
    }
    check_mermaid(&mermaid(&record(Vec::new()), false));
}

#[test]
fn a_diagram_never_outgrows_what_mermaid_draws() {
    let list: Vec<Observation> = (0..2000)
        .map(|n| message(n, &format!("a.s{n}"), &format!("m{n}"), None, (&format!("x{n}"), "y")))
        .collect();
    let drawn = mermaid(&record(list), false);
    check_mermaid(&drawn);
    assert!(drawn.chars().count() < 50_000, "{} characters", drawn.chars().count());
    lines_with(&drawn, "messages are not drawn");
    lines_with(&drawn, "as others");
}

/// The part of Mermaid's grammar that is drawn in, and nothing else.
#[track_caller]
fn check_mermaid(drawn: &str) {
    let mut lines = drawn.lines();
    assert_eq!(lines.next(), Some("sequenceDiagram"));
    let is_id = |id: &str| id.strip_prefix('p').is_some_and(|number| number.parse::<u16>().is_ok());
    let is_text = |text: &str| {
        let mut rest = text;
        // A character by number is the only thing that `#` and `;` may be part of.
        while let Some((before, after)) = rest.split_once('#') {
            let Some((number, after)) = after.split_once(';') else { return false };
            if number.parse::<u32>().is_err() || before.contains(';') {
                return false;
            }
            rest = after;
        }
        let harmless = |c: char| c.is_alphanumeric() || " ._/()+-→×…✗·#;".contains(c);
        !text.trim().is_empty() && !rest.contains(';') && text.chars().all(harmless)
    };
    for line in lines {
        let statement = line.strip_prefix("    ").unwrap_or_else(|| panic!("{line:?} is not indented"));
        let good = if let Some(rest) = statement.strip_prefix("participant ") {
            rest.split_once(" as ").is_some_and(|(id, name)| is_id(id) && is_text(name))
        } else {
            let (head, text) = statement.split_once(": ").unwrap_or_default();
            let arrow = |sign: &str| head.split_once(sign).is_some_and(|(from, to)| is_id(from) && is_id(to));
            let note = head.strip_prefix("Note over ").is_some_and(is_id);
            is_text(text) && (note || ["-->>", "->>", "--x", "-x", "-)"].into_iter().any(arrow))
        };
        assert!(good, "{line:?} is no statement");
    }
}

/// Texts that mean something to terminals or to Mermaid, and others.
fn any_text() -> impl Strategy<Value = String> {
    let parts = proptest::sample::select(vec![
        "end",
        ";",
        "#",
        "%%{init}",
        ": ",
        "->>",
        "\n",
        "\x1b[2J",
        "\u{202e}",
        "天気",
        "a.b",
        "style:",
        "$$",
        "\"",
        "<br/>",
        "e\u{301}",
        "👩‍🚀",
        " ",
    ]);
    proptest::collection::vec(parts, 0..6).prop_map(|parts| parts.concat())
}

fn any_observation() -> impl Strategy<Value = Observation> {
    let id = || proptest::option::of(0..8_u8);
    let what = proptest::sample::select(vec![
        "published",
        "handled",
        "deadLettered",
        "redriven",
        "noResponders",
        "gap",
    ]);
    let outcome = proptest::sample::select(vec![
        "acked",
        "nacked",
        "terminated",
        "cancelled",
        "answered",
        "answeredError",
    ]);
    ((0..5_000_000_u64, what, any_text(), id(), id()), (id(), any_text(), any_text(), outcome, 0..4_u32, 0..9_000_000_u64)).prop_map(
        |((at, what, subject, id, cause), (reply, from, to, outcome, attempt, took))| {
            let name = |prefix: &str, id: Option<u8>| id.map(|id| format!("{prefix}{id}"));
            let subject = reply.filter(|_| took % 2 == 0).map_or(subject, |reply| format!("_INBOX.{reply}"));
            let mut seen = seen(at, what, &subject, json!({
                "outcome": outcome, "attempt": attempt, "tookUs": took, "from": from, "to": [to], "reason": to,
                "body": {"text": from},
            }));
            (seen.id, seen.causation_id, seen.reply) = (name("m", id), name("m", cause), name("_INBOX.", reply));
            seen
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_was_seen_every_message_is_drawn_once_and_within_its_columns(
        list in proptest::collection::vec(any_observation(), 0..40), columns in 60..140_usize,
    ) {
        let record = record(list);
        let drawn = page(&record, &PageOptions { all: true, payloads: true, ..options(columns) });
        check_columns(&drawn, columns);
        let story = super::story::Story::read(&record);
        let mut drawn: Vec<usize> = super::rows::rows(&story, false).into_iter().flat_map(|row| row.entries).collect();
        drawn.sort_unstable();
        prop_assert_eq!(drawn, (0..story.entries.len()).collect::<Vec<_>>());
        check_mermaid(&mermaid(&record, true));
    }
}
