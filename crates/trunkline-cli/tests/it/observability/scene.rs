//! Something of everything: `trunkline up` on Redis, and a Rust application on the same Redis that serves metrics of its own.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use trunkline::backend::redis::{RedisBackend, RedisOptions};
use trunkline::bus::outbox::OutboxOptions;
use trunkline::config::RedisUrl;
use trunkline::topics::payload::{ToolCall, ToolResult};
use trunkline::{Bus, BusOptions, Delivered, HandlerError, Start};
use trunkline_testkit::RedisServer;

use super::Up;
use crate::command::PATIENCE;

/// See the module's text.
pub(super) struct Scene {
    pub(super) up: Up,
    pub(super) bus: Bus,
    /// Where the application serves its metrics.
    pub(super) application: String,
    _redis: RedisServer,
}

impl Scene {
    /// Everything has happened at least once when it returns.
    pub(super) async fn play() -> Self {
        let redis = RedisServer::start_volatile();
        let up = Up::start(&format!(
            "messaging:\n  {{backend: redis, redis_url: '{}', fallback: fail}}\nruntime: {{resources: {{memory: 256MB}}}}\n\
             components:\n  idle: {{command: [sleep, '600']}}\n",
            redis.url()
        ));
        let backend = RedisBackend::connect(RedisOptions::new(RedisUrl::parse(redis.url()).expect("a URL")))
            .await
            .expect("Redis is there");
        let outbox = Some(OutboxOptions::default());
        let bus = Bus::with_backend(Arc::new(backend), BusOptions { outbox, ..BusOptions::default() });
        work(&bus).await;
        let application = serve(bus.clone()).await;
        Self { up, bus, application, _redis: redis }
    }
}

/// A delivery that succeeds, one that succeeds at its second try, one that never will; and a request.
pub(super) async fn work(bus: &Bus) {
    let stream = bus.stream("work").expect("a name");
    stream.ensure(vec!["work.>".parse().expect("a pattern")]).await.expect("a new stream");
    let handler = async |delivered: Delivered| match delivered.subject().as_str() {
        "work.later" if delivered.attempt() == 1 => {
            Err(HandlerError::retry_after(Duration::from_millis(10), "not yet"))
        }
        "work.never" => Err(HandlerError::reject("no")),
        _ => Ok(()),
    };
    let consumer = stream.consumer("worker").expect("a name").start(Start::Beginning);
    let consumer = consumer.spawn(handler).await.expect("a new consumer");
    for subject in ["work.now", "work.later", "work.never"] {
        let message = trunkline::Message::new(subject.parse().expect("a subject"), "{}");
        bus.publish_message(message).await.expect("published");
    }
    let call = bus.topics().tool("echo").expect("a token").call();
    let echo =
        async |_request, call: ToolCall| Ok(ToolResult { output: call.arguments, ..Default::default() });
    let responder = bus.respond(call.clone(), echo).queue("echo").start().await.expect("started");
    let reply = bus.request(call, &ToolCall::default()).await;
    reply.expect("an answer");
    let done = async {
        loop {
            let counters = bus.status().counters;
            if (counters.acked, counters.nacked, counters.terminated) == (2, 1, 1) {
                return counters;
            }
            tokio::task::yield_now().await;
        }
    };
    let counters = tokio::time::timeout(PATIENCE, done).await.expect("four deliveries are settled");
    assert_eq!((counters.delivered, counters.redelivered, counters.dead_letters), (4, 1, 1), "{counters:?}");
    consumer.stop().await.expect("stopped");
    responder.stop().await;
}

/// Serves the metrics of a bus as an application would: whatever is asked for. Ends with the runtime.
async fn serve(bus: Bus) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|read| read > 0)
            {
            }
            let mut registry = Registry::default();
            bus.telemetry().register(&mut registry);
            let mut body = String::new();
            prometheus_client::encoding::text::encode(&mut body, &registry).expect("a string takes all");
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            // Who asked may have gone.
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}
