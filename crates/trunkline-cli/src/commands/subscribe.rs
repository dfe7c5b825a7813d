//! `trunkline sub`: show what is published.

use std::borrow::Cow;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use trunkline::{Event, Pattern, Token};

use crate::client::{ClientArgs, ClientError};
use crate::duration;
use crate::failure::{Explain, Failure};
use crate::interrupt::Interrupts;
use crate::output;
use crate::settings::GlobalArgs;
use crate::show::ShowArgs;

/// Longest wait for the server to confirm what it is asked for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Show the messages of some subjects as they are published
///
/// Runs until --count, --timeout or Ctrl-C. Every message published after `listening on` appeared on stderr is shown,
/// or reported as a gap.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline sub 'nachos.>'
  trunkline sub 'nachos.channel.*.inbound' --json | jq .payload.payload.text
  trunkline sub files.chunk --raw --count 3 --timeout 10s > out.bin")]
pub(crate) struct SubscribeArgs {
    /// What to show: `*` stands for one token, `>` for the rest
    #[arg(value_name = "PATTERN", required = true)]
    patterns: Vec<Pattern>,

    /// Share the messages with the other members of this queue group
    #[arg(long, value_name = "NAME")]
    queue: Option<Token>,

    /// End after so many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// End after this time; with --count not reached that is a failure
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    timeout: Option<Duration>,

    #[command(flatten)]
    show: ShowArgs,

    #[command(flatten)]
    client: ClientArgs,
}

/// What was asked for did not come.
#[derive(Debug, thiserror::Error)]
#[error("received {received} of {wanted} messages (--count) {end}")]
struct TooFew {
    received: u64,
    wanted: u64,
    end: &'static str,
}

impl Explain for TooFew {
    fn hint(&self) -> Option<Cow<'static, str>> {
        Some("only what is published while it listens is shown; give it longer with --timeout".into())
    }
}

/// Why showing ended.
enum End {
    Count,
    Timeout,
    Interrupt,
}

/// Messages shown and messages missed.
#[derive(Default)]
struct Tally {
    received: u64,
    gaps: u64,
    missed: u64,
}

/// Shows.
pub(crate) async fn run(global: &GlobalArgs, args: &SubscribeArgs) -> Result<(), Failure> {
    let interrupts = Interrupts::listen().map_err(ClientError::Signals)?;
    let client = args.client.connect(global, PATIENCE).await?;
    let mut events = SelectAll::new();
    for pattern in &args.patterns {
        let mut subscribing = client.bus.subscribe(pattern.clone());
        if let Some(queue) = &args.queue {
            subscribing = subscribing.queue(queue.clone());
        }
        events.push(subscribing.await.map_err(ClientError::from)?);
    }
    let patterns: Vec<&str> = args.patterns.iter().map(Pattern::as_str).collect();
    output::note(&format!("listening on {} at {}", patterns.join(" "), client.server()));

    let mut tally = Tally::default();
    let time_is_up = async {
        match args.timeout {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(time_is_up);
    let end = loop {
        let event = tokio::select! {
            // Whatever has arrived is shown before the time counts as up.
            biased;
            () = interrupts.stop().cancelled() => break End::Interrupt,
            event = events.next() => event.ok_or(ClientError::Closed)?,
            () = &mut time_is_up => break End::Timeout,
        };
        match event {
            Event::Message(received) => {
                args.show.message(received.message())?;
                tally.received += 1;
            }
            Event::Gap(gap) => {
                args.show.gap(gap)?;
                tally.gaps += 1;
                tally.missed += gap.missed.unwrap_or_default();
            }
        }
        if args.count.is_some_and(|count| tally.received >= count) {
            break End::Count;
        }
    };
    output::note(&summary(&tally));
    client.close().await;
    match (end, args.count) {
        (End::Timeout, Some(wanted)) => {
            Err(TooFew { received: tally.received, wanted, end: "in the time given (--timeout)" }.into())
        }
        (End::Interrupt, Some(wanted)) => {
            Err(TooFew { received: tally.received, wanted, end: "before it was interrupted" }.into())
        }
        _ => Ok(()),
    }
}

fn summary(tally: &Tally) -> String {
    match tally.gaps {
        0 => format!("received {} messages", tally.received),
        gaps => format!(
            "received {} messages, at least {} are missing in {gaps} gaps",
            tally.received, tally.missed
        ),
    }
}
