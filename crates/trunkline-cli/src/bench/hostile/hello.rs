//! The first message of a TLS 1.3 handshake (RFC 8446, section 4.1.2), as bytes: whoever sends only that has the server agree
//! on a key and sign it, and pays nothing for it.

/// A ClientHello with `random` wherever the client chooses: its nonce, its session and its half of the key.
pub(super) fn client_hello(random: [u8; 32]) -> Vec<u8> {
    let extensions = [
        extension(0x002b, &[2, 0x03, 0x04]),    // supported_versions: TLS 1.3
        extension(0x000a, &[0, 2, 0x00, 0x1d]), // supported_groups: x25519
        extension(0x000d, &[0, 6, 0x04, 0x03, 0x08, 0x04, 0x08, 0x07]), // ECDSA, RSA, Ed25519
        extension(0x0033, &[&[0, 36, 0x00, 0x1d, 0, 32][..], &random].concat()), // key_share
    ]
    .concat();
    let body = [
        &[0x03, 0x03][..],
        &random,
        &[32],
        &random,
        &[0, 2, 0x13, 0x01], // TLS_AES_128_GCM_SHA256
        &[1, 0],             // no compression
        &sized(&extensions),
    ]
    .concat();
    let message = [&[1, 0][..], &sized(&body)].concat();
    [&[0x16, 0x03, 0x01][..], &sized(&message)].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &sized(content)].concat()
}

/// Behind its length in two bytes; everything here is far shorter than they can say.
fn sized(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u16).to_be_bytes()[..], content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_say_what_follows() {
        let hello = client_hello([7; 32]);
        let record = usize::from(u16::from_be_bytes([hello[3], hello[4]]));
        assert_eq!(record, hello.len() - 5);
        let message = u32::from_be_bytes([0, hello[6], hello[7], hello[8]]) as usize;
        assert_eq!((hello[5], message), (1, record - 4));
    }
}
