//! Whose turn it is on a thread that serves connections.
//!
//! Tasks run in the order in which they can: were a hundred clients to send a mebibyte each, whoever sends a line would wait for
//! all of them. So long turns are taken one at a time, and between two of them the thread looks at its sockets and serves
//! everybody whose turn is short. While somebody takes short turns, on any thread, a long one is about as long as the last of them
//! is ago, and the thread makes room for others on its processor: they may be the clients.
//!
//! Parts of large operations wait for more than that. Copying them keeps a processor busy as fast as somebody can send
//! them, and whoever sends a line waits for that processor, however short the turns are. Where others take short turns on any
//! thread, a thread pauses them as soon as they have had some of its time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::room::Room;

/// Parts of large operations have so much of a thread's time between two pauses: room for half a mebibyte and more.
const PARTS_TIME: Duration = Duration::from_micros(250);
/// For how long they are paused at least; timers are as exact as a millisecond.
const PAUSE: Duration = Duration::from_millis(1);
/// Fewer short turns since the last pause are no reason for the next.
const SHORTS_MIN: u64 = 8;
/// Behind a short turn another is expected for so long. Who asks and waits for the answer sends nothing in between, and is not to
/// find a mebibyte of somebody else's in front of the next question.
const COMPANY: Duration = Duration::from_millis(10);
/// Most that is read in a long turn while a short one is expected, or more where the last is so long ago that reading it takes no
/// longer: nobody's next question waits for longer than it took to come.
const SHARED_BYTES: usize = 64 << 10;
/// About what is dealt with in a microsecond.
const BYTES_A_MICRO: usize = 2 << 10;

/// The turns on one thread.
#[derive(Debug)]
pub(crate) struct Turns {
    /// Whose long turn it is.
    long: Semaphore,
    /// Who took the last long one.
    last: AtomicU64,
    /// The short turns on each thread, and which thread this is.
    shorts: Arc<[Shorts]>,
    thread: usize,
    began: Instant,
    company: Company,
    /// Whose part of a large operation is next. Taken before `long`.
    part: Semaphore,
    parts: Parts,
    /// Made for others on its processor.
    pub(crate) room: Room,
}

/// Counted by one thread alone, in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shorts(AtomicU64);

/// What long turns have seen of short ones. Written by one thread alone.
#[derive(Debug, Default)]
struct Company {
    /// The short turns on all threads.
    shorts: AtomicU64,
    /// When that changed last, since the thread began.
    micros: AtomicU64,
}

/// Parts of large operations since they were paused last. Written by one thread alone.
#[derive(Debug, Default)]
struct Parts {
    nanos: AtomicU64,
    /// The short turns on all threads until then.
    shorts: AtomicU64,
}

/// What a long turn is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Long {
    /// Many operations.
    Batch,
    /// A part of a large one.
    Part,
}

/// One of those that are taken one at a time, over when it is dropped.
#[derive(Debug)]
pub(crate) struct LongTurn<'a> {
    turns: &'a Turns,
    what: Long,
    began: Instant,
    /// Most that is to be read in it, in bytes.
    pub(crate) most: usize,
    _permits: (SemaphorePermit<'a>, Option<SemaphorePermit<'a>>),
}

impl Turns {
    /// Those of so many threads.
    pub(crate) fn of_threads(count: usize) -> impl Iterator<Item = Self> {
        let shorts: Arc<[Shorts]> = (0..count).map(|_| Shorts::default()).collect();
        (0..count).map(move |thread| Self {
            long: Semaphore::new(1),
            last: AtomicU64::new(0),
            shorts: shorts.clone(),
            thread,
            began: Instant::now(),
            company: Company::default(),
            part: Semaphore::new(1),
            parts: Parts::default(),
            room: Room::new(),
        })
    }

