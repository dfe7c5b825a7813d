//! Header blocks, as they come from the wire and as components see them.

use trunkline_core::Headers;
use trunkline_protocol::{HeaderBlock, header_lines, strip_headers};

/// Lines never carry a line end out of the block, and what was decoded is the same when it is encoded and decoded again.
pub(crate) fn headers(data: &[u8]) {
    if let Ok(payload) = strip_headers(data) {
        assert!(data.ends_with(payload));
    }
    if let Ok(lines) = header_lines(data) {
        let (status, description) = (lines.status(), lines.description().unwrap_or_default());
        let mut out = Vec::new();
        let block = match status {
            Some(status) => HeaderBlock::with_status(&mut out, status, description).map(Some),
            None => Ok(Some(HeaderBlock::new(&mut out))),
        };
        if let Ok(Some(mut block)) = block {
            let mut written = Vec::new();
            for (name, value) in lines {
                assert!(!name.is_empty(), "a header without a name");
                assert!(
                    !name.iter().chain(value).any(|byte| b"\r\n".contains(byte)),
                    "a line end in a header"
                );
                if block.append(name, value).is_ok() {
                    written.push((name.to_vec(), value.to_vec()));
                }
            }
            let length = block.finish();
            assert_eq!(length, out.len());
            let again = header_lines(&out).expect("what was written is a block");
            assert_eq!(again.status(), status);
            let again: Vec<_> = again.map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
            assert_eq!(again, written);
        }
    }
    if let Ok(headers) = Headers::decode(data) {
        let mut block = Vec::new();
        headers.encode(&mut block);
        assert_eq!(Headers::decode(&block).as_ref(), Ok(&headers), "{:?}", block.escape_ascii().to_string());
        assert!(
            headers.iter().all(|(name, value)| !name.contains(['\r', '\n']) && !value.contains(['\r', '\n']))
        );
    }
}
