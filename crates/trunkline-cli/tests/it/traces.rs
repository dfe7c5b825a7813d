//! Spans as a collector gets them from the binary, and log lines that tell whose message they are about.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use serde_json::Value;

use crate::command::{Ended, PATIENCE, command, run, start};
use crate::observability::{eventually, get};
use crate::server;

const DEMO: [&str; 6] = ["up", "--demo", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];

/// What a collector was sent in one request.
struct Sent {
    /// The request line and the headers.
    head: Vec<String>,
    spans: ExportTraceServiceRequest,
}

/// A receiver of spans by OTLP over HTTP.
struct Collector {
    endpoint: String,
    sent: Receiver<Sent>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("it is bound"));
        let (sender, sent) = channel();
        // Ends with the test's process; a connection carries one request.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut reader = BufReader::new(stream);
                let lines = reader.by_ref().lines().map_while(Result::ok);
                let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let length = head.iter().find_map(|line| {
                    line.to_ascii_lowercase().strip_prefix("content-length: ")?.trim().parse().ok()
                });
                let mut body = vec![0; length.unwrap_or(0)];
                reader.read_exact(&mut body).expect("the body is as long as was said");
                let spans = ExportTraceServiceRequest::decode(&*body).expect("spans in protobuf");
                let answer =
                    "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
                reader.get_mut().write_all(answer.as_bytes()).expect("the answer is read");
                if sender.send(Sent { head, spans }).is_err() {
                    return;
                }
            }
        });
        Self { endpoint, sent }
    }

    /// Has a command send its spans here.
    fn of(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &self.endpoint);
        command
    }

    /// All that was sent by processes that have ended.
    fn all(&self) -> Vec<Sent> {
        self.sent.try_iter().collect()
    }
}

/// All spans of several requests.
fn spans(sent: &[Sent]) -> Vec<Span> {
    let resources = sent.iter().flat_map(|sent| &sent.spans.resource_spans);
    resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
}

fn text(attributes: &[KeyValue], name: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        other => panic!("{name} is {other:?}"),
    }
}

/// What the conventions know of an attribute: the types of its value, as people write them.
fn attribute_type(name: &str) -> Option<&'static str> {
    Some(match name {
        "messaging.system"
        | "messaging.operation.name"
        | "messaging.operation.type"
        | "messaging.destination.name"
        | "messaging.destination.template"
        | "messaging.message.id"
        | "messaging.message.conversation_id"
        | "messaging.client.id"
        | "messaging.consumer.group.name"
        | "server.address"
        | "error.type"
        | "gen_ai.conversation.id"
        | "gen_ai.agent.id"
        | "gen_ai.agent.name"
        | "gen_ai.tool.name" => "string",
        "messaging.destination.temporary" => "boolean",
        "messaging.message.body.size" | "server.port" => "int",
        // Those that the conventions have no name for.
        "trunkline.delivery.attempt" | "trunkline.delivery.delay_ms" => "int",
        name if name.starts_with("trunkline.") => "string",
        _ => return None,
    })
}

