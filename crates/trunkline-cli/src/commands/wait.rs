//! `trunkline wait`: ends when somebody answers, so that what needs them can start.
//!
//! It asks as `up` asks its components. Deployments have it between a component and those that depend on it.

use std::borrow::Cow;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use trunkline::Subject;
use trunkline::config::Ready;
use url::Url;

use crate::client::{Client, ClientArgs, ClientError};
use crate::duration;
use crate::failure::{Explain, Failure};
use crate::interrupt::Interrupts;
use crate::settings::GlobalArgs;
use crate::supervisor::{Responders, until_ready};

/// Pause between two tries to reach a bus that is not there yet.
const PAUSE: Duration = Duration::from_millis(200);

/// Wait until responders, URLs or ports answer
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline wait responder:nachos.tool.search.call
  trunkline wait http://127.0.0.1:9000/healthz tcp://127.0.0.1:9100 --timeout 2m
  trunkline wait responder:nachos.tool.search.call && echo it is there

Exit code 1 when one of them does not answer in time. `trunkline status --wait` waits for the bus and for all components of
`trunkline up`.")]
pub(crate) struct WaitArgs {
    /// What has to answer: `responder:SUBJECT`, `http://…` or `https://…` with 2xx, `tcp://HOST:PORT`
    #[arg(value_name = "READY", required = true, value_parser = parse)]
    ready: Vec<Ready>,

    /// Longest wait for all of them
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "1m")]
    timeout: Duration,

    #[command(flatten)]
    client: ClientArgs,
}

/// Why the wait ended without success.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum WaitError {
    #[error("{ready} does not answer after {waited:?} (--timeout){}", .reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    Waited { ready: Ready, waited: Duration, reason: Option<String> },
    #[error("interrupted")]
    Interrupted,
}

impl Explain for WaitError {
    fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Waited { reason: Some(_), .. } => {
                Some("start a bus with `trunkline up`, or name another with --url".into())
            }
            Self::Waited { .. } => {
                Some("look at the log of who should answer there, or give it longer with --timeout".into())
            }
            Self::Interrupted => None,
        }
    }
}

/// Reads what can be asked for from outside: the rest of what `ready` of a component takes is seen by `up` alone.
fn parse(text: &str) -> Result<Ready, String> {
    const EXPECTED: &str =
        "expected responder:SUBJECT, http://HOST:PORT/PATH, https://HOST:PORT/PATH or tcp://HOST:PORT";
    if let Some(subject) = text.strip_prefix("responder:") {
        return Subject::new(subject.to_owned()).map(Ready::Responder).map_err(|error| error.to_string());
    }
    let url = Url::parse(text).map_err(|_| EXPECTED.to_owned())?;
    match (url.scheme(), url.host_str(), url.port()) {
        ("http" | "https", Some(_), _) => Ok(Ready::Http(url)),
        ("tcp", Some(host), Some(port)) => Ok(Ready::Tcp(format!("{host}:{port}"))),
        _ => Err(EXPECTED.to_owned()),
    }
}

/// Waits for one after the other.
pub(crate) async fn run(global: &GlobalArgs, args: &WaitArgs) -> Result<(), Failure> {
    let interrupts = Interrupts::listen().map_err(ClientError::Signals)?;
    tokio::select! {
        result = wait(global, args) => result,
        () = interrupts.stop().cancelled() => Err(WaitError::Interrupted.into()),
    }
}

async fn wait(global: &GlobalArgs, args: &WaitArgs) -> Result<(), Failure> {
    let deadline = Instant::now() + args.timeout;
    let waited = |ready: &Ready, reason: Option<String>| WaitError::Waited {
        ready: ready.clone(),
        waited: args.timeout,
        reason,
    };
    // Only responders are looked for through the bus.
    let mut client = None;
    if let Some(first) = args.ready.iter().find(|ready| matches!(ready, Ready::Responder(_))) {
        client = Some(connect(global, args, deadline).await.map_err(|reason| waited(first, Some(reason)))?);
    }
    let responders = client.as_ref().map(|client: &Client| Responders { bus: client.bus.clone(), hub: None });
    let mut late = None;
    for ready in &args.ready {
        if timeout_at(deadline, until_ready(ready, responders.as_ref())).await.is_err() {
            late = Some(ready);
            break;
        }
    }
    if let Some(client) = client {
        client.close().await;
    }
    match late {
        Some(ready) => Err(waited(ready, None).into()),
        None => Ok(()),
    }
}

/// Connects, also to a bus that comes later. The error is the reason of the last try.
async fn connect(global: &GlobalArgs, args: &WaitArgs, deadline: Instant) -> Result<Client, String> {
    loop {
        let reason = match timeout_at(deadline, args.client.connect(global, args.timeout)).await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(failure)) => failure.text(),
            Err(_) => "the bus does not answer".to_owned(),
        };
        if Instant::now() + PAUSE >= deadline {
            return Err(reason);
        }
        sleep(PAUSE).await;
    }
}
