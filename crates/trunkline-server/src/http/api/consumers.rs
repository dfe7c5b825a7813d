//! Consumers: listed, shown, removed.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;

use super::Api;
use super::answer::{ApiError, ok};
use super::streams::find;
use crate::admin::{ConsumerJson, ConsumersJson, Deleted, LIST_MAX, Problem};
use crate::http::params::Params;

type Answer = Result<Response, ApiError>;

pub(super) async fn list(State(api): State<Arc<Api>>, Path(stream): Path<String>, params: Params) -> Answer {
    let page = params.page()?;
    let names = find(&api, stream.clone()).await?.consumers;
    let mut consumers = Vec::new();
    for name in names.iter().skip(page.offset).take(page.limit.min(LIST_MAX)) {
        // One that was removed in this moment is not there any more.
        if let Some(info) = api.streams()?.consumer_info(&stream, name).await? {
            consumers.push(ConsumerJson::new(&stream, &info));
        }
    }
    Ok(ok(&ConsumersJson { consumers, total: names.len() }))
}

fn none(stream: String, consumer: String) -> ApiError {
    let text = format!("stream {stream:?} has no consumer named {consumer:?}");
    ApiError::new(Problem::NoConsumer { stream, consumer }, text)
}

pub(super) async fn info(
    State(api): State<Arc<Api>>,
    Path((stream, consumer)): Path<(String, String)>,
) -> Answer {
    match api.streams()?.consumer_info(&stream, &consumer).await? {
        Some(info) => Ok(ok(&ConsumerJson::new(&stream, &info))),
        None => Err(none(stream, consumer)),
    }
}

pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    Path((stream, consumer)): Path<(String, String)>,
) -> Answer {
    match api.streams()?.remove_consumer(&stream, &consumer).await? {
        true => Ok(ok(&Deleted { deleted: 1 })),
        false => Err(none(stream, consumer)),
    }
}
