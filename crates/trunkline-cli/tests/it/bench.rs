//! What `bench` measures, and that `bench nats` leaves nothing behind.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use futures_util::StreamExt as _;
use nix::sys::signal::Signal;
use serde_json::Value;
use trunkline_testkit::{NatsServer, environment};

use crate::command::{PATIENCE, command, run, start, text};

/// Runs it with few messages, and returns its document.
#[track_caller]
fn measure(arguments: &[&str]) -> Value {
    let few = ["bench", "nats", "--json", "--messages", "1k", "--runs", "1", "--timeout", "60s"];
    let output = run(&[&few[..], arguments].concat()).ok();
    serde_json::from_slice(&output).expect("one JSON document")
}

fn sides(report: &Value) -> Vec<(String, String)> {
    let results = report["results"].as_array().expect("results");
    let word = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
    results.iter().map(|result| (word(&result["scenario"]), word(&result["side"]))).collect()
}

/// What the server's own monitoring says.
fn monitoring(server: &NatsServer, path: &str, field: &str) -> u64 {
    let address = server.http().trim_start_matches("http://");
    let mut connection = TcpStream::connect(address).unwrap();
    write!(connection, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").expect("an answer with a body");
    serde_json::from_str::<Value>(body).unwrap()[field].as_u64().expect("a number")
}

fn streams(server: &NatsServer) -> u64 {
    monitoring(server, "/jsz", "streams")
}

#[test]
fn a_crowd_is_there_while_the_load_is_measured_and_its_subscriptions_come_and_go() {
    let server = NatsServer::start::<&str>([]);
    let crowd = ["--crowd", "20", "--crowd-subscriptions", "500", "--churn", "20000"];
    let load =
        ["bench", "sub", "request", "--json", "--payload", "128", "--runs", "1", "--duration", "300ms"];
    let output = run(&[&load[..], &crowd[..], &["--url", server.url()]].concat()).ok();
    let report: Value = serde_json::from_slice(&output).expect("one JSON document");
    assert_eq!(report["results"].as_array().map(Vec::len), Some(2), "{report}");
    // Twice, since each run has a crowd of its own: who is in it, who comes and goes, who publishes and who receives.
    assert_eq!(monitoring(&server, "/varz", "total_connections"), 2 * (20 + 1 + 2));
    let inserted = monitoring(&server, "/subsz", "num_inserts");
    assert!(inserted > 2 * 500 + 2_000, "{inserted} subscriptions in all");
}

#[test]
fn bench_nats_compares_every_scenario_on_a_server_of_its_own() {
    let program = environment::nats_server();
    let report = measure(&["--nats-server", text(&program), "--in-flight", "16", "--batch", "10"]);
    assert_eq!(
        sides(&report),
        [
            ("publish", "raw"),
            ("publish", "backend"),
            ("subscribe", "raw"),
            ("subscribe", "backend"),
            ("request", "raw"),
            ("request", "backend"),
            ("js-publish", "raw"),
            ("js-publish", "backend"),
            ("pull", "raw"),
            ("pull", "raw-request"),
            ("pull", "raw-ack"),
            ("pull", "backend"),
            ("pull", "handlers"),
        ]
        .map(|(scenario, side)| (scenario.to_owned(), side.to_owned()))
    );
    assert!(report["server"].as_str().unwrap().starts_with("nats-server 2."), "{report}");
    for result in report["results"].as_array().unwrap() {
        let positive = |value: &Value| value["median"].as_f64().is_some_and(|median| median > 0.0);
        assert!(positive(&result["messages_per_second"]), "{result}");
        assert!(result["server_cpu_us_per_message"].is_object(), "{result}");
        assert_eq!(result["ratio"].is_number(), result["side"] != "raw", "{result}");
        assert_eq!(positive(&result["latency_p99_us"]), result["scenario"] == "request", "{result}");
    }
}

#[test]
fn bench_nats_leaves_no_stream_on_a_server_that_runs() {
    let server = NatsServer::start(["-js"]);
    let report = measure(&["js-publish", "pull", "--nats-url", server.url()]);
    assert_eq!(sides(&report).len(), 7);
    // Nobody has told whose process it is.
    assert!(report["results"][0]["server_cpu_us_per_message"].is_null(), "{report}");
    assert_eq!(streams(&server), 0);
}

/// Interrupted in the moment in which it has asked for a stream and has no answer yet.
#[test]
fn bench_nats_that_is_interrupted_leaves_no_stream() {
    let server = NatsServer::start(["-js"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for asked in ["STREAM.CREATE.*", "CONSUMER.CREATE.*.c"] {
        let scenario = if asked.starts_with("STREAM") { "js-publish" } else { "pull" };
        let mut asked = runtime.block_on(async {
            let client = async_nats::connect(server.url()).await.unwrap();
            let asked = client.subscribe(format!("$JS.API.{asked}")).await.unwrap();
            client.flush().await.unwrap();
            asked
        });
        let few = ["--messages", "100k", "--runs", "1000", "--timeout", "60s", "--nats-url", server.url()];
        let bench = start(command(&[&["bench", "nats", scenario][..], &few].concat()), b"");
        let beginning = async { tokio::time::timeout(PATIENCE, asked.next()).await };
        runtime.block_on(beginning).expect("it begins").unwrap();
        bench.signal(Signal::SIGINT);
        let ended = bench.end();
        assert!(ended.code() == 1 && ended.stderr.contains("interrupted"), "{ended:?}");
        assert_eq!(streams(&server), 0, "{scenario}: {}", ended.stderr);
    }
}

#[test]
fn bench_nats_measures_core_nats_without_jetstream_and_says_what_the_rest_needs() {
    let server = NatsServer::start::<&str>([]);
    let pid = server.pid().to_string();
    let url = ["--nats-url", server.url(), "--server-pid", &pid];
    let report = measure(&[&["publish", "subscribe", "request"][..], &url].concat());
    assert_eq!(sides(&report).len(), 6);
    assert!(report["results"][0]["server_cpu_us_per_message"].is_object(), "{report}");

    let refused = run(&[&["bench", "nats", "pull", "--messages", "10", "--runs", "1"][..], &url].concat());
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(refused.stderr.contains("nats-server -js"), "{}", refused.stderr);
}

#[test]
fn bench_nats_tells_a_wrong_command_line_from_a_server_that_is_not_there() {
    let batch = run(&["bench", "nats", "--batch", "0", "--nats-server", "no-such-nats-server"]);
    assert_eq!(batch.code(), 2, "{batch:?}");
    assert!(batch.stderr.contains("--batch is 0"), "{}", batch.stderr);
    let missing = run(&["bench", "nats", "--nats-server", "no-such-nats-server"]);
    assert_eq!(missing.code(), 1, "{missing:?}");
    assert!(missing.stderr.contains("install nats-server"), "{}", missing.stderr);
}