/// Holds a span against the conventions for messaging: its name, its kind, its attributes and their types, and the link to the
/// span in which the message was made.
#[track_caller]
fn assert_conventional(span: &Span, all: &[Span]) {
    for attribute in &span.attributes {
        let value = attribute.value.as_ref().and_then(|value| value.value.as_ref());
        let found = match value {
            Some(any_value::Value::StringValue(_)) => "string",
            Some(any_value::Value::IntValue(_)) => "int",
            Some(any_value::Value::BoolValue(_)) => "boolean",
            other => panic!("{} is {other:?}", attribute.key),
        };
        assert_eq!(attribute_type(&attribute.key), Some(found), "{} of {}", attribute.key, span.name);
    }
    let of = |name| text(&span.attributes, name);
    let must = |name| of(name).unwrap_or_else(|| panic!("{} has no {name}", span.name));
    let operation = must("messaging.operation.name");
    let (kind, expected) = match operation.as_str() {
        "publish" | "dead_letter" | "redrive" => ("send", SpanKind::Producer),
        "request" => ("send", SpanKind::Client),
        "receive" => ("receive", SpanKind::Client),
        "process" => ("process", SpanKind::Consumer),
        "respond" => ("process", SpanKind::Server),
        "ack" | "nak" | "term" => ("settle", SpanKind::Client),
        other => panic!("{other} is no operation"),
    };
    assert_eq!((must("messaging.operation.type").as_str(), span.kind()), (kind, expected), "{}", span.name);
    assert_eq!(must("messaging.system"), "trunkline");
    let destination =
        of("messaging.destination.template").unwrap_or_else(|| must("messaging.destination.name"));
    assert_eq!(span.name, format!("{operation} {destination}"));
    let failed = span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error);
    assert_eq!(failed, of("error.type").is_some(), "{}: {:?}", span.name, span.status);
    // Who takes a message links to the span in which it was made, whatever its parent is.
    let takes = ["receive", "process", "respond"].contains(&operation.as_str());
    assert_eq!(span.links.len(), usize::from(takes), "{}", span.name);
    for link in &span.links {
        assert_eq!(link.trace_id, span.trace_id);
        let made = all.iter().find(|other| other.span_id == link.span_id);
        let by = made.and_then(|made| text(&made.attributes, "messaging.operation.type"));
        assert_eq!(by.as_deref(), Some("send"), "{} links to {made:?}", span.name);
    }
}

/// The names of spans, each behind those of its ancestors.
fn paths(spans: &[Span]) -> BTreeSet<String> {
    fn path(spans: &[Span], span: &Span) -> String {
        match spans.iter().find(|other| other.span_id == span.parent_span_id) {
            Some(parent) => format!("{} > {}", path(spans, parent), span.name),
            None => span.name.clone(),
        }
    }
    spans.iter().map(|span| path(spans, span)).collect()
}

fn end(command: Command) -> Ended {
    start(command, b"").end()
}

#[test]
fn every_conversation_of_the_demo_is_one_trace_from_channel_to_tool() {
    let collector = Collector::start();
    let mut demo = collector.of(&[&DEMO[..], &["--demo-conversations", "6"]].concat());
    demo.env("OTEL_SERVICE_NAME", "platform")
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test");
    demo.env("OTEL_EXPORTER_OTLP_HEADERS", "api-key=k%20y");
    demo.args(["--log-format", "json", "--log-level", "warn,trunkline=debug"]);
    let ended = end(demo);
    assert!(ended.status.success(), "{ended:?}");
    let sent = collector.all();
    for sent in &sent {
        assert_eq!(sent.head[0], "POST /v1/traces HTTP/1.1");
        let head = sent.head.join("\n").to_ascii_lowercase();
        assert!(
            head.contains("api-key: k y") && head.contains("content-type: application/x-protobuf"),
            "{head}"
        );
        for resource in &sent.spans.resource_spans {
            let attributes = &resource.resource.as_ref().expect("a resource").attributes;
            assert_eq!(text(attributes, "service.name").as_deref(), Some("platform"));
            assert_eq!(text(attributes, "deployment.environment.name").as_deref(), Some("test"));
            assert!(text(attributes, "service.version").is_some());
        }
    }
    let mut all = spans(&sent);
    // The server tells its health from time to time, and is in no trace; who listens to everything receives it.
    all.retain(|span| !span.name.ends_with(" nachos.system.health"));
    for span in &all {
        assert_conventional(span, &all);
    }
    let mut conversations = BTreeMap::<_, BTreeSet<_>>::new();
    for span in &all {
        if let Some(id) = text(&span.attributes, "gen_ai.conversation.id") {
            conversations.entry(id).or_default().insert(span.trace_id.clone());
        }
    }
    assert!(conversations.len() >= 6, "{conversations:?}");
    assert!(conversations.values().all(|traces| traces.len() == 1), "{conversations:?}");
    let distinct: BTreeSet<_> = conversations.values().flatten().collect();
    assert_eq!(distinct.len(), conversations.len(), "a trace is one conversation");
    // Every parent is there, but of what was cut off at the end.
    let roots: BTreeSet<_> =
        all.iter().filter(|span| span.parent_span_id.is_empty()).map(|span| span.name.as_str()).collect();
    assert!(roots.iter().all(|root| root.starts_with("publish nachos.channel.")), "{roots:?}");

    let paths = paths(&all);
    let gateway = "publish nachos.channel.web.inbound > receive nachos.channel.web.inbound > \
                   process nachos.channel.web.inbound";
    for below in [
        "request nachos.llm.request > respond nachos.llm.request",
        "request nachos.tool.weather.call > respond nachos.tool.weather.call",
        "publish nachos.channel.web.outbound",
        "publish nachos.analytics.turn",
    ] {
        let path = format!("{gateway} > {below}");
        assert!(paths.contains(&path), "{path} is missing: {paths:#?}");
    }
    let tools: BTreeSet<_> = all
        .iter()
        .filter(|span| span.name == "respond nachos.tool.weather.call")
        .map(|span| text(&span.attributes, "gen_ai.tool.name"))
        .collect();
    assert_eq!(tools, BTreeSet::from([Some("weather".to_owned())]));

    // The weather service fails now and then; the lines about that tell in which conversation and trace.
    let lines = ended.stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lines: Vec<_> = lines.filter(|line| line["message"] == "request answered with an error").collect();
    assert!(!lines.is_empty(), "{}", ended.stderr);
    for line in lines {
        let conversation = line["conversation_id"].as_str().unwrap_or_else(|| panic!("{line}"));
        let trace = conversations[conversation].first().expect("it has a trace");
        let trace: String = trace.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(line["trace_id"], trace, "{line}");
        let span = line["span_id"].as_str().unwrap_or_else(|| panic!("{line}"));
        let is_its =
            |it: &&Span| it.span_id.iter().map(|byte| format!("{byte:02x}")).collect::<String>() == span;
        let span = all.iter().find(is_its).unwrap_or_else(|| panic!("no span of {line}"));
        assert!(
            span.name.starts_with("respond ") || span.name.starts_with("process "),
            "{}: {line}",
            span.name
        );
    }
}

