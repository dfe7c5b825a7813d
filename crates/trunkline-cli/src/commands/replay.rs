//! `trunkline replay`: stored messages again, on stdout or on another subject.

use std::time::SystemTime;

use futures_util::StreamExt;
use jiff::{RoundMode, TimestampRound};
use serde_json::Value;
use trunkline::backend::Start;
use trunkline::{Message, Pattern, Received, Replayed, StreamOffset, Subject};

use crate::admin::{AdminArgs, AdminError};
use crate::client::ClientError;
use crate::duration;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output;
use crate::settings::GlobalArgs;
use crate::show::{ShowArgs, as_json};

/// Read stored messages again, without a consumer
///
/// Prints them, or publishes copies with --to. Nothing is acknowledged and no consumer notices.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline replay audit --all --json
  trunkline replay audit --since 10m --filter 'nachos.tool.*.result'
  trunkline replay audit --after 41 --count 10 --to lab.audit")]
pub(crate) struct ReplayArgs {
    /// Name of the stream
    stream: String,

    /// Everything that is kept, which is the default
    #[arg(long, conflicts_with_all = ["after", "since"])]
    all: bool,

    /// Only messages after this offset
    #[arg(long, value_name = "OFFSET", conflicts_with = "since")]
    after: Option<StreamOffset>,

    /// Only messages stored since this time, as in 2026-11-22T10:15:00Z, or so long ago, as in 10m
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<SystemTime>,

    /// Only messages whose subject matches
    #[arg(long, value_name = "PATTERN")]
    filter: Option<Pattern>,

    /// End after so many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Go on at the end with what is stored then
    #[arg(long)]
    follow: bool,

    /// Publish copies on this subject instead of printing them
    #[arg(long, value_name = "SUBJECT", conflicts_with_all = ["json", "raw", "headers"])]
    to: Option<Subject>,

    #[command(flatten)]
    show: ShowArgs,

    #[command(flatten)]
    admin: AdminArgs,
}

/// Reads a time, or a duration before now.
fn parse_since(text: &str) -> Result<SystemTime, String> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time.into());
    }
    let ago = duration::parse(text)
        .map_err(|_| "expected a time such as 2026-11-22T10:15:00Z, or 10m".to_owned())?;
    SystemTime::now().checked_sub(ago).ok_or_else(|| "that is before the beginning of time".to_owned())
}

/// Reads `all`, `new`, an offset, a time, or a duration before now.
pub(super) fn parse_offset_or_time(text: &str) -> Result<Start, String> {
    match text {
        "all" | "0-0" => Ok(Start::Beginning),
        "new" | "$" => Ok(Start::New),
        text => match text.parse::<StreamOffset>() {
            Ok(offset) => Ok(Start::After(offset)),
            Err(_) => parse_since(text).map(Start::At).map_err(|_| {
                "expected all, new, an offset, a time such as 2026-11-22T10:15:00Z, or 10m".to_owned()
            }),
        },
    }
}

/// Replays.
pub(crate) async fn run(global: &GlobalArgs, args: ReplayArgs) -> Result<(), Failure> {
    let interrupts = Interrupts::listen().map_err(ClientError::Signals)?;
    let client = args.admin.connect(global).await?;
    let stream = client.bus.stream(&args.stream).map_err(AdminError::from)?;
    if let Some(to) = &args.to {
        let info = stream.info().await.map_err(AdminError::from)?;
        if info.config.subjects.iter().any(|subject| subject.matches(to)) {
            let (to, stream) = (to.to_string(), args.stream);
            return Err(AdminError::ReplayIntoItself { to, stream }.into());
        }
    }
    let from = match (args.after, args.since) {
        (Some(offset), _) => Start::After(offset),
        (None, Some(time)) => Start::At(time),
        (None, None) => Start::Beginning,
    };
    let mut replay = stream.replay(from);
    if let Some(filter) = &args.filter {
        replay = replay.filter(filter.clone());
    }
    if args.follow {
        replay = replay.follow();
    }
    let mut items = replay.open();
    let mut replayed: u64 = 0;
    while args.count.is_none_or(|count| replayed < count) {
        let item = tokio::select! {
            () = interrupts.stop().cancelled() => break,
            item = items.next() => item,
        };
        match item {
            None => break,
            Some(Ok(Replayed::Gap(gap))) if args.to.is_none() => args.show.gap(gap)?,
            Some(Ok(Replayed::Gap(gap))) => {
                tracing::warn!(missed = gap.missed, "limits had already removed messages");
            }
            Some(Ok(Replayed::Message { received, time })) => {
                match &args.to {
                    Some(to) => {
                        let copy = copy(&received, to.clone());
                        client.bus.publish_message(copy).await.map_err(AdminError::from)?;
                    }
                    None => show(args.show, &received, time)?,
                }
                replayed += 1;
            }
            Some(Err(error)) if error.is_retryable() && args.follow => {
                tracing::warn!(%error, "trying again");
            }
            Some(Err(error)) => return Err(AdminError::from(error).into()),
        }
    }
    drop(items);
    output::note(&format!("replayed {replayed} messages of {}", args.stream));
    client.close().await;
    Ok(())
}

/// The message on another subject. Its deduplication id stays behind: the server has seen it.
fn copy(received: &Received, to: Subject) -> Message {
    let mut headers = received.headers().clone();
    headers.remove("Nats-Msg-Id");
    Message { subject: to, reply: None, headers, payload: received.payload().clone() }
}

fn show(form: ShowArgs, received: &Received, time: SystemTime) -> Result<(), Failure> {
    if !form.json {
        return Ok(form.message(received.message())?);
    }
    let mut value = as_json(received.message());
    if let Value::Object(object) = &mut value {
        let offset = received.offset().map(|offset| offset.to_string()).unwrap_or_default();
        object.insert("offset".to_owned(), offset.into());
        object.insert("time".to_owned(), time_text(time).into());
    }
    Ok(output::json(&value)?)
}

/// A time as text, to the millisecond; never later than it was, so that `--since` takes it up again.
pub(super) fn time_text(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or_default();
    let whole = TimestampRound::new().smallest(jiff::Unit::Millisecond).mode(RoundMode::Floor);
    time.round(whole).unwrap_or(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_read_in_every_form() {
        assert_eq!(parse_offset_or_time("all"), Ok(Start::Beginning));
        assert_eq!(parse_offset_or_time("new"), Ok(Start::New));
        assert_eq!(parse_offset_or_time("41"), Ok(Start::After(StreamOffset::Sequence(41))));
        assert_eq!(parse_offset_or_time("170-3"), Ok(Start::After(StreamOffset::Entry(170, 3))));
        assert!(matches!(parse_offset_or_time("2026-11-22T10:15:00Z"), Ok(Start::At(_))));
        assert!(matches!(parse_offset_or_time("10m"), Ok(Start::At(_))));
        assert!(parse_offset_or_time("soon").is_err());
    }
}
