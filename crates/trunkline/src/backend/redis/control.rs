//! Following the changes of the routes: a stream that comes is drawn from by every subscription that it concerns, from
//! where it stood then.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;

use super::entry::{EntryId, array, list, number, parse_id, print_id, text};
use super::link::Failure;
use super::live::Live;

/// How long the reader of the control stream blocks at a time, and how much longer a read may take.
const CONTROL_BLOCK: Duration = Duration::from_secs(5);
const CONTROL_GRACE: Duration = Duration::from_secs(2);
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Follows the changes after `start`, until the backend stops.
pub(super) async fn follow_routes(live: Arc<Live>, start: EntryId) {
    let mut position = start;
    let following = async {
        loop {
            let key = live.shared.control_key();
            let Some(current) = live.shared.link.connected(&key).await else { return };
            tokio::select! {
                () = read_control(&live, &mut position) => live.shared.link.suspect(),
                () = current.lost.cancelled() => {}
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    };
    tokio::select! {
        () = live.stop.cancelled() => {}
        () = following => {}
    }
}

/// Ends when the connection fails.
async fn read_control(live: &Arc<Live>, position: &mut EntryId) {
    let key = live.shared.control_key();
    let Ok(mut connection) = live.shared.link.open(&key).await else { return };
    // What the connection before had not told, and whether the server still knows.
    if live.shared.refresh().await.is_err() {
        return;
    }
    loop {
        let mut command = redis::cmd("XREAD");
        let block = u64::try_from(CONTROL_BLOCK.as_millis()).unwrap_or(u64::MAX);
        command.arg("BLOCK").arg(block).arg("STREAMS").arg(&key).arg(print_id(*position));
        let reading = connection.read(&live.shared.link, &command);
        let Ok(Ok(answer)) = tokio::time::timeout(CONTROL_BLOCK + CONTROL_GRACE, reading).await else {
            return;
        };
        let Ok(changes) = read_changes(answer) else { return };
        if changes.is_empty() {
            continue;
        }
        if live.shared.refresh().await.is_err() {
            return;
        }
        for change in changes {
            // One that could not be followed for want of a connection is read again on the next one.
            if !apply(live, &change).await {
                return;
            }
            *position = change.id;
        }
    }
}

/// Has every subscription that a change concerns draw from the stream; `false` where that is to be tried again.
async fn apply(live: &Arc<Live>, change: &Change) -> bool {
    let routes = live.shared.routes();
    let Some(home) = routes.streams.get(&change.name) else { return true };
    for subscription in live.subscriptions() {
        if !routes.touched(&subscription.pattern).iter().any(|touched| touched.key == home.key) {
            continue;
        }
        let start = (change.tip, Some(change.index));
        let Err(failure) = live.draw_from(&subscription, home.clone(), start).await else { continue };
        if matches!(failure, Failure::NotConnected(_) | Failure::Unknown(_)) {
            subscription.forget_to_draw(&home.key);
            return false;
        }
        tracing::warn!(stream = change.name, ?failure, "a subscription does not see the new stream");
        subscription.forget_to_draw(&home.key);
        subscription.inbox.push_unknown_gap();
    }
    true
}

/// One change of the routes.
struct Change {
    id: EntryId,
    name: String,
    /// Where the stream stood then.
    tip: EntryId,
    index: u64,
}

fn read_changes(answer: Value) -> Result<Vec<Change>, Failure> {
    let Some(stream) = list(answer)?.into_iter().next() else { return Ok(Vec::new()) };
    let [_key, entries] = array::<2>(stream)?;
    let mut changes = Vec::new();
    for entry in list(entries)? {
        let [id, fields] = array::<2>(entry)?;
        let fields = list(fields)?;
        if let [_, name, _, tip, _, index] = fields.as_slice() {
            changes.push(Change {
                id: parse_id(&text(&id)?).unwrap_or_default(),
                name: text(name)?,
                tip: parse_id(&text(tip)?).unwrap_or_default(),
                index: number(index)?,
            });
        }
    }
    Ok(changes)
}
