//! A bus whose Redis cannot be used at its start: within five seconds it runs on the fallback and says so once, or it
//! fails with the reason.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;
use trunkline::backend::BackendKind;
use trunkline::config::{Config, Fallback, RedisUrl};
use trunkline::status::BackendState;
use trunkline::{Bus, ConnectError, Pattern};
use trunkline_testkit::{UnusableRedis, unusable_redis};

/// How soon it has to be known, with the default `connect_timeout` of 3 s.
const KNOWN: Duration = Duration::from_secs(5);

/// The lines that were logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

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

impl Log {
    /// Logs what this thread does: the tests below run on one.
    fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn warnings(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&bytes);
        text.lines().filter(|line| line.contains("WARN")).map(str::to_owned).collect()
    }
}

fn config(redis: &UnusableRedis, fallback: Option<Fallback>) -> Config {
    let mut config = Config::default();
    config.messaging.backend = BackendKind::Redis;
    config.messaging.redis_url = RedisUrl::parse(&redis.url).expect("a URL");
    config.messaging.fallback = fallback;
    config
}

fn shows_no_secret(redis: &UnusableRedis, text: &str) {
    assert!(redis.secret.is_none_or(|secret| !text.contains(secret)), "{}: {text}", redis.name);
}

#[tokio::test]
async fn unusable_redis_is_replaced_by_memory_with_one_warning() {
    for redis in unusable_redis() {
        let (log, _logging) = Log::start();
        let since = Instant::now();
        let bus = Bus::connect(config(&redis, None)).await.expect("the fallback is the default for redis");
        assert!(since.elapsed() < KNOWN, "{}: after {:?}", redis.name, since.elapsed());
        let status = bus.status().backend;
        assert_eq!(status.backend, BackendKind::InMemory, "{}", redis.name);
        let BackendState::Degraded { reason } = &status.state else { panic!("{}: {status:?}", redis.name) };
        assert!(reason.contains("fallback") && reason.contains(redis.says), "{}: {reason}", redis.name);
        shows_no_secret(&redis, reason);
        let warnings = log.warnings();
        assert_eq!(warnings.len(), 1, "{}: {warnings:?}", redis.name);
        for what in ["FALLBACK", "redis", redis.says, "lost", "messaging.fallback"] {
            assert!(warnings[0].contains(what), "{}: {what} is missing in {}", redis.name, warnings[0]);
        }
        shows_no_secret(&redis, &warnings[0]);
        // It works, as far as it can.
        let mut all =
            bus.subscribe("nachos.>".parse::<Pattern>().expect("a pattern")).await.expect("a subscription");
        let topic = bus.topics().channel("web").expect("a token").inbound();
        bus.publish(topic, &Default::default()).await.expect("accepted");
        all.next().await.expect("it comes");
    }
}

#[tokio::test]
async fn unusable_redis_is_an_error_where_nothing_may_replace_it() {
    for redis in unusable_redis() {
        let since = Instant::now();
        let error = Bus::connect(config(&redis, Some(Fallback::Fail))).await.expect_err(redis.name);
        assert!(since.elapsed() < KNOWN, "{}: after {:?}", redis.name, since.elapsed());
        let ConnectError::Redis(cause) = &error else { panic!("{}: {error:?}", redis.name) };
        let text = format!("{error}: {cause}");
        assert!(text.contains(redis.says) && error.hint().is_some(), "{}: {text}", redis.name);
        assert_eq!(error.is_retryable(), redis.retryable, "{}: {error:?}", redis.name);
        shows_no_secret(&redis, &format!("{text} {error:?}"));
    }
}
