//! `trunkline consumer`: the durable consumers of a stream.

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use trunkline::backend::ConsumerInfo;
use trunkline::{StreamHandle, StreamOffset};
use trunkline_server::admin::ConsumerJson;

use crate::admin::{AdminArgs, AdminClient, AdminError};
use crate::duration;
use crate::failure::Failure;
use crate::output;
use crate::settings::GlobalArgs;

/// List, show and remove consumers of a stream
#[derive(Debug, clap::Args)]
pub(crate) struct ConsumerArgs {
    #[command(subcommand)]
    command: ConsumerCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ConsumerCommand {
    /// List the consumers of a stream, or of all streams
    #[command(after_help = "Examples:
  trunkline consumer ls
  trunkline consumer ls audit --json | jq 'select(.lag > 100)'")]
    Ls {
        /// Name of the stream
        stream: Option<String>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Show one consumer
    #[command(after_help = "Examples:
  trunkline consumer info audit siem")]
    Info {
        /// Name of the stream
        stream: String,
        /// Name of the consumer
        consumer: String,
        /// One JSON document
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Remove a consumer and all it remembers; the messages stay
    #[command(after_help = "Examples:
  trunkline consumer rm audit siem --yes")]
    Rm {
        /// Name of the stream
        stream: String,
        /// Name of the consumer
        consumer: String,
        /// Yes, with all it remembers
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

fn handle(client: &AdminClient, stream: &str) -> Result<StreamHandle, AdminError> {
    Ok(client.bus.stream(stream)?)
}

/// Checks the name of a consumer before anything is asked.
fn check(handle: &StreamHandle, consumer: &str) -> Result<(), AdminError> {
    Ok(handle.consumer(consumer).map(drop)?)
}

/// Does it.
pub(crate) async fn run(global: &GlobalArgs, args: ConsumerArgs) -> Result<(), Failure> {
    match args.command {
        ConsumerCommand::Ls { stream, json, admin } => {
            let client = admin.connect(global).await?;
            let all = all(&client, stream.as_deref()).await?;
            match json {
                true => all.iter().try_for_each(|(s, info)| output::json(&ConsumerJson::new(s, info)))?,
                false => output::line(&table(&all).trim_fmt())?,
            }
        }
        ConsumerCommand::Info { stream, consumer, json, admin } => {
            let client = admin.connect(global).await?;
            let handle = handle(&client, &stream)?;
            check(&handle, &consumer)?;
            let found = handle.consumer_info(&consumer).await.map_err(AdminError::from)?;
            let Some(info) = found else { return Err(AdminError::NoConsumer { stream, consumer }.into()) };
            match json {
                true => output::json_document(&ConsumerJson::new(&stream, &info))?,
                false => output::line(&details(&stream, &info).trim_fmt())?,
            }
        }
        ConsumerCommand::Rm { stream, consumer, yes, admin } => {
            if !yes {
                let what = format!("removing consumer {consumer:?} of stream {stream:?}");
                return Err(AdminError::NotConfirmed { what }.into());
            }
            let client = admin.connect(global).await?;
            let handle = handle(&client, &stream)?;
            check(&handle, &consumer)?;
            if !handle.remove_consumer(&consumer).await.map_err(AdminError::from)? {
                return Err(AdminError::NoConsumer { stream, consumer }.into());
            }
            output::note(&format!("removed consumer {consumer} of stream {stream}"));
        }
    }
    Ok(())
}

/// The consumers of one stream or of all, with the names of their streams.
async fn all(client: &AdminClient, stream: Option<&str>) -> Result<Vec<(String, ConsumerInfo)>, AdminError> {
    let streams = match stream {
        Some(stream) => vec![handle(client, stream)?.info().await?],
        None => client.bus.streams().await?,
    };
    let mut all = Vec::new();
    for stream in streams {
        let handle = handle(client, &stream.config.name)?;
        for consumer in &stream.consumers {
            // One that was removed in this moment is not there any more.
            if let Some(info) = handle.consumer_info(consumer).await? {
                all.push((stream.config.name.clone(), info));
            }
        }
    }
    Ok(all)
}

fn table(all: &[(String, ConsumerInfo)]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["STREAM", "CONSUMER", "MEMBERS", "PENDING", "LAG", "REDELIVERED", "MISSED", "FILTER"]);
    for (stream, info) in all {
        table.add_row([
            stream.clone(),
            info.config.name.clone(),
            info.members.to_string(),
            info.pending.to_string(),
            info.lag.to_string(),
            info.redelivered.to_string(),
            info.missed.to_string(),
            info.config.filter.as_ref().map_or("-".to_owned(), ToString::to_string),
        ]);
    }
    table
}

fn details(stream: &str, info: &ConsumerInfo) -> Table {
    let offset = |offset: Option<StreamOffset>| offset.map_or("-".to_owned(), |offset| offset.to_string());
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.add_row(["consumer", &info.config.name]);
    table.add_row(["stream", stream]);
    table.add_row(["filter", &info.config.filter.as_ref().map_or("-".to_owned(), ToString::to_string)]);
    table.add_row(["ordered by key", if info.config.keyed { "yes" } else { "no" }]);
    table.add_row(["ack wait", &duration::show(info.config.ack_wait)]);
    table.add_row(["members", &info.members.to_string()]);
    table.add_row(["delivered", &offset(info.delivered)]);
    table.add_row(["ack floor", &offset(info.ack_floor)]);
    table.add_row(["pending", &info.pending.to_string()]);
    table.add_row(["oldest pending", &info.oldest_pending.map_or("-".to_owned(), duration::show)]);
    table.add_row(["lag", &info.lag.to_string()]);
    table.add_row(["redelivered", &info.redelivered.to_string()]);
    table.add_row(["missed", &info.missed.to_string()]);
    table
}
