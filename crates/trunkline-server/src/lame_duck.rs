//! Lame duck mode: clients are seen off one by one, so that they do not all come to another server at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::client::Client;
use crate::shared::Shared;

/// Waits `grace` for clients to leave, then closes those that are here at even intervals, in random order, until `within`
/// the beginning. Returns as soon as nobody is left.
pub(crate) async fn see_off(shared: &Arc<Shared>, grace: Duration, within: Duration) {
    let started = Instant::now();
    tokio::select! {
        () = shared.nobody_left() => {}
        () = close_all(shared, started, grace.min(within), within) => {}
    }
}

async fn close_all(shared: &Arc<Shared>, started: Instant, grace: Duration, within: Duration) {
    tokio::time::sleep_until(started + grace).await;
    let mut clients: Vec<Arc<Client>> = shared.clients();
    tracing::info!(connections = clients.len(), "clients are closed one by one");
    fastrand::shuffle(&mut clients);
    let time = within.saturating_sub(grace);
    let count = u32::try_from(clients.len()).unwrap_or(u32::MAX);
    for (n, client) in (0..count).zip(&clients) {
        tokio::time::sleep_until(started + grace + time.mul_f64(f64::from(n) / f64::from(count))).await;
        shared.end(client);
    }
    tokio::time::sleep_until(started + within).await;
}
