//! A program whose Trunkline was built without the feature `redis`, and whose configuration asks for that backend. It tries
//! what the library promises for that case, and panics where it does not hold.
//!
//! Run it with `cargo run --package trunkline-without-redis`: only then is the feature left out, since a build of the whole
//! workspace has the features that any of its members wants. No test can be: those of the library bring the test kit along,
//! which has all backends.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::fmt::MakeWriter;
use trunkline::backend::BackendKind;
use trunkline::config::{Config, Fallback};
use trunkline::status::BackendState;
use trunkline::{Bus, ConnectError, Pattern};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    falls_back_with_one_warning().await;
    fails_where_nothing_may_replace_it().await;
    println!("without redis: it falls back loudly, or fails");
}

fn config(fallback: Option<Fallback>) -> Config {
    let mut config = Config::default();
    config.messaging.backend = BackendKind::Redis;
    config.messaging.fallback = fallback;
    config
}

async fn falls_back_with_one_warning() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    tracing_subscriber::util::SubscriberInitExt::init(subscriber);
    let bus = Bus::connect(config(None)).await.expect("the fallback is the default for redis");
    let status = bus.status().backend;
    assert_eq!(status.backend, BackendKind::InMemory);
    let BackendState::Degraded { reason } = &status.state else { panic!("not degraded: {status:?}") };
    assert!(reason.contains("fallback") && reason.contains("redis is not in this build"), "{reason}");
    let warnings = log.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for what in ["FALLBACK", "not in this build", "lost", "messaging.fallback"] {
        assert!(warnings[0].contains(what), "{what} is missing in {}", warnings[0]);
    }
    // It works, as far as it can.
    let mut all =
        bus.subscribe("nachos.>".parse::<Pattern>().expect("a pattern")).await.expect("a subscription");
    let topic = bus.topics().channel("web").expect("a token").inbound();
    bus.publish(topic, &Default::default()).await.expect("accepted");
    all.next().await.expect("it comes");
}

async fn fails_where_nothing_may_replace_it() {
    let error = Bus::connect(config(Some(Fallback::Fail))).await.expect_err("there is no such backend");
    assert!(matches!(error, ConnectError::NotInBuild { backend: BackendKind::Redis }), "{error:?}");
    assert!(error.to_string().contains("redis is not in this build"), "{error}");
    assert!(error.hint().is_some() && !error.is_retryable(), "{error:?}");
}

/// The lines that were logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn warnings(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&bytes);
        text.lines().filter(|line| line.contains("WARN")).map(str::to_owned).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}
