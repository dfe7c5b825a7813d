//! Headers between the bus, which knows names and values only, and clients, which know a status line too.

use trunkline::Headers;
use trunkline_core::HeaderError;
use trunkline_protocol::header_lines;

use crate::bridge::ORIGIN_HEADER;
use crate::client::Client;

const VERSION: &[u8] = b"NATS/1.0";
/// Marks a message that came with a status line: so many of its first headers, code and description, are of that line.
const STATUS_LINE_HEADER: &str = "Trunkline-Status-Line";
/// The status of the answer to a request that nobody answers.
const NO_RESPONDERS: &str = "503";

/// What a client gets of a message's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// Nothing: the message goes without a header block.
    Without,
    /// The block that was written.
    Block,
    /// The whole message is not for this client: it tells that nobody answers, and the client did not ask to be told.
    Withheld,
    /// It tells that nobody answers, in the block that was written; no limit of a subscription counts it.
    NobodyAnswers,
}

/// Writes the header block of a message into `out`, as `client` is to see it.
pub(crate) fn header_block(headers: &Headers, payload: &[u8], client: &Client, out: &mut Vec<u8>) -> Fit {
    if headers.is_empty() {
        return Fit::Without;
    }
    let nobody = payload.is_empty() && is_no_responders(headers);
    if nobody && !client.connect().is_some_and(|options| options.headers && options.no_responders) {
        return Fit::Withheld;
    }
    if !client.headers() {
        return Fit::Without;
    }
    let marked = || headers.get(STATUS_LINE_HEADER).and_then(|count| count.parse().ok());
    let of_status_line = if nobody { 1 } else { marked().unwrap_or(0) };
    out.extend_from_slice(VERSION);
    for (_, word) in headers.iter().take(of_status_line) {
        out.push(b' ');
        out.extend_from_slice(word.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    let mut is_empty = of_status_line == 0;
    for (name, value) in headers.iter().skip(of_status_line) {
        if name == ORIGIN_HEADER || name == STATUS_LINE_HEADER {
            continue;
        }
        is_empty = false;
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    match (nobody, is_empty) {
        (true, _) => Fit::NobodyAnswers,
        (false, false) => Fit::Block,
        // What there was is the server's own business.
        (false, true) => Fit::Without,
    }
}

/// Whether these are the headers of the answer that a backend gives when nobody answers.
fn is_no_responders(headers: &Headers) -> bool {
    headers.len() == 1 && headers.get("Status") == Some(NO_RESPONDERS)
}

/// Reads a client's block. A status line is marked, so that it reaches other clients as one.
///
/// # Errors
/// A block that is none.
pub(crate) fn read_block(block: &[u8]) -> Result<Headers, HeaderError> {
    let mut headers = Headers::decode(block)?;
    // Nobody says in the server's name whose a message is.
    headers.remove(ORIGIN_HEADER);
    headers.remove(STATUS_LINE_HEADER);
    if let Ok(lines) = header_lines(block)
        && lines.status().is_some()
    {
        headers.append(STATUS_LINE_HEADER, if lines.description().is_some() { "2" } else { "1" })?;
    }
    Ok(headers)
}
