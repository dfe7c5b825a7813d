//! `/connz`: the connections, in nats-server's shape. See
//! <https://docs.nats.io/running-a-nats-service/nats_admin/monitoring#connection-information-connz>.

use std::cmp::Reverse;
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Serialize;

use super::aside::LISTS;
use super::params::{LIMIT_MAX, List, Page, ParamError, Params};
use super::subsz::{Detail, is_zero, subscriptions_of};
use super::{Monitor, durations, json};
use crate::client::Kind;
use crate::health::timestamp;
use crate::shared::Shared;
use crate::tls::Fingerprint;
use crate::view::{ClientView, Departed};

#[derive(Serialize)]
struct Connz<'a> {
    server_id: &'a str,
    now: Timestamp,
    num_connections: usize,
    total: usize,
    offset: usize,
    limit: usize,
    connections: Vec<Connection>,
}

#[derive(Serialize)]
struct Connection {
    cid: u64,
    kind: &'static str,
    r#type: &'static str,
    ip: String,
    port: u16,
    start: Timestamp,
    last_activity: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    rtt: String,
    uptime: String,
    idle: String,
    pending_bytes: usize,
    in_msgs: u64,
    out_msgs: u64,
    in_bytes: u64,
    out_bytes: u64,
    subscriptions: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_version: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cipher_suite: Option<String>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tls_peer_certs: Vec<PeerCertificate>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    tls_first: bool,
    /// On a bridge, what it could not be given: messages where the number is known, and gaps of any size.
    #[serde(skip_serializing_if = "is_zero")]
    missed_msgs: u64,
    #[serde(skip_serializing_if = "is_zero")]
    missed_gaps: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    authorized_user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<Box<str>>,
    /// The account again, for who looks for it here.
    #[serde(skip_serializing_if = "Option::is_none")]
    name_tag: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lang: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscriptions_list: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscriptions_list_detail: Option<Vec<Detail>>,
    /// Subscriptions that the lists leave out, because an answer would grow too large.
    #[serde(skip_serializing_if = "Option::is_none")]
    subscriptions_omitted: Option<usize>,
}

/// A certificate that a client has shown.
#[derive(Serialize)]
struct PeerCertificate {
    subject: String,
    spki_sha256: String,
    cert_sha256: String,
}

impl From<&Fingerprint> for PeerCertificate {
    fn from(of: &Fingerprint) -> Self {
        let Fingerprint { subject, key, certificate } = of.clone();
        Self { subject, spki_sha256: key, cert_sha256: certificate }
    }
}

