//! Sizes, counts and durations as people write them on a command line, and as they like to read them.

use std::time::Duration;

/// Reads a size in bytes: `16`, `8K`, `8KB`, `8KiB`, `1M`. A unit is always a power of 1024.
///
/// # Errors
/// Text for clap when the number or the unit is not one.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let (number, unit) = split_unit(text)?;
    let factor: usize = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => {
            return Err(format!("`{unit}` is not a unit of size; known are B, KiB, MiB, GiB"));
        }
    };
    usize::try_from(number)
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| "the size is too large".to_owned())
}

/// Reads a number of messages: `5000`, `100k`, `2M`. A unit is a power of 1000.
///
/// # Errors
/// Text for clap when the number or the unit is not one.
pub(crate) fn parse_count(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text)?;
    let factor: u64 = match unit {
        "" => 1,
        "k" | "K" => 1_000,
        "m" | "M" => 1_000_000,
        _ => return Err(format!("`{unit}` is not a multiple; known are k and M")),
    };
    number.checked_mul(factor).ok_or_else(|| "the count is too large".to_owned())
}

/// Reads a duration: `500ms`, `2s`, `1m`, or bare seconds.
///
/// # Errors
/// Text for clap when the number or the unit is not one.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text)?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        _ => Err(format!("`{unit}` is not a unit of time; known are ms, s, m")),
    }
}

fn split_unit(text: &str) -> Result<(u64, &str), String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number = number.parse().map_err(|_| "expected a whole number, then a unit".to_owned())?;
    Ok((number, unit.trim()))
}

/// A size as short as it can be said exactly: `16 B`, `8 KiB`, `1500 B`.
pub(crate) fn size(bytes: usize) -> String {
    match bytes {
        0 => "0 B".to_owned(),
        b if b.is_multiple_of(1 << 20) => format!("{} MiB", b >> 20),
        b if b.is_multiple_of(1 << 10) => format!("{} KiB", b >> 10),
        b => format!("{b} B"),
    }
}

/// A rate with thousands apart: `1 234 567`.
pub(crate) fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in
            [("0", 0), ("16", 16), ("1k", 1024), ("8KiB", 8192), ("8 kb", 8192), ("2M", 2 << 20)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn counts_are_powers_of_1000() {
        assert_eq!(parse_count("100k"), Ok(100_000));
        assert_eq!(parse_count("2M"), Ok(2_000_000));
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_duration("1m"), Ok(Duration::from_secs(60)));
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "k", "-1", "1.5k", "3 parsecs", "99999999999999999999", "18446744073709551615k"] {
            assert!(parse_size(text).is_err(), "size {text}");
            assert!(parse_count(text).is_err(), "count {text}");
        }
        assert!(parse_duration("3 parsecs").is_err());
    }

    #[test]
    fn numbers_are_printed_for_people() {
        assert_eq!(grouped(1_234_567.4), "1 234 567");
        assert_eq!(grouped(999.0), "999");
        assert_eq!(grouped(0.0), "0");
        assert_eq!(size(8192), "8 KiB");
        assert_eq!(size(1500), "1500 B");
    }
}
