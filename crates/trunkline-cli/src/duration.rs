//! Durations as people write them in flags, and as they like to read them.

use std::time::Duration;

/// Longest duration a flag takes: a day.
const MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads `500ms`, `5s`, `2m`, `1h` or bare seconds; fractions are fine (`1.5s`). From 1 ms up to 24 h.
///
/// # Errors
/// Text for clap when the number or the unit is not one, or the range is left.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| "expected a duration such as 500ms, 5s or 2m".to_owned())?;
    let seconds = match unit.trim() {
        "ms" => number / 1000.0,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        unit => return Err(format!("`{unit}` is not a unit of time; known are ms, s, m, h")),
    };
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| (Duration::from_millis(1)..=MAX).contains(duration))
        .ok_or_else(|| "allowed are 1ms to 24h".to_owned())
}

/// A duration in the unit that suits it: `850 µs`, `12.4 ms`, `3.1 s`.
pub(crate) fn show(duration: Duration) -> String {
    let micros = duration.as_micros();
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_durations_in_several_ways() {
        for (text, millis) in
            [("500ms", 500), ("5s", 5_000), ("5", 5_000), ("1.5s", 1_500), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_what_is_allowed() {
        for (text, said) in [
            ("", "such as"),
            ("soon", "such as"),
            ("5x", "`x`"),
            ("0s", "1ms to 24h"),
            ("25h", "1ms to 24h"),
            ("1.2.3s", "such as"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(said), "{text:?}: {error}");
        }
    }

    #[test]
    fn durations_are_shown_in_the_unit_that_suits() {
        for (micros, shown) in [(850, "850 µs"), (12_400, "12.4 ms"), (3_100_000, "3.1 s")] {
            assert_eq!(show(Duration::from_micros(micros)), shown);
        }
    }
}
