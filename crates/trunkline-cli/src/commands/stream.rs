//! `trunkline stream`: the streams of a bus.

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use trunkline::backend::{StreamError, StreamInfo};
use trunkline_server::admin::StreamJson;

use crate::admin::{AdminArgs, AdminError};
use crate::duration;
use crate::failure::Failure;
use crate::output;
use crate::settings::GlobalArgs;

/// List, show and remove streams
#[derive(Debug, clap::Args)]
pub(crate) struct StreamArgs {
    #[command(subcommand)]
    command: StreamCommand,
}

#[derive(Debug, clap::Subcommand)]
enum StreamCommand {
    /// List the streams
    #[command(after_help = "Examples:
  trunkline stream ls
  trunkline stream ls --json | jq -r .name")]
    Ls {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Show one stream
    #[command(after_help = "Examples:
  trunkline stream info audit
  trunkline stream info dead --json")]
    Info {
        /// Name of the stream
        stream: String,
        /// One JSON document
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Remove a stream with its messages and consumers
    #[command(after_help = "Examples:
  trunkline stream rm audit --yes")]
    Rm {
        /// Name of the stream
        stream: String,
        /// Yes, all its messages
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// Does it.
pub(crate) async fn run(global: &GlobalArgs, args: StreamArgs) -> Result<(), Failure> {
    match args.command {
        StreamCommand::Ls { json, admin } => {
            let client = admin.connect(global).await?;
            let streams = client.bus.streams().await.map_err(AdminError::from)?;
            match json {
                true => streams.iter().try_for_each(|stream| output::json(&StreamJson::from(stream)))?,
                false => output::line(&table(&streams).trim_fmt())?,
            }
        }
        StreamCommand::Info { stream, json, admin } => {
            let client = admin.connect(global).await?;
            let handle = client.bus.stream(&stream).map_err(AdminError::from)?;
            let info = handle.info().await.map_err(AdminError::from)?;
            match json {
                true => output::json_document(&StreamJson::from(&info))?,
                false => output::line(&details(&info).trim_fmt())?,
            }
        }
        StreamCommand::Rm { stream, yes, admin } => {
            if !yes {
                let what = format!("removing stream {stream:?} with its messages and consumers");
                return Err(AdminError::NotConfirmed { what }.into());
            }
            let client = admin.connect(global).await?;
            let handle = client.bus.stream(&stream).map_err(AdminError::from)?;
            if !handle.remove().await.map_err(AdminError::from)? {
                return Err(AdminError::from(StreamError::NoStream(stream)).into());
            }
            output::note(&format!("removed stream {stream}"));
        }
    }
    Ok(())
}

fn subjects(stream: &StreamInfo) -> String {
    let subjects: Vec<&str> = stream.config.subjects.iter().map(|subject| subject.as_str()).collect();
    subjects.join(" ")
}

fn table(streams: &[StreamInfo]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["STREAM", "MESSAGES", "BYTES", "FIRST", "LAST", "CONSUMERS", "SUBJECTS"]);
    for stream in streams {
        let offset =
            |offset: Option<trunkline::StreamOffset>| offset.map_or("-".to_owned(), |o| o.to_string());
        table.add_row([
            stream.config.name.clone(),
            stream.messages.to_string(),
            stream.bytes.to_string(),
            offset(stream.first),
            offset(stream.last),
            stream.consumers.len().to_string(),
            subjects(stream),
        ]);
    }
    table
}

fn details(stream: &StreamInfo) -> Table {
    let none = || "-".to_owned();
    let limit = |limit: Option<u64>| limit.map_or_else(none, |limit| limit.to_string());
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.add_row(["stream", &stream.config.name]);
    table.add_row(["subjects", &subjects(stream)]);
    table.add_row(["messages", &stream.messages.to_string()]);
    table.add_row(["bytes", &stream.bytes.to_string()]);
    table.add_row(["first", &stream.first.map_or_else(none, |offset| offset.to_string())]);
    table.add_row(["last", &stream.last.map_or_else(none, |offset| offset.to_string())]);
    table.add_row(["max age", &stream.config.max_age.map_or_else(none, duration::show)]);
    table.add_row(["max messages", &limit(stream.config.max_messages)]);
    table.add_row(["max bytes", &limit(stream.config.max_bytes)]);
    table.add_row(["replicas", &stream.config.replicas.to_string()]);
    table.add_row(["consumers", &stream.consumers.join(" ")]);
    table
}
