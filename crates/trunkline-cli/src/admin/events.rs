//! Server-Sent Events, read out of the bytes of an answer as they come.
//!
//! The format is that of the HTML standard, section 9.2; of it what a server of ours sends, and nothing that could be
//! misread in what others might send.

/// Most bytes of one event.
const EVENT_BYTES_MAX: usize = 64 << 20;

/// Something that the server tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// What kind of event; empty for ordinary ones.
    pub(super) name: String,
    /// Its content, lines joined by line ends; empty of one that only has a number.
    pub(super) data: String,
    /// Its number.
    pub(super) id: Option<u64>,
}

/// One event is larger than is taken.
#[derive(Debug, thiserror::Error)]
#[error("an event is larger than {EVENT_BYTES_MAX} bytes")]
pub(super) struct TooLarge;

/// Cuts bytes into events.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// What has come of a line that is not whole yet.
    rest: Vec<u8>,
    /// What has come of an event that is not whole yet.
    event: Event,
    has_data: bool,
}

impl Events {
    /// Takes bytes in, and returns the events that are whole with them.
    ///
    /// # Errors
    /// An event is too large; the stream is of no use then.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLarge> {
        let mut events = Vec::new();
        let mut left = bytes;
        while let Some(end) = left.iter().position(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(&left[..end]);
            left = &left[end + 1..];
            let line = std::mem::take(&mut self.rest);
            events.extend(self.line(String::from_utf8_lossy(&line).trim_end_matches('\r')));
        }
        self.rest.extend_from_slice(left);
        match self.rest.len() + self.event.data.len() > EVENT_BYTES_MAX {
            true => Err(TooLarge),
            false => Ok(events),
        }
    }

    /// Takes a line; an empty one ends an event.
    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            let says_something = std::mem::take(&mut self.has_data) || event.id.is_some();
            return says_something.then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            // One that is no number is none of this server's.
            "id" => self.event.id = value.parse().ok(),
            // Comments, which have no name, only show that the server is there.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, data: &str, id: Option<u64>) -> Event {
        Event { name: name.to_owned(), data: data.to_owned(), id }
    }

    #[test]
    fn events_are_the_same_however_their_bytes_are_cut() {
        let text = ": hello\n\nid: 7\ndata: {\"a\":\"天\"}\n\nevent: missed\r\ndata: {\"missed\":3}\r\n\r\n:\n\ndata:x\ndata: y\n\nid: 9\n\ndata: unfinished\n";
        let expected = [
            event("", "{\"a\":\"天\"}", Some(7)),
            event("missed", "{\"missed\":3}", None),
            event("", "x\ny", None),
            event("", "", Some(9)),
        ];
        for size in [1, 2, 3, 7, text.len()] {
            let mut events = Events::default();
            let read: Vec<Event> =
                text.as_bytes().chunks(size).flat_map(|part| events.push(part).unwrap()).collect();
            assert_eq!(read, expected, "in parts of {size}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut events = Events::default();
        let part = vec![b'x'; 8 << 20];
        let refused = (0..9).any(|_| events.push(&part).is_err());
        assert!(refused);
    }
}
