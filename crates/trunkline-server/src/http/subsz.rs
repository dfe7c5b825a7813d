//! `/subsz`: the routing table and the subscriptions in it, in nats-server's shape. See
//! <https://docs.nats.io/running-a-nats-service/nats_admin/monitoring#subscription-routing-information>.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Serialize;
use trunkline::Subject;
use trunkline::backend::memory::Target;

use super::aside::LISTS;
use super::params::{Page, ParamError, Params};
use super::{Monitor, json};
use crate::auth::Account;
use crate::client::Client;
use crate::shared::Shared;
use crate::subscription::Subscription;

#[derive(Serialize)]
struct Subsz<'a> {
    server_id: &'a str,
    now: Timestamp,
    num_subscriptions: u64,
    num_cache: u64,
    num_inserts: u64,
    num_removes: u64,
    /// Lookups that no publisher's own cache could answer.
    num_matches: u64,
    cache_hit_rate: f64,
    max_fanout: u64,
    avg_fanout: f64,
    /// Subscriptions of clients that the list is a part of; 0 when no list was asked for.
    total: usize,
    offset: usize,
    limit: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscriptions_list: Option<Vec<Detail>>,
}

/// A subscription of a client.
#[derive(Serialize)]
pub(super) struct Detail {
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_tag: Option<Box<str>>,
    subject: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    qgroup: Option<String>,
    sid: String,
    msgs: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    cid: u64,
}

pub(super) fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Detail {
    /// Also the account, which a list of one connection leaves out.
    fn with_account(subscription: &Subscription) -> Self {
        let account = subscription.client.identity().map(|identity| identity.account.name.clone());
        Self { account_tag: account.clone(), account, ..Self::of(subscription) }
    }

    pub(super) fn of(subscription: &Subscription) -> Self {
        let max = subscription.max();
        let delivered = subscription.delivered();
        Self {
            account: None,
            account_tag: None,
            subject: subscription.pattern.as_str().to_owned(),
            qgroup: subscription.queue.as_ref().map(|queue| queue.to_string()),
            sid: String::from_utf8_lossy(&subscription.sid).into_owned(),
            // Places are taken past the last delivery too, by publishers that come too late.
            msgs: if max == 0 { delivered } else { delivered.min(max) },
            max,
            cid: subscription.client.id,
        }
    }
}

/// A client's subscriptions in the order of their names, which most clients count up.
pub(super) fn subscriptions_of(client: &Client) -> Vec<Arc<Subscription>> {
    let mut all: Vec<_> = client.table.lock().iter().cloned().collect();
    all.sort_unstable_by(|a, b| (a.sid.len(), &a.sid).cmp(&(b.sid.len(), &b.sid)));
    all
}

pub(super) async fn subsz(State(monitor): State<Arc<Monitor>>, params: Params) -> Response {
    match read(&params) {
        Ok(question) => LISTS.make(move || answer(&monitor, question)).await,
        Err(error) => error.into_response(),
    }
}

/// Which subscriptions are asked for.
struct Question {
    page: Page,
    /// Whether to list them.
    list: bool,
    /// Only those that a message on this subject would reach.
    test: Option<Subject>,
    /// Only those of this account.
    account: Option<String>,
}

impl Question {
    fn asks_for(&self, account: &str) -> bool {
        self.account.as_deref().is_none_or(|wanted| wanted == account)
    }
}

fn read(params: &Params) -> Result<Question, ParamError> {
    let allowed = || "a subject without wildcards".to_owned();
    let test = params.read("test", allowed, |subject| Subject::new(subject).ok())?;
    let account = params.get("acc").map(str::to_owned);
    Ok(Question { page: params.page()?, list: params.flag("subs")?, test, account })
}

/// What the routing tables of several accounts count together.
#[derive(Default)]
pub(super) struct Tables {
    pub(super) cached: u64,
    pub(super) inserts: u64,
    pub(super) removes: u64,
    pub(super) matches: u64,
    pub(super) shared_hits: u64,
    pub(super) fanout_max: u64,
    pub(super) fanout_total: u64,
}

