//! What clients have done, added up.

use crate::client::Client;
use crate::view::Count;

/// Messages and bytes in both directions.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Totals {
    /// From clients.
    pub(crate) received: Count,
    /// To clients.
    pub(crate) sent: Count,
}

impl Totals {
    pub(crate) fn add(&mut self, client: &Client) {
        self.received += client.received.count();
        self.sent += client.sent.count();
    }
}

/// What the clients of one account have done, together.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    /// Clients now.
    pub(crate) here: u64,
    /// Subscriptions now.
    pub(crate) subscriptions: u64,
    /// Clients that did not read and were cut off.
    pub(crate) slow: u64,
    pub(crate) totals: Totals,
}

impl Tally {
    pub(crate) fn add(&mut self, client: &Client, is_slow: bool) {
        self.slow += u64::from(is_slow);
        self.totals.add(client);
    }
}
