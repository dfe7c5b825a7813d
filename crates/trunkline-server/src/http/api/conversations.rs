//! What was seen on the bus: conversations listed and shown, and everything followed live.
//!
//! The routes are the same where there is an embedded server and where there is none; each says where its observer is.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use serde_json::json;
use tokio::time::timeout;
use trunkline::Pattern;
use trunkline::observe::{
    ConversationFilter, ConversationList, ConversationState, Followed, Follower, ObservationFilter, Observer,
};

use super::answer::{ApiError, ok};
use super::guard::Caller;
use crate::admin::Problem;
use crate::auth::GLOBAL_ACCOUNT;
use crate::http::params::Params;

/// Conversations of a page unless a request says otherwise.
const PAGE_DEFAULT: usize = 50;
/// Most conversations of a page.
const PAGE_MAX: usize = 1000;
/// A follower hears something this often, so that it can tell a quiet bus from a broken connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What sees the messages of an account.
pub(crate) enum Seen {
    /// This one; `None` where nothing is recorded.
    Here(Option<Arc<Observer>>),
    /// Nobody, because there is no such account; these there are.
    NoAccount(Vec<String>),
}

/// Finds what sees the messages of an account, or of the one that users are in unless another is named.
type Find<S> = fn(&S, Option<&str>) -> Seen;
type Answer = Result<Response, ApiError>;

/// `/conversations`, `/conversations/{id}` and `/observations`.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>(find: Find<S>) -> Router<S> {
    Router::new()
        .route(
            "/conversations",
            get(async move |State(state): State<S>, Extension(caller), params: Params| {
                list(find_for(caller, &params, |account| find(&state, account))?, &params)
            }),
        )
        .route(
            "/conversations/{id}",
            get(
                async move |State(state): State<S>,
                            Extension(caller),
                            params: Params,
                            Path(id): Path<String>| {
                    show(find_for(caller, &params, |account| find(&state, account))?, &id)
                },
            ),
        )
        .route(
            "/observations",
            get(async move |State(state): State<S>, Extension(caller), params: Params| {
                follow(find_for(caller, &params, |account| find(&state, account))?, &params)
            }),
        )
}

/// Who asks is led to the record of the account that it names, if it may see that.
fn find_for(
    caller: Caller,
    params: &Params,
    find: impl Fn(Option<&str>) -> Seen,
) -> Result<Option<Arc<Observer>>, ApiError> {
    let account = params.get("account").filter(|name| *name != GLOBAL_ACCOUNT);
    if account.is_some() && caller != Caller::Token {
        let reason = "only the admin token opens the records of other accounts".to_owned();
        return Err(ApiError::new(Problem::Denied { reason: reason.clone() }, reason));
    }
    match find(account) {
        Seen::Here(observer) => Ok(observer),
        Seen::NoAccount(known) => {
            let (wanted, known) = (account.unwrap_or(GLOBAL_ACCOUNT), known.join(", "));
            let text = format!("there is no account {wanted:?}; there are {known}");
            Err(ApiError::new(Problem::BadRequest, text))
        }
    }
}

fn list(observer: Option<Arc<Observer>>, params: &Params) -> Answer {
    let offset =
        params.read("offset", || "a whole number".to_owned(), |text| text.parse().ok())?.unwrap_or(0);
    let limit = || format!("1 to {PAGE_MAX}");
    let limit =
        params.read("limit", limit, |text| text.parse().ok().filter(|n| (1..=PAGE_MAX).contains(n)))?;
    let text = |name| params.get(name).map(str::to_owned);
    let filter = ConversationFilter {
        persona: text("persona"),
        tool: text("tool"),
        skill: text("skill"),
        kind: text("type"),
        state: params.read("state", || "open, quiet or failed".to_owned(), state)?,
    };
    let Some(observer) = observer else {
        let (conversations, total, not_recorded) = (Vec::new(), 0, 0);
        return Ok(ok(&ConversationList { enabled: false, conversations, total, not_recorded }));
    };
    Ok(ok(&observer.conversations(&filter, offset, limit.unwrap_or(PAGE_DEFAULT))))
}

fn state(text: &str) -> Option<ConversationState> {
    serde_json::from_value(text.into()).ok()
}

fn show(observer: Option<Arc<Observer>>, id: &str) -> Answer {
    match observer.ok_or_else(off)?.conversation(id) {
        Some(record) => Ok(ok(&record)),
        None => {
            let text = format!("there is no conversation {id:?} in the record");
            Err(ApiError::new(Problem::NotFound, text))
        }
    }
}

fn off() -> ApiError {
    ApiError::new(Problem::NotFound, "nothing is recorded (observe.enabled is false)")
}

fn follow(observer: Option<Arc<Observer>>, params: &Params) -> Answer {
    let text = |name| params.get(name).map(str::to_owned);
    let pattern = params.read("pattern", || "a pattern".to_owned(), |text| text.parse::<Pattern>().ok())?;
    let after = params.read("after", || "a whole number".to_owned(), |text| text.parse().ok())?;
    let filter = ObservationFilter {
        pattern,
        conversation: text("conversation"),
        persona: text("persona"),
        tool: text("tool"),
        skill: text("skill"),
        kind: text("type"),
    };
    let follower = observer.ok_or_else(off)?.follow(after);
    let first = sign_of_life(&follower, "following");
    let first = futures_util::stream::once(async { Ok(first) });
    let rest = futures_util::stream::unfold((follower, filter), next);
    let events = futures_util::StreamExt::chain(first, rest);
    let mut response = Sse::new(events).into_response();
    let no_store = axum::http::HeaderValue::from_static("no-store");
    response.headers_mut().insert(axum::http::header::CACHE_CONTROL, no_store);
    Ok(response)
}

type Following = (Follower, ObservationFilter);

async fn next((mut follower, filter): Following) -> Option<(Result<Event, Infallible>, Following)> {
    let event = match timeout(KEEP_ALIVE, follower.next(|seen| filter.admits(seen))).await {
        Ok(Some(Followed::Observation(seen))) => {
            // One that cannot be written is left out; the record is made of nothing else.
            let data = serde_json::to_string(&seen).unwrap_or_default();
            Event::default().id(seen.seq.to_string()).data(data)
        }
        Ok(Some(Followed::Missed(missed))) => {
            let event = Event::default().id(follower.position().to_string());
            event.event("missed").data(json!({ "missed": missed }).to_string())
        }
        Ok(None) => return None,
        Err(_) => sign_of_life(&follower, ""),
    };
    Some((Ok(event), (follower, filter)))
}

/// A comment with the number of where the follower is. Whoever loses the connection goes on from there, also when nothing
/// was told yet of all that there was.
fn sign_of_life(follower: &Follower, text: &str) -> Event {
    Event::default().comment(text).id(follower.position().to_string())
}
