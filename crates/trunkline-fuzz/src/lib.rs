//! What must hold for any bytes from outside: one function for each target of `fuzz/`, which takes the bytes and panics if
//! something does not hold.
//!
//! The functions know nothing of the fuzzer, so that ordinary tests run them, too: over the corpus that is kept in the
//! repository and over bytes drawn at random. A target that nobody builds would rot.

mod config_file;
mod connect;
mod envelope;
mod headers;
mod operations;
mod router;
mod session;
mod subjects;
mod web;

/// A target: takes any bytes, and panics if something does not hold.
pub type Target = fn(&[u8]);

/// All targets by the names that their corpora and binaries have.
pub const TARGETS: [(&str, Target); 10] = [
    ("client_ops", operations::client_ops),
    ("config_file", config_file::config_file),
    ("connect", connect::connect),
    ("envelope", envelope::envelope),
    ("headers", headers::headers),
    ("router", router::router),
    ("server_ops", operations::server_ops),
    ("session", session::session),
    ("subjects", subjects::subjects),
    ("websocket", web::websocket),
];

/// Runs the target of this name.
///
/// # Panics
/// When there is none, or something does not hold.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target of this name");
    target(data);
}

/// Cuts bytes into pieces as reads of a socket might: their lengths come from `seed`, the same each time.
fn pieces(data: &[u8], seed: u8) -> impl Iterator<Item = &[u8]> {
    let mut state = u32::from(seed).wrapping_mul(0x9e37_79b9) | 1;
    let mut rest = data;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        // Xorshift: any cuts will do, as long as they are not always the same.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let (piece, left) = rest.split_at(rest.len().min(1 + (state % 23) as usize));
        rest = left;
        Some(piece)
    })
}
