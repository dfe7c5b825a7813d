//! Message headers and their NATS text form, which Redis entries carry too.
//!
//! The block is `NATS/1.0\r\n`, then `Name: value\r\n` lines, then an empty line, as in
//! <https://docs.nats.io/reference/reference-protocols/nats-protocol#hpub>.

use bytestring::ByteString;

/// First line of a header block.
const VERSION: &str = "NATS/1.0";

/// Why a header or a block of headers is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The name is empty or has a character that would break the block.
    #[error("header name {0:?} is empty or contains ':', white space or a control character")]
    Name(String),
    /// The value has a line break.
    #[error("value of header {name:?} contains a line break")]
    Value {
        /// Name of the header.
        name: String,
    },
    /// The block does not start with the version line.
    #[error("header block does not start with {VERSION}")]
    Version,
    /// A line of the block has no colon, or the block does not end with an empty line.
    #[error("header block is malformed")]
    Malformed,
}

/// Headers of a message: names and values in the order they were added, a name any number of times, case kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(ByteString, ByteString)>);

impl Headers {
    /// No headers; allocates nothing.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many name-value pairs there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds a header, keeping others of the same name.
    ///
    /// # Errors
    /// A name or value that could not be written as one header line.
    pub fn append(
        &mut self,
        name: impl Into<ByteString>,
        value: impl Into<ByteString>,
    ) -> Result<(), HeaderError> {
        let (name, value) = (name.into(), value.into());
        if name.is_empty() || name.chars().any(|c| c == ':' || c.is_whitespace() || c.is_control()) {
            return Err(HeaderError::Name(name.to_string()));
        }
        if value.contains(['\r', '\n']) {
            return Err(HeaderError::Value { name: name.to_string() });
        }
        self.0.push((name, value));
        Ok(())
    }

    /// Sets a header, replacing all others of the same name.
    ///
    /// # Errors
    /// As [`Headers::append`].
    pub fn set(
        &mut self,
        name: impl Into<ByteString>,
        value: impl Into<ByteString>,
    ) -> Result<(), HeaderError> {
        let name = name.into();
        self.remove(&name);
        self.append(name, value)
    }

    /// Removes all headers of this name, whatever their case.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(existing, _)| !existing.eq_ignore_ascii_case(name));
    }

    /// The first value of this name, whatever its case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    /// All values of this name, whatever its case, in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    /// All pairs in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Bytes of names and values together.
    pub fn size_bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len() + 4).sum()
    }

    /// Writes the block; the caller leaves it out when there are no headers.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(VERSION.len() + 4 + self.size_bytes());
        out.extend_from_slice(VERSION.as_bytes());
        out.extend_from_slice(b"\r\n");
        for (name, value) in &self.0 {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Reads a block. A status on the version line (`NATS/1.0 503 No Responders`) becomes the headers `Status`
    /// and `Description`, as client libraries show it. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// A block that does not follow the format.
    pub fn decode(block: &[u8]) -> Result<Self, HeaderError> {
        let text = String::from_utf8_lossy(block);
        let body = text.strip_suffix("\r\n\r\n").ok_or(HeaderError::Malformed)?;
        let mut lines = body.split("\r\n");
        let first = lines.next().ok_or(HeaderError::Version)?;
        let status = first.strip_prefix(VERSION).ok_or(HeaderError::Version)?.trim();
        let mut headers = Self::new();
        if !status.is_empty() {
            let (code, description) = status.split_once(' ').unwrap_or((status, ""));
            headers.append("Status", code.trim_end())?;
            if !description.is_empty() {
                headers.append("Description", description.trim())?;
            }
        }
        for line in lines {
            let (name, value) = line.split_once(':').ok_or(HeaderError::Malformed)?;
            headers.append(name.trim_end(), value.trim())?;
        }
        Ok(headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_round_trips_with_order_case_and_repeats() {
        let mut headers = Headers::new();
        for (name, value) in [("X-One", "1"), ("x-two", "a b"), ("X-One", "2"), ("Empty", "")] {
            headers.append(name, value).unwrap();
        }
        let mut block = Vec::new();
        headers.encode(&mut block);
        assert_eq!(block, b"NATS/1.0\r\nX-One: 1\r\nx-two: a b\r\nX-One: 2\r\nEmpty: \r\n\r\n");
        assert_eq!(Headers::decode(&block).unwrap(), headers);
        assert_eq!(headers.get_all("x-one").collect::<Vec<_>>(), ["1", "2"]);
    }

    #[test]
    fn status_line_becomes_headers() {
        let headers = Headers::decode(b"NATS/1.0 503\r\n\r\n").unwrap();
        assert_eq!(headers.get("Status"), Some("503"));
        let headers = Headers::decode(b"NATS/1.0 503\t No Responders\r\n\r\n").unwrap();
        assert_eq!(headers.get("Status"), Some("503"), "white space is no part of the code");
        let headers = Headers::decode(b"NATS/1.0 408 Request Timeout\r\nA: b\r\n\r\n").unwrap();
        assert_eq!(headers.get("Description"), Some("Request Timeout"));
    }

    #[test]
    fn what_would_break_the_block_is_refused() {
        let mut headers = Headers::new();
        for name in ["", "a b", "a:b", "a\r\n"] {
            assert!(matches!(headers.append(name, "v"), Err(HeaderError::Name(_))), "{name:?}");
        }
        assert!(matches!(headers.append("a", "x\r\nb: c"), Err(HeaderError::Value { .. })));
        for bad in
            [&b"HTTP/1.1\r\n\r\n"[..], b"NATS/1.0\r\n", b"NATS/1.0\r\nnocolon\r\n\r\n", b"", b"\r\n\r\n"]
        {
            assert!(Headers::decode(bad).is_err(), "{bad:?}");
        }
    }
}