#[test]
fn processes_share_a_trace_and_send_their_spans_before_they_end() {
    let (collector, server) = (Collector::start(), server());
    let url = server.url();
    let mut reply = start(collector.of(&["reply", "--url", url, "work.echo", "--echo", "--count", "1"]), b"");
    reply.until_it_says("answering");
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let header = format!("traceparent: {PARENT}");
    end(collector.of(&["request", "--url", url, "work.echo", "hello", "--header", &header])).ok();
    reply.end().ok();
    let all = spans(&collector.all());
    let paths = paths(&all);
    let expected = ["request work.echo".to_owned(), "request work.echo > respond work.echo".to_owned()];
    assert_eq!(paths, BTreeSet::from(expected));
    for span in &all {
        let trace: String = span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(trace, &PARENT[3..35]);
    }
}

#[test]
fn a_command_for_each_request_finds_its_span_in_its_environment() {
    let (collector, server) = (Collector::start(), server());
    let url = server.url();
    let exec = "sh -c 'cat >/dev/null; printf %s \"$TRACEPARENT\"'";
    let arguments = ["reply", "--url", url, "work.parent", "--exec", exec, "--count", "1"];
    let mut reply = start(collector.of(&arguments), b"");
    reply.until_it_says("answering");
    let parent = run(&["request", "--url", url, "work.parent", "x", "--raw"]).ok();
    reply.end().ok();
    let all = spans(&collector.all());
    assert_eq!(all.len(), 1, "{:?}", paths(&all));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let expected = format!("00-{}-{}-01", hex(&all[0].trace_id), hex(&all[0].span_id));
    assert_eq!(String::from_utf8_lossy(&parent).trim_end(), expected);
}

