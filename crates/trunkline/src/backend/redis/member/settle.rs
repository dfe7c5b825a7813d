//! Settling deliveries.

use redis::Value;
use tokio::time::Instant;
use trunkline_core::StreamOffset;

use super::super::entry::{EntryId, array, list, number, print_id, push_id};
use super::super::link::Failure;
use super::super::routes::millis;
use super::super::scripts::{ACK, LEAD_ACK, SETTLE};
use super::RedisMember;
use crate::backend::{AckToken, ConsumeError, Settle, Settled};

/// From how many ids on a transaction costs less than a script.
const PLAIN_MIN: usize = 16;

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
        let (now, acknowledged) = match self.acknowledge_plainly(fence, ids).await? {
            Some(answer) => answer,
            None => match self.acknowledge_by_script(fence, ids).await? {
                Some(answer) => answer,
                None => return Ok(None),
            },
        };
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

    /// Many at once, in a transaction that acknowledges nothing when somebody has lost a delivery. Answers how often that
    /// was so by now, and how many were acknowledged; `None` when they are few, or the server takes no transaction now.
    async fn acknowledge_plainly(
        &self,
        fence: u64,
        ids: &[EntryId],
    ) -> Result<Option<(u64, u64)>, ConsumeError> {
        // While a slot of a cluster moves, what names a key that is not there is put off.
        if ids.len() < PLAIN_MIN || self.shared.link.topology.redirects() {
            return Ok(None);
        }
        let (key, away) = (&self.home.key, self.home.beside("away"));
        let mut pipeline = redis::Pipeline::with_capacity(3);
        pipeline.atomic();
        pipeline.cmd("EVAL").arg(LEAD_ACK).arg(3);
        pipeline.arg(key).arg(self.home.of_consumer("consumer", &self.config.name)).arg(&away);
        pipeline.arg(&self.identity).arg(fence);
        pipeline.add_command(self.xack(ids));
        pipeline.cmd("RENAME").arg(&away).arg(key);
        let failed = |failure| self.failed(failure);
        let answers = match self.shared.link.transaction(key, &pipeline).await {
            Ok(answers) => answers,
            // Nothing of it was carried out.
            Err(Failure::Refused(_)) => return Ok(None),
            Err(failure) => return Err(failed(failure)),
        };
        let mut answers = answers.into_iter();
        let (lead, acknowledged) =
            (answers.next().unwrap_or(Value::Nil), answers.next().unwrap_or(Value::Nil));
        if let Value::ServerError(error) = lead {
            return Err(failed(Failure::Refused(error)));
        }
        let [_, now] = array::<2>(lead).map_err(failed)?;
        let counts = number(&now).and_then(|now| Ok((now, number(&acknowledged)?)));
        counts.map(Some).map_err(failed)
    }

    /// The same in one script; `None`, too, when the consumer is another.
    async fn acknowledge_by_script(
        &self,
        fence: u64,
        ids: &[EntryId],
    ) -> Result<Option<(u64, u64)>, ConsumeError> {
        self.refuse_when_closed()?;
        // These are there as long as there is something to acknowledge, and no others are named: so a node to which the
        // slot is on its way can carry it out.
        let (key, consumer) = (&self.home.key, self.home.of_consumer("consumer", &self.config.name));
        let keys = [key.as_str(), consumer.as_str()];
        let keys = if self.shared.link.topology.redirects() { &keys[..] } else { &keys[..1] };
        let acknowledging = self.shared.link.run_script(&ACK, keys, |command| {
            command.arg(&self.config.name).arg(&self.name).arg(&self.identity).arg(fence);
            for id in ids {
                push_id(command, *id);
            }
        });
        let answer = acknowledging.await.map_err(|failure| self.failed(failure))?;
        let parts = list(answer).map_err(|failure| self.failed(failure))?;
        let [now, acknowledged] = parts.as_slice() else {
            return Ok(None);
        };
        let counts = number(now).and_then(|fence| Ok((fence, number(acknowledged)?)));
        counts.map(Some).map_err(|failure| self.failed(failure))
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