/// Which connections are asked for, and how.
struct Question {
    page: Page,
    cid: Option<u64>,
    sort: Sort,
    state: ConnState,
    subscriptions: List,
    /// Whether to say who the clients are.
    auth: bool,
    /// Only those of this account, and of this user.
    account: Option<String>,
    user: Option<String>,
    /// Only one that speaks MQTT, which nobody does here.
    by_mqtt: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ConnState {
    Open,
    Closed,
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Cid,
    Start,
    Subs,
    Pending,
    MsgsTo,
    MsgsFrom,
    BytesTo,
    BytesFrom,
    Last,
    Idle,
    Uptime,
    Rtt,
    Stop,
    Reason,
}

impl Sort {
    const ALL: [(&'static str, Sort); 14] = [
        ("cid", Sort::Cid),
        ("start", Sort::Start),
        ("subs", Sort::Subs),
        ("pending", Sort::Pending),
        ("msgs_to", Sort::MsgsTo),
        ("msgs_from", Sort::MsgsFrom),
        ("bytes_to", Sort::BytesTo),
        ("bytes_from", Sort::BytesFrom),
        ("last", Sort::Last),
        ("idle", Sort::Idle),
        ("uptime", Sort::Uptime),
        ("rtt", Sort::Rtt),
        ("stop", Sort::Stop),
        ("reason", Sort::Reason),
    ];

    /// Whether only connections that ended can be sorted by it.
    fn needs_closed(self) -> bool {
        matches!(self, Self::Stop | Self::Reason)
    }

    /// Sorts in nats-server's direction: the largest first, but the oldest first by `cid` and `start`, and the youngest
    /// first by `uptime`.
    fn sort(self, rows: &mut [Row]) {
        // Rows come in the order of their ids, and equal ones stay in it.
        fn view(row: &Row) -> &ClientView {
            &row.view
        }
        match self {
            Self::Cid => rows.sort_by_key(|row| view(row).id),
            Self::Start => rows.sort_by_key(|row| view(row).started),
            Self::Subs => rows.sort_by_key(|row| Reverse(view(row).subscriptions)),
            Self::Pending => rows.sort_by_key(|row| Reverse(view(row).pending_bytes)),
            Self::MsgsTo => rows.sort_by_key(|row| Reverse(view(row).sent.messages)),
            Self::MsgsFrom => rows.sort_by_key(|row| Reverse(view(row).received.messages)),
            Self::BytesTo => rows.sort_by_key(|row| Reverse(view(row).sent.bytes)),
            Self::BytesFrom => rows.sort_by_key(|row| Reverse(view(row).received.bytes)),
            Self::Last => rows.sort_by_key(|row| Reverse(view(row).last_active)),
            Self::Idle => rows.sort_by_key(|row| Reverse(view(row).idle)),
            Self::Uptime => rows.sort_by_key(|row| view(row).uptime),
            Self::Rtt => rows.sort_by_key(|row| Reverse(view(row).rtt)),
            Self::Stop => rows.sort_by_key(|row| Reverse(row.ended.map(|(stopped, _)| stopped))),
            Self::Reason => rows.sort_by_key(|row| row.ended.map(|(_, why)| why)),
        }
    }
}

pub(super) async fn connz(State(monitor): State<Arc<Monitor>>, params: Params) -> Response {
    match Question::read(&params) {
        Ok(question) => LISTS.make(move || answer(&monitor, &question)).await,
        Err(error) => error.into_response(),
    }
}

impl Question {
    fn read(params: &Params) -> Result<Self, ParamError> {
        let number = || "the number of a connection".to_owned();
        let states = || "open, closed or any".to_owned();
        let state = params.read("state", states, |value| match value.to_ascii_lowercase().as_str() {
            "open" => Some(ConnState::Open),
            "closed" => Some(ConnState::Closed),
            "any" | "all" => Some(ConnState::Any),
            _ => None,
        })?;
        let state = state.unwrap_or(ConnState::Open);
        let fits = |sort: &Sort| !sort.needs_closed() || state == ConnState::Closed;
        let sorts = || {
            let names = Sort::ALL.iter().filter(|(_, sort)| fits(sort)).map(|(name, _)| *name);
            names.collect::<Vec<_>>().join(", ")
        };
        let sort = params.read("sort", sorts, |value| {
            Sort::ALL.iter().find(|(name, _)| *name == value).map(|(_, sort)| *sort).filter(fits)
        })?;
        let auth = params.flag("auth")?;
        Ok(Self {
            auth,
            account: params.get("acc").map(str::to_owned),
            user: params.get("user").map(str::to_owned),
            by_mqtt: params.get("mqtt_client").is_some(),
            page: params.page()?,
            cid: params.read("cid", number, |value| value.parse().ok())?,
            sort: sort.unwrap_or(Sort::Cid),
            state,
            subscriptions: params.list("subs")?,
        })
    }
}

/// A connection on its way into the answer.
struct Row {
    view: ClientView,
    /// When and why, once it has ended.
    ended: Option<(std::time::SystemTime, &'static str)>,
}

impl From<Departed> for Row {
    fn from(departed: Departed) -> Self {
        Self { view: departed.view, ended: Some((departed.stopped, departed.why.shown(departed.slow))) }
    }
}

fn answer(monitor: &Monitor, question: &Question) -> Response {
    let shared = &monitor.shared;
    let mut rows = rows(shared, question);
    let Page { offset, mut limit } = question.page;
    let mut total = rows.len();
    // As on nats-server: the total says among how many the one who is asked for was looked for.
    let is_asked_for = |row: &Row| question.user.is_none() || row.view.user == question.user;
    rows.retain(|row| is_asked_for(row) && !question.by_mqtt);
    if let Some(cid) = question.cid {
        rows.retain(|row| row.view.id == cid);
        limit = 1;
        total = total.max(rows.len());
    }
    question.sort.sort(&mut rows);
    let mut room = LIMIT_MAX;
    let connections: Vec<Connection> = rows
        .into_iter()
        .skip(if question.cid.is_some() { 0 } else { offset })
        .take(limit)
        .map(|row| shown(shared, row, question, &mut room))
        .collect();
    json(&Connz {
        server_id: &shared.id,
        now: Timestamp::now(),
        num_connections: connections.len(),
        total,
        offset,
        limit,
        connections,
    })
}

fn rows(shared: &Shared, question: &Question) -> Vec<Row> {
    let mut rows = Vec::new();
    if question.state != ConnState::Closed {
        rows.extend(shared.clients().iter().map(|client| Row { view: shared.view(client), ended: None }));
    }
    if question.state != ConnState::Open {
        rows.extend(shared.departed().into_iter().map(Row::from));
    }
    if let Some(account) = question.account.as_deref() {
        rows.retain(|row| row.view.account.as_deref() == Some(account));
    }
    rows.sort_unstable_by_key(|row| row.view.id);
    rows
}

/// `room` is how many subscriptions the answer may still list.
fn shown(shared: &Shared, row: Row, question: &Question, room: &mut usize) -> Connection {
    let view = row.view;
    let mut connection = Connection {
        cid: view.id,
        kind: "Client",
        r#type: match view.kind {
            Kind::Nats => "nats",
            Kind::WebSocket => "websocket",
        },
        ip: view.address.ip().to_string(),
        port: view.address.port(),
        start: timestamp(view.started),
        last_activity: timestamp(view.last_active),
        stop: row.ended.map(|(stopped, _)| timestamp(stopped)),
        reason: row.ended.map(|(_, why)| why),
        rtt: durations::round_trip(view.rtt.unwrap_or_default()),
        uptime: durations::uptime(view.uptime),
        idle: durations::uptime(view.idle),
        pending_bytes: view.pending_bytes,
        in_msgs: view.received.messages,
        out_msgs: view.sent.messages,
        in_bytes: view.received.bytes,
        out_bytes: view.sent.bytes,
        subscriptions: view.subscriptions,
        tls_version: view.secured.as_ref().map(|secured| secured.version),
        // Part of who the client is, and of those who are here alone, as on nats-server.
        tls_peer_certs: match &view.secured {
            Some(secured) if question.auth && row.ended.is_none() => {
                secured.peers.iter().map(PeerCertificate::from).collect()
            }
            _ => Vec::new(),
        },
        tls_first: view.secured.as_ref().is_some_and(|secured| secured.first),
        tls_cipher_suite: view.secured.map(|secured| secured.cipher),
        missed_msgs: view.missed,
        missed_gaps: view.gaps,
        authorized_user: view.user.filter(|_| question.auth),
        account: view.account.clone().filter(|_| question.auth),
        name_tag: view.account.filter(|_| question.auth && row.ended.is_none()),
        name: view.name,
        lang: view.lang,
        version: view.version,
        subscriptions_list: None,
        subscriptions_list_detail: None,
        subscriptions_omitted: None,
    };
    let list = question.subscriptions;
    if list != List::No
        && let Some(client) = shared.client(view.id)
    {
        let all = subscriptions_of(&client);
        let listed = &all[..all.len().min(*room)];
        *room -= listed.len();
        connection.subscriptions_omitted = Some(all.len() - listed.len()).filter(|omitted| *omitted > 0);
        if !listed.is_empty() {
            match list {
                List::Detail => {
                    connection.subscriptions_list_detail =
                        Some(listed.iter().map(|s| Detail::of(s)).collect());
                }
                _ => {
                    let pattern = |s: &Arc<crate::subscription::Subscription>| s.pattern.as_str().to_owned();
                    connection.subscriptions_list = Some(listed.iter().map(pattern).collect());
                }
            }
        }
    }
    connection
}
