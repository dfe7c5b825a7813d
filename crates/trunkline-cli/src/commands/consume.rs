//! `trunkline consume`: a member of a consumer, in a shell.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tokio::sync::mpsc;
use trunkline::backend::Start;
use trunkline::{Consumer, Delivered, HandlerError, Key, Pattern};

use crate::admin::{AdminArgs, AdminError};
use crate::client::ClientError;
use crate::duration;
use crate::exec::{ExecCommand, ExecError};
use crate::failure::{Failure, chain};
use crate::interrupt::Interrupts;
use crate::output;
use crate::settings::GlobalArgs;
use crate::show::{as_json, headers_json, payload_text};

use super::replay::parse_offset_or_time;

/// Records that may wait to be printed; with a slow stdout further messages wait, too.
const RECORDS_MAX: usize = 256;

/// By this exit status (EX_DATAERR) a command says that the message will never succeed.
const REJECTED: i32 = 65;

/// Work on the messages of a stream, as a member of a durable consumer
///
/// With --exec a command runs for each message: the payload is its stdin; MESSAGE_SUBJECT, MESSAGE_HEADERS (JSON),
/// MESSAGE_OFFSET, MESSAGE_ATTEMPT, MESSAGE_STREAM and MESSAGE_CONSUMER its environment; what it prints goes to stdout. Exit
/// status 0 acknowledges the message, 65 makes it a dead letter at once, any other has it delivered again after the backoff
/// and, after --max-deliver deliveries, makes it a dead letter. Without --exec messages are printed and acknowledged. Members
/// of the same consumer share the work. Runs until --count or Ctrl-C; messages at work are finished.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline consume audit siem
  trunkline consume tasks workers --exec './work.sh' --concurrency 4 --max-deliver 3 --backoff 1s,10s
  trunkline consume audit archive --start all --key conversation --exec 'tee -a archive.jsonl' --json")]
pub(crate) struct ConsumeArgs {
    /// Name of the stream
    stream: String,

    /// Name of the consumer; it is made when it is not there
    consumer: String,

    /// Run this command for each message; split like a shell does, run without one
    #[arg(long, value_name = "COMMAND")]
    exec: Option<ExecCommand>,

    /// Where the consumer starts when it is made: `all`, `new`, an offset after which, or a time [default:
    /// messaging.initial_stream_id of the bus, `new`]
    #[arg(long, value_name = "START", value_parser = parse_offset_or_time)]
    start: Option<Start>,

    /// Only messages whose subject matches
    #[arg(long, value_name = "PATTERN")]
    filter: Option<Pattern>,

    /// Handle messages of one key one after the other; only one member of the consumer is active then
    #[arg(long, value_name = "KEY")]
    key: Option<KeyArg>,

    /// Most messages that are handled at the same time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,

    /// Deliveries of a message before it becomes a dead letter [default: messaging.consumer.max_deliver of the bus]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_deliver: Option<u32>,

    /// Delays before redeliveries, separated by commas; the last one repeats [default: messaging.consumer.backoff of the bus]
    #[arg(long, value_name = "TIMES", value_delimiter = ',', value_parser = duration::parse)]
    backoff: Option<Vec<Duration>>,

    /// How long a message of a dead member waits for another; renewed while it is at work [default:
    /// messaging.consumer.ack_wait of the bus]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    ack_wait: Option<Duration>,

    /// Longest time for one message; a command that is not done by then is killed and has failed
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "1h")]
    timeout: Duration,

    /// End once so many messages were acknowledged; what is at work by then is finished
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Print one JSON object a line for each message: what became of it, and the output of the command
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    admin: AdminArgs,
}

/// What messages are ordered by.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum KeyArg {
    /// The envelope's trace.conversationId
    Conversation,
    /// The envelope's correlationId
    Correlation,
    /// The subject
    Subject,
}

impl From<KeyArg> for Key {
    fn from(key: KeyArg) -> Self {
        match key {
            KeyArg::Conversation => Self::Conversation,
            KeyArg::Correlation => Self::Correlation,
            KeyArg::Subject => Self::Subject,
        }
    }
}

/// What became of a delivery.
struct Record {
    delivered: Delivered,
    output: Result<Option<Vec<u8>>, ExecError>,
    took: Duration,
}

/// What the handlers share.
struct Working {
    exec: Option<ExecCommand>,
    stream: String,
    consumer: String,
    limit: Duration,
    records: mpsc::Sender<Record>,
}

/// Consumes.
pub(crate) async fn run(global: &GlobalArgs, args: ConsumeArgs) -> Result<(), Failure> {
    let interrupts = Interrupts::listen().map_err(ClientError::Signals)?;
    let client = args.admin.connect(global).await?;
    let stream = client.bus.stream(&args.stream).map_err(AdminError::from)?;
    let (records, mut done) = mpsc::channel(RECORDS_MAX);
    let working = Arc::new(Working {
        exec: args.exec.clone(),
        stream: args.stream.clone(),
        consumer: args.consumer.clone(),
        limit: args.timeout,
        records,
    });
    let handler = move |delivered: Delivered| {
        let working = working.clone();
        async move { working.handle(delivered).await }
    };
    let consumer = builder(&args, stream.consumer(&args.consumer).map_err(AdminError::from)?);
    let consumer = consumer.spawn(handler).await.map_err(AdminError::from)?;
    output::note(&format!("consuming {} as {} at {}", args.stream, args.consumer, client.server()));

    let mut acknowledged = 0;
    while args.count.is_none_or(|wanted| acknowledged < wanted) {
        tokio::select! {
            record = done.recv() => {
                // The handlers are gone with their sender: the consumer has ended.
                let Some(record) = record else { break };
                print(&record, args.json)?;
                acknowledged += u64::from(record.output.is_ok());
            }
            () = interrupts.stop().cancelled() => break,
        }
    }
    let finished = tokio::select! {
        finished = finish(consumer, args.timeout, &mut done, args.json) => finished?,
        () = interrupts.kill().cancelled() => false,
    };
    client.close().await;
    match finished {
        true => Ok(()),
        false => Err(AdminError::Unfinished { waited: args.timeout }.into()),
    }
}

