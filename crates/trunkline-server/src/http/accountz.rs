//! `/accountz`: the accounts, in nats-server's shape. See
//! <https://docs.nats.io/running-a-nats-service/nats_admin/monitoring#account-information-accountz>.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Serialize;

use super::params::Params;
use super::subsz::Tables;
use super::{Monitor, json};
use crate::auth::Account;
use crate::health::timestamp;
use crate::shared::Shared;

#[derive(Serialize)]
struct Accountz<'a> {
    server_id: &'a str,
    now: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    accounts: Option<Vec<Box<str>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_detail: Option<Detail<'a>>,
}

/// One account. What nats-server has and is not here is as of an account that does without.
#[derive(Serialize)]
struct Detail<'a> {
    account_name: &'a str,
    update_time: Timestamp,
    expired: bool,
    complete: bool,
    jetstream_enabled: bool,
    leafnode_connections: u64,
    client_connections: usize,
    subscriptions: u64,
    name_tag: &'a str,
    sublist_stats: Sublist,
}

#[derive(Serialize)]
struct Sublist {
    num_subscriptions: u64,
    num_cache: u64,
    num_inserts: u64,
    num_removes: u64,
    num_matches: u64,
    cache_hit_rate: f64,
    max_fanout: u64,
    avg_fanout: f64,
}

/// With `acc`, more of that account.
pub(super) async fn accountz(State(monitor): State<Arc<Monitor>>, params: Params) -> Response {
    let shared = &monitor.shared;
    let accounts = shared.auth.accounts();
    let mut answer =
        Accountz { server_id: &shared.id, now: Timestamp::now(), accounts: None, account_detail: None };
    let Some(wanted) = params.get("acc") else {
        answer.accounts = Some(accounts.iter().map(|account| account.name.clone()).collect());
        return json(&answer);
    };
    let Some(account) = accounts.iter().find(|account| *account.name == *wanted) else {
        return (StatusCode::BAD_REQUEST, format!("Account {wanted} does not exist")).into_response();
    };
    answer.account_detail = Some(detail(shared, account));
    json(&answer)
}

fn detail<'a>(shared: &Shared, account: &'a Arc<Account>) -> Detail<'a> {
    let subscriptions = account.hub.router().stats().subscriptions;
    let tables = Tables::of(std::slice::from_ref(account));
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    let clients = shared.clients();
    let is_here = |identity: &Arc<crate::auth::Identity>| Arc::ptr_eq(&identity.account, account);
    Detail {
        account_name: &account.name,
        update_time: timestamp(shared.auth.loaded()),
        expired: false,
        complete: true,
        jetstream_enabled: false,
        leafnode_connections: 0,
        client_connections: clients.iter().filter_map(|client| client.identity()).filter(is_here).count(),
        subscriptions,
        name_tag: &account.name,
        sublist_stats: Sublist {
            num_subscriptions: subscriptions,
            num_cache: tables.cached,
            num_inserts: tables.inserts,
            num_removes: tables.removes,
            num_matches: tables.matches,
            cache_hit_rate: share(tables.shared_hits, tables.matches),
            max_fanout: tables.fanout_max,
            avg_fanout: share(tables.fanout_total, tables.cached),
        },
    }
}
