//! `/accstatz`: what the clients of each account have done, in nats-server's shape. See
//! <https://docs.nats.io/running-a-nats-service/nats_admin/monitoring#account-statistics>.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Serialize;

use super::aside::FACTS;
use super::params::Params;
use super::{Monitor, json};
use crate::tally::Tally;
use crate::view::Count;

#[derive(Serialize)]
struct Accstatz<'a> {
    server_id: &'a str,
    now: Timestamp,
    account_statz: Vec<Statistics>,
}

#[derive(Serialize)]
struct Statistics {
    acc: Box<str>,
    name: Box<str>,
    conns: u64,
    leafnodes: u64,
    total_conns: u64,
    num_subscriptions: u64,
    sent: Traffic,
    received: Traffic,
    slow_consumers: u64,
}

/// Messages and bytes in one direction: of clients, as nobody else is here.
#[derive(Serialize)]
struct Traffic {
    #[serde(flatten)]
    clients: Amount,
    gateways: Amount,
    routes: Amount,
    leafs: Amount,
}

#[derive(Serialize, Default)]
struct Amount {
    msgs: u64,
    bytes: u64,
}

impl From<Count> for Traffic {
    fn from(count: Count) -> Self {
        Self {
            clients: Amount { msgs: count.messages, bytes: count.bytes },
            gateways: Amount::default(),
            routes: Amount::default(),
            leafs: Amount::default(),
        }
    }
}

impl Statistics {
    fn of((name, tally): (Box<str>, Tally)) -> Self {
        Self {
            acc: name.clone(),
            name,
            conns: tally.here,
            leafnodes: 0,
            // With leaf nodes, which nobody has here.
            total_conns: tally.here,
            num_subscriptions: tally.subscriptions,
            sent: tally.totals.sent.into(),
            received: tally.totals.received.into(),
            slow_consumers: tally.slow,
        }
    }
}

/// Of the accounts that somebody is in; with `unused`, of all.
pub(super) async fn accstatz(State(monitor): State<Arc<Monitor>>, params: Params) -> Response {
    match params.flag("unused") {
        Ok(unused) => FACTS.make(move || answer(&monitor, unused)).await,
        Err(error) => error.into_response(),
    }
}

fn answer(monitor: &Monitor, unused: bool) -> Response {
    let shared = &monitor.shared;
    let shown = shared.tallies().into_iter().filter(|(_, tally)| unused || tally.here > 0);
    let account_statz = shown.map(Statistics::of).collect();
    json(&Accstatz { server_id: &shared.id, now: Timestamp::now(), account_statz })
}
