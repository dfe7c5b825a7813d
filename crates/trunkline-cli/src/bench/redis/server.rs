//! The redis-server under load: one that runs already, or one that is started for the run and stopped with it.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use tempfile::TempDir;

use super::super::beside::Metered;
use super::super::error::BenchError;
use super::super::halt::Halt;
use super::{RedisArgs, redis_failed};

const STEP: Duration = Duration::from_millis(10);
/// Keys removed with one command.
const REMOVE_KEYS: usize = 100;

/// Where the commands go.
pub(super) struct Server {
    url: String,
    /// Held to be stopped.
    _started: Option<Started>,
}

/// A server of ours; killed when this is dropped: it keeps nothing.
struct Started {
    child: Child,
    _directory: TempDir,
}

impl Drop for Started {
    fn drop(&mut self) {
        // Both fail only when it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// The server that the command line names, or a new one.
    ///
    /// # Errors
    /// A bad URL, or a server that does not start.
    pub(super) fn of(args: &RedisArgs, halt: &Halt) -> Result<Self, BenchError> {
        match &args.redis_url {
            Some(url) => {
                ::redis::Client::open(url.as_str()).map_err(redis_failed("use the --redis-url"))?;
                Ok(Self { url: url.clone(), _started: None })
            }
            None => Self::start(&args.redis_server, halt),
        }
    }

    fn start(program: &str, halt: &Halt) -> Result<Self, BenchError> {
        let failed = |source| BenchError::Spawn { name: program.to_owned(), source };
        let directory = tempfile::tempdir().map_err(failed)?;
        let port = {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
            listener.local_addr().map_err(failed)?.port()
        };
        let child = Command::new(program)
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own: Ctrl-C reaches bench alone, which then stops the server.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let mut started = Started { child, _directory: directory };
        let since = Instant::now();
        while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            halt.check()?;
            let exited = started.child.try_wait().map_err(failed)?;
            if exited.is_some() || since.elapsed() > halt.timeout {
                let status = exited.map_or_else(|| "not ready".to_owned(), |status| status.to_string());
                return Err(BenchError::Exited { name: program.to_owned(), status, log: String::new() });
            }
            thread::sleep(STEP);
        }
        Ok(Self { url: format!("redis://127.0.0.1:{port}"), _started: Some(started) })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// A connection of its own.
    pub(super) async fn connect(&self) -> Result<MultiplexedConnection, BenchError> {
        let failed = redis_failed("connect to the server");
        let client = ::redis::Client::open(self.url.as_str()).map_err(&failed)?;
        // Reads block as long as they like; a run that stalls is ended by its own patience.
        let config = ::redis::AsyncConnectionConfig::new().set_response_timeout(None);
        client.get_multiplexed_async_connection_with_config(&config).await.map_err(&failed)
    }

    async fn info(&self, section: &str, fields: &[&str]) -> Result<Vec<String>, BenchError> {
        let mut connection = self.connect().await?;
        let text: String = ::redis::cmd("INFO")
            .arg(section)
            .query_async(&mut connection)
            .await
            .map_err(redis_failed("ask the server for INFO"))?;
        let value = |field: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        Ok(fields.iter().map(|field| value(field)).collect())
    }

    /// What it says it is.
    pub(super) async fn version(&self) -> Result<String, BenchError> {
        let version = self.info("server", &["redis_version"]).await?;
        Ok(version.into_iter().next().unwrap_or_default())
    }

    /// Removes every key that begins with `prefix`.
    pub(super) async fn remove_keys(&self, prefix: &str) -> Result<(), BenchError> {
        let failed = redis_failed("remove the keys of the run");
        let mut connection = self.connect().await?;
        let mut cursor = 0_u64;
        loop {
            let (next, keys): (u64, Vec<Vec<u8>>) = ::redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(format!("{prefix}*"))
                .arg("COUNT")
                .arg(REMOVE_KEYS)
                .query_async(&mut connection)
                .await
                .map_err(&failed)?;
            if !keys.is_empty() {
                let () = ::redis::cmd("DEL").arg(keys).query_async(&mut connection).await.map_err(&failed)?;
            }
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }
}

impl Metered for Server {
    async fn cpu(&self) -> Result<Option<Duration>, BenchError> {
        let spent = self.info("cpu", &["used_cpu_user", "used_cpu_sys"]).await?;
        let seconds: f64 = spent.iter().filter_map(|text| text.parse::<f64>().ok()).sum();
        Ok(Duration::try_from_secs_f64(seconds).ok())
    }
}
