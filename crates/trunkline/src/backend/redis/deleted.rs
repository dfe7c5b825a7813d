//! Messages that were deleted one by one: their running numbers, so that nobody takes the gap they leave for a loss.

use trunkline_core::StreamOffset;

use super::entry::{Entry, list, number, print_id, text};
use super::link::{Failure, Link};
use super::routes::Home;
use super::scripts::DELETE;
use super::shared::Shared;
use crate::backend::StreamError;

/// Most ranges of numbers that are kept for a stream; past it the oldest are forgotten.
const RANGES_MAX: usize = 10_000;
/// Most messages that one script deletes: while it runs the server does nothing else.
const BATCH: usize = 500;

/// Running numbers of deleted messages, as ranges in ascending order.
#[derive(Debug, Default)]
pub(super) struct Deleted(Vec<(u64, u64)>);

impl Deleted {
    /// Those from `first` on.
    pub(super) async fn from(link: &Link, home: &Home, first: u64) -> Result<Self, Failure> {
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command.arg(home.beside("deleted")).arg(first).arg("+inf");
        let ranges = list(link.query(&home.key, &command).await?)?;
        let range = |value| -> Result<(u64, u64), Failure> {
            let text = text(value)?;
            let parsed = text
                .split_once('-')
                .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
            parsed.ok_or_else(|| Failure::Unexpected(format!("{text:?} among the deleted messages")))
        };
        Ok(Self(ranges.iter().map(range).collect::<Result<_, _>>()?))
    }

    /// Those that may explain a gap between `before`, the last number that is known, and these entries or within them.
    /// Only a gap costs a look at the server.
    pub(super) async fn among(
        link: &Link,
        home: &Home,
        mut before: Option<u64>,
        entries: &[Entry],
    ) -> Result<Self, Failure> {
        for entry in entries {
            if let (Some(before), Some(index)) = (before, entry.index)
                && index > before + 1
            {
                return Self::from(link, home, before + 1).await;
            }
            before = entry.index.or(before);
        }
        Ok(Self::default())
    }

    /// How many of the numbers between these two, themselves left out, are of deleted messages.
    pub(super) fn between(&self, before: u64, after: u64) -> u64 {
        let overlap =
            |&(first, last): &(u64, u64)| (last + 1).min(after).saturating_sub(first.max(before + 1));
        self.0.iter().map(overlap).sum()
    }
}

impl Shared {
    /// Deletes single messages of a stream, and says how many there were.
    pub(super) async fn delete(&self, home: &Home, offsets: &[StreamOffset]) -> Result<u64, StreamError> {
        let id = |offset: &StreamOffset| match *offset {
            StreamOffset::Entry(ms, seq) => Ok(print_id((ms, seq))),
            foreign => Err(StreamError::ForeignOffset(foreign)),
        };
        // All are looked at before the first one goes.
        let ids = offsets.iter().map(id).collect::<Result<Vec<_>, _>>()?;
        let keys = self.keys_of(home, &["deleted", "consumers", "added"], &[], "");
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut deleted = 0;
        for batch in ids.chunks(BATCH) {
            let deleting = self.link.run_script(&DELETE, &keys, |command| {
                command.arg(RANGES_MAX).arg(batch);
            });
            let answer = deleting.await.and_then(|answer| number(&answer));
            deleted += answer.map_err(|failure| self.link.stream_error(failure))?;
        }
        Ok(deleted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_in_the_gap_counts() {
        let deleted = Deleted(vec![(2, 4), (7, 7), (10, 20)]);
        for (before, after, count) in [
            (1, 5, 3),
            (0, 3, 1),
            (3, 8, 2),
            (4, 7, 0),
            (7, 8, 0),
            (11, 13, 1),
            (5, 30, 12),
            (20, 21, 0),
            (1, 2, 0),
        ] {
            assert_eq!(deleted.between(before, after), count, "between {before} and {after}");
        }
    }
}