    /// Notes a short turn.
    #[inline]
    pub(crate) fn short(&self) {
        let Shorts(count) = &self.shorts[self.thread];
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// How many short turns there were, on all threads: who is served by another may wait for the processor of this one.
    fn shorts(&self) -> u64 {
        self.shorts.iter().map(|Shorts(count)| count.load(Ordering::Relaxed)).sum()
    }

    /// A long turn at once, for a client that nobody waits for: nobody else has had any turn since its last one, and nobody is
    /// expected to have a short one.
    pub(crate) fn another(&self, client: u64, what: Long) -> Option<LongTurn<'_>> {
        let is_next = self.last.load(Ordering::Relaxed) == client;
        if !is_next || self.company().is_some() || (what == Long::Part && self.parts.are_due()) {
            return None;
        }
        let part = match what {
            Long::Batch => None,
            Long::Part => Some(self.part.try_acquire().ok()?),
        };
        Some(self.begin(what, usize::MAX, self.long.try_acquire().ok()?, part))
    }

    /// Waits until a long turn may begin, which is over when what is returned is dropped. Cancel safe.
    pub(crate) async fn long(&self, client: u64, what: Long) -> LongTurn<'_> {
        let part = match what {
            Long::Batch => None,
            Long::Part => Some(self.part().await),
        };
        let turn = acquire(&self.long).await;
        // Until the thread has looked at its sockets.
        tokio::task::yield_now().await;
        self.last.store(client, Ordering::Relaxed);
        let company = self.company();
        if company.is_some() {
            // The clients of short turns may wait for this processor: a system's turn is milliseconds.
            self.room.make();
        }
        let most = match (company, what) {
            (None, _) => usize::MAX,
            (Some(_), Long::Part) => SHARED_BYTES,
            (Some(since), Long::Batch) => SHARED_BYTES.max(since.as_micros() as usize * BYTES_A_MICRO),
        };
        self.begin(what, most, turn, part)
    }

    /// How long ago somebody took a short turn, where another is expected.
    fn company(&self) -> Option<Duration> {
        let shorts = self.shorts();
        let since = self.company.since(shorts, self.began.elapsed());
        (shorts > 0 && since < COMPANY).then_some(since)
    }

    /// Waits until a part of a large operation may have a turn.
    async fn part(&self) -> SemaphorePermit<'_> {
        let part = acquire(&self.part).await;
        if self.parts.are_due() && self.parts.begin_anew(self.shorts()) >= SHORTS_MIN {
            tokio::time::sleep(PAUSE).await;
        }
        part
    }

    fn begin<'a>(
        &'a self,
        what: Long,
        most: usize,
        long: SemaphorePermit<'a>,
        part: Option<SemaphorePermit<'a>>,
    ) -> LongTurn<'a> {
        LongTurn { turns: self, what, began: Instant::now(), most, _permits: (long, part) }
    }
}

async fn acquire(one: &Semaphore) -> SemaphorePermit<'_> {
    one.acquire().await.expect("nobody closes it")
}

impl Company {
    /// How long ago the number of short turns changed, which is this by now.
    fn since(&self, shorts: u64, now: Duration) -> Duration {
        let micros = now.as_micros() as u64;
        if self.shorts.load(Ordering::Relaxed) != shorts {
            self.shorts.store(shorts, Ordering::Relaxed);
            self.micros.store(micros, Ordering::Relaxed);
        }
        Duration::from_micros(micros - self.micros.load(Ordering::Relaxed))
    }
}

impl Parts {
    /// They have had their time.
    fn are_due(&self) -> bool {
        self.nanos.load(Ordering::Relaxed) >= PARTS_TIME.as_nanos() as u64
    }

    fn add(&self, time: Duration) {
        let nanos = self.nanos.load(Ordering::Relaxed) + time.as_nanos() as u64;
        self.nanos.store(nanos, Ordering::Relaxed);
    }

    /// Has their time begin anew; returns how many short turns there were meanwhile.
    fn begin_anew(&self, shorts: u64) -> u64 {
        self.nanos.store(0, Ordering::Relaxed);
        shorts - self.shorts.swap(shorts, Ordering::Relaxed)
    }
}

