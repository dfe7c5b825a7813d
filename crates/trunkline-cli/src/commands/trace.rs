//! `trunkline trace`: what happened in a conversation.

use std::borrow::Cow;
use std::io;

use clap::ArgGroup;
use jiff::tz::TimeZone;
use trunkline::observe::{ConversationList, ConversationRecord};

use crate::admin::{ObserveArgs, Observer, Question};
use crate::failure::{Explain, Failure};
use crate::output;
use crate::settings::GlobalArgs;
use crate::trace::{PageOptions, list, mermaid, page};

/// Columns where stdout is no terminal.
const COLUMNS: u16 = 100;
/// Conversations that are looked through for one whose id begins as given.
const SEARCHED: u64 = 200;

/// Draw a recorded conversation: who caused whom, and when
///
/// The tree has each message under the one that caused it, answers under their requests, and retries, dead letters and gaps
/// at their message; the time line has a bar for each. What is not recorded is said.
#[derive(Debug, clap::Args)]
#[command(
    group(ArgGroup::new("which").required(true).args(["conversation", "last", "list"])),
    after_help = "Examples:
  trunkline trace --last                               the conversation that was seen last
  trunkline trace c-42 --payloads                      with what the messages carried
  trunkline trace --list --tool search --state failed  those that used a tool, and failed
  trunkline trace --last --mermaid > conversation.mmd  as a sequence diagram
  trunkline trace c-42 --json | jq '.observations[] | select(.what == \"deadLettered\")'

It shows what `trunkline up` has recorded since it started; `observe` in its configuration says how much that is."
)]
pub(crate) struct TraceArgs {
    /// The conversation by its id, or by the beginning of its id
    #[arg(value_name = "CONVERSATION", conflicts_with_all = ["persona", "tool", "skill", "kind", "state"])]
    conversation: Option<String>,

    /// The conversation that was seen last, of those that the filters let through
    #[arg(long)]
    last: bool,

    /// List conversations, the one seen last first
    #[arg(long)]
    list: bool,

    #[command(flatten)]
    filter: FilterArgs,

    /// Only conversations that stand like this
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<State>,

    /// At most so many in the list
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1000))]
    limit: u64,

    /// Leave out so many of the list
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: u64,

    /// What the server answers, as one JSON document
    #[arg(long)]
    json: bool,

    /// A sequence diagram in the language of Mermaid
    #[arg(long, conflicts_with_all = ["json", "list"])]
    mermaid: bool,

    /// Show what messages carried; each is drawn by itself then
    #[arg(long, conflicts_with = "list")]
    payloads: bool,

    /// Draw every message on a row of its own, however many there are
    #[arg(long, conflicts_with = "list")]
    all: bool,

    /// Columns to draw in [default: those of the terminal, 100 where there is none]
    #[arg(long, value_name = "COLUMNS", value_parser = clap::value_parser!(u16).range(60..=200))]
    width: Option<u16>,

    #[command(flatten)]
    server: ObserveArgs,
}

/// Whose messages, or whose conversations.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct FilterArgs {
    /// Only where this persona speaks
    #[arg(long, value_name = "ID")]
    persona: Option<String>,

    /// Only where this tool is at work
    #[arg(long, value_name = "ID")]
    tool: Option<String>,

    /// Only where this skill is at work
    #[arg(long, value_name = "ID")]
    skill: Option<String>,

    /// Only with messages of this type, as the envelope has it
    #[arg(long = "type", id = "kind", value_name = "TYPE")]
    kind: Option<String>,
}

impl FilterArgs {
    /// The filters as the server takes them.
    pub(crate) fn question(&self) -> Question {
        Question::default()
            .with("persona", self.persona.as_ref())
            .with("tool", self.tool.as_ref())
            .with("skill", self.skill.as_ref())
            .with("type", self.kind.as_ref())
    }
}

/// How a conversation stands.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum State {
    /// Something is still expected
    Open,
    /// Nothing is
    Quiet,
    /// It ended with a dead letter, or found nobody
    Failed,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Quiet => "quiet",
            Self::Failed => "failed",
        }
    }
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TraceError {
    #[error("{server} records no conversations (observe.enabled is false)")]
    Disabled { server: String },
    #[error("no conversation {id:?} is in the record of {server}")]
    NoConversation { id: String, server: String },
    #[error("{count} conversations begin with {id:?}, such as {first:?} and {second:?}")]
    Several { id: String, count: usize, first: String, second: String },
    #[error("{server} has recorded no such conversation yet")]
    Nothing { server: String },
}

