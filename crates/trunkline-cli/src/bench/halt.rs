//! The one answer to "should this thread go on?": all loops of the load ask it at least every [`POLL`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::error::BenchError;

/// How long any blocking call of the load may take before it looks around.
pub(super) const POLL: Duration = Duration::from_millis(100);

/// How patient a phase of a run is, and the two reasons for which it ends early.
pub(super) struct Halt {
    interrupted: Arc<AtomicBool>,
    /// Set by the first thread that fails, so that the others do not wait for messages that will never come.
    failed: AtomicBool,
    /// How long nothing may move before the run counts as failed.
    pub(super) timeout: Duration,
}

impl Halt {
    /// A fresh one for a run; `interrupted` is shared with the signal handler.
    pub(super) fn new(interrupted: &Arc<AtomicBool>, timeout: Duration) -> Self {
        Self { interrupted: Arc::clone(interrupted), failed: AtomicBool::new(false), timeout }
    }

    /// Tells all threads of the run to stop.
    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// [`BenchError::Interrupted`] when the user or another thread has ended the run. Who fails first
    /// reports the reason; see [`first_error`].
    pub(super) fn check(&self) -> Result<(), BenchError> {
        if self.interrupted.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed) {
            return Err(BenchError::Interrupted);
        }
        Ok(())
    }

    /// Passes `result` on, and ends the run for everybody if it is an error.
    pub(super) fn watch<T>(&self, result: Result<T, BenchError>) -> Result<T, BenchError> {
        result.inspect_err(|_| self.fail())
    }
}

/// All results, or the most telling error: one that is a cause rather than the echo of another thread's.
///
/// # Errors
/// That error.
pub(super) fn first_error<T>(results: Vec<Result<T, BenchError>>) -> Result<Vec<T>, BenchError> {
    let mut values = Vec::with_capacity(results.len());
    let mut worst: Option<BenchError> = None;
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(error) => {
                let better = worst.as_ref().is_none_or(|worst| rank(&error) < rank(worst));
                worst = if better { Some(error) } else { worst };
            }
        }
    }
    worst.map_or(Ok(values), Err)
}

fn rank(error: &BenchError) -> u8 {
    match error {
        BenchError::Interrupted => 3,
        BenchError::Closed | BenchError::Socket { .. } => 2,
        BenchError::Lost { .. } | BenchError::Stalled { .. } => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_reported_and_not_its_echo() {
        let results: Vec<Result<(), _>> = vec![
            Err(BenchError::Interrupted),
            Ok(()),
            Err(BenchError::Closed),
            Err(BenchError::Refused { text: "'Slow Consumer'".to_owned() }),
            Err(BenchError::Interrupted),
        ];
        assert!(matches!(first_error(results), Err(BenchError::Refused { .. })));
        assert_eq!(first_error(vec![Ok(1), Ok(2)]).expect("no error"), [1, 2]);
    }

    #[test]
    fn one_failure_ends_the_run_for_all() {
        let halt = Halt::new(&Arc::default(), POLL);
        assert!(halt.check().is_ok());
        assert!(halt.watch::<()>(Err(BenchError::Closed)).is_err());
        assert!(matches!(halt.check(), Err(BenchError::Interrupted)));
    }
}
