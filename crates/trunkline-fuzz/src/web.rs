//! The request for a WebSocket and its frames: whatever the pieces, the same comes out of them, and never more than there
//! was.

use trunkline_server::fuzzing::unframe;

use crate::pieces;

const MAX_PAYLOAD: usize = 4096;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// The first byte says whether a request goes before the rest, so that frames are reached at all, and how to cut.
pub(crate) fn websocket(data: &[u8]) {
    let [mode, data @ ..] = data else { return };
    let mut input = if mode % 2 == 1 { REQUEST.to_vec() } else { Vec::new() };
    input.extend_from_slice(data);
    let whole = unframe([&input[..]], MAX_PAYLOAD);
    assert!(whole.opened.len() <= input.len(), "more came out than went in");
    // A pong repeats its ping; what else is answered is short.
    assert!(whole.answers.len() <= 2 * input.len() + 1024, "{} bytes of answers", whole.answers.len());
    for (name, other) in [
        ("byte by byte", unframe(input.chunks(1), MAX_PAYLOAD)),
        ("in pieces", unframe(pieces(&input, *mode), MAX_PAYLOAD)),
    ] {
        assert_eq!(other.opened, whole.opened, "{name}");
        assert_eq!((other.is_over, other.is_open), (whole.is_over, whole.is_open), "{name}");
    }
}