impl Explain for TraceError {
    fn hint(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Disabled { .. } => {
                "set observe.enabled to true in the configuration of `trunkline up`, or start it with TRUNKLINE_OBSERVE_ENABLED=true"
                    .into()
            }
            Self::NoConversation { .. } => {
                "`trunkline trace --list` lists those that are; old ones make room for new ones (observe.memory)".into()
            }
            Self::Several { .. } => "give more of the id".into(),
            Self::Nothing { .. } => {
                "recorded are messages below messaging.subject_root whose envelope has a conversationId or a correlationId; `trunkline tail` shows those without, too; users of server.accounts have records of their own (--account)"
                    .into()
            }
        })
    }
}

/// Fails where nothing is recorded.
pub(crate) async fn check_enabled(observer: &Observer) -> Result<ConversationList, Failure> {
    let list = observer.conversations(&Question::default().with("limit", Some(1))).await?;
    match list.enabled {
        true => Ok(list),
        false => Err(TraceError::Disabled { server: observer.server().to_owned() }.into()),
    }
}

/// Columns of the terminal that stdout is, if it is one.
fn columns(args: &TraceArgs) -> usize {
    let of_terminal = || terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| width.0);
    usize::from(args.width.or_else(of_terminal).unwrap_or(COLUMNS))
}

/// Asks and draws.
pub(crate) async fn run(global: &GlobalArgs, args: &TraceArgs) -> Result<(), Failure> {
    let observer = args.server.observer(global)?;
    let known = check_enabled(&observer).await?;
    let question = args.filter.question().with("state", args.state.map(State::as_str));
    let (columns, zone) = (columns(args), TimeZone::system());
    if args.list {
        let question = question.with("limit", Some(args.limit)).with("offset", Some(args.offset));
        let found = observer.conversations(&question).await?;
        match args.json {
            true => output::json_document(&found)?,
            false => output::line(&list(&found, columns, &zone))?,
        }
        return Ok(());
    }
    let record = match &args.conversation {
        Some(id) => find(&observer, id).await?,
        None => last(&observer, question).await?,
    };
    let (all, payloads) = (args.all, args.payloads);
    let options = PageOptions { columns, all, payloads, zone, not_recorded: known.not_recorded };
    match (args.json, args.mermaid) {
        (true, _) => output::json_document(&record)?,
        (_, true) => output::line(mermaid(&record, payloads).trim_end())?,
        _ => output::line(&page(&record, &options))?,
    }
    Ok(())
}

/// The conversation that was seen last.
async fn last(observer: &Observer, question: Question) -> Result<ConversationRecord, Failure> {
    let nothing = || TraceError::Nothing { server: observer.server().to_owned() };
    let list = observer.conversations(&question.with("limit", Some(1))).await?;
    let id = list.conversations.into_iter().next().ok_or_else(nothing)?.id;
    // It may have made room for others in between.
    Ok(observer.conversation(&id).await?.ok_or_else(nothing)?)
}

/// The conversation with this id, or the only one whose id begins so.
async fn find(observer: &Observer, id: &str) -> Result<ConversationRecord, Failure> {
    if let Some(record) = observer.conversation(id).await? {
        return Ok(record);
    }
    let list = observer.conversations(&Question::default().with("limit", Some(SEARCHED))).await?;
    let ids = list.conversations.into_iter().map(|summary| summary.id);
    let matching: Vec<String> = ids.filter(|known| !id.is_empty() && known.starts_with(id)).collect();
    let none = || TraceError::NoConversation { id: id.to_owned(), server: observer.server().to_owned() };
    match matching.as_slice() {
        [] => Err(none().into()),
        [only] => Ok(observer.conversation(only).await?.ok_or_else(none)?),
        [first, second, ..] => Err(TraceError::Several {
            id: id.to_owned(),
            count: matching.len(),
            first: first.clone(),
            second: second.clone(),
        }
        .into()),
    }
}
