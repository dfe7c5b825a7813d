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
/// Longest input of which everything that it begins with is tried.
const EVERY_BEGINNING_BYTES: usize = 2048;
/// How many of a longer one are.
const SOME_BEGINNINGS: usize = 48;
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
            // And whatever it begins with; of a long one, what some of its beginnings are.
            let step = if input.len() > EVERY_BEGINNING_BYTES { input.len() / SOME_BEGINNINGS } else { 1 };
            for end in (0..=input.len()).rev().step_by(step) {
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

/// Turns of three clients that publish a lot on few subjects, which others and themselves listen to in every way.
fn conversation(random: &mut fastrand::Rng) -> Vec<u8> {
    const SUBJECTS: [&str; 4] = ["a.b", "a.c", "_INBOX.x.1", "x"];
    const PATTERNS: [&str; 7] = ["a.b", "a.*", ">", "_INBOX.x.*", "*.b", "x", "a.c"];
    const SIDS: [&str; 5] = ["1", "2", "3", "10", "long"];
    let mut input = vec![0, random.u8(..)];
    for client in 0..3_u8 {
        let (echo, verbose) = (random.bool(), random.u8(..8) == 0);
        input.push(client);
        let connect = format!(
            "CONNECT {{\"echo\":{echo},\"verbose\":{verbose},\"headers\":true,\"no_responders\":true,\"pedantic\":false}}\r\n"
        );
        input.extend_from_slice(connect.as_bytes());
        input.push(0);
    }
    let one_of = |list: &[&'static str], random: &mut fastrand::Rng| list[random.usize(..list.len())];
    for _ in 0..random.usize(4..24) {
        input.push(random.u8(..3));
        for _ in 0..random.usize(1..4) {
            let sid = one_of(&SIDS, random);
            match random.u8(..10) {
                0..3 => {
                    let queue = one_of(&["", "", "", "q ", "v "], random);
                    let pattern = one_of(&PATTERNS, random);
                    input.extend_from_slice(format!("SUB {pattern} {queue}{sid}\r\n").as_bytes());
                }
                3..5 => {
                    let max = one_of(&["", " 1", " 3", " 20", " 60"], random);
                    input.extend_from_slice(format!("UNSUB {sid}{max}\r\n").as_bytes());
                }
                5 => input.extend_from_slice(b"PUB a.b r 2\r\nok\r\nPING\r\n"),
                _ => {
                    let subject = one_of(&SUBJECTS, random);
                    for n in 0..random.usize(1..40) {
                        let payload = n.to_string().repeat(random.usize(..3));
                        let message = format!("PUB {subject} {}\r\n{payload}\r\n", payload.len());
                        input.extend_from_slice(message.as_bytes());
                    }
                }
            }
        }
        input.push(0);
    }
    input
}

/// Publishes on one subject are acted on together where they come together, and nobody can tell.
#[test]
fn who_publishes_much_at_once_is_answered_and_heard_as_if_it_came_one_by_one() {
    for seed in seeds(1) {
        for round in 0..1000 {
            let input = conversation(&mut fastrand::Rng::with_seed(seed.wrapping_mul(1_000_003) + round));
            let outcome = catch_unwind(AssertUnwindSafe(|| trunkline_fuzz::run("session", &input)));
            assert!(outcome.is_ok(), "seed {seed}, round {round}: {}", input.escape_ascii());
        }
    }
}
