//! Consumers that nobody works for, and dead letters.

use nix::sys::signal::Signal;
use trunkline_testkit::RedisServer;

use super::Patient;
use crate::command::start;

#[test]
fn work_that_nobody_does_and_dead_letters_are_counted() {
    let server = RedisServer::start();
    let patient = Patient::with_messaging(&format!(
        "backend: redis
redis_url: '{}'
streams: [{{name: tasks, subjects: ['nachos.tool.*.task']}}]
consumer: {{ack_wait: 1s, max_deliver: 1, backoff: [10ms]}}",
        server.url()
    ));
    let publish = |payload| {
        start(patient.command(&["pub", "nachos.tool.search.task", payload]), b"").end().ok();
    };
    publish("1");
    let worker = ["consume", "tasks", "workers", "--start", "all", "--exec", "false"];
    let mut worker = start(patient.command(&worker), b"");
    worker.until_it_says("failed, attempt 1");
    worker.signal(Signal::SIGTERM);
    worker.end().ok();
    patient
        .examine()
        .is_well()
        .says("consumers", "ok", "one consumer, and it keeps up")
        .says("dead-letters", "warn", "1 dead letters of consumer workers of stream tasks")
        .says("dead-letters", "warn", "trunkline dlq ls --stream tasks --consumer workers");
    publish("2");
    patient.examine().is_well().says(
        "consumers",
        "warn",
        "nobody works for consumer workers of stream tasks",
    );
}
