//! A task that whoever gives it work may run at once, on their own thread.
//!
//! Waking a task on another thread costs more than what it does for one message. Nothing else changes: the task is there
//! all the time, and whatever wakes it otherwise has it run as any other.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

/// Nobody runs the task outside of itself: to wake it is to wake it.
const AT_REST: u8 = 0;
/// Somebody is about to run it, or does.
const PUSHED: u8 = 1;
/// The same, and it was woken since they began: it is to run again.
const WOKEN: u8 = 2;

/// See the module's text.
pub(super) struct Pushed {
    /// What the task does; nothing once it has ended. Held while it runs; nothing of ours waits for a lock inside that is
    /// held around this one.
    work: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    /// Passed to the work, whoever runs it.
    bell: Arc<Bell>,
}

struct Bell {
    state: AtomicU8,
    /// The task's own waker. Held for one operation.
    task: Mutex<Option<Waker>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let noted = self.state.compare_exchange(PUSHED, WOKEN, Ordering::AcqRel, Ordering::Acquire);
        if noted == Err(AT_REST) {
            self.wake_task();
        }
    }
}

impl Bell {
    fn wake_task(&self) {
        let task = self.task.lock().clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// Drops the work with the task: a runtime that shuts down leaves nothing that could still be pushed.
struct Ending(Arc<Pushed>);

impl Drop for Ending {
    fn drop(&mut self) {
        let work = self.0.work.lock().take();
        drop(work);
    }
}

impl Pushed {
    pub(super) fn new(work: impl Future<Output = ()> + Send + 'static) -> Arc<Self> {
        let bell = Arc::new(Bell { state: AtomicU8::new(AT_REST), task: Mutex::new(None) });
        Arc::new(Self { work: Mutex::new(Some(Box::pin(work))), bell })
    }

    /// The task, to be spawned. It ends with the work, and the work with it.
    pub(super) fn task(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<> {
        let ending = Ending(self.clone());
        let waker = Waker::from(self.bell.clone());
        std::future::poll_fn(move |cx| {
            let pushed = &ending.0;
            {
                let mut task = pushed.bell.task.lock();
                if !task.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                    *task = Some(cx.waker().clone());
                }
            }
            // Whoever pushes it this moment is done in a moment.
            Self::run(&mut pushed.work.lock(), &waker)
        })
    }

    /// Does what gives it work, and runs it; where somebody else does, they or the task see to it.
    pub(super) fn push<T>(&self, give: impl FnOnce() -> T) -> T {
        let Some(mut work) = self.work.try_lock() else { return give() };
        let bell = &self.bell;
        bell.state.store(PUSHED, Ordering::Release);
        let given = give();
        // What woke it until now is what it is about to look at.
        bell.state.swap(PUSHED, Ordering::AcqRel);
        let ended = Self::run(&mut work, &Waker::from(bell.clone()));
        let woken = bell.state.swap(AT_REST, Ordering::AcqRel) == WOKEN;
        drop(work);
        if woken || ended.is_ready() {
            bell.wake_task();
        }
        given
    }

    fn run(work: &mut Option<Pin<Box<dyn Future<Output = ()> + Send>>>, waker: &Waker) -> Poll<()> {
        let Some(running) = work else { return Poll::Ready(()) };
        let ran = running.as_mut().poll(&mut Context::from_waker(waker));
        if ran.is_ready() {
            *work = None;
        }
        ran
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::*;

    /// Work that adds up what it is given, in the order of the channel.
    fn adding(total: &Arc<AtomicU64>) -> (mpsc::UnboundedSender<u64>, Arc<Pushed>) {
        let (give, mut given) = mpsc::unbounded_channel();
        let total = total.clone();
        let pushed = Pushed::new(async move {
            while let Some(number) = given.recv().await {
                total.fetch_add(number, Ordering::SeqCst);
            }
        });
        (give, pushed)
    }

    #[tokio::test]
    async fn what_is_given_is_done_before_push_returns() {
        let total = Arc::default();
        let (give, pushed) = adding(&total);
        let task = tokio::spawn(pushed.task());
        tokio::task::yield_now().await;
        pushed.push(|| give.send(3)).unwrap();
        assert_eq!(total.load(Ordering::SeqCst), 3);
        drop(give);
        tokio::time::timeout(Duration::from_secs(10), task).await.expect("it ends with its work").unwrap();
        pushed.push(|| ());
    }

    #[tokio::test]
    async fn work_ends_with_its_task() {
        let total = Arc::default();
        let (give, pushed) = adding(&total);
        let task = tokio::spawn(pushed.task());
        tokio::task::yield_now().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(give.is_closed(), "nothing is left that could run");
        pushed.push(|| ());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_is_forgotten_whoever_runs_it() {
        const EACH: u64 = 20_000;
        let total = Arc::default();
        let (give, pushed) = adding(&total);
        let task = tokio::spawn(pushed.task());
        let pushers: Vec<_> = (0..3)
            .map(|pusher| {
                let (give, pushed) = (give.clone(), pushed.clone());
                std::thread::spawn(move || {
                    for number in 0..EACH {
                        match (number + pusher) % 3 {
                            0 => give.send(1).unwrap(),
                            _ => pushed.push(|| give.send(1)).unwrap(),
                        }
                    }
                })
            })
            .collect();
        drop(give);
        // Were a waking lost, the last of them would never be done.
        tokio::time::timeout(Duration::from_secs(60), task).await.expect("all is done").unwrap();
        assert_eq!(total.load(Ordering::SeqCst), 3 * EACH);
        pushers.into_iter().for_each(|pusher| pusher.join().unwrap());
    }
}
