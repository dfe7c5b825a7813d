//! What a server sends, appended to an output buffer.
//!
//! Writers reserve once and then only copy. Arguments are written as given: who calls them has
//! parsed them, so they hold no separator and no line end.

use crate::{PlainPub, ServerInfo};

/// More than the verb, the separators, two sizes of 20 digits and the line ends of one message take
/// together.
const FRAME_MAX: usize = 64;

/// Appends a message: `MSG`, or `HMSG` when there is a header block.
#[inline]
pub fn msg(
    out: &mut Vec<u8>,
    subject: &[u8],
    sid: &[u8],
    reply: Option<&[u8]>,
    header: Option<&[u8]>,
    payload: &[u8],
) {
    reserve(out, subject, sid, reply, header, payload.len());
    line(out, subject, sid, reply, header, payload.len());
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// Appends a message up to its payload of `payload_len` bytes, which the caller sends after it, and
/// CRLF behind.
#[inline]
pub fn msg_head(
    out: &mut Vec<u8>,
    subject: &[u8],
    sid: &[u8],
    reply: Option<&[u8]>,
    header: Option<&[u8]>,
    payload_len: usize,
) {
    reserve(out, subject, sid, reply, header, 0);
    line(out, subject, sid, reply, header, payload_len);
}

#[inline(always)]
fn reserve(
    out: &mut Vec<u8>,
    subject: &[u8],
    sid: &[u8],
    reply: Option<&[u8]>,
    header: Option<&[u8]>,
    payload_len: usize,
) {
    let optional = reply.map_or(0, <[u8]>::len) + header.map_or(0, <[u8]>::len);
    out.reserve(FRAME_MAX + subject.len() + sid.len() + optional + payload_len);
}

#[inline(always)]
fn line(
    out: &mut Vec<u8>,
    subject: &[u8],
    sid: &[u8],
    reply: Option<&[u8]>,
    header: Option<&[u8]>,
    payload_len: usize,
) {
    before_sid(out, subject, header);
    out.extend_from_slice(sid);
    after_sid(out, reply, header, payload_len);
}

/// `MSG subject `, the part of the line that every receiver gets alike.
#[inline(always)]
fn before_sid(out: &mut Vec<u8>, subject: &[u8], header: Option<&[u8]>) {
    out.extend_from_slice(if header.is_some() { b"HMSG " } else { b"MSG " });
    out.extend_from_slice(subject);
    out.push(b' ');
}

/// ` reply size` with its line end, and the header block: again the same for every receiver.
#[inline(always)]
fn after_sid(out: &mut Vec<u8>, reply: Option<&[u8]>, header: Option<&[u8]>, payload_len: usize) {
    out.push(b' ');
    if let Some(reply) = reply {
        out.extend_from_slice(reply);
        out.push(b' ');
    }
    let mut digits = itoa::Buffer::new();
    match header {
        None => {
            out.extend_from_slice(digits.format(payload_len).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        Some(header) => {
            out.extend_from_slice(digits.format(header.len()).as_bytes());
            out.push(b' ');
            out.extend_from_slice(digits.format(header.len() + payload_len).as_bytes());
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(header);
        }
    }
}

/// Appends a run of publishes on `subject` for one receiver: each what [`msg`] would append.
#[inline]
pub fn plain_msgs(out: &mut Vec<u8>, subject: &[u8], sid: &[u8], run: &[PlainPub<'_>]) {
    let Some((first, others)) = run.split_first() else { return };
    let start = out.len();
    let end = start + plain_sid_at(subject) + sid.len() + 1;
    out.reserve(run.iter().map(|one| end - start + one.tail.len()).sum());
    for part in [b"MSG ", subject, b" ", sid, b" ", first.tail] {
        out.extend_from_slice(part);
    }
    for one in others {
        out.extend_from_within(start..end);
        out.extend_from_slice(one.tail);
    }
}

/// Where the receiver's name begins in each message that [`plain_msgs`] writes.
#[inline]
pub fn plain_sid_at(subject: &[u8]) -> usize {
    b"MSG ".len() + subject.len() + 1
}

/// Appends the answer to a request that nobody receives: an empty message with status 503 to the
/// requester's subscription `sid`, which matches `reply_subject`. As from nats-server since 2.12 it
/// names the `subject` of the request.
pub fn no_responders(out: &mut Vec<u8>, reply_subject: &[u8], sid: &[u8], subject: &[u8]) {
    let header = [b"NATS/1.0 503\r\nNats-Subject: ", subject, b"\r\n\r\n"].concat();
    msg(out, reply_subject, sid, None, Some(&header), b"");
}

/// Appends `INFO`.
pub fn info(out: &mut Vec<u8>, info: &ServerInfo) {
    info.write(out);
}

/// Appends `+OK`.
#[inline]
pub fn ok(out: &mut Vec<u8>) {
    out.extend_from_slice(b"+OK\r\n");
}

/// Appends `PING`.
#[inline]
pub fn ping(out: &mut Vec<u8>) {
    out.extend_from_slice(b"PING\r\n");
}

/// Appends `PONG`.
#[inline]
pub fn pong(out: &mut Vec<u8>) {
    out.extend_from_slice(b"PONG\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way to write one message gives the same bytes.
    fn check(
        subject: &str,
        sid: &str,
        reply: Option<&str>,
        header: Option<&str>,
        payload: &str,
        expected: &str,
    ) {
        let (subject, sid, payload) = (subject.as_bytes(), sid.as_bytes(), payload.as_bytes());
        let (reply, header) = (reply.map(str::as_bytes), header.map(str::as_bytes));

        let mut out = b"before ".to_vec();
        msg(&mut out, subject, sid, reply, header, payload);
        assert_eq!(out, [b"before ", expected.as_bytes()].concat());

        let mut parts = Vec::new();
        msg_head(&mut parts, subject, sid, reply, header, payload.len());
        assert_eq!([&parts[..], payload, b"\r\n"].concat(), expected.as_bytes());

        if reply.is_none() && header.is_none() {
            let op = [b"PUB x ", payload.len().to_string().as_bytes(), b"\r\n", payload, b"\r\n"].concat();
            let one = PlainPub::new(&op, payload.len()).unwrap();
            let mut out = b"before ".to_vec();
            plain_msgs(&mut out, subject, sid, &[one; 3]);
            assert_eq!(out, [b"before ", expected.repeat(3).as_bytes()].concat());
            assert_eq!(out["before ".len() + plain_sid_at(subject)..][..sid.len()], *sid);
        }
    }

    #[test]
    fn messages_have_the_bytes_of_the_protocol_page() {
        check("FOO.BAR", "9", None, None, "Hello World", "MSG FOO.BAR 9 11\r\nHello World\r\n");
        check(
            "FOO.BAR",
            "9",
            Some("INBOX.34"),
            None,
            "Hello World",
            "MSG FOO.BAR 9 INBOX.34 11\r\nHello World\r\n",
        );
        check("a", "4711", None, None, "", "MSG a 4711 0\r\n\r\n");
        let header = "NATS/1.0\r\nFoodGroup: vegetable\r\n\r\n";
        check(
            "FOO.BAR",
            "9",
            None,
            Some(header),
            "Hello World",
            "HMSG FOO.BAR 9 34 45\r\nNATS/1.0\r\nFoodGroup: vegetable\r\n\r\nHello World\r\n",
        );
        check(
            "FOO.BAR",
            "9",
            Some("BAZ.69"),
            Some(header),
            "Hello World",
            "HMSG FOO.BAR 9 BAZ.69 34 45\r\nNATS/1.0\r\nFoodGroup: vegetable\r\n\r\nHello World\r\n",
        );
    }

    #[test]
    fn short_lines_are_snapshots() {
        fn check(write: impl Fn(&mut Vec<u8>), expected: &[u8]) {
            let mut out = Vec::new();
            write(&mut out);
            assert_eq!(out, expected);
        }
        check(ok, b"+OK\r\n");
        check(ping, b"PING\r\n");
        check(pong, b"PONG\r\n");
        check(
            |out| no_responders(out, b"_INBOX.abc.1", b"3", b"a.b"),
            b"HMSG _INBOX.abc.1 3 35 35\r\nNATS/1.0 503\r\nNats-Subject: a.b\r\n\r\n\r\n",
        );
    }
}
