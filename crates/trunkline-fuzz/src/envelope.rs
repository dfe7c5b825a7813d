//! Envelopes: what any component may send, in JSON.

use trunkline::Envelope;

/// What was read as an envelope is the same when it is written and read again.
pub(crate) fn envelope(data: &[u8]) {
    let Some(envelope) = Envelope::from_bytes(data) else { return };
    let bytes = envelope.to_bytes();
    let again = Envelope::from_bytes(&bytes);
    assert_eq!(again.as_ref(), Some(&envelope), "{:?}", bytes.escape_ascii().to_string());
    let _ = envelope.decode::<serde_json::Value>();
    let _ = envelope.decode::<Vec<u64>>();
}
