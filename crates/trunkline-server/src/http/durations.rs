//! Durations as nats-server writes them.

use std::time::Duration;

/// How long something has lasted, in whole seconds: `1d2h0m5s`.
pub(super) fn uptime(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let years = days / 365;
    let mut text = String::new();
    for (wanted, value, unit) in [
        (years > 0, years, 'y'),
        (days > 0, days % 365, 'd'),
        (hours > 0, hours % 24, 'h'),
        (minutes > 0, minutes % 60, 'm'),
        (true, seconds % 60, 's'),
    ] {
        if wanted {
            text.push_str(&value.to_string());
            text.push(unit);
        }
    }
    text
}

/// A round trip: `473µs`, `12ms`, `1.5s`.
pub(super) fn round_trip(duration: Duration) -> String {
    match duration {
        Duration::ZERO => "0s".to_owned(),
        d if d < Duration::from_millis(1) => format!("{}µs", d.as_micros()),
        d if d < Duration::from_secs(1) => format!("{}ms", d.as_millis()),
        d if d < Duration::from_secs(60) => format!("{}s", d.as_millis() as f64 / 1000.0),
        d => uptime(d),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes_leave_out_leading_zeroes() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m0s"),
            (3_661, "1h1m1s"),
            (86_400, "1d0h0m0s"),
            (366 * 86_400 + 1, "1y1d0h0m1s"),
        ] {
            assert_eq!(uptime(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn round_trips_have_one_unit_that_fits() {
        for (nanos, text) in [
            (0, "0s"),
            (473_900, "473µs"),
            (12_900_000, "12ms"),
            (1_500_000_000, "1.5s"),
            (61_000_000_000, "1m1s"),
        ] {
            assert_eq!(round_trip(Duration::from_nanos(nanos)), text);
        }
    }
}
