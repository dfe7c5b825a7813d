//! Dead letters, and sending them back.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use trunkline::backend::{Receipt, Start, StreamError};
use trunkline::{DeadLetter, DeadLetterFilter, DeadLetters, Message, StreamOffset};

use super::{Views, patiently};
use crate::admin::{
    DEAD_LETTERS_MAX, DeadLetterJson, DeadLettersJson, NotRedrivenJson, Problem, REDRIVE_MAX, Redrive,
    RedriveJson, RedrivenJson, parse_start, show_start,
};
use crate::http::api::answer::{ApiError, Body, ok};
use crate::http::params::Params;

type Answer = Result<Response, ApiError>;

/// Dead letters of a page unless a request says otherwise.
const PAGE_DEFAULT: usize = 50;

pub(super) async fn list(State(views): State<Arc<Views>>, params: Params) -> Answer {
    let name = |name| params.get(name).map(str::to_owned);
    let filter = DeadLetterFilter { stream: name("stream"), consumer: name("consumer") };
    let from = params.get("from").map_or(Ok(Start::Beginning), parse_start)?;
    let limit = || format!("1 to {DEAD_LETTERS_MAX}");
    let in_bounds = |n: &usize| (1..=DEAD_LETTERS_MAX).contains(n);
    let max = params.read("limit", limit, |text| text.parse().ok().filter(in_bounds))?;
    let asking = async {
        let dead = views.bus.dead_letters()?;
        let stream = dead.stream().await?;
        let page = dead.page(&filter, from, max.unwrap_or(PAGE_DEFAULT)).await?;
        Ok(DeadLettersJson {
            total: stream.as_ref().map_or(0, |stream| stream.messages),
            stream: stream.map(|stream| stream.config.name),
            letters: page.letters.iter().map(DeadLetterJson::line).collect(),
            next: show_start(page.next),
            end: page.end,
        })
    };
    Ok(ok(&patiently(asking).await?))
}

pub(super) async fn show(State(views): State<Arc<Views>>, Path(offset): Path<String>) -> Answer {
    let at = parse(&offset)?;
    let asking = async { views.bus.dead_letters()?.get(at).await };
    match patiently(asking).await? {
        Some(mut letter) => {
            // What the record hides is not to be seen here, either. What is sent back is the message as it lies there.
            if let Some(observer) = views.observer() {
                let payload = observer.without_hidden(&letter.message.payload);
                letter.message = Arc::new(Message { payload, ..Message::clone(&letter.message) });
            }
            Ok(ok(&DeadLetterJson::whole(&letter)))
        }
        None => Err(ApiError::new(Problem::NotFound, format!("there is no dead letter at {offset}"))),
    }
}

/// Sends dead letters back, one after the other. Each has an outcome of its own, and those that were done are done whether
/// or not the client waits for the answer to the rest.
pub(super) async fn redrive(State(views): State<Arc<Views>>, Body(wanted): Body<Redrive>) -> Answer {
    let which = wanted.all || wanted.stream.is_some() || wanted.consumer.is_some();
    if wanted.offsets.is_empty() && !which {
        let text = "it is not said which dead letters: offsets, stream, consumer or all";
        return Err(ApiError::new(Problem::BadRequest, text));
    }
    if wanted.offsets.len() > REDRIVE_MAX {
        let text = format!("{} offsets are given, the limit is {REDRIVE_MAX}", wanted.offsets.len());
        return Err(ApiError::new(Problem::BadRequest, text));
    }
    let dead = views.bus.dead_letters()?;
    let mut answer = RedriveJson::default();
    let letters = match wanted.offsets.is_empty() {
        true => {
            let until = wanted.until.as_deref().map(parse).transpose()?;
            let filter = DeadLetterFilter { stream: wanted.stream, consumer: wanted.consumer };
            let mut letters = patiently(select(&dead, &filter, until)).await?;
            answer.more = letters.len() > REDRIVE_MAX;
            letters.truncate(REDRIVE_MAX);
            letters
        }
        false => named(&dead, &wanted.offsets, &mut answer).await?,
    };
    for letter in letters {
        let dead_letter = letter.offset.to_string();
        match dead.redrive(&letter, None).await {
            Ok(receipt) => answer.redriven.push(RedrivenJson {
                dead_letter,
                stream: letter.stream,
                offset: match receipt {
                    Receipt::Stored { offset, .. } => Some(offset.to_string()),
                    _ => None,
                },
                subject: letter.subject.to_string(),
            }),
            Err(error) => answer.failed.push(NotRedrivenJson { dead_letter, error: chain(&error) }),
        }
    }
    Ok(ok(&answer))
}

/// Those at these offsets; where there is none, that is an outcome.
async fn named(
    dead: &DeadLetters,
    offsets: &[String],
    answer: &mut RedriveJson,
) -> Result<Vec<DeadLetter>, ApiError> {
    let mut letters = Vec::with_capacity(offsets.len());
    for offset in offsets {
        match patiently(dead.get(parse(offset)?)).await? {
            Some(letter) => letters.push(letter),
            None => answer.failed.push(NotRedrivenJson {
                dead_letter: offset.clone(),
                error: "it is not there any more".to_owned(),
            }),
        }
    }
    Ok(letters)
}

/// Those that there are now and not after `until`, one more than are sent back at most.
async fn select(
    dead: &DeadLetters,
    filter: &DeadLetterFilter,
    until: Option<StreamOffset>,
) -> Result<Vec<DeadLetter>, StreamError> {
    let Some(newest) = dead.stream().await?.and_then(|stream| stream.last) else { return Ok(Vec::new()) };
    let newest = until.map_or(newest, |until| until.min(newest));
    let (mut letters, mut from) = (Vec::new(), Start::Beginning);
    while letters.len() <= REDRIVE_MAX {
        let page = dead.page(filter, from, DEAD_LETTERS_MAX).await?;
        letters.extend(page.letters.into_iter().filter(|letter| letter.offset <= newest));
        if page.end || matches!(page.next, Start::After(offset) if offset >= newest) {
            break;
        }
        from = page.next;
    }
    letters.truncate(REDRIVE_MAX + 1);
    Ok(letters)
}

fn parse(offset: &str) -> Result<StreamOffset, ApiError> {
    offset.parse().map_err(|error| ApiError::new(Problem::BadRequest, error))
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
