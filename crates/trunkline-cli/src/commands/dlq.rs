//! `trunkline dlq`: the dead letters of a bus.

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde_json::{Value, json};
use trunkline::backend::{Receipt, Start};
use trunkline::{DeadLetter, DeadLetterFilter, DeadLetters, StreamOffset, Subject};

use crate::admin::{AdminArgs, AdminError};
use crate::failure::{Failure, chain};
use crate::output;
use crate::settings::GlobalArgs;
use crate::show::{as_json, payload_text};

use super::replay::time_text;

/// Dead letters read at a time.
const PAGE: usize = 256;

/// List, show, send back and throw away dead letters
#[derive(Debug, clap::Args)]
pub(crate) struct DeadLetterArgs {
    #[command(subcommand)]
    command: DeadLetterCommand,
}

/// Whose dead letters.
#[derive(Debug, clap::Args)]
struct FilterArgs {
    /// Only those of this stream
    #[arg(long, value_name = "NAME")]
    stream: Option<String>,
    /// Only those of consumers with this name
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
}

/// Which dead letters: by offset, by where they came from, or all.
#[derive(Debug, clap::Args)]
struct SelectArgs {
    /// Their offsets, as `dlq ls` shows them
    #[arg(value_name = "OFFSET", conflicts_with_all = ["stream", "consumer", "all"])]
    offsets: Vec<StreamOffset>,
    #[command(flatten)]
    filter: FilterArgs,
    /// All that there are now
    #[arg(long, conflicts_with_all = ["stream", "consumer"])]
    all: bool,
}

