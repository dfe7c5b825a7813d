//! `trunkline pub`: publish a message.

use std::time::Duration;

use serde_json::{Map, Value};
use trunkline::backend::Receipt;
use trunkline::{Message, Subject};

use crate::client::{ClientArgs, ClientError};
use crate::duration;
use crate::failure::Failure;
use crate::message::{Content, MessageArgs};
use crate::output;
use crate::settings::GlobalArgs;

/// Publish a message
///
/// Success means that the server has received every message; nothing is said then unless --json is given.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline pub nachos.channel.web.inbound '{\"text\":\"hi\"}' --type channel.inbound --conversation c-42
  trunkline pub logs.app --file build.log
  date | trunkline pub clock.now --json")]
pub(crate) struct PublishArgs {
    /// Where to publish
    #[arg(value_name = "SUBJECT")]
    subject: Subject,

    #[command(flatten)]
    message: MessageArgs,

    /// Subject on which an answer is wanted
    #[arg(long, value_name = "SUBJECT")]
    reply: Option<Subject>,

    /// Publish it so many times
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,

    /// Longest wait for each outcome, and for stdin
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "5s")]
    timeout: Duration,

    /// Print a receipt for each message, one JSON object a line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    client: ClientArgs,
}

/// Publishes.
pub(crate) async fn run(global: &GlobalArgs, args: &PublishArgs) -> Result<(), Failure> {
    let content = args.message.read(args.timeout).await?;
    let client = args.client.connect(global, args.timeout).await?;
    for _ in 0..args.count {
        let Content { headers, payload, .. } = content.clone();
        let message = Message { subject: args.subject.clone(), reply: args.reply.clone(), headers, payload };
        let receipt = client.bus.publish_message(message).await.map_err(ClientError::from)?;
        if args.json {
            // Only a flush proves that the server has what was merely accepted, and a receipt is a promise.
            client.bus.flush().await.map_err(ClientError::from)?;
            output::json(&receipt_json(&args.subject, &content, &receipt))?;
        }
    }
    client.bus.flush().await.map_err(ClientError::from)?;
    client.close().await;
    Ok(())
}

fn receipt_json(subject: &Subject, content: &Content, receipt: &Receipt) -> Value {
    let mut object = Map::new();
    object.insert("subject".to_owned(), subject.as_str().into());
    if let Some(id) = &content.id {
        object.insert("id".to_owned(), id.as_str().into());
    }
    let outcome = match receipt {
        Receipt::Stored { .. } => "stored",
        Receipt::Queued => "queued",
        _ => "accepted",
    };
    object.insert("receipt".to_owned(), outcome.into());
    if let Receipt::Stored { stream, offset, duplicate } = receipt {
        object.insert("stream".to_owned(), stream.as_str().into());
        object.insert("offset".to_owned(), offset.to_string().into());
        object.insert("duplicate".to_owned(), (*duplicate).into());
    }
    object.insert("payloadBytes".to_owned(), content.payload.len().into());
    Value::Object(object)
}
