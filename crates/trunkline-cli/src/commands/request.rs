//! `trunkline request`: ask, and show the answer, the answers, or the stream of them.

use std::borrow::Cow;
use std::time::Duration;

use trunkline::{Message, Subject};

use crate::client::{Client, ClientArgs, ClientError};
use crate::duration;
use crate::failure::{Explain, Failure};
use crate::interrupt::Interrupts;
use crate::message::{Content, MessageArgs};
use crate::settings::GlobalArgs;
use crate::show::ShowArgs;

/// Ask a question and show the answer
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline request nachos.tool.search.call '{\"arguments\":{\"query\":\"weather\"}}' --type tool.call --timeout 10s
  trunkline request ping '' --count 3 --timeout 2s --json
  trunkline request nachos.llm.request --file prompt.json --envelope --stream")]
pub(crate) struct RequestArgs {
    /// Who is asked
    #[arg(value_name = "SUBJECT")]
    subject: Subject,

    #[command(flatten)]
    message: MessageArgs,

    /// Wait for so many replies, of several responders
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024), conflicts_with = "stream")]
    count: u16,

    /// Show a reply stream as it comes, to its end
    #[arg(long)]
    stream: bool,

    /// Longest wait for each reply or chunk, and for stdin
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "5s")]
    timeout: Duration,

    #[command(flatten)]
    show: ShowArgs,

    #[command(flatten)]
    client: ClientArgs,
}

/// Why there is not the answer that was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum AskError {
    #[error(
        "{received} of {wanted} replies (--count) came from {subject}, then none for {waited:?} (--timeout)"
    )]
    TooFew { subject: Subject, received: usize, wanted: usize, waited: Duration },
    #[error("{subject} answered with error {code}: {text}")]
    Refused { subject: Subject, code: String, text: String },
    #[error("interrupted")]
    Interrupted,
}

impl Explain for AskError {
    fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::TooFew { .. } => Some("give it longer with --timeout, or ask for less with --count".into()),
            _ => None,
        }
    }
}

/// Asks and shows.
pub(crate) async fn run(global: &GlobalArgs, args: &RequestArgs) -> Result<(), Failure> {
    let interrupts = Interrupts::listen().map_err(ClientError::Signals)?;
    let Content { headers, payload, .. } = args.message.read(args.timeout).await?;
    let client = args.client.connect(global, args.timeout).await?;
    let request = Message { subject: args.subject.clone(), reply: None, headers, payload };
    let result = tokio::select! {
        result = ask(&client, args, request) => result,
        () = interrupts.stop().cancelled() => Err(AskError::Interrupted.into()),
    };
    client.close().await;
    result
}

async fn ask(client: &Client, args: &RequestArgs, request: Message) -> Result<(), Failure> {
    match (args.stream, usize::from(args.count)) {
        (true, _) => stream(client, args, request).await,
        (false, 1) => {
            let reply = client.bus.request_message(request, args.timeout).await.map_err(ClientError::from)?;
            show(args, reply.message())
        }
        (false, wanted) => {
            let replies =
                client.bus.request_many(request, args.timeout, wanted).await.map_err(ClientError::from)?;
            for reply in &replies {
                show(args, reply.message())?;
            }
            match replies.len() {
                received if received < wanted => {
                    let (subject, waited) = (args.subject.clone(), args.timeout);
                    Err(AskError::TooFew { subject, received, wanted, waited }.into())
                }
                _ => Ok(()),
            }
        }
    }
}

async fn stream(client: &Client, args: &RequestArgs, request: Message) -> Result<(), Failure> {
    let opened = client.bus.request_stream_message(request, args.timeout).await;
    let mut chunks = opened.map_err(ClientError::from)?;
    let mut missing = None;
    while let Some(chunk) = chunks.next().await {
        match chunk {
            Ok(chunk) => show(args, chunk.message())?,
            Err(error) if error.is_terminal() => return Err(ClientError::from(error).into()),
            // What follows is whole, so it is shown; the command fails at the end all the same.
            Err(error) => {
                tracing::warn!("{error}");
                missing.get_or_insert(error);
            }
        }
    }
    match missing {
        Some(error) => Err(ClientError::from(error).into()),
        None => Ok(()),
    }
}

/// Shows a reply; one that reports an error is one.
fn show(args: &RequestArgs, reply: &Message) -> Result<(), Failure> {
    let code = reply.headers.get("Nats-Service-Error-Code");
    let text = reply.headers.get("Nats-Service-Error");
    if code.is_some() || text.is_some() {
        return Err(AskError::Refused {
            subject: args.subject.clone(),
            code: code.unwrap_or("500").to_owned(),
            text: text.unwrap_or("unknown error").to_owned(),
        }
        .into());
    }
    Ok(args.show.reply(reply)?)
}
