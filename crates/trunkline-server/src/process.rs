//! What this process uses: read from `/proc` when monitoring asks, never on a message's way.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use procfs::process::Process;
use procfs::{ProcError, WithCurrentSystemInfo};

/// Shortest time over which a share of CPU time means something: `/proc` counts in ticks of 10 ms.
const SAMPLE_MIN: Duration = Duration::from_secs(1);

/// What this process uses.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// CPU time since the process started.
    pub(crate) cpu: Duration,
    pub(crate) resident_bytes: u64,
}

impl Usage {
    /// Reads it; zero where the system does not tell.
    pub(crate) fn now() -> Self {
        Self::read().unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot read what this process uses");
            Self::default()
        })
    }

    fn read() -> Result<Self, ProcError> {
        let stat = Process::myself()?.stat()?;
        let ticks = (stat.utime + stat.stime) as f64;
        let cpu = Duration::from_secs_f64(ticks / procfs::ticks_per_second() as f64);
        Ok(Self { cpu, resident_bytes: stat.rss_bytes().get() })
    }
}

/// Memory of this process now; `None` where the system does not tell. Cheap enough to be asked many times a second.
pub(crate) fn resident_bytes() -> Option<u64> {
    let resident = Process::myself().and_then(|process| process.statm()).ok()?.resident;
    Some(resident * procfs::page_size())
}

/// The share of a CPU that this process takes, over the time between two readings.
#[derive(Debug)]
pub(crate) struct CpuShare {
    /// Guards the last reading; held for arithmetic only.
    last: Mutex<Reading>,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    cpu: Duration,
    percent: f64,
}

impl CpuShare {
    pub(crate) fn new() -> Self {
        let reading = Reading { at: Instant::now(), cpu: Usage::now().cpu, percent: 0.0 };
        Self { last: Mutex::new(reading) }
    }

    /// Percent of one CPU since the last reading that is at least a second old; 200 are two CPUs.
    pub(crate) fn percent(&self, cpu: Duration) -> f64 {
        let mut last = self.last.lock();
        let passed = last.at.elapsed();
        if passed >= SAMPLE_MIN {
            let percent = cpu.saturating_sub(last.cpu).as_secs_f64() / passed.as_secs_f64() * 100.0;
            *last = Reading { at: Instant::now(), cpu, percent: (percent * 10.0).round() / 10.0 };
        }
        last.percent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_time() {
        let usage = Usage::read().expect("/proc tells about its reader");
        assert!(usage.resident_bytes > 100 << 10, "{usage:?}");
        assert!(usage.cpu < Duration::from_secs(3600), "{usage:?}");
    }

    #[test]
    fn a_share_is_measured_over_a_second_at_least() {
        let share = CpuShare::new();
        let cpu = share.last.lock().cpu;
        assert_eq!(share.percent(cpu + Duration::from_secs(9)), 0.0, "too soon to say");
        share.last.lock().at = Instant::now() - Duration::from_secs(2);
        let percent = share.percent(cpu + Duration::from_secs(1));
        assert!((49.0..=50.0).contains(&percent), "{percent}");
    }
}
