//! What a value without quotes is: a boolean, a number with or without a unit, or text.

use super::Value;

/// Units of sizes, in nats-server's reading of them: `k` is 1000, and all others are powers of 1024.
const UNITS: [(&str, i64); 20] = [
    ("k", 1000),
    ("kb", 1 << 10),
    ("ki", 1 << 10),
    ("kib", 1 << 10),
    ("m", 1_000_000),
    ("mb", 1 << 20),
    ("mi", 1 << 20),
    ("mib", 1 << 20),
    ("g", 1_000_000_000),
    ("gb", 1 << 30),
    ("gi", 1 << 30),
    ("gib", 1 << 30),
    ("t", 1_000_000_000_000),
    ("tb", 1 << 40),
    ("ti", 1 << 40),
    ("tib", 1 << 40),
    ("p", 1_000_000_000_000_000),
    ("pb", 1 << 50),
    ("pi", 1 << 50),
    ("pib", 1 << 50),
];

/// Reads a bare word.
///
/// # Errors
/// A number that is larger than any can be.
pub(super) fn read(word: &str) -> Result<Value, String> {
    let lower = word.to_ascii_lowercase();
    match lower.as_str() {
        "true" | "on" | "yes" => return Ok(Value::Bool(true)),
        "false" | "off" | "no" => return Ok(Value::Bool(false)),
        _ => {}
    }
    let digits = lower.strip_prefix('-').unwrap_or(&lower);
    let split = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let (whole, rest) = digits.split_at(split);
    if whole.is_empty() {
        return Ok(Value::Text(word.to_owned()));
    }
    let too_large = || format!("integer '{word}' is out of the range");
    let number = || -> Option<i64> {
        let number = whole.parse::<i64>().ok()?;
        Some(if lower.starts_with('-') { -number } else { number })
    };
    if rest.is_empty() {
        return number().map(Value::Integer).ok_or_else(too_large);
    }
    if let Some((_, factor)) = UNITS.iter().find(|(unit, _)| *unit == rest) {
        return number().and_then(|n| n.checked_mul(*factor)).map(Value::Integer).ok_or_else(too_large);
    }
    let fraction = rest.strip_prefix('.').filter(|part| !part.is_empty());
    if fraction.is_some_and(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
        && let Ok(number) = lower.parse()
    {
        return Ok(Value::Float(number));
    }
    // Durations, dates and addresses.
    Ok(Value::Text(word.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(word: &str, value: Value) {
        assert_eq!(read(word), Ok(value), "{word}");
    }

    #[test]
    fn a_bare_word_is_a_boolean_a_number_or_text() {
        check("yes", Value::Bool(true));
        check("OFF", Value::Bool(false));
        check("4222", Value::Integer(4222));
        check("-1", Value::Integer(-1));
        check("1k", Value::Integer(1000));
        check("128KB", Value::Integer(128 << 10));
        check("64MiB", Value::Integer(64 << 20));
        check("1.5", Value::Float(1.5));
        for text in ["2h", "127.0.0.1", "127.0.0.1:4222", "2026-11-22T10:00:00Z", "1.", "a", "-", "-x", "5s"]
        {
            check(text, Value::Text(text.to_owned()));
        }
    }

    #[test]
    fn a_number_that_does_not_fit_is_an_error() {
        assert!(read("99999999999999999999").is_err());
        assert!(read("9999999PB").is_err());
    }
}
