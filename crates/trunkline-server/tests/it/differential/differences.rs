//! Where this server is meant to differ from nats-server: each difference with its reason, and shown on both servers, so that
//! the list stays true. Conversations that are drawn stay away from them, or what they lead to is made alike here. What is
//! not in the list, as it comes when it comes: this server publishes its own health on `{root}.system.health`, which these
//! servers are told not to; and nats-server tells whoever listens to everything of clients that it has refused
//! (`$SYS.ACCOUNT.CLIENT.AUTH.ERR`), while `$SYS` is silent here.

use std::net::SocketAddr;

use super::super::client::Raw;
use super::seen::{Item, Seen};
use super::world::{OPEN, PERMISSIONS, World};

/// Texts of errors that nats-server keeps to itself: it closes the connection without a word.
const TOLD: [&str; 2] = ["Parser Error", "message headers not supported"];

/// The nats-server to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// The newest one.
    Newest,
    /// 2.9, as Debian has it. It does not name the subject that nobody listens to, and sends INFO once.
    Debian,
}

/// What was seen, less the differences that are meant.
pub(crate) fn known(mut seen: Seen, version: Version) -> Seen {
    for items in &mut seen.clients {
        items.retain(|item| !item.is_of_the_system());
        if version == Version::Debian {
            items.retain(|item| *item != Item::Info);
            items.iter_mut().for_each(Item::forget_subject_of_nobody);
        }
        if let [.., Item::Error(text), Item::Closed] = &items[..]
            && TOLD.contains(&&text[..])
        {
            items.remove(items.len() - 2);
        }
    }
    seen
}

/// Stands for a token of 1100 letters.
const LONG: &str = "LONG";
/// Stands for 1600 spaces.
const WIDE: &str = "WIDE";

/// A difference that is meant.
struct Difference {
    name: &'static str,
    reason: &'static str,
    world: &'static World,
    /// Further fields of CONNECT.
    fields: &'static str,
    /// What the client sends.
    input: &'static [u8],
    /// What nats-server answers: up to the PONG, or to the end of the connection.
    theirs: &'static str,
    ours: &'static str,
}

impl Difference {
    /// In a world where everybody may do everything, by a client without wishes.
    const PLAIN: Self = Self {
        name: "",
        reason: "",
        world: &OPEN,
        fields: "",
        input: b"",
        theirs: "PONG\r\n",
        ours: "PONG\r\n",
    };
}

const TOLD_REASON: &str =
    "who writes a client learns what is wrong with it; the connection ends all the same";
const NO_SUBJECT_REASON: &str = "what is published reaches components, logs and other backends, where a subject is printable \
                                 text of bounded length";
const BOUND_REASON: &str =
    "a line is kept until it is whole, and what is kept is bounded; no client writes such lines";
const NUMBER_REASON: &str = "what is not understood is not guessed at";