fn builder(args: &ConsumeArgs, mut consumer: trunkline::ConsumerBuilder) -> trunkline::ConsumerBuilder {
    let mut concurrency = usize::from(args.concurrency);
    if let Some(count) = args.count {
        concurrency = concurrency.min(usize::try_from(count).unwrap_or(usize::MAX));
    }
    // The command's own limit strikes first, and says more.
    consumer = consumer.concurrency(concurrency).max_handling(args.timeout + Duration::from_secs(5));
    if let Some(start) = args.start {
        consumer = consumer.start(start);
    }
    if let Some(filter) = &args.filter {
        consumer = consumer.filter(filter.clone());
    }
    if let Some(key) = args.key {
        consumer = consumer.ordered_by(key.into());
    }
    if let Some(max_deliver) = args.max_deliver {
        consumer = consumer.max_deliver(max_deliver);
    }
    if let Some(backoff) = &args.backoff {
        consumer = consumer.backoff(backoff.clone());
    }
    if let Some(ack_wait) = args.ack_wait {
        consumer = consumer.ack_wait(ack_wait);
    }
    consumer
}

/// Lets the messages at work be finished, and prints what becomes of them.
async fn finish(
    consumer: Consumer,
    within: Duration,
    done: &mut mpsc::Receiver<Record>,
    json: bool,
) -> Result<bool, Failure> {
    let draining = consumer.drain(within);
    tokio::pin!(draining);
    loop {
        tokio::select! {
            finished = &mut draining => {
                while let Ok(record) = done.try_recv() {
                    print(&record, json)?;
                }
                return Ok(finished.map_err(AdminError::from)?);
            }
            Some(record) = done.recv() => print(&record, json)?,
        }
    }
}

impl Working {
    async fn handle(&self, delivered: Delivered) -> Result<(), HandlerError> {
        let started = Instant::now();
        let output = match &self.exec {
            None => Ok(None),
            Some(command) => self.exec(command, &delivered).await.map(Some),
        };
        let result = match &output {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(REJECTED) => Err(HandlerError::reject(chain(error))),
            Err(error) => Err(HandlerError::new(chain(error))),
        };
        // When nobody prints any more the command is ending; what became of the message holds all the same.
        let _ = self.records.send(Record { delivered, output, took: started.elapsed() }).await;
        result
    }

    async fn exec(&self, command: &ExecCommand, delivered: &Delivered) -> Result<Vec<u8>, ExecError> {
        let received = delivered.received();
        let headers = headers_json(received.headers()).to_string();
        let offset = delivered.offset().map(|offset| offset.to_string()).unwrap_or_default();
        let attempt = delivered.attempt().to_string();
        let variables = [
            ("MESSAGE_SUBJECT", delivered.subject().as_str()),
            ("MESSAGE_HEADERS", headers.as_str()),
            ("MESSAGE_OFFSET", offset.as_str()),
            ("MESSAGE_ATTEMPT", attempt.as_str()),
            ("MESSAGE_STREAM", self.stream.as_str()),
            ("MESSAGE_CONSUMER", self.consumer.as_str()),
        ];
        command.run(received.payload(), &variables, self.limit).await
    }
}

fn print(record: &Record, json: bool) -> Result<(), Failure> {
    let Record { delivered, output: result, took } = record;
    let offset = delivered.offset().map(|offset| offset.to_string()).unwrap_or_default();
    let outcome = match result {
        Ok(_) => "acked",
        Err(error) if error.code() == Some(REJECTED) => "rejected",
        Err(_) => "failed",
    };
    if json {
        let mut object = Map::new();
        object.insert("offset".to_owned(), offset.into());
        object.insert("attempt".to_owned(), delivered.attempt().into());
        object.insert("outcome".to_owned(), outcome.into());
        object.insert("micros".to_owned(), u64::try_from(took.as_micros()).unwrap_or(u64::MAX).into());
        match result {
            Ok(None) => {}
            Ok(Some(output)) => drop(object.insert("output".to_owned(), payload_text(output).into())),
            Err(error) => drop(object.insert("error".to_owned(), chain(error).into())),
        }
        object.insert("message".to_owned(), as_json(delivered.received().message()));
        return Ok(output::json(&Value::Object(object))?);
    }
    match result {
        Ok(None) => {
            let text = payload_text(delivered.received().payload());
            output::line(&format!("{offset}  {}  {text}", delivered.subject()))?;
        }
        Ok(Some(said)) => {
            output::bytes(said)?;
            output::note(&format!(
                "{offset}  {}  acked after {}",
                delivered.subject(),
                duration::show(*took)
            ));
        }
        Err(error) => {
            let attempt = delivered.attempt();
            let why = chain(error);
            output::note(&format!("{offset}  {}  {outcome}, attempt {attempt}: {why}", delivered.subject()));
        }
    }
    Ok(())
}
