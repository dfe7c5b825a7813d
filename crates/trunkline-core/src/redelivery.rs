//! What happens to a delivery before and after its handler: the rules of redelivery, the same on every backend.
//!
//! Values in, a decision out. The bus asks, and acts on the answer.

use std::time::Duration;

/// When a failed delivery comes again, and when it does not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often a message may be delivered before it becomes a dead letter. At least 1.
    pub max_deliver: u32,
    /// Delay after the first, second, … failed attempt; the last one repeats. Empty: at once.
    pub backoff: Vec<Duration>,
}

impl Default for RetryPolicy {
    /// 5 deliveries; 1 s, 5 s, then 30 s.
    fn default() -> Self {
        Self { max_deliver: 5, backoff: [1, 5, 30].map(Duration::from_secs).to_vec() }
    }
}

impl RetryPolicy {
    /// The delay after `attempt` (from 1) failed.
    pub fn delay_after(&self, attempt: u32) -> Duration {
        let at = (attempt.max(1) as usize - 1).min(self.backoff.len().saturating_sub(1));
        self.backoff.get(at).copied().unwrap_or(Duration::ZERO)
    }
}

/// Why a message became a dead letter, as the header `Trunkline-Dead-Reason` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeadReason {
    /// It was delivered `max_deliver` times and never succeeded.
    MaxDeliver,
    /// Its handler rejected it for good.
    Rejected,
    /// Its deadline passed before a handler could take it.
    Expired,
}

impl DeadReason {
    /// The text in the header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MaxDeliver => "max_deliver",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
        }
    }
}

impl std::fmt::Display for DeadReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the engine does with a delivery before a handler sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Give it to the handler.
    Handle,
    /// Write a dead letter, then terminate it; the handler never runs.
    DeadLetter(DeadReason),
}

/// Decides about a delivery that just came: `attempt` counts from 1, `expired` says that its deadline has passed.
pub fn admit(policy: &RetryPolicy, attempt: u32, expired: bool) -> Admission {
    if attempt > policy.max_deliver {
        Admission::DeadLetter(DeadReason::MaxDeliver)
    } else if expired {
        Admission::DeadLetter(DeadReason::Expired)
    } else {
        Admission::Handle
    }
}

/// How a handler ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It finished the work.
    Succeeded,
    /// It failed, or was cancelled or panicked; `retry_after` overrides the backoff.
    Failed {
        /// Delay that the handler asked for.
        retry_after: Option<Duration>,
    },
    /// It says the message will never succeed.
    Rejected,
}

/// What the engine does after the handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Acknowledge.
    Ack,
    /// Deliver again after the delay.
    Retry(Duration),
    /// Write a dead letter, then terminate.
    DeadLetter(DeadReason),
}

/// Decides what follows on a handler's ending of `attempt` (from 1).
pub fn settle(policy: &RetryPolicy, attempt: u32, ending: Ending) -> Settlement {
    match ending {
        Ending::Succeeded => Settlement::Ack,
        Ending::Rejected => Settlement::DeadLetter(DeadReason::Rejected),
        // The last attempt failed: nothing would be gained by waiting for a delivery that no handler may see.
        Ending::Failed { .. } if attempt >= policy.max_deliver => {
            Settlement::DeadLetter(DeadReason::MaxDeliver)
        }
        Ending::Failed { retry_after } => {
            Settlement::Retry(retry_after.unwrap_or_else(|| policy.delay_after(attempt)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn backoff_follows_the_list_and_repeats_its_last() {
        let policy = RetryPolicy::default();
        let delays: Vec<_> = (0..6).map(|attempt| policy.delay_after(attempt)).collect();
        assert_eq!(delays, [SEC(1), SEC(1), SEC(5), SEC(30), SEC(30), SEC(30)]);
        let none = RetryPolicy { max_deliver: 3, backoff: vec![] };
        assert_eq!(none.delay_after(2), Duration::ZERO);
    }

    #[test]
    fn a_delivery_past_the_limit_or_the_deadline_never_reaches_the_handler() {
        let policy = RetryPolicy { max_deliver: 2, backoff: vec![] };
        assert_eq!(admit(&policy, 2, false), Admission::Handle);
        assert_eq!(admit(&policy, 3, false), Admission::DeadLetter(DeadReason::MaxDeliver));
        assert_eq!(admit(&policy, 1, true), Admission::DeadLetter(DeadReason::Expired));
    }

    #[test]
    fn endings() {
        let policy = RetryPolicy { max_deliver: 2, backoff: vec![SEC(7)] };
        let failed = Ending::Failed { retry_after: None };
        assert_eq!(settle(&policy, 1, Ending::Succeeded), Settlement::Ack);
        assert_eq!(settle(&policy, 1, failed), Settlement::Retry(SEC(7)));
        assert_eq!(
            settle(&policy, 1, Ending::Failed { retry_after: Some(SEC(1)) }),
            Settlement::Retry(SEC(1))
        );
        assert_eq!(settle(&policy, 2, failed), Settlement::DeadLetter(DeadReason::MaxDeliver));
        assert_eq!(settle(&policy, 1, Ending::Rejected), Settlement::DeadLetter(DeadReason::Rejected));
    }
}
