//! `trunkline reply`: answer requests with their own payload, a fixed one, or what a command makes of each.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;
use trunkline::{HandlerError, HeaderError, Headers, Pattern, Reply, Request, Responder, Subject, Token};

use crate::client::{ClientArgs, ClientError};
use crate::duration;
use crate::exec::{ExecCommand, ExecError};
use crate::failure::{Explain, Failure, Kind, chain};
use crate::interrupt::Interrupts;
use crate::message::HeaderArg;
use crate::output;
use crate::payload::PayloadArgs;
use crate::settings::GlobalArgs;

/// Records of answers that may wait to be printed; with a slow stdout further requests wait, too.
const RECORDS_MAX: usize = 256;

/// Longest wait for the server to confirm what it is asked for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answer requests
///
/// With --exec a command runs for each request: the payload is its stdin, its stdout the reply, MESSAGE_SUBJECT and
/// MESSAGE_HEADERS (JSON) its environment. Another exit status than 0 becomes an error reply with the last line of its
/// stderr. Runs until --count or Ctrl-C; requests under way are still answered.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline reply ping pong
  trunkline reply nachos.tool.echo.call --echo --queue echo
  trunkline reply math.add --exec 'jq -c .a+.b' --timeout 2s --concurrency 8")]
pub(crate) struct ReplyArgs {
    /// Requests to answer: a subject, or a pattern with * and >
    #[arg(value_name = "PATTERN")]
    pattern: Pattern,

    #[command(flatten)]
    payload: PayloadArgs,

    /// Answer with the payload of the request
    #[arg(long, conflicts_with_all = ["payload", "file", "exec"])]
    echo: bool,

    /// Answer with what this command makes of the request; split like a shell does, run without one
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["payload", "file"])]
    exec: Option<ExecCommand>,

    /// Add a header to every reply; may be given several times
    #[arg(id = "header", short = 'H', long, value_name = "NAME:VALUE")]
    headers: Vec<HeaderArg>,

    /// Share the requests with the other members of this queue group
    #[arg(long, value_name = "NAME")]
    queue: Option<Token>,

    /// End after so many requests
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Longest time for one answer; a command that is not done by then is killed
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "30s")]
    timeout: Duration,

    /// Most requests that are answered at the same time; further ones wait
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,

    /// Print one JSON object a line for each request: subject, outcome, error, micros
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    client: ClientArgs,
}

/// Why requests are not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ReplyError {
    #[error("it is not said what to answer")]
    NoAnswer,
    #[error("a header cannot be sent")]
    Header(#[from] HeaderError),
    #[error("some requests were still unanswered after {waited:?} (--timeout) and were refused")]
    Unfinished { waited: Duration },
}

impl Explain for ReplyError {
    fn kind(&self) -> Kind {
        match self {
            Self::Unfinished { .. } => Kind::Failed,
            _ => Kind::Usage,
        }
    }

    fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::NoAnswer => Some("give a payload, --file, --echo or --exec COMMAND".into()),
            Self::Header(_) => Some("give headers as NAME:VALUE".into()),
            Self::Unfinished { .. } => Some("their requesters were told so with an error reply".into()),
        }
    }
}

/// What every request is answered with.
enum Answer {
    Echo,
    Fixed(Bytes),
    Exec(ExecCommand),
}

/// What became of a request.
struct Record {
    subject: Subject,
    outcome: &'static str,
    error: Option<String>,
    took: Duration,
}

/// What the handlers share.
struct Answering {
    answer: Answer,
    headers: Headers,
    limit: Duration,
    records: mpsc::Sender<Record>,
}

