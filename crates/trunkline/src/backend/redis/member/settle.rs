//! Settling deliveries.

use tokio::time::Instant;
use trunkline_core::StreamOffset;

use super::super::entry::{EntryId, list, number, print_id, push_id};
use super::super::link::Failure;
use super::super::routes::millis;
use super::super::scripts::{ACK, SETTLE};
use super::RedisMember;
use crate::backend::{AckToken, ConsumeError, Settle, Settled};

impl RedisMember {
    pub(super) async fn settle_batch(
        &self,
        batch: Vec<(AckToken, Settle)>,
    ) -> Result<Vec<Settled>, ConsumeError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        self.refuse_when_closed()?;
        let over = batch.iter().all(|(_, settle)| matches!(settle, Settle::Ack | Settle::Term));
        let (fence, surely_ours) = {
            let mut held = self.held.lock();
            if over {
                (held.fence(), held.take(batch.iter().map(|(token, _)| token)))
            } else {
                let settled = batch.iter().filter(|(_, settle)| *settle != Settle::Progress);
                held.take(settled.map(|(token, _)| token));
                (held.fence(), None)
            }
        };
        if let Some(ids) = surely_ours
            && let Some(settled) = self.acknowledge(fence, &ids).await?
        {
            return Ok(settled);
        }
        self.settle_each(&batch).await
    }

    /// Acknowledges deliveries of which nobody has taken one away; `None` when that is not so, and nothing was done.
    async fn acknowledge(&self, fence: u64, ids: &[EntryId]) -> Result<Option<Vec<Settled>>, ConsumeError> {
        let answer = self
            .run(&ACK, |command| {
                command.arg(fence);
                for id in ids {
                    push_id(command, *id);
                }
            })
            .await?;
        let parts = list(answer).map_err(|failure| self.failed(failure))?;
        let [now, acknowledged] = parts.as_slice() else {
            return Ok(None);
        };
        let counts = number(now).and_then(|fence| Ok((fence, number(acknowledged)?)));
        let (now, acknowledged) = counts.map_err(|failure| self.failed(failure))?;
        if now != fence {
            self.held.lock().see_fence(now);
            return Ok(None);
        }
        // Fewer can only be when the server has lost what it had, or somebody else meddles; which ones is not known, so
        // none is called done.
        let settled = match usize::try_from(acknowledged) == Ok(ids.len()) {
            true => Settled::Done,
            false => Settled::LeaseLost,
        };
        Ok(Some(vec![settled; ids.len()]))
    }

    /// Has the server look at each delivery.
    async fn settle_each(&self, batch: &[(AckToken, Settle)]) -> Result<Vec<Settled>, ConsumeError> {
        let answer = self
            .run(&SETTLE, |command| {
                for (token, settle) in batch {
                    let id = match token.offset {
                        StreamOffset::Entry(ms, seq) => print_id((ms, seq)),
                        // No delivery of this backend has such a token: nothing is pending under it.
                        StreamOffset::Sequence(_) => "0-0".to_owned(),
                    };
                    let (what, delay) = match settle {
                        Settle::Ack | Settle::Term => ("ack", 0),
                        Settle::Nak(delay) => ("nak", millis(*delay)),
                        Settle::Progress => ("progress", 0),
                    };
                    command.arg(id).arg(token.attempt).arg(what).arg(delay);
                }
            })
            .await?;
        self.look_for_naks(batch);
        let answers = list(answer).map_err(|failure| self.failed(failure))?;
        let settled = answers.iter().map(|answer| match number(answer)? {
            1 => Ok(Settled::Done),
            _ => Ok(Settled::LeaseLost),
        });
        settled.collect::<Result<Vec<_>, Failure>>().map_err(|failure| self.failed(failure))
    }

    /// What was given back is looked for when it is due.
    fn look_for_naks(&self, batch: &[(AckToken, Settle)]) {
        let delays = batch.iter().filter_map(|(_, settle)| match settle {
            Settle::Nak(delay) => Some(*delay),
            Settle::Ack | Settle::Term | Settle::Progress => None,
        });
        if let Some(due) = delays.min().and_then(|delay| Instant::now().checked_add(delay)) {
            let mut state = self.state.lock();
            state.look_at = state.look_at.min(due);
        }
    }
}
