//! The consumers of all streams in one list.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use trunkline::backend::StreamError;

use super::{Views, patiently};
use crate::admin::{ConsumerJson, ConsumersJson, LIST_MAX};
use crate::http::api::answer::{ApiError, ok};

pub(super) async fn consumers(State(views): State<Arc<Views>>) -> Result<Response, ApiError> {
    Ok(ok(&patiently(take(&views)).await?))
}

async fn take(views: &Views) -> Result<ConsumersJson, StreamError> {
    let streams = views.bus.backend().streams()?;
    let (mut consumers, mut total) = (Vec::new(), 0);
    for stream in streams.list().await? {
        let name = &stream.config.name;
        total += stream.consumers.len();
        for consumer in stream.consumers.iter().take(LIST_MAX.saturating_sub(consumers.len())) {
            // One that was removed in this moment is not there any more.
            if let Some(info) = streams.consumer_info(name, consumer).await? {
                consumers.push(ConsumerJson::new(name, &info));
            }
        }
    }
    Ok(ConsumersJson { consumers, total })
}
