//! Making room for others on a processor, which costs more than it seems to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Behind a wait for the processor that was given up, so much of the time that it took is worked before the next.
const WORK_PER_WAIT: u32 = 4;
/// However long that wait was.
const WORK_MAX: Duration = Duration::from_millis(1);

/// Makes room on a processor for those who serve clients.
///
/// Where nobody else wants the processors that takes no time, or as long as somebody's turn. Where programs beside this one keep them
/// busy it takes milliseconds: were it made for each of a thousand clients that come or leave, they would keep others waiting
/// for seconds. So the longer it took, the longer nothing is given away.
#[derive(Debug)]
pub(crate) struct Room {
    start: Instant,
    /// From when on it may be made again, in nanoseconds since `start`. Written by one thread alone.
    from: AtomicU64,
}

impl Room {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), from: AtomicU64::new(0) }
    }

    /// Makes room if it is time to.
    pub(crate) fn make(&self) {
        self.make_by(|| self.start.elapsed(), std::thread::yield_now);
    }

    fn make_by(&self, now: impl Fn() -> Duration, give_way: impl FnOnce()) {
        let before = now();
        if before < Duration::from_nanos(self.from.load(Ordering::Relaxed)) {
            return;
        }
        give_way();
        let after = now();
        let from = after + ((after - before) / WORK_PER_WAIT).min(WORK_MAX);
        self.from.store(from.as_nanos() as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_room_takes_to_make_the_less_often_it_is_made() {
        // Of a hundred steps of 25 microseconds each.
        for (wait_micros, expected) in [(0, 100), (100, 100), (200, 50), (2_000, 5), (1_000_000, 3)] {
            let clock = std::cell::Cell::new(0);
            let (room, mut times) = (Room::new(), 0);
            for _ in 0..100 {
                let give_way = || {
                    times += 1;
                    clock.set(clock.get() + wait_micros);
                };
                room.make_by(|| Duration::from_micros(clock.get()), give_way);
                clock.set(clock.get() + 25);
            }
            assert_eq!(times, expected, "{wait_micros}");
        }
    }
}
