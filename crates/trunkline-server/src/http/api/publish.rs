//! Publishing for clients of the admin API, dead letters included, which others may not write.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use trunkline::Message;
use trunkline::backend::PublishOptions;

use super::Api;
use super::answer::{ApiError, Body, ok};
use crate::admin::{Publish, ReceiptJson};

/// Longest wait for an outcome.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

pub(super) async fn publish(
    State(api): State<Arc<Api>>,
    Body(publish): Body<Publish>,
) -> Result<Response, ApiError> {
    let message = Message::try_from(publish.message)?;
    let timeout = publish.timeout_ms.map(|millis| Duration::from_millis(millis).min(TIMEOUT_MAX));
    let options = PublishOptions { dedupe_id: publish.dedupe_id, timeout, ..PublishOptions::default() };
    let receipt = api.backend.publish(message, options).outcome().await?;
    Ok(ok(&ReceiptJson::from(receipt)))
}
