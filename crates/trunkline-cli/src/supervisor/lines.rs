//! What a component writes, cut into lines of bounded length.

/// Longest line that is shown in one piece; a longer one is shown in several.
pub(super) const LINE_BYTES_MAX: usize = 16 << 10;

/// Collects bytes until they are a line.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The beginning of a line, at most [`LINE_BYTES_MAX`].
    begun: Vec<u8>,
    /// The last byte was a carriage return: a line feed that follows it ends no line of its own.
    after_return: bool,
}

impl Lines {
    /// Takes more bytes, and gives every line that is complete, without its end. What is no UTF-8 is replaced. A carriage
    /// return ends a line too: progress bars would write over the name of their component.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' if self.after_return => self.after_return = false,
                b'\n' | b'\r' => {
                    self.after_return = byte == b'\r';
                    lines.push(self.take(self.begun.len()));
                }
                byte => {
                    self.after_return = false;
                    self.begun.push(byte);
                    if self.begun.len() >= LINE_BYTES_MAX {
                        let piece = self.take(whole_characters(&self.begun));
                        lines.push(piece);
                    }
                }
            }
        }
        lines
    }

    /// The last line, where it has no end.
    pub(super) fn finish(&mut self) -> Option<String> {
        (!self.begun.is_empty()).then(|| self.take(self.begun.len()))
    }

    fn take(&mut self, bytes: usize) -> String {
        let line = String::from_utf8_lossy(&self.begun[..bytes]).into_owned();
        self.begun.drain(..bytes);
        line
    }
}

/// How many of the bytes are characters that are complete; all of them where the end is no UTF-8 anyway.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(pieces: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut all: Vec<String> = pieces.iter().flat_map(|piece| lines.feed(piece)).collect();
        all.extend(lines.finish());
        all
    }

    #[test]
    fn lines_end_with_a_line_feed_a_return_or_the_end() {
        assert_eq!(all(&[b"one\ntwo\r\nthr", b"ee\r", b"\nfour"]), ["one", "two", "three", "four"]);
        assert_eq!(all(&[b"10%\r20%\r\n\n", b"x"]), ["10%", "20%", "", "x"]);
        assert!(all(&[b""]).is_empty());
    }

    #[test]
    fn garbage_is_shown_as_what_it_is() {
        assert_eq!(all(&[b"a\xff\xfeb\n"]), ["a\u{fffd}\u{fffd}b"]);
    }

    #[test]
    fn a_line_without_end_comes_in_pieces_and_nothing_is_lost() {
        let text = "é".repeat(LINE_BYTES_MAX);
        let shown = all(&[b"x", text.as_bytes()]);
        assert!(shown.len() > 2 && shown.iter().all(|piece| piece.len() <= LINE_BYTES_MAX));
        assert_eq!(shown.concat(), format!("x{text}"));
        let garbage = vec![0xff; 3 * LINE_BYTES_MAX];
        assert_eq!(all(&[&garbage]).concat().chars().count(), garbage.len());
    }

    #[test]
    fn what_is_kept_of_a_line_without_end_is_bounded() {
        let mut lines = Lines::default();
        for _ in 0..100 {
            lines.feed(&[b'x'; 1 << 16]);
            assert!(lines.begun.len() < LINE_BYTES_MAX);
        }
    }
}