/// Answers.
pub(crate) async fn run(global: &GlobalArgs, args: ReplyArgs) -> Result<(), Failure> {
    let answer = match (args.echo, &args.exec) {
        (true, _) => Answer::Echo,
        (_, Some(command)) => Answer::Exec(command.clone()),
        _ if args.payload.is_given() => Answer::Fixed(args.payload.read(args.timeout).await?),
        _ => return Err(ReplyError::NoAnswer.into()),
    };
    let mut headers = Headers::new();
    for header in &args.headers {
        header.append_to(&mut headers).map_err(ReplyError::from)?;
    }
    let interrupts = Interrupts::listen().map_err(ClientError::Signals)?;
    let client = args.client.connect(global, PATIENCE).await?;
    let (records, mut answered) = mpsc::channel(RECORDS_MAX);
    let answering = Arc::new(Answering { answer, headers, limit: args.timeout, records });
    let handler = move |request: Request| {
        let answering = answering.clone();
        async move { answering.handle(request).await }
    };
    let mut responding =
        client.bus.respond_raw(args.pattern.clone(), handler).concurrency(usize::from(args.concurrency));
    if let Some(queue) = &args.queue {
        responding = responding.queue(queue.as_str());
    }
    let responder = responding.start().await.map_err(ClientError::from)?;
    output::note(&format!("answering on {} at {}", args.pattern, client.server()));

    let mut count = 0;
    while args.count.is_none_or(|wanted| count < wanted) {
        tokio::select! {
            record = answered.recv() => {
                let record = record.ok_or(ClientError::Closed)?;
                print(&record, args.json)?;
                count += u64::from(record.outcome != "ignored");
            }
            () = interrupts.stop().cancelled() => break,
        }
    }
    let all_answered = tokio::select! {
        all = finish(responder, args.timeout, &mut answered, args.json) => all?,
        () = interrupts.kill().cancelled() => false,
    };
    client.bus.flush().await.map_err(ClientError::from)?;
    client.close().await;
    match all_answered {
        true => Ok(()),
        false => Err(ReplyError::Unfinished { waited: args.timeout }.into()),
    }
}

/// Lets the requests that have arrived be answered, and prints what becomes of them.
async fn finish(
    responder: Responder,
    within: Duration,
    answered: &mut mpsc::Receiver<Record>,
    json: bool,
) -> Result<bool, Failure> {
    let draining = responder.drain(within);
    tokio::pin!(draining);
    loop {
        tokio::select! {
            all = &mut draining => {
                while let Ok(record) = answered.try_recv() {
                    print(&record, json)?;
                }
                return Ok(all);
            }
            // The sender is gone once the last handler is, which is when the drain is over.
            Some(record) = answered.recv() => print(&record, json)?,
        }
    }
}

impl Answering {
    async fn handle(&self, request: Request) -> Result<Reply, HandlerError> {
        let started = Instant::now();
        if request.received().reply().is_none() {
            self.record(&request, "ignored", Some("nobody wants a reply".to_owned()), started).await;
            return Ok(Reply::none());
        }
        match self.make(&request).await {
            Ok(payload) => {
                self.record(&request, "ok", None, started).await;
                Ok(Reply::bytes(payload).headers(self.headers.clone()))
            }
            Err(error) => {
                let text = chain(&error);
                self.record(&request, "error", Some(text.clone()), started).await;
                Err(HandlerError::new(text))
            }
        }
    }

    async fn make(&self, request: &Request) -> Result<Bytes, ExecError> {
        let received = request.received();
        match &self.answer {
            Answer::Echo => Ok(received.payload().clone()),
            Answer::Fixed(payload) => Ok(payload.clone()),
            Answer::Exec(command) => {
                let headers = crate::show::headers_json(received.headers()).to_string();
                let variables =
                    [("MESSAGE_SUBJECT", request.subject().as_str()), ("MESSAGE_HEADERS", headers.as_str())];
                Ok(command.run(received.payload(), &variables, self.limit).await?.into())
            }
        }
    }

    async fn record(
        &self,
        request: &Request,
        outcome: &'static str,
        error: Option<String>,
        started: Instant,
    ) {
        let record = Record { subject: request.subject().clone(), outcome, error, took: started.elapsed() };
        // When nobody prints any more the command is ending; the request is answered all the same.
        let _ = self.records.send(record).await;
    }
}

fn print(record: &Record, json: bool) -> Result<(), Failure> {
    let Record { subject, outcome, error, took } = record;
    if json {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let object =
            json!({"subject": subject.as_str(), "outcome": outcome, "error": error, "micros": micros});
        return Ok(output::json(&object)?);
    }
    let why = error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    output::note(&format!("{subject}  {outcome} after {}{why}", duration::show(*took)));
    Ok(())
}
