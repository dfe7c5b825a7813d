//! Who is at which subject.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::Views;
use super::census::Census;
use crate::admin::{LIST_MAX, SubjectsJson, SubscriptionJson};
use crate::http::api::answer::ok;
use crate::http::aside::LISTS;
use crate::http::subsz::subscriptions_of;
use crate::shared::Shared;

/// Most subscriptions that are looked at for one answer.
const LOOKED_AT_MAX: usize = 100_000;

pub(super) async fn subjects(State(views): State<Arc<Views>>) -> Response {
    LISTS
        .make(move || {
            let (subscriptions, subscriptions_omitted) =
                views.server.as_deref().map(subscriptions).unwrap_or_default();
            let seen = views.seen(Census::subjects);
            let recorded = seen.is_some();
            let (subjects, subjects_omitted) = seen.unwrap_or_default();
            ok(&SubjectsJson { subjects, subjects_omitted, subscriptions, subscriptions_omitted, recorded })
        })
        .await
}

/// What clients subscribe to, those of the same name to the same pattern together; and how many were left out.
fn subscriptions(server: &Shared) -> (Vec<SubscriptionJson>, usize) {
    let mut clients = server.clients();
    clients.sort_unstable_by_key(|client| client.id);
    let (mut looked_at, mut omitted) = (0, 0);
    // By pattern, queue group and client: how many, and how much they were given.
    let mut found: BTreeMap<(String, Option<String>, String), (u64, u64)> = BTreeMap::new();
    for client in &clients {
        let name = client.connect().and_then(|options| options.name.clone());
        let name = name.unwrap_or_else(|| format!("#{}", client.id));
        for subscription in subscriptions_of(client) {
            looked_at += 1;
            let queue = subscription.queue.as_ref().map(|queue| queue.to_string());
            let key = (subscription.pattern.as_str().to_owned(), queue, name.clone());
            if looked_at > LOOKED_AT_MAX || (found.len() >= LIST_MAX && !found.contains_key(&key)) {
                omitted += 1;
                continue;
            }
            let (count, delivered) = found.entry(key).or_default();
            *count += 1;
            *delivered += subscription.delivered();
        }
    }
    let json = |((pattern, queue, client), (count, delivered))| SubscriptionJson {
        pattern,
        queue,
        client,
        count,
        delivered,
    };
    (found.into_iter().map(json).collect(), omitted)
}
