//! The JSON of the admin API: what goes over the wire to `/api/v1`, for the server and for its clients alike.
//!
//! Names are camelCase, durations milliseconds, times RFC 3339 to the nanosecond, offsets their printed form, bodies
//! Base64. Here are values only; what is done with them stands in `http::api`.

mod component;
mod dead_letter;
mod message;
mod overview;
mod problem;
mod stream;

pub use component::{ComponentJson, ComponentState, ComponentsJson, ResourcesJson};
pub use dead_letter::{
    DEAD_LETTERS_MAX, DeadLetterJson, DeadLettersJson, NotRedrivenJson, REDRIVE_MAX, Redrive, RedriveJson,
    RedrivenJson,
};
pub use message::{DeliveryJson, MessageJson, SettleJson, SettledJson, SettlementJson, StoredJson};
pub use message::{Fetch, FetchedJson, LeaseJson, LeaseRequest, Publish, ReceiptJson, Settlements};
pub use overview::{
    BackendJson, ClientsJson, ConnectionJson, ConnectionsJson, LatencyJson, MessagesJson, OverviewJson,
    ProcessJson, SubjectJson, SubjectsJson, SubscriptionJson,
};
pub use problem::{ErrorJson, Problem};
pub use stream::{
    ConsumerConfigJson, ConsumerJson, ConsumersJson, DeleteMessages, Deleted, Joined, PageJson, ServerJson,
    StreamConfigJson, StreamJson, StreamsJson, parse_start, show_start,
};

use std::time::{Duration, SystemTime};

/// Where the API begins.
pub const BASE: &str = "/api/v1";
/// Most streams or consumers in one answer.
pub const LIST_MAX: usize = 1000;
/// Most messages in one page of a stream.
pub const PAGE_MAX: usize = 1000;
/// Most deliveries of one fetch.
pub const FETCH_MAX: usize = 256;
/// Most settlements of one request.
pub const SETTLE_MAX: usize = 4096;
/// Most offsets of one deletion.
pub const DELETE_MAX: usize = 4096;
/// Longest wait of one fetch.
pub const FETCH_WAIT_MAX: Duration = Duration::from_secs(20);
/// Bytes of messages after which a page or a fetch is full; one message more than that always fits.
pub const PAGE_BYTES: usize = 8 << 20;
/// A member whose client says nothing for so long is dropped; what it had been given comes again after `ack_wait`.
pub const MEMBER_EXPIRY: Duration = Duration::from_secs(15);
/// Most members that clients of the API hold at a time.
pub const MEMBERS_MAX: usize = 1024;

/// A value of the wire that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value:?}: {reason}")]
pub struct Unreadable {
    field: &'static str,
    value: String,
    reason: String,
}

impl Unreadable {
    fn new(field: &'static str, value: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self { field, value: value.into(), reason: reason.to_string() }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A time as it stands in the JSON of the API.
pub fn time_text(time: SystemTime) -> String {
    // A clock outside the years that have a text is shown as the beginning of time.
    jiff::Timestamp::try_from(time).unwrap_or_default().to_string()
}

fn parse_time(field: &'static str, text: &str) -> Result<SystemTime, Unreadable> {
    let time: jiff::Timestamp = text.parse().map_err(|error| Unreadable::new(field, text, error))?;
    Ok(time.into())
}

fn parse<T: std::str::FromStr>(field: &'static str, text: &str) -> Result<T, Unreadable>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error| Unreadable::new(field, text, error))
}
