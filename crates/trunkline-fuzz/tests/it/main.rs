//! Every fuzz target without a fuzzer: over the inputs that are kept, and over inputs made of them at random.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use trunkline_fuzz::TARGETS;
use trunkline_testkit::seeds::seeds;

/// Bytes that mean something to one of the parsers.
const DICTIONARY: [&[u8]; 28] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b".",
    b"*",
    b">",
    b"PING",
    b"SUB ",
    b"PUB ",
    b"HPUB ",
    b"UNSUB ",
    b"CONNECT ",
    b"MSG ",
    b"HMSG ",
    b"-ERR ",
    b"NATS/1.0",
    b": ",
    b"{",
    b"}",
    b"[",
    b"\"",
    b"$",
    b"include ",
    b"99999999999999999999",
    b"\xff",
    b"0",
];
/// Inputs of each target that one seed stands for.
const INPUTS: usize = 60;

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target)
}

/// The inputs that are kept for a target, by their names.
fn kept(target: &str) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(directory(target)).unwrap_or_else(|error| panic!("seeds of {target}: {error}"));
    let mut inputs: Vec<_> = files
        .map(|file| {
            let file = file.expect("a readable directory");
            let content = fs::read(file.path()).expect("a readable file");
            (file.file_name().to_string_lossy().into_owned(), content)
        })
        .collect();
    inputs.sort();
    inputs
}

#[test]
fn what_is_kept_for_each_target_holds() {
    for (name, target) in TARGETS {
        let inputs = kept(name);
        assert!(!inputs.is_empty(), "{name} begins with nothing");
        for (file, input) in inputs {
            // And whatever it begins with.
            for end in (0..=input.len()).rev() {
                let outcome = catch_unwind(AssertUnwindSafe(|| target(&input[..end])));
                assert!(outcome.is_ok(), "{name}: the first {end} bytes of {file}");
            }
        }
    }
}

/// Another input, made of those that are kept: pieces of two, with a few bytes changed.
fn made_of(inputs: &[(String, Vec<u8>)], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut pick = || inputs[random.usize(..inputs.len())].1.clone();
    let (mut made, other) = (pick(), pick());
    if random.bool() {
        let (from, at) = (random.usize(..=other.len()), random.usize(..=made.len()));
        made.truncate(at);
        made.extend_from_slice(&other[from..]);
    }
    for _ in 0..random.usize(..6) {
        let at = random.usize(..=made.len());
        match random.usize(..5) {
            0 => made.insert(at, random.u8(..)),
            1 if at < made.len() => made[at] = random.u8(..),
            2 if at < made.len() => drop(made.drain(at..(at + random.usize(1..8)).min(made.len()))),
            3 => {
                let word = DICTIONARY[random.usize(..DICTIONARY.len())];
                made.splice(at..at, word.iter().copied());
            }
            _ => {
                let again = made[at..(at + random.usize(1..40)).min(made.len())].to_vec();
                made.splice(at..at, again);
            }
        }
    }
    made
}

#[test]
fn what_is_made_at_random_holds() {
    let kept: Vec<_> = TARGETS.iter().map(|(name, _)| kept(name)).collect();
    for seed in seeds(8) {
        let mut random = fastrand::Rng::with_seed(seed);
        for ((name, target), inputs) in TARGETS.iter().zip(&kept) {
            for _ in 0..INPUTS {
                let input = made_of(inputs, &mut random);
                let outcome = catch_unwind(AssertUnwindSafe(|| target(&input)));
                assert!(outcome.is_ok(), "seed {seed}, {name}: {}", input.escape_ascii());
            }
        }
    }
}

#[test]
fn every_target_has_a_binary_and_seeds() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/Cargo.toml");
    let manifest = fs::read_to_string(manifest).expect("the crate of the fuzz targets");
    for (name, _) in TARGETS {
        assert!(
            manifest.contains(&format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"")),
            "{name}"
        );
        assert!(directory(name).is_dir(), "{name}");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
}
