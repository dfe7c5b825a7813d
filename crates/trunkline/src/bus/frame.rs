//! The wire of reply streams: which headers make a frame, and what control messages say.
//!
//! A request that wants flow control carries `Trunkline-Window: N`, the chunks it can take. Every frame carries
//! `Trunkline-Frame` and `Trunkline-Seq`, counted from 0 over chunks and the end; the first one carries
//! `Trunkline-Control` too, the subject to which the requester sends `cancel` or `credit N`. Without a window, chunks are
//! sent as they come.

use trunkline_core::{Headers, Message, Subject};

const FRAME: &str = "Trunkline-Frame";
const SEQ: &str = "Trunkline-Seq";
const CONTROL: &str = "Trunkline-Control";
const WINDOW: &str = "Trunkline-Window";

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameKind {
    Chunk,
    End,
    Error,
}

/// What a requester says about its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    Cancel,
    Credit(u32),
}

/// The kind and number of a frame; `None` for a message that is none.
pub(crate) fn parse(message: &Message) -> Option<(FrameKind, Option<u64>)> {
    let kind = match message.headers.get(FRAME)? {
        "chunk" => FrameKind::Chunk,
        "end" => FrameKind::End,
        "error" => FrameKind::Error,
        _ => return None,
    };
    Some((kind, message.headers.get(SEQ).and_then(|seq| seq.parse().ok())))
}

pub(crate) fn is_frame(message: &Message) -> bool {
    parse(message).is_some()
}

/// Marks a message as a frame.
pub(crate) fn mark(headers: &mut Headers, kind: FrameKind, seq: u64, control: Option<&Subject>) {
    let kind = match kind {
        FrameKind::Chunk => "chunk",
        FrameKind::End => "end",
        FrameKind::Error => "error",
    };
    let seq = seq.to_string();
    let control = control.map(Subject::as_str);
    for (name, value) in [(FRAME, Some(kind)), (SEQ, Some(&*seq)), (CONTROL, control)] {
        if let Some(value) = value {
            headers.append(name, value).expect("a literal name and a value without line breaks");
        }
    }
}

/// Where the requester of this frame's stream is heard.
pub(crate) fn control_of(message: &Message) -> Option<Subject> {
    Subject::from_bytes(message.headers.get(CONTROL)?.as_bytes()).ok()
}

/// How many chunks the requester can take, when it wants to be asked.
pub(crate) fn window_of(headers: &Headers) -> Option<u32> {
    headers.get(WINDOW).and_then(|window| window.parse().ok()).filter(|window| *window > 0)
}

pub(crate) fn set_window(headers: &mut Headers, window: u32) {
    headers.set(WINDOW, window.to_string()).expect("a literal name and a number");
}

pub(crate) fn cancel(control: Subject) -> Message {
    Message::new(control, "cancel")
}

pub(crate) fn credit(control: Subject, chunks: u32) -> Message {
    Message::new(control, format!("credit {chunks}"))
}

/// What a control message says; `None` for anything else.
pub(crate) fn parse_control(body: &[u8]) -> Option<Control> {
    let text = std::str::from_utf8(body).ok()?.trim();
    match text.split_once(' ') {
        None if text == "cancel" => Some(Control::Cancel),
        Some(("credit", chunks)) => chunks.trim().parse().ok().map(Control::Credit),
        _ => None,
    }
}

/// Whether this is what the server answers to a request that nobody listens for.
pub(crate) fn is_no_responders(message: &Message) -> bool {
    message.payload.is_empty() && message.headers.get("Status") == Some("503")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_back() {
        for kind in [FrameKind::Chunk, FrameKind::End, FrameKind::Error] {
            let mut message = Message::new("r".parse().unwrap(), "x");
            assert_eq!(parse(&message), None);
            mark(&mut message.headers, kind, 7, Some(&"c.1".parse().unwrap()));
            assert_eq!(parse(&message), Some((kind, Some(7))));
            assert_eq!(control_of(&message).unwrap().as_str(), "c.1");
        }
        let mut strange = Message::new("r".parse().unwrap(), "x");
        strange.headers.append("trunkline-frame", "CHUNK").unwrap();
        assert!(!is_frame(&strange));
    }

    #[test]
    fn control_messages_read_back_and_nothing_else_does() {
        let subject: Subject = "c".parse().unwrap();
        assert_eq!(parse_control(&cancel(subject.clone()).payload), Some(Control::Cancel));
        assert_eq!(parse_control(&credit(subject, 32).payload), Some(Control::Credit(32)));
        for bad in [&b""[..], b"credit", b"credit x", b"credit -1", b"cancel now", b"\xff"] {
            assert_eq!(parse_control(bad), None, "{bad:?}");
        }
    }
}