#[derive(Debug, clap::Subcommand)]
enum DeadLetterCommand {
    /// List dead letters, oldest first
    #[command(after_help = "Examples:
  trunkline dlq ls
  trunkline dlq ls --stream tasks --consumer workers --json | jq .reason")]
    Ls {
        #[command(flatten)]
        filter: FilterArgs,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Show one dead letter with headers and payload
    #[command(after_help = "Examples:
  trunkline dlq show 7
  trunkline dlq show 7 --raw > payload.bin")]
    Show {
        /// Its offset, as `dlq ls` shows it
        offset: StreamOffset,
        /// One JSON document
        #[arg(long, conflicts_with = "raw")]
        json: bool,
        /// The payload alone, byte for byte
        #[arg(long)]
        raw: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Send dead letters back to work
    ///
    /// Each becomes a new message of the stream it came from, on the subject it was published on or on --to, with its
    /// correlation and trace and a deduplication id of its own; then it is no dead letter any more. Every consumer of that
    /// stream whose filter matches sees it.
    #[command(after_help = "Examples:
  trunkline dlq redrive 7 8
  trunkline dlq redrive --stream tasks --consumer workers")]
    Redrive {
        #[command(flatten)]
        select: SelectArgs,
        /// Another subject of the stream that it came from
        #[arg(long, value_name = "SUBJECT")]
        to: Option<Subject>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Throw dead letters away
    #[command(after_help = "Examples:
  trunkline dlq purge 7 --yes
  trunkline dlq purge --all --yes")]
    Purge {
        #[command(flatten)]
        select: SelectArgs,
        /// Yes, for good
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// Does it.
pub(crate) async fn run(global: &GlobalArgs, args: DeadLetterArgs) -> Result<(), Failure> {
    match args.command {
        DeadLetterCommand::Ls { filter, limit, json, admin } => {
            let client = admin.connect(global).await?;
            let dead = client.bus.dead_letters().map_err(AdminError::from)?;
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let letters = select(&dead, &filter.into(), limit).await?;
            match json {
                true => letters.iter().try_for_each(|letter| output::json(&letter_json(letter)))?,
                false => output::line(&table(&letters).trim_fmt())?,
            }
        }
        DeadLetterCommand::Show { offset, json, raw, admin } => {
            let client = admin.connect(global).await?;
            let dead = client.bus.dead_letters().map_err(AdminError::from)?;
            let letter = one(&dead, offset).await?;
            match (raw, json) {
                (true, _) => output::bytes(&letter.message.payload)?,
                (_, true) => output::json_document(&letter_json(&letter))?,
                _ => output::line(&details(&letter))?,
            }
        }
        DeadLetterCommand::Redrive { select, to, json, admin } => {
            select.check()?;
            let client = admin.connect(global).await?;
            let dead = client.bus.dead_letters().map_err(AdminError::from)?;
            let outcome = redrive(&dead, select.letters(&dead).await?, to, json).await;
            // What it has sent back is reported by then.
            client.close().await;
            outcome?;
        }
        DeadLetterCommand::Purge { select, yes, admin } => {
            select.check()?;
            if !yes {
                return Err(AdminError::NotConfirmed { what: "throwing dead letters away".to_owned() }.into());
            }
            let client = admin.connect(global).await?;
            let dead = client.bus.dead_letters().map_err(AdminError::from)?;
            let letters = select.letters(&dead).await?;
            let offsets = letters.iter().map(|letter| letter.offset).collect();
            let purged = dead.delete(offsets).await.map_err(AdminError::from)?;
            output::note(&format!("purged {purged} dead letters"));
        }
    }
    Ok(())
}

impl From<FilterArgs> for DeadLetterFilter {
    fn from(args: FilterArgs) -> Self {
        Self { stream: args.stream, consumer: args.consumer }
    }
}

impl SelectArgs {
    fn check(&self) -> Result<(), AdminError> {
        let FilterArgs { stream, consumer } = &self.filter;
        match self.all || stream.is_some() || consumer.is_some() || !self.offsets.is_empty() {
            true => Ok(()),
            false => Err(AdminError::WhichDeadLetters),
        }
    }

    async fn letters(self, dead: &DeadLetters) -> Result<Vec<DeadLetter>, AdminError> {
        if self.offsets.is_empty() {
            return select(dead, &self.filter.into(), usize::MAX).await;
        }
        let mut letters = Vec::with_capacity(self.offsets.len());
        for offset in self.offsets {
            letters.push(one(dead, offset).await?);
        }
        Ok(letters)
    }
}

async fn one(dead: &DeadLetters, offset: StreamOffset) -> Result<DeadLetter, AdminError> {
    dead.get(offset).await?.ok_or_else(|| AdminError::NoDeadLetter { offset: offset.to_string() })
}

/// The first `max` dead letters that there are now. What is added meanwhile is not waited for.
async fn select(
    dead: &DeadLetters,
    filter: &DeadLetterFilter,
    max: usize,
) -> Result<Vec<DeadLetter>, AdminError> {
    let Some(newest) = dead.stream().await?.and_then(|stream| stream.last) else { return Ok(Vec::new()) };
    let (mut letters, mut from) = (Vec::new(), Start::Beginning);
    while letters.len() < max {
        let page = dead.page(filter, from, PAGE.min(max - letters.len())).await?;
        letters.extend(page.letters.into_iter().filter(|letter| letter.offset <= newest));
        if page.end || matches!(page.next, Start::After(offset) if offset >= newest) {
            break;
        }
        from = page.next;
    }
    Ok(letters)
}

async fn redrive(
    dead: &DeadLetters,
    letters: Vec<DeadLetter>,
    to: Option<Subject>,
    json: bool,
) -> Result<(), Failure> {
    let (all, mut failed) = (letters.len() as u64, 0);
    for letter in letters {
        let offset = letter.offset.to_string();
        match dead.redrive(&letter, to.clone()).await {
            Ok(receipt) => {
                let subject = to.as_ref().unwrap_or(&letter.subject);
                let stored = match &receipt {
                    Receipt::Stored { offset, .. } => offset.to_string(),
                    _ => String::new(),
                };
                match json {
                    true => output::json(&json!({
                        "deadLetter": offset, "stream": letter.stream, "subject": subject.as_str(), "offset": stored,
                    }))?,
                    false => output::line(&format!(
                        "{offset}  {subject}  stored in {} at {stored}",
                        letter.stream
                    ))?,
                }
            }
            // One alone is the command's error; of several the others still have their chance.
            Err(error) if all == 1 => return Err(AdminError::from(error).into()),
            Err(error) => {
                failed += 1;
                output::note(&format!("{offset}  not sent back: {}", chain(&error)));
            }
        }
    }
    match failed {
        0 => {
            output::note(&format!("sent back {all} dead letters"));
            Ok(())
        }
        failed => Err(AdminError::SomeNotRedriven { failed, all }.into()),
    }
}

fn letter_json(letter: &DeadLetter) -> Value {
    json!({
        "offset": letter.offset.to_string(),
        "time": time_text(letter.time),
        "reason": letter.reason,
        "attempts": letter.attempts,
        "stream": letter.stream,
        "consumer": letter.consumer,
        "originalOffset": letter.original.map(|offset| offset.to_string()),
        "originalSubject": letter.subject.as_str(),
        "message": as_json(&letter.message),
    })
}

fn table(letters: &[DeadLetter]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["OFFSET", "TIME", "REASON", "ATTEMPTS", "STREAM", "CONSUMER", "SUBJECT", "PAYLOAD"]);
    for letter in letters {
        table.add_row([
            letter.offset.to_string(),
            time_text(letter.time),
            letter.reason.clone(),
            letter.attempts.to_string(),
            letter.stream.clone(),
            letter.consumer.clone(),
            letter.subject.to_string(),
            first_line(&letter.message.payload),
        ]);
    }
    table
}

/// As much of a payload as fits beside the rest.
fn first_line(payload: &[u8]) -> String {
    const CHARS_MAX: usize = 48;
    let text = payload_text(payload);
    let line = text.lines().next().unwrap_or_default();
    match line.chars().count() > CHARS_MAX || line.len() < text.len() {
        true => format!("{}…", line.chars().take(CHARS_MAX).collect::<String>()),
        false => line.to_owned(),
    }
}

fn details(letter: &DeadLetter) -> String {
    let original = letter.original.map_or("-".to_owned(), |offset| offset.to_string());
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.add_row(["dead letter", &letter.offset.to_string()]);
    table.add_row(["time", &time_text(letter.time)]);
    table.add_row(["reason", &letter.reason]);
    table.add_row(["attempts", &letter.attempts.to_string()]);
    table.add_row(["stream", &letter.stream]);
    table.add_row(["consumer", &letter.consumer]);
    table.add_row(["offset there", &original]);
    table.add_row(["subject", letter.subject.as_str()]);
    for (name, value) in
        letter.message.headers.iter().filter(|(name, _)| !name.starts_with("Trunkline-Dead-"))
    {
        table.add_row([format!("header {name}"), payload_text(value.as_bytes())]);
    }
    format!("{}\n\n{}", table.trim_fmt(), payload_text(&letter.message.payload))
}
