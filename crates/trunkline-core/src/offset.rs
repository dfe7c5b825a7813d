//! Positions in a stream.

use std::fmt;
use std::str::FromStr;

/// The position of a stored message in its stream: ordered, printable, and of one backend's form.
///
/// `in_memory` and JetStream count (`Sequence`, printed `n`, the first message is 1); Redis Streams number by
/// time (`Entry`, printed `ms-seq`). Offsets of the two forms do not mix: a backend refuses the other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StreamOffset {
    /// A running number, from 1.
    Sequence(u64),
    /// Milliseconds since the Unix epoch and a number within that millisecond.
    Entry(u64, u64),
}

impl StreamOffset {
    /// The running number, when this offset is one.
    pub fn sequence(self) -> Option<u64> {
        match self {
            Self::Sequence(n) => Some(n),
            Self::Entry(..) => None,
        }
    }
}

impl fmt::Display for StreamOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sequence(n) => write!(f, "{n}"),
            Self::Entry(ms, seq) => write!(f, "{ms}-{seq}"),
        }
    }
}

/// A text that is no stream offset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a stream offset, expected a number such as 42, or 1700000000000-0 on redis")]
pub struct OffsetError(pub String);

impl FromStr for StreamOffset {
    type Err = OffsetError;

    fn from_str(text: &str) -> Result<Self, OffsetError> {
        let error = || OffsetError(text.to_owned());
        // `u64::from_str` takes a leading '+', which no backend prints.
        let number = |digits: &str| match digits.bytes().all(|b| b.is_ascii_digit()) {
            true => digits.parse::<u64>().map_err(|_| error()),
            false => Err(error()),
        };
        match text.split_once('-') {
            None => Ok(Self::Sequence(number(text)?)),
            Some((ms, seq)) => Ok(Self::Entry(number(ms)?, number(seq)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_print_and_parse_back() {
        for text in ["1", "18446744073709551615", "0-0", "1700000000000-12"] {
            assert_eq!(text.parse::<StreamOffset>().unwrap().to_string(), text);
        }
        for bad in ["", "$", "x", "-1", "1-", "1-2-3", "+1", "18446744073709551616"] {
            assert!(bad.parse::<StreamOffset>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn offsets_are_ordered() {
        assert!(StreamOffset::Sequence(2) < StreamOffset::Sequence(10));
        assert!(StreamOffset::Entry(1, 9) < StreamOffset::Entry(2, 0));
    }
}
