//! How the admin API takes bodies and gives answers.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use trunkline::Unsupported;
use trunkline::backend::{ConsumeError, PublishError, StreamError};

use super::{Api, Views};
use crate::admin::{ErrorJson, Problem, Unreadable};
use crate::http::params::ParamError;

/// Bytes of a request's body beside the message in it.
const BODY_SLACK_BYTES: usize = 512 << 10;
/// Longest wait for a body without a message in it.
const BODY_PATIENCE: Duration = Duration::from_secs(10);

/// An answer that is no success.
#[derive(Debug)]
pub(crate) struct ApiError(Box<ErrorJson>);

impl ApiError {
    pub(crate) fn new(problem: Problem, error: impl Display) -> Self {
        let hint = problem.hint().map(str::to_owned);
        Self(Box::new(ErrorJson { error: error.to_string(), hint, problem }))
    }

    /// A hint that says more than the one of its kind.
    fn hint(mut self, hint: &str) -> Self {
        self.0.hint = Some(hint.to_owned());
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.problem.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, ok(&self.0)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let challenge = header::HeaderValue::from_static("Bearer realm=\"trunkline admin\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

impl From<StreamError> for ApiError {
    fn from(error: StreamError) -> Self {
        Self::new(Problem::from(&error), error)
    }
}

impl From<Unsupported> for ApiError {
    fn from(error: Unsupported) -> Self {
        Self::new(Problem::from(&error), error).hint(error.hint())
    }
}

impl From<ConsumeError> for ApiError {
    fn from(error: ConsumeError) -> Self {
        Self::new(Problem::from(&error), error)
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        Self::new(Problem::from(&error), error)
    }
}

impl From<Unreadable> for ApiError {
    fn from(error: Unreadable) -> Self {
        Self::new(Problem::BadRequest, error)
    }
}

impl From<ParamError> for ApiError {
    fn from(error: ParamError) -> Self {
        Self::new(Problem::BadRequest, error)
    }
}

/// A success in JSON. What is answered may be secret and is out of date at once: nobody keeps it.
pub(crate) fn ok(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
            (headers, body).into_response()
        }
        Err(error) => crate::http::internal(&error),
    }
}

/// A body in JSON: bounded in bytes and in time.
pub(super) struct Body<T>(pub(super) T);

/// Reads a body of at most `limit` bytes, whose rest has to come within `patience`.
async fn read<T: DeserializeOwned>(
    request: Request,
    limit: usize,
    patience: Duration,
) -> Result<Body<T>, ApiError> {
    let reading = axum::body::to_bytes(request.into_body(), limit);
    let bytes = match tokio::time::timeout(patience, reading).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => {
            let text = format!("the body cannot be read, or is over {limit} bytes: {error}");
            return Err(ApiError::new(Problem::RequestTooLarge, text));
        }
        Err(_) => {
            let text = format!("the body did not come within {patience:?}");
            return Err(ApiError::new(Problem::RequestTimeout, text));
        }
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Body(value)),
        Err(error) => {
            Err(ApiError::new(Problem::BadRequest, format!("the body is not what is expected: {error}")))
        }
    }
}

impl<T: DeserializeOwned> FromRequest<Arc<Views>> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &Arc<Views>) -> Result<Self, ApiError> {
        read(request, BODY_SLACK_BYTES, BODY_PATIENCE).await
    }
}

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, ApiError> {
        // A message in Base64 takes four bytes for three, and JSON may escape what stands in headers.
        let limit = api.max_payload.saturating_mul(2).saturating_add(BODY_SLACK_BYTES);
        read(request, limit, api.patience).await
    }
}
