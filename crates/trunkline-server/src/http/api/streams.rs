//! Streams: listed, made, removed, read, and single messages deleted.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use trunkline::backend::{ReadPage, ReadRequest, Start, StreamConfig, StreamError, StreamInfo};
use trunkline::{Pattern, StreamOffset};

use super::Api;
use super::answer::{ApiError, Body, ok};
use crate::admin::{
    DELETE_MAX, DeleteMessages, Deleted, LIST_MAX, PAGE_BYTES, PAGE_MAX, PageJson, Problem, StreamConfigJson,
    StreamJson, StreamsJson, parse_start,
};
use crate::http::params::Params;

type Answer = Result<Response, ApiError>;

/// Messages of a page unless a request says otherwise.
const PAGE_DEFAULT: usize = 100;

pub(super) async fn list(State(api): State<Arc<Api>>, params: Params) -> Answer {
    let page = params.page()?;
    let streams = api.streams()?.list().await?;
    let some = streams.iter().skip(page.offset).take(page.limit.min(LIST_MAX));
    let streams_shown = some.map(StreamJson::from).collect();
    Ok(ok(&StreamsJson { streams: streams_shown, total: streams.len() }))
}

/// The stream of this name.
pub(super) async fn find(api: &Api, name: String) -> Result<StreamInfo, ApiError> {
    let streams = api.streams()?.list().await?;
    let found = streams.into_iter().find(|stream| stream.config.name == name);
    found.ok_or_else(|| StreamError::NoStream(name).into())
}

pub(super) async fn info(State(api): State<Arc<Api>>, Path(stream): Path<String>) -> Answer {
    Ok(ok(&StreamJson::from(&find(&api, stream).await?)))
}

pub(super) async fn ensure(State(api): State<Arc<Api>>, Body(config): Body<StreamConfigJson>) -> Answer {
    let info = api.streams()?.ensure(StreamConfig::try_from(config)?).await?;
    Ok(ok(&StreamJson::from(&info)))
}

pub(super) async fn remove(State(api): State<Arc<Api>>, Path(stream): Path<String>) -> Answer {
    match api.streams()?.remove(&stream).await? {
        true => Ok(ok(&Deleted { deleted: 1 })),
        false => Err(StreamError::NoStream(stream).into()),
    }
}

pub(super) async fn read(State(api): State<Arc<Api>>, Path(stream): Path<String>, params: Params) -> Answer {
    let from = params.get("from").map_or(Ok(Start::Beginning), parse_start)?;
    let filter = params.read("filter", || "a pattern".to_owned(), |text| text.parse::<Pattern>().ok())?;
    let limit = || format!("1 to {PAGE_MAX}");
    let max = params.read("limit", limit, |text| text.parse().ok().filter(|n| (1..=PAGE_MAX).contains(n)))?;
    let request = ReadRequest { from, filter, max: max.unwrap_or(PAGE_DEFAULT) };
    let mut page = api.streams()?.read(&stream, request).await?;
    cut(&mut page);
    Ok(ok(&PageJson::from(&page)))
}

/// Leaves to the next page what would make this one too large.
fn cut(page: &mut ReadPage) {
    let mut bytes = 0;
    let fits = page.messages.iter().position(|stored| {
        bytes += stored.message.size_bytes();
        bytes > PAGE_BYTES
    });
    // The first message always goes, however large, or the reader would never get past it.
    if let Some(keep) = fits.map(|keep| keep.max(1)).filter(|keep| *keep < page.messages.len()) {
        page.messages.truncate(keep);
        page.next = Start::After(page.messages[keep - 1].offset);
        page.end = false;
    }
}

pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Path(stream): Path<String>,
    Body(DeleteMessages { offsets }): Body<DeleteMessages>,
) -> Answer {
    if offsets.len() > DELETE_MAX {
        let text = format!("{} offsets are given, the limit is {DELETE_MAX}", offsets.len());
        return Err(ApiError::new(Problem::BadRequest, text));
    }
    let parsed = offsets.iter().map(|offset| offset.parse::<StreamOffset>());
    let offsets =
        parsed.collect::<Result<_, _>>().map_err(|error| ApiError::new(Problem::BadRequest, error))?;
    let deleted = api.streams()?.delete(&stream, offsets).await?;
    Ok(ok(&Deleted { deleted }))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use trunkline::Message;
    use trunkline::backend::StoredMessage;

    use super::*;

    #[test]
    fn a_page_ends_where_it_becomes_too_large_but_never_before_its_first_message() {
        let stored = |n: u64, bytes: usize| StoredMessage {
            offset: StreamOffset::Sequence(n),
            time: SystemTime::UNIX_EPOCH,
            message: Arc::new(Message::new("a".parse().expect("a subject"), vec![b'x'; bytes])),
        };
        for (sizes, kept) in [
            (&[10, 10, 10][..], 3),
            (&[PAGE_BYTES, 10], 1),
            (&[2 * PAGE_BYTES, 10], 1),
            (&[10, 2 * PAGE_BYTES], 1),
            (&[2 * PAGE_BYTES], 1),
        ] {
            let messages = sizes.iter().zip(1..).map(|(bytes, n)| stored(n, *bytes)).collect();
            let last = Start::After(StreamOffset::Sequence(sizes.len() as u64));
            let mut page = ReadPage { messages, next: last, end: true, missed: 0 };
            cut(&mut page);
            assert_eq!(page.messages.len(), kept, "{sizes:?}");
            assert_eq!(page.next, Start::After(StreamOffset::Sequence(kept as u64)));
            assert_eq!(page.end, kept == sizes.len());
        }
    }
}