const DIFFERENCES: &[Difference] = &[
    Difference {
        name: "malformed arguments are answered",
        reason: TOLD_REASON,
        input: b"PUB a -1\r\n",
        theirs: "",
        ours: "-ERR 'Parser Error'\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "a CONNECT that is not understood is answered",
        reason: TOLD_REASON,
        input: b"CONNECT {\"verbose\":1}\r\n",
        theirs: "",
        ours: "-ERR 'Parser Error'\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "headers that were not asked for are answered",
        reason: TOLD_REASON,
        input: b"HPUB a 12 12\r\nNATS/1.0\r\n\r\n\r\n",
        theirs: "",
        ours: "-ERR 'message headers not supported'\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "of two mistakes in one line, the size is told",
        reason: "the size is refused before anybody asks whether headers were wanted",
        input: b"HPUB a 12 2000\r\n",
        theirs: "",
        ours: "-ERR 'Maximum Payload Violation'\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "of two mistakes in one message, where it ends is told",
        reason: "where the next operation begins is found out before anybody asks whether headers were wanted",
        input: b"HPUB a 12 14\r\nNATS/1.0\r\n\r\nm\r\n",
        theirs: "",
        ours: "-ERR 'Unknown Protocol Operation'\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "what is behind PING is bounded as what is behind everything",
        reason: BOUND_REASON,
        input: b"PING LONG LONG\r\n",
        ours: "-ERR 'maximum control line exceeded'\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "white space in front of arguments is counted with them",
        reason: BOUND_REASON,
        input: b"UNSUB WIDE 1\r\nPING\r\n",
        ours: "-ERR 'maximum control line exceeded'\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "in CONNECT, what servers say of themselves to servers is not looked at",
        reason: "no server connects to this one, so these fields are like others that nobody knows",
        input: b"CONNECT {\"verbose\":false,\"import\":7,\"remote_account\":1}\r\nPING\r\n",
        theirs: "",
        ..Difference::PLAIN
    },
    Difference {
        name: "a pedantic client's message to no subject goes nowhere",
        reason: "it was just told that the subject is invalid; nats-server delivers it to wildcards all the same",
        fields: "\"pedantic\":true",
        input: b"SUB a.> 1\r\nPUB a.* 1\r\nx\r\nPING\r\n",
        theirs: "-ERR 'Invalid Publish Subject'\r\nMSG a.* 1 1\r\nx\r\nPONG\r\n",
        ours: "-ERR 'Invalid Publish Subject'\r\nPONG\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "control characters are in no subject",
        reason: NO_SUBJECT_REASON,
        input: b"SUB a\x01b 1\r\nPUB a\x01b 1\r\nx\r\nPING\r\n",
        theirs: "MSG a\u{1}b 1 1\r\nx\r\nPONG\r\n",
        ours: "-ERR 'Invalid Subject'\r\nPONG\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "white space of any kind is in no subject",
        reason: NO_SUBJECT_REASON,
        input: b"SUB a\xc2\xa0b 1\r\nPUB a\xc2\xa0b 1\r\nx\r\nPING\r\n",
        theirs: "MSG a\u{a0}b 1 1\r\nx\r\nPONG\r\n",
        ours: "-ERR 'Invalid Subject'\r\nPONG\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "what is not UTF-8 is in no subject",
        reason: NO_SUBJECT_REASON,
        input: b"SUB a\xff 1\r\nPUB a\xff 1\r\nx\r\nPING\r\n",
        theirs: "MSG a\u{fffd} 1 1\r\nx\r\nPONG\r\n",
        ours: "-ERR 'Invalid Subject'\r\nPONG\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "what is not UTF-8 is no queue group",
        reason: NO_SUBJECT_REASON,
        input: b"SUB a \xff 1\r\nPUB a 1\r\nx\r\nPING\r\n",
        theirs: "MSG a 1 1\r\nx\r\nPONG\r\n",
        ours: "-ERR 'Invalid Subject'\r\nPONG\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "subjects are at most 1024 bytes",
        reason: NO_SUBJECT_REASON,
        input: b"SUB LONG 1\r\nPUB LONG 1\r\nx\r\nPING\r\n",
        theirs: "MSG LONG 1 1\r\nx\r\nPONG\r\n",
        ours: "-ERR 'Invalid Subject'\r\nPONG\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "a limit that is no number is an error and not \"now\"",
        reason: NUMBER_REASON,
        input: b"SUB a 1\r\nUNSUB 1 x\r\nPUB a 1\r\nx\r\nPING\r\n",
        ours: "-ERR 'Parser Error'\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "a limit of more than nine digits is read and not \"now\"",
        reason: NUMBER_REASON,
        input: b"SUB a 1\r\nUNSUB 1 9999999999\r\nPUB a 1\r\nx\r\nPING\r\n",
        ours: "MSG a 1 1\r\nx\r\nPONG\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "a size of more than nine digits is read",
        reason: NUMBER_REASON,
        input: b"SUB a 1\r\nPUB a 0000000001\r\nx\r\nPING\r\n",
        theirs: "",
        ours: "MSG a 1 1\r\nx\r\nPONG\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "a size is written as servers write it",
        reason: "what a publisher wrote needlessly is not passed on",
        input: b"SUB a 1\r\nPUB a 01\r\nx\r\nPING\r\n",
        theirs: "MSG a 1 01\r\nx\r\nPONG\r\n",
        ours: "MSG a 1 1\r\nx\r\nPONG\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "INFO of a client is not looked at",
        reason: "nothing comes of it on either server; nats-server closes where it is no object, or where a field is not as its own",
        input: b"INFO []\r\nINFO {\"port\":\"x\"}\r\nPING\r\n",
        theirs: "",
        ..Difference::PLAIN
    },
    Difference {
        name: "a size of more than nine digits is called too large",
        reason: TOLD_REASON,
        input: b"PUB a 1000000000\r\n",
        theirs: "",
        ours: "-ERR 'Maximum Payload Violation'\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "a carriage return inside a line is an error",
        reason: "it would reach others as part of a line; nats-server cuts the byte before the line end off instead",
        input: b"SUB a\rb 1\r\nPING\r\n",
        ours: "-ERR 'Parser Error'\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "another CONNECT ends no subscription",
        reason: "it says what is to change; nats-server forgets what the client listens to, and does not say so",
        input: b"SUB a 1\r\nCONNECT {\"verbose\":false}\r\nPUB a 1\r\nx\r\nPING\r\n",
        ours: "MSG a 1 1\r\nx\r\nPONG\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "dead letters come from the bus alone",
        reason: "who could write them could make operators redrive anything; nats-server has none",
        input: b"PUB nachos.dead.a.b 0\r\n\r\nPING\r\n",
        ours: "-ERR 'Permissions Violation for Publish to \"nachos.dead.a.b\"'\r\nPONG\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "subjects of gateways and of services across accounts are like others",
        reason: "there are neither here",
        input: b"PUB _GR_.a 0\r\n\r\nPUB a _R_.b 0\r\n\r\nPING\r\n",
        theirs: "-ERR 'Permissions Violation for Publish to \"_GR_.a\"'\r\n\
                 -ERR 'Permissions Violation for Publish with Reply of \"_R_.b\"'\r\nPONG\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "the queue group of the system is like others",
        reason: "there is no system account here that has members in it",
        input: b"SUB a _sys_ 1\r\nPING\r\n",
        theirs: "-ERR 'Permissions Violation for Subscription to \"a\" using queue \"_sys_\"'\r\nPONG\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "UNSUB takes a number of any size",
        reason: "nats-server reads nine digits, and ends the subscription at once where there are more",
        input: b"SUB a 1\r\nUNSUB 1 1000000000\r\nPUB a 1\r\nx\r\nPING\r\n",
        theirs: "PONG\r\n",
        ours: "MSG a 1 1\r\nx\r\nPONG\r\n",
        ..Difference::PLAIN
    },
    Difference {
        name: "a wildcard does not lead out of what is allowed",
        reason: "allowed is a.*, and a.> would bring a.b.c as well; nats-server takes its last token for one like others",
        world: &PERMISSIONS,
        fields: "\"user\":\"ann\",\"pass\":\"a\"",
        input: b"SUB a.> 1\r\nPING\r\n",
        ours: "-ERR 'Permissions Violation for Subscription to \"a.>\"'\r\nPONG\r\n",
        ..Difference::PLAIN
    },
];

