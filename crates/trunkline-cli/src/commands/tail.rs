//! `trunkline tail`: what happens on the bus, live, as the server records it.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use serde_json::json;
use trunkline::Pattern;
use trunkline::observe::Observation;

use super::trace::{FilterArgs, check_enabled};
use crate::admin::{AdminError, Follower, News, ObserveArgs, Observer, Question};
use crate::client::ClientError;
use crate::duration;
use crate::failure::{Explain, Failure, chain};
use crate::interrupt::Interrupts;
use crate::output;
use crate::settings::GlobalArgs;
use crate::trace::live;

/// Pause before a server is looked for again: at first, and at most.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Follow live what happens to messages: published, handled, tried again, given up
///
/// Unlike `sub` it is no subscriber and sees what subscribers do not: who was given a message, attempts, dead letters, requests
/// that found nobody. It runs until --count, --for or Ctrl-C, finds a server again that was restarted, and says what it missed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline tail
  trunkline tail 'nachos.tool.>' --payloads
  trunkline tail --conversation c-42
  trunkline tail --tool search --json | jq 'select(.what == \"handled\") | .tookUs'
  trunkline tail --type tool.call --count 10 --for 1m")]
pub(crate) struct TailArgs {
    /// Only messages on these subjects: `*` stands for one token, `>` for the rest [default: all]
    #[arg(value_name = "PATTERN")]
    pattern: Option<Pattern>,

    /// Only this conversation
    #[arg(long, value_name = "ID")]
    conversation: Option<String>,

    #[command(flatten)]
    filter: FilterArgs,

    /// One JSON object a line, as the server tells it
    #[arg(long)]
    json: bool,

    /// Show what messages carried
    #[arg(long)]
    payloads: bool,

    /// End after so many lines
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// End after this time; with --count not reached that is a failure
    #[arg(long = "for", value_name = "TIME", value_parser = duration::parse)]
    limit: Option<Duration>,

    /// How long a server that has gone is looked for
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "1m")]
    reconnect: Duration,

    #[command(flatten)]
    server: ObserveArgs,
}

/// Why following ended too early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TailError {
    #[error("saw {seen} of {wanted} (--count) {end}")]
    TooFew { seen: u64, wanted: u64, end: &'static str },
    #[error("the server was not found again within {waited:?} (--reconnect)")]
    Lost { waited: Duration, source: AdminError },
}

impl Explain for TailError {
    fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::TooFew { .. } => {
                Some("only what happens while it follows is shown; give it longer with --for".into())
            }
            Self::Lost { source, .. } => source.hint(),
        }
    }
}

/// Why following ended.
enum End {
    Count,
    Time,
    Interrupt,
}

/// What was followed so far.
#[derive(Default)]
struct Tally {
    seen: u64,
    missed: u64,
    /// The observation up to which everything was looked at, from which to go on.
    at: Option<u64>,
}

/// Follows.
pub(crate) async fn run(global: &GlobalArgs, args: &TailArgs) -> Result<(), Failure> {
    let interrupts = Interrupts::listen().map_err(ClientError::Signals)?;
    let observer = args.server.observer(global)?;
    check_enabled(&observer).await?;
    let question = args
        .filter
        .question()
        .with("pattern", args.pattern.as_ref().map(Pattern::as_str))
        .with("conversation", args.conversation.as_ref());
    let follower = observer.follow(&question, None).await?;
    output::note(&format!("following {} at {}", said(args), observer.server()));
    let mut tally = Tally::default();
    let time_is_up = async {
        match args.limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let end = tokio::select! {
        biased;
        () = interrupts.stop().cancelled() => End::Interrupt,
        result = follow(args, &observer, &question, follower, &mut tally) => { result?; End::Count }
        () = time_is_up => End::Time,
    };
    output::note(&summary(&tally));
    let too_few = |end| args.count.map(|wanted| TailError::TooFew { seen: tally.seen, wanted, end });
    let failure = match end {
        End::Count => None,
        End::Time => too_few("in the time given (--for)"),
        End::Interrupt => too_few("before it was interrupted"),
    };
    failure.map_or(Ok(()), |error| Err(error.into()))
}

/// What is followed, in words.
fn said(args: &TailArgs) -> String {
    let pattern = args.pattern.as_ref().map_or("all messages", Pattern::as_str);
    match &args.conversation {
        Some(conversation) => format!("{pattern} of conversation {conversation}"),
        None => pattern.to_owned(),
    }
}

/// Shows what happens until enough was shown; over connections that end, as long as the server is found again.
async fn follow(
    args: &TailArgs,
    observer: &Observer,
    question: &Question,
    mut follower: Follower,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let zone = TimeZone::system();
    loop {
        match follower.next().await {
            Ok(News::Seen(seen)) => {
                show(args, &seen, &zone)?;
                tally.seen += 1;
                tally.at = Some(seen.seq);
            }
            Ok(News::At(seq)) => tally.at = Some(seq),
            Ok(News::Missed(missed)) => {
                show_missed(args, missed)?;
                tally.missed += missed;
            }
            Err(error) => {
                output::note(&format!("lost the server, looking for it again: {}", chain(&error)));
                follower = find_again(args.reconnect, observer, question, tally.at).await?;
                output::note(&format!("following again at {}", observer.server()));
            }
        }
        if args.count.is_some_and(|count| tally.seen >= count) {
            return Ok(());
        }
    }
}

/// Looks for a server that has gone until it is there again, or the time for it is over.
async fn find_again(
    patience: Duration,
    observer: &Observer,
    question: &Question,
    at: Option<u64>,
) -> Result<Follower, Failure> {
    let deadline = Instant::now() + patience;
    let mut pause = PAUSE_MIN;
    loop {
        tokio::time::sleep(pause).await;
        // What happened since it was lost is in the record, or all that the record of a new start has.
        let error = match observer.follow(question, at).await {
            Ok(follower) => return Ok(follower),
            Err(error) => error,
        };
        pause = (pause * 2).min(PAUSE_MAX);
        if Instant::now() + pause >= deadline {
            return Err(TailError::Lost { waited: patience, source: error }.into());
        }
    }
}

fn show(args: &TailArgs, seen: &Observation, zone: &TimeZone) -> Result<(), Failure> {
    match args.json {
        true => output::json(seen)?,
        false => output::line(&live(seen, zone, args.payloads))?,
    }
    Ok(())
}

/// What is missing is data, too.
fn show_missed(args: &TailArgs, missed: u64) -> Result<(), Failure> {
    match args.json {
        true => output::json(&json!({"missed": missed}))?,
        false => output::line(&format!("missed: {missed} observations are not shown here"))?,
    }
    Ok(())
}

fn summary(tally: &Tally) -> String {
    match tally.missed {
        0 => format!("saw {} observations", tally.seen),
        missed => format!("saw {} observations, {missed} were missed", tally.seen),
    }
}
