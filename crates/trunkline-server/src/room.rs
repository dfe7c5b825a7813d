//! Making room for others on a processor, which costs more than it seems to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Work that nobody waits for makes room for the others of its processor after so much time.
const ROOM_EVERY: Duration = Duration::from_micros(100);

/// Makes room on a processor for those who serve clients. That may take milliseconds where programs beside this one want the
/// processors, too: were it made for each of a thousand clients that come or leave, they would keep others waiting for seconds.
#[derive(Debug)]
pub(crate) struct Room {
    start: Instant,
    /// When room was last made, in microseconds. Written by one thread alone.
    made: AtomicU64,
}

impl Room {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), made: AtomicU64::new(0) }
    }

    /// Makes room if it is time to.
    pub(crate) fn make(&self) {
        self.make_by(|| self.start.elapsed(), std::thread::yield_now);
    }

    /// How long `give_way` takes is no time of the next turn.
    fn make_by(&self, now: impl Fn() -> Duration, give_way: impl FnOnce()) {
        let micros = || now().as_micros() as u64;
        if micros().saturating_sub(self.made.load(Ordering::Relaxed)) >= ROOM_EVERY.as_micros() as u64 {
            give_way();
            self.made.store(micros(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_once_in_a_while_however_long_that_takes() {
        let clock = std::cell::Cell::new(0);
        let (room, mut times) = (Room::new(), 0);
        for _ in 0..100 {
            clock.set(clock.get() + 25);
            let give_way = || {
                times += 1;
                clock.set(clock.get() + 2000);
            };
            room.make_by(|| Duration::from_micros(clock.get()), give_way);
        }
        assert_eq!(times, 25, "in 2500 microseconds of work");
    }
}