/// Everything up to the PONG, or to the end of the connection.
async fn answer(address: SocketAddr, difference: &Difference) -> String {
    let mut raw = Raw::ready(address, difference.fields).await;
    let input = difference.input.to_vec();
    let input = match String::from_utf8(input) {
        Ok(text) => text.replace(LONG, &long()).replace(WIDE, &" ".repeat(1600)).into_bytes(),
        Err(error) => error.into_bytes(),
    };
    // A server that has seen enough may close while the rest is still being sent.
    let _ = raw.try_send(&input).await;
    raw.until_pong_or_closed().await.replace(&long(), LONG)
}

fn long() -> String {
    "l".repeat(1100)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn differences_are_as_they_are_written_down() {
    let mut wrong = Vec::new();
    for world in [&OPEN, &PERMISSIONS] {
        let pair = world.start(Version::Newest).await;
        for difference in DIFFERENCES.iter().filter(|difference| std::ptr::eq(difference.world, world)) {
            assert!(
                !difference.reason.is_empty() && difference.theirs != difference.ours,
                "{}",
                difference.name
            );
            let theirs = answer(pair.their_address(), difference).await;
            let ours = answer(pair.ours.nats_addr(), difference).await;
            if (&theirs[..], &ours[..]) != (difference.theirs, difference.ours) {
                let name = difference.name;
                wrong.push(format!("{name}:\n  nats-server: {theirs:?}\n  here:        {ours:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
