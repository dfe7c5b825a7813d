//! The server at a glance: messages, clients, what is subscribed to.

use serde::{Deserialize, Serialize};

/// The bus as it is now; the answer of `GET /api/v1/overview`. Counters count since the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OverviewJson {
    /// Version of the server.
    pub version: String,
    /// Differs for every start of the process.
    pub run: String,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// First token of the platform's subjects.
    pub subject_root: String,
    /// Where the messages are, and how that is.
    pub backend: BackendJson,
    /// Messages, as far as this process sees them.
    pub messages: MessagesJson,
    /// Clients of the server; absent where they are with the NATS servers themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<ClientsJson>,
    /// How long requests took that were answered in the last ten seconds, as far as messages are recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyJson>,
    /// What the process uses.
    pub process: ProcessJson,
}

/// The backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendJson {
    /// `in_memory`, `redis` or `nats`.
    pub name: String,
    /// Where it is, without credentials.
    pub server: String,
    /// Its state in one word.
    pub state: String,
    /// Why it is not well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when it is so, RFC 3339.
    pub since: String,
}

/// Messages since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessagesJson {
    /// Published, as far as it is seen: with `in_memory` all; else those of the record (`observe.enabled`), without which
    /// only those of this server's clients and of its own bus are known.
    pub published: u64,
    /// Sent to clients, or given to components of this process.
    pub delivered: u64,
    /// Dropped because who was to have them did not keep up, where that is counted.
    pub dropped: u64,
    /// Requests that found nobody.
    pub no_responders: u64,
    /// Dead letters that this process wrote.
    pub dead_letters: u64,
    /// Deliveries in this process that were not the first of their message.
    pub redelivered: u64,
}

/// Clients of the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientsJson {
    /// Connected now.
    pub connections: usize,
    /// Their subscriptions now.
    pub subscriptions: u64,
    /// Messages refused for want of permission.
    pub denied_messages: u64,
    /// Subscriptions refused for want of permission.
    pub denied_subscriptions: u64,
    /// Attempts to authenticate that failed.
    pub auth_failures: u64,
    /// Connections refused because there were too many.
    pub refused_connections: u64,
    /// Clients cut off because they did not keep up.
    pub slow_consumers: u64,
    /// The longest round trip to a client in microseconds, where one was measured.
    pub rtt_max_micros: Option<u64>,
    /// The one in the middle.
    pub rtt_median_micros: Option<u64>,
}

/// How long requests took until their first answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LatencyJson {
    /// How many there were.
    pub requests: usize,
    /// The one in the middle, in microseconds.
    pub median_micros: u64,
    /// The longest.
    pub max_micros: u64,
}

/// What the process uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessJson {
    /// Percent of one processor.
    pub cpu_percent: f64,
    /// Its memory.
    pub resident_bytes: u64,
    /// All buffers together, where that is counted.
    pub buffer_bytes: Option<u64>,
    /// The most that they may have; absent where there is no limit.
    pub buffer_bytes_max: Option<u64>,
}

/// Connections of clients; the answer of `GET /api/v1/connections`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionsJson {
    /// Whether the server has clients at all. Where it has none, they are with the NATS servers.
    pub known: bool,
    /// Those that are open, oldest first.
    pub connections: Vec<ConnectionJson>,
    /// How many are open in all.
    pub total: usize,
    /// The last ones that ended, newest first.
    pub closed: Vec<ConnectionJson>,
}

/// A connection of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionJson {
    /// Its number, never used twice.
    pub id: u64,
    /// What the client calls itself.
    pub name: Option<String>,
    /// Who it is.
    pub user: Option<String>,
    /// Where it comes from.
    pub address: String,
    /// `nats` or `websocket`.
    pub kind: String,
    /// Its library and the version of that.
    pub library: Option<String>,
    /// Since when, RFC 3339.
    pub since: String,
    /// How long nothing came or went.
    pub idle_ms: u64,
    /// The last round trip.
    pub rtt_micros: Option<u64>,
    /// Bytes that wait for it.
    pub pending_bytes: usize,
    /// Messages from it.
    pub received_messages: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Messages to it.
    pub sent_messages: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Its subscriptions.
    pub subscriptions: u64,
    /// What it was refused for want of permission, messages and subscriptions.
    pub denied: u64,
    /// Gaps in what it was given.
    pub gaps: u64,
    /// When it ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// Why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Subjects and who is at them; the answer of `GET /api/v1/subjects`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubjectsJson {
    /// Subjects that messages were seen on, the busiest first.
    pub subjects: Vec<SubjectJson>,
    /// Subjects left out, because an answer would grow too large.
    pub subjects_omitted: usize,
    /// What clients of the server subscribe to. Components in the process of the bus are seen by what they are given.
    pub subscriptions: Vec<SubscriptionJson>,
    /// Subscriptions left out.
    pub subscriptions_omitted: usize,
    /// Whether messages are recorded (`observe.enabled`); without that no subjects are seen.
    pub recorded: bool,
}

/// A subject that messages were seen on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubjectJson {
    /// The subject; inboxes are one.
    pub subject: String,
    /// Who published.
    pub publishers: Vec<String>,
    /// Who answered requests.
    pub responders: Vec<String>,
    /// Who was given messages.
    pub listeners: Vec<String>,
    /// Messages among those that the record still has.
    pub messages: u64,
    /// Messages a second, over the last ten.
    pub rate: f64,
    /// When the last one was seen, RFC 3339.
    pub last: String,
}

/// Subscriptions of clients with the same name to the same pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionJson {
    /// The pattern.
    pub pattern: String,
    /// The queue group.
    pub queue: Option<String>,
    /// What the client calls itself, or its number.
    pub client: String,
    /// How many there are.
    pub count: u64,
    /// Messages that they were given.
    pub delivered: u64,
}
