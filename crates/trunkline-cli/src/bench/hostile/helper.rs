//! The processes beside the measurement: the hostile client, and one that burns as much CPU and touches no server. Both run
//! where nobody else wants to: what is measured is what the server is made to do, and not how processors are taken away from it.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::error::BenchError;
use super::super::process;
use super::spawn_error;

/// A burner works and sleeps in turns of so long.
const PERIOD: Duration = Duration::from_millis(2);

/// How such a process is started, whatever of this is there first. In the idle class of Linux it makes room at once for whoever
/// wakes up; with the lowest priority beside others it may first use up its slice, which is milliseconds.
const BEHIND_OTHERS: [(&str, &[&str]); 2] = [("chrt", &["-i", "0"]), ("nice", &["-n", "19"])];

/// Such a process. It ends when this is dropped.
pub(super) struct Helper {
    child: Child,
    said: Option<BufReader<ChildStdout>>,
    since: Instant,
}

/// What one of them did.
pub(super) struct Did {
    pub(super) times: u64,
    /// Of one processor, in percent.
    pub(super) cpu_percent: u32,
}

impl Helper {
    /// Starts this program as `bench hostile` with these arguments, and waits until it has begun.
    pub(super) fn start(arguments: &[&str]) -> Result<Self, BenchError> {
        let failed = |source| spawn_error("the hostile client", source);
        let program = std::env::current_exe().map_err(failed)?;
        let spawn = |(behind, how): (&str, &[&str])| {
            Command::new(behind)
                .args(how)
                .arg(&program)
                .args(["bench", "hostile"])
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
        };
        let [idle, nice] = BEHIND_OTHERS;
        let child = match spawn(idle) {
            Err(error) if error.kind() == ErrorKind::NotFound => spawn(nice),
            child => child,
        };
        let mut helper = Self { child: child.map_err(failed)?, said: None, since: Instant::now() };
        // Its first line: what is measured from here on is measured with it.
        let said = helper.child.stdout.take().ok_or_else(|| failed(ErrorKind::BrokenPipe.into()))?;
        let mut said = BufReader::new(said);
        said.read_line(&mut String::new()).map_err(failed)?;
        helper.said = Some(said);
        helper.since = Instant::now();
        Ok(helper)
    }

    /// Ends it, and returns what it has done.
    pub(super) fn stop(mut self) -> Result<Did, BenchError> {
        let elapsed = self.since.elapsed();
        drop(self.child.stdin.take());
        let mut rest = String::new();
        let read = self.said.as_mut().map(|said| said.read_to_string(&mut rest)).transpose();
        read.map_err(|source| spawn_error("the hostile client", source))?;
        // A line for each time that it had to begin anew, and the numbers.
        let mut numbers = rest.lines().last().unwrap_or_default().split(' ').map(str::parse::<u64>);
        let mut number = || numbers.next().and_then(Result::ok).unwrap_or_default();
        let (times, cpu_us) = (number(), number());
        let percent = cpu_us as f64 / elapsed.as_micros().max(1) as f64 * 100.0;
        Ok(Did { times, cpu_percent: percent.round() as u32 })
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What such a process says first, and once more for each time that it had to begin anew.
pub(super) fn say_begun() {
    let _ = std::io::stdout().write_all(b"begun\n");
    let _ = std::io::stdout().flush();
}

/// What such a process says last.
pub(super) fn say_done(times: u64) -> Result<(), BenchError> {
    let cpu = process::own_cpu()?;
    writeln!(std::io::stdout(), "{times} {}", cpu.as_micros()).map_err(|source| BenchError::Print { source })
}

/// Has `over` set when stdin ends: with the process that has started this one, at the latest.
pub(super) fn watch_stdin(over: &AtomicBool) {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    over.store(true, Ordering::Relaxed);
}

/// Burns so much of one processor, or of several where it is more than 100 percent, until it is over.
pub(super) fn burn(percent: u32, over: &AtomicBool) {
    thread::scope(|scope| {
        for thread in 0..percent.div_ceil(100) {
            let share = (percent - thread * 100).min(100);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    while began.elapsed() < PERIOD * share / 100 {
                        std::hint::spin_loop();
                    }
                    // Nothing is waited for: it is the pace that is asked for.
                    thread::sleep(PERIOD.saturating_sub(began.elapsed()));
                }
            });
        }
    });
}
