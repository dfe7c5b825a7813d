//! `trunkline config`: which configuration is in force, and which keys there are.

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde_json::{Value, json};
use trunkline::config::{Entry, keys};

use crate::failure::Failure;
use crate::output::{self, OutputError};
use crate::settings::{self, GlobalArgs};

/// Show the configuration and its keys
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

/// What can be shown.
#[derive(Debug, clap::Subcommand)]
enum ConfigCommand {
    /// Print every value that is in force with its origin; secrets are shown as ***
    #[command(after_help = "Examples:
  trunkline config show
  trunkline config show --json | jq '.[] | select(.origin != \"default\")'
  TRUNKLINE_BACKEND=nats trunkline --config config.yaml config show")]
    Show {
        /// One JSON document: a list of key, value, origin, secret
        #[arg(long)]
        json: bool,
    },
    /// List every key with its environment variable, default and meaning
    #[command(after_help = "Examples:
  trunkline config keys
  trunkline config keys --json | jq -r '.[].env // empty'")]
    Keys {
        /// One JSON document: a list of key, env, default, range, doc
        #[arg(long)]
        json: bool,
    },
}

/// Shows it.
pub(crate) fn run(global: &GlobalArgs, args: &ConfigArgs) -> Result<(), Failure> {
    match args.command {
        ConfigCommand::Show { json } => {
            let entries = settings::load(global, [])?.entries();
            match json {
                true => output::json_document(&entries)?,
                false => show(&entries)?,
            }
        }
        ConfigCommand::Keys { json: true } => keys_document()?,
        ConfigCommand::Keys { json: false } => keys_table()?,
    }
    Ok(())
}

fn show(entries: &[Entry]) -> Result<(), OutputError> {
    let mut table = table(["KEY", "VALUE", "ORIGIN"]);
    for entry in entries {
        table.add_row([entry.key.clone(), plain(&entry.value), entry.origin.to_string()]);
    }
    print(&table)
}

/// Text without quotes, nothing as `-`, the rest as JSON, which YAML reads too.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn keys_table() -> Result<(), OutputError> {
    let mut table = table(["KEY", "VARIABLE", "DEFAULT", "MEANING"]);
    for key in keys().iter().filter(|key| !key.is_section()) {
        let or_dash = |text: Option<&str>| text.unwrap_or("-").to_owned();
        table.add_row([key.path.clone(), or_dash(key.env.as_deref()), or_dash(key.default), key.doc.clone()]);
    }
    print(&table)
}

fn keys_document() -> Result<(), OutputError> {
    let list: Vec<Value> = keys()
        .iter()
        .filter(|key| !key.is_section())
        .map(|key| {
            json!({
                "key": key.path,
                "env": key.env,
                "default": key.default,
                "range": key.range,
                "secret": key.secret,
                "doc": key.doc,
            })
        })
        .collect();
    output::json_document(&list)
}

/// A table without lines, which `awk` and `grep` read as well as people do.
fn table<const N: usize>(headings: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(headings);
    table
}

fn print(table: &Table) -> Result<(), OutputError> {
    output::line(&table.trim_fmt())
}
