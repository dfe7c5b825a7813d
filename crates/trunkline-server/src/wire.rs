//! Headers between the bus, which knows names and values only, and clients, which know a status line too.

use trunkline::Headers;
use trunkline_protocol::header_lines;

use crate::bridge::ORIGIN_HEADER;
use crate::client::Client;

const VERSION: &[u8] = b"NATS/1.0";
/// Marks a message that came with a status line: its first `Status` and `Description` were not headers of their own.
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
    let marked = headers.get(STATUS_LINE_HEADER).is_some();
    let nobody = !marked && payload.is_empty() && is_no_responders(headers);
    if nobody && !client.connect().is_some_and(|options| options.headers && options.no_responders) {
        return Fit::Withheld;
    }
    if !client.headers() {
        return Fit::Without;
    }
    out.extend_from_slice(VERSION);
    let (mut status, mut description) = (marked || nobody, marked || nobody);
    for word in [("Status", status), ("Description", description)] {
        if let (name, true) = word
            && let Some(value) = headers.get(name)
        {
            out.push(b' ');
            out.extend_from_slice(value.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
    let (lines, mut any) = (out.len(), status);
    for (name, value) in headers.iter() {
        // Of the status line; what follows under the same names is the publisher's own.
        let is_first = |name_of: &str, left: &mut bool| *left && name == name_of && std::mem::take(left);
        if is_first("Status", &mut status)
            || is_first("Description", &mut description)
            || name == ORIGIN_HEADER
            || name == STATUS_LINE_HEADER
        {
            continue;
        }
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    any |= out.len() > lines;
    out.extend_from_slice(b"\r\n");
    match (nobody, any) {
        (true, _) => Fit::NobodyAnswers,
        (false, true) => Fit::Block,
        // What there was is the server's own business.
        (false, false) => Fit::Without,
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
pub(crate) fn read_block(block: &[u8]) -> Result<Headers, trunkline_core::HeaderError> {
    let mut headers = Headers::decode(block)?;
    // What the names are of is forged by nobody.
    headers.remove(ORIGIN_HEADER);
    headers.remove(STATUS_LINE_HEADER);
    if header_lines(block).is_ok_and(|lines| lines.status().is_some()) {
        headers.append(STATUS_LINE_HEADER, "1")?;
    }
    Ok(headers)
}
