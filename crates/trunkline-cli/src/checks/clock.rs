//! The clock of a server against ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Finding, Verdict};

const CHECK: &str = "clock";

/// Beyond this messages seem to come from another time.
const WARN: Duration = Duration::from_secs(1);
/// Beyond this deadlines of requests and ages of messages mean nothing.
const FAIL: Duration = Duration::from_secs(30);

const FIX: &str = "have both machines keep time: chrony or systemd-timesyncd (`timedatectl`)";

/// How far the server's clock is ahead of ours (or behind, if negative), in milliseconds: it told `server_micros` of Unix
/// time at some moment between our two.
pub(crate) fn ahead_millis(before: SystemTime, after: SystemTime, server_micros: i64) -> i64 {
    let micros = |time: SystemTime| {
        i64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros()).unwrap_or(i64::MAX)
    };
    let (before, after) = (micros(before), micros(after));
    // Anywhere between our two moments the clocks agree as far as can be told.
    let ahead = match server_micros {
        server if server < before => server - before,
        server if server > after => server - after,
        _ => 0,
    };
    ahead / 1000
}

/// What to think of it.
pub(crate) fn judge(server: &str, ahead_millis: i64) -> Finding {
    let skew = Duration::from_millis(ahead_millis.unsigned_abs());
    let side = if ahead_millis < 0 { "behind" } else { "ahead of" };
    let text = format!("the clock of {server} is {:.1} s {side} ours", skew.as_secs_f64());
    match skew {
        skew if skew >= FAIL => Finding::bad(Verdict::Fail, CHECK, text, FIX),
        skew if skew >= WARN => Finding::bad(Verdict::Warn, CHECK, text, FIX),
        _ => Finding::ok(CHECK, format!("the clock of {server} agrees with ours")),
    }
}

/// The server does not tell its time: what was not seen is not called good.
pub(crate) fn unknown(server: &str, why: &str, fix: &'static str) -> Finding {
    Finding::warn(CHECK, format!("{server} does not tell its time: {why}"), fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_is_no_skew() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        for (server, expected) in [(100, 0), (105, 0), (110, 0), (99, -1000), (3710, 3_600_000)] {
            assert_eq!(ahead_millis(at(100), at(110), server * 1_000_000), expected, "{server}");
        }
    }

    #[test]
    fn seconds_are_warned_of_and_half_a_minute_fails() {
        for (millis, verdict) in [
            (0, Verdict::Ok),
            (-999, Verdict::Ok),
            (1_000, Verdict::Warn),
            (-29_000, Verdict::Warn),
            (30_000, Verdict::Fail),
            (-3_600_000, Verdict::Fail),
        ] {
            assert_eq!(judge("redis", millis).verdict, verdict, "{millis}");
        }
    }
}