#[test]
fn components_are_given_the_variables_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let yaml = "server: {listen: '127.0.0.1:0', http: '127.0.0.1:0'}\ncomponents:\n  \
                teller: {command: [sh, -c, 'echo \"told $OTEL_SERVICE_NAME $OTEL_EXPORTER_OTLP_HEADERS\"; sleep 1000']}\n";
    std::fs::write(directory.path().join("config.yaml"), yaml).unwrap();
    let mut up = command(&["up"]);
    up.current_dir(directory.path()).env("OTEL_SERVICE_NAME", "platform");
    up.env("OTEL_EXPORTER_OTLP_HEADERS", "api-key=k%20y");
    let mut up = start(up, b"");
    up.until_it_says("told platform api-key=k%20y");
    up.signal(nix::sys::signal::Signal::SIGTERM);
    up.end().ok();
}

#[test]
fn nothing_is_sent_where_the_environment_asks_for_nothing() {
    for (name, value) in [
        ("OTEL_TRACES_SAMPLER", "always_off"),
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
    ] {
        let collector = Collector::start();
        let mut demo = collector.of(&[&DEMO[..], &["--demo-conversations", "1"]].concat());
        demo.env(name, value);
        end(demo).ok();
        assert!(collector.all().is_empty(), "{name}={value}");
    }
}

#[test]
fn a_collector_that_is_away_is_one_warning_and_messages_flow() {
    let mut demo = command(&[&DEMO[..], &["--demo-conversations", "3"]].concat());
    // Nothing listens on port 1, and the queue is sent at once and often.
    demo.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1").env("OTEL_BSP_SCHEDULE_DELAY", "50");
    let ended = end(demo);
    let took = ended.took;
    let said = ended.stderr.clone();
    let lines = ended.lines();
    assert_eq!(lines.iter().filter(|line| line.contains("answered in")).count(), 3, "{lines:#?}");
    assert_eq!(said.matches("the collector takes no spans").count(), 1, "{said}");
    assert_eq!(said.matches("WARN").count(), 1, "{said}");
    assert!(!said.contains("ERROR"), "{said}");
    assert!(took < PATIENCE, "{took:?}");

    let server = server();
    let url = server.url();
    let mut publish = command(&["pub", "--url", url, "a.b", "hello"]);
    publish.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    let ended = end(publish);
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.stderr.matches("the collector takes no spans").count(), 1, "{}", ended.stderr);
}

#[test]
fn a_protocol_that_is_not_spoken_is_said_and_harms_nobody() {
    let server = server();
    let url = server.url();
    let mut publish = command(&["pub", "--url", url, "a.b", "hello"]);
    publish
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let ended = end(publish);
    assert!(ended.status.success() && ended.stderr.contains("http/protobuf only"), "{ended:?}");
    // And without any variable nothing is said.
    let quiet = run(&["pub", "--url", url, "a.b", "hello"]);
    assert!(quiet.status.success() && !quiet.stderr.contains("span"), "{quiet:?}");
}

#[test]
fn what_becomes_of_spans_is_in_the_metrics() {
    /// The number behind a series of `/metrics`.
    fn value(text: &str, series: &str) -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
    }
    let collector = Collector::start();
    // Takes connections, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let deaf = format!("http://{}", silent.local_addr().expect("it is bound"));
    for (endpoint, expected) in [
        (&collector.endpoint, &["trunkline_spans_sent_total"][..]),
        (
            &deaf,
            &[
                "trunkline_spans_dropped_total{reason=\"queue_full\"}",
                "trunkline_spans_dropped_total{reason=\"not_sent\"}",
            ],
        ),
    ] {
        let mut demo = command(&DEMO);
        demo.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_BSP_SCHEDULE_DELAY", "50");
        demo.env("OTEL_BSP_MAX_QUEUE_SIZE", "8").env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8");
        demo.env("OTEL_EXPORTER_OTLP_TIMEOUT", "300");
        let mut demo = start(demo, b"");
        let http = demo.until_it_says("http ").split_whitespace().nth(1).expect("a URL").to_owned();
        let metrics = eventually("all of these", || {
            let (_, text) = get(&http, "/metrics");
            let moved = expected.iter().all(|series| value(&text, series).is_some_and(|count| count > 0.0));
            if moved { Ok(text) } else { Err(text) }
        });
        assert!(value(&metrics, "trunkline_spans_waiting").is_some_and(|count| count <= 16.0), "{metrics}");
    }
}