impl Tables {
    pub(super) fn of(accounts: &[Arc<Account>]) -> Self {
        let mut all = Self::default();
        for account in accounts {
            let stats = account.hub.router().stats();
            all.cached += stats.cached;
            all.inserts += stats.inserts;
            all.removes += stats.removes;
            all.matches += stats.matches;
            all.shared_hits += stats.shared_hits;
            all.fanout_max = all.fanout_max.max(stats.fanout_max);
            all.fanout_total += stats.fanout_total;
        }
        all
    }
}

fn answer(monitor: &Monitor, question: Question) -> Response {
    let shared = &monitor.shared;
    let Question { page, list, .. } = question;
    let mut accounts = shared.auth.accounts();
    accounts.retain(|account| question.asks_for(&account.name));
    let stats = Tables::of(&accounts);
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    // As on nats-server: without `subs` nothing is listed, and nothing counted.
    let (total, subscriptions_list) = match &question.test {
        _ if !list => None,
        Some(subject) => Some(matching(shared, subject, &question)),
        None => Some(listed(shared, &question)),
    }
    .unzip();
    let num_subscriptions = match &question.account {
        None => shared.subscriptions(),
        Some(_) => clients(shared, &question).iter().map(|client| count(client) as u64).sum(),
    };
    json(&Subsz {
        server_id: &shared.id,
        now: Timestamp::now(),
        num_subscriptions,
        num_cache: stats.cached,
        num_inserts: stats.inserts,
        num_removes: stats.removes,
        num_matches: stats.matches,
        cache_hit_rate: share(stats.shared_hits, stats.matches),
        max_fanout: stats.fanout_max,
        avg_fanout: share(stats.fanout_total, stats.cached),
        total: total.unwrap_or(0),
        offset: page.offset,
        limit: page.limit,
        subscriptions_list,
    })
}

/// The clients whose subscriptions are asked for.
fn clients(shared: &Shared, question: &Question) -> Vec<Arc<Client>> {
    let mut clients = shared.clients();
    if question.account.is_some() {
        let is_asked_for = |client: &Arc<Client>| {
            client.identity().is_some_and(|identity| question.asks_for(&identity.account.name))
        };
        clients.retain(is_asked_for);
    }
    clients
}

fn count(client: &Client) -> usize {
    client.subscriptions.load(Ordering::Relaxed) as usize
}

/// A part of all subscriptions, client by client.
fn listed(shared: &Shared, question: &Question) -> (usize, Vec<Detail>) {
    let page = question.page;
    let mut clients = clients(shared, question);
    clients.sort_unstable_by_key(|client| client.id);
    let (mut total, mut skip, mut details) = (0, page.offset, Vec::new());
    for client in &clients {
        let count = count(client);
        total += count;
        if skip >= count || details.len() == page.limit {
            skip = skip.saturating_sub(count);
            continue;
        }
        let room = page.limit - details.len();
        details
            .extend(subscriptions_of(client).iter().skip(skip).take(room).map(|s| Detail::with_account(s)));
        skip = 0;
    }
    (total, details)
}

/// The subscriptions that a message on `subject` would reach, of queue groups every member.
fn matching(shared: &Shared, subject: &Subject, question: &Question) -> (usize, Vec<Detail>) {
    let page = question.page;
    if shared.bridge.is_some() {
        let mut found = Vec::new();
        for client in clients(shared, question) {
            found.extend(subscriptions_of(&client).into_iter().filter(|s| s.pattern.matches(subject)));
        }
        let details =
            found.iter().skip(page.offset).take(page.limit).map(|s| Detail::with_account(s)).collect();
        return (found.len(), details);
    }
    let accounts = shared.auth.accounts();
    let asked_for = accounts.iter().filter(|account| question.asks_for(&account.name));
    let sets: Vec<_> = asked_for.map(|account| account.hub.router().matches(subject.as_bytes())).collect();
    let targets = sets
        .iter()
        .flat_map(|set| set.subscribers.iter().chain(set.queues.iter().flat_map(|queue| &queue.members)));
    let found: Vec<&Subscription> = targets.filter_map(subscription_of).collect();
    let details = found.iter().skip(page.offset).take(page.limit).map(|s| Detail::with_account(s)).collect();
    (found.len(), details)
}

fn subscription_of(target: &Target) -> Option<&Subscription> {
    match target {
        Target::Session(sink) => sink.as_any().downcast_ref(),
        _ => None,
    }
}
