//! Three clients of one server: whatever they send, in whatever pieces, each is answered in the protocol and alike, what is
//! kept is bounded, and nothing is left of them when they go.

use std::sync::LazyLock;

use trunkline::config::Loader;
use trunkline_protocol::Progress;
use trunkline_protocol::client::{LIMITS, ServerOp, parse_server};
use trunkline_server::fuzzing::Sessions;
use trunkline_server::{AuthOptions, Limits};

use crate::pieces;

const CLIENTS: usize = 3;
const MAX_CONTROL_LINE: usize = 256;
/// Room for a few subscriptions.
const ROOM_BYTES: usize = 8 << 10;

/// Users with all that permissions can say.
static USERS: LazyLock<AuthOptions> = LazyLock::new(|| {
    let users = r#"{
        users: [
            {user: a, password: a},
            {user: b, password: b, permissions: {
                publish: {allow: ["a.*", "b.>"], deny: ["a.no", "b.*.no"]},
                subscribe: {allow: ["a.>", "q v.*", "_INBOX.>"], deny: ["a.no", "a.*.no", "a.b v"]}}},
            {user: c, password: c, permissions: {subscribe: ["a.>"], allow_responses: {max: 2, expires: 1h}}}],
        accounts: {other: {users: [{user: d, password: d}]}}}"#;
    let loaded = Loader::new().env([("TRUNKLINE_SERVER", users)]).working_dir("/nonexistent").load();
    let mut options = AuthOptions::from(&loaded.expect("valid users").config.server);
    options.failures_max = None;
    options
});

/// How much the clients may.
struct Bounds {
    /// Longest input that is looked at, so that what is staged for one client is never so much that it would be written.
    bytes: usize,
    max_payload: usize,
    max_subscriptions: usize,
}

/// Many subscriptions, and messages that are copied.
const SMALL: Bounds = Bounds { bytes: 4096, max_payload: 128, max_subscriptions: 16 };
/// Few, and messages that are written from where they were read.
const LARGE: Bounds = Bounds { bytes: 24 << 10, max_payload: 8 << 10, max_subscriptions: 2 };

impl Bounds {
    fn limits(&self) -> Limits {
        Limits {
            max_control_line: MAX_CONTROL_LINE,
            max_payload: self.max_payload,
            max_subscriptions: self.max_subscriptions,
            ..Limits::default()
        }
    }
}

/// What the clients are clients of.
#[derive(Clone, Copy)]
struct Served<'a> {
    auth: &'a AuthOptions,
    room: Option<usize>,
    bounds: &'a Bounds,
}

/// What a client was sent, INFO without its content: every server has its own.
fn shown(output: &[u8]) -> Vec<String> {
    let (mut operations, mut at) = (Vec::new(), 0);
    while at < output.len() {
        match parse_server(&output[at..], &LIMITS) {
            Ok(Progress::Op(op, taken)) => {
                operations.push(match op {
                    ServerOp::Info(_) => "INFO".to_owned(),
                    other => format!("{other:?}"),
                });
                at += taken;
            }
            other => panic!("{other:?} in {:?}", output[at..].escape_ascii().to_string()),
        }
    }
    operations
}

/// Everything that every client was sent, and whether it was sent away.
type Conversation = Vec<(Vec<String>, bool)>;

fn converse<'a, P: Iterator<Item = &'a [u8]>>(
    Served { auth, room, bounds }: Served<'_>,
    turns: &[(usize, &'a [u8])],
    cut: impl Fn(&'a [u8]) -> P,
) -> Conversation {
    let mut sessions = Sessions::new(auth, bounds.limits(), CLIENTS as u64, room).expect("valid users");
    for (client, bytes) in turns {
        for piece in cut(bytes) {
            sessions.feed(*client, piece);
        }
        let most = MAX_CONTROL_LINE + bounds.max_payload + 32;
        assert!(sessions.kept(*client) <= most, "kept more than an operation");
        let known: usize = (0..CLIENTS).map(|client| sessions.subscriptions(client)).sum();
        let known = known as u64;
        assert_eq!(sessions.routed(), known, "clients and routing tables disagree");
        assert!((0..CLIENTS).all(|client| sessions.subscriptions(client) <= bounds.max_subscriptions));
    }
    let seen =
        (0..CLIENTS).map(|client| (shown(sessions.output(client)), sessions.is_closed(client))).collect();
    sessions.leave();
    assert_eq!(sessions.routed(), 0, "somebody has gone and still listens");
    assert_eq!(sessions.end(), 0, "somebody has gone and is still charged for something");
    seen
}

/// The first byte says whether there are users, little memory, and large messages; the second how to cut. What follows are
/// turns, with a NUL between them; the first byte of each says whose it is.
pub(crate) fn session(data: &[u8]) {
    let [mode, seed, data @ ..] = data else { return };
    let bounds = if mode & 8 == 0 { &SMALL } else { &LARGE };
    let data = &data[..data.len().min(bounds.bytes)];
    let open = AuthOptions::default();
    let auth = if mode % 2 == 0 { &open } else { &*USERS };
    let room = (mode & 4 != 0).then_some(ROOM_BYTES);
    let server = Served { auth, room, bounds };
    let turns = data.split(|byte| *byte == 0).filter_map(|turn| turn.split_first());
    let turns: Vec<(usize, &[u8])> = turns.map(|(who, bytes)| (usize::from(*who) % CLIENTS, bytes)).collect();
    let whole = converse(server, &turns, std::iter::once);
    assert_eq!(converse(server, &turns, |bytes| bytes.chunks(1)), whole, "byte by byte");
    assert_eq!(converse(server, &turns, |bytes| pieces(bytes, *seed)), whole, "in pieces");
}