impl Drop for LongTurn<'_> {
    fn drop(&mut self) {
        if self.what == Long::Part {
            self.turns.parts.add(self.began.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of one thread.
    fn turns() -> Arc<Turns> {
        Arc::new(Turns::of_threads(1).next().unwrap())
    }

    #[tokio::test]
    async fn long_turns_are_taken_one_at_a_time_and_others_run_between_them() {
        let turns = turns();
        let log = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let mut long = tokio::task::JoinSet::new();
        for n in 0..10 {
            let (turns, log) = (turns.clone(), log.clone());
            let what = if n % 2 == 0 { Long::Batch } else { Long::Part };
            long.spawn(async move {
                for _ in 0..3 {
                    let _turn = turns.long(n, what).await;
                    log.lock().push(Some(n));
                }
            });
        }
        let others = log.clone();
        let short = tokio::spawn(async move {
            loop {
                others.lock().push(None);
                tokio::task::yield_now().await;
            }
        });
        long.join_all().await;
        short.abort();
        let log = log.lock();
        // What could run before a turn began may run behind it.
        assert!(!log.windows(3).any(|three| three.iter().all(Option::is_some)), "{log:?}");
        // Each of its kind in its turn.
        for kind in 0..2 {
            let of_kind = |n: &u64| n % 2 == kind;
            let order: Vec<_> = log.iter().flatten().copied().filter(of_kind).take(10).collect();
            let expected: Vec<_> = (0..10).filter(of_kind).chain((0..10).filter(of_kind)).collect();
            assert_eq!(order, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_is_alone_takes_one_long_turn_after_another() {
        let threads: Vec<_> = Turns::of_threads(2).collect();
        let [turns, elsewhere] = &threads[..] else { unreachable!() };
        assert_eq!(turns.long(1, Long::Batch).await.most, usize::MAX);
        assert!(turns.another(1, Long::Batch).is_some());
        assert!(turns.another(2, Long::Batch).is_none(), "it was somebody else's turn");
        for thread in [turns, elsewhere] {
            thread.short();
            for (what, most) in [
                (Long::Batch, SHARED_BYTES),
                (Long::Batch, 4_999 * BYTES_A_MICRO),
                (Long::Part, SHARED_BYTES),
            ] {
                assert!(turns.another(1, Long::Batch).is_none(), "somebody has short ones");
                assert_eq!(turns.long(1, what).await.most, most);
                tokio::time::advance(COMPANY / 2 - Duration::from_micros(1)).await;
            }
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(turns.another(1, Long::Batch).is_some(), "nobody has any more");
        }
        assert_eq!(turns.long(2, Long::Batch).await.most, usize::MAX);
        assert!(turns.another(1, Long::Batch).is_none(), "somebody had a long one");
    }

    #[tokio::test(start_paused = true)]
    async fn parts_of_large_operations_pause_where_others_take_short_turns_on_any_thread() {
        let threads: Vec<_> = Turns::of_threads(2).collect();
        let [here, there] = &threads[..] else { unreachable!() };
        for (shorts, what, pauses) in [
            (SHORTS_MIN, Long::Part, true),
            (SHORTS_MIN, Long::Batch, false),
            (0, Long::Part, true), // those of the line before
            (SHORTS_MIN - 1, Long::Part, false),
        ] {
            here.parts.add(PARTS_TIME);
            (0..shorts).for_each(|_| there.short());
            here.company();
            tokio::time::advance(COMPANY).await;
            let began = Instant::now();
            assert_eq!(here.another(0, what).is_none(), what == Long::Part, "at once, {shorts} {what:?}");
            let turn = here.long(0, what).await;
            assert_eq!(began.elapsed() >= PAUSE, pauses, "{shorts} {what:?}");
            // Their time begins anew, which is theirs alone.
            assert_eq!(here.parts.are_due(), what == Long::Batch, "{shorts} {what:?}");
            drop(turn);
        }
    }

    #[tokio::test]
    async fn what_a_part_of_a_large_operation_takes_counts_and_what_a_batch_takes_does_not() {
        let turns = turns();
        for (what, counts) in [(Long::Batch, false), (Long::Part, true)] {
            let turn = turns.long(0, what).await;
            let began = Instant::now();
            while began.elapsed() < PARTS_TIME {
                std::hint::spin_loop();
            }
            drop(turn);
            assert_eq!(turns.parts.are_due(), counts, "{what:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn parts_of_large_operations_do_not_pause_before_they_have_had_their_time() {
        let turns = turns();
        let began = Instant::now();
        for _ in 0..100 {
            (0..SHORTS_MIN).for_each(|_| turns.short());
            turns.parts.nanos.store(PARTS_TIME.as_nanos() as u64 - 1, Ordering::Relaxed);
            drop(turns.long(0, Long::Part).await);
            turns.parts.begin_anew(0);
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
