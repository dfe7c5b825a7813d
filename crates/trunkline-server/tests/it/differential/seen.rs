//! What a client saw, in a form in which two servers can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use trunkline_protocol::Progress;
use trunkline_protocol::client::{LIMITS, ServerOp, parse_server};

/// One thing that a client was sent.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Item {
    /// With the sid last, so that a message for several subscriptions of one client sorts by them alone.
    Message {
        subject: Vec<u8>,
        reply: Option<Vec<u8>>,
        header: Option<Vec<u8>>,
        payload: Vec<u8>,
        sid: Vec<u8>,
    },
    Ok,
    Pong,
    /// An INFO behind the first one: its content is each server's own.
    Info,
    Error(String),
    /// What is not the protocol.
    Garbage(Vec<u8>),
    /// The server closed the connection.
    Closed,
    /// Nothing came any more although something should have.
    Silence,
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |bytes: &[u8]| bytes[..bytes.len().min(40)].escape_ascii().to_string();
        match self {
            Self::Message { subject, reply, header, payload, sid } => {
                write!(f, "MSG {} sid {}", shown(subject), shown(sid))?;
                if let Some(reply) = reply {
                    write!(f, " reply {}", shown(reply))?;
                }
                if let Some(header) = header {
                    write!(f, " header {}", shown(header))?;
                }
                write!(f, " [{}] {}", payload.len(), shown(payload))
            }
            Self::Ok => f.write_str("+OK"),
            Self::Pong => f.write_str("PONG"),
            Self::Info => f.write_str("INFO"),
            Self::Error(text) => write!(f, "-ERR {text}"),
            Self::Garbage(bytes) => write!(f, "GARBAGE {}", shown(bytes)),
            Self::Closed => f.write_str("CLOSED"),
            Self::Silence => f.write_str("SILENCE"),
        }
    }
}

impl Item {
    /// `None` for what says nothing of the conversation: a server asks whether its client lives when it pleases.
    pub(crate) fn of(op: ServerOp<'_>) -> Option<Self> {
        Some(match op {
            ServerOp::Info(_) => Self::Info,
            ServerOp::Ping => return None,
            ServerOp::Pong => Self::Pong,
            ServerOp::Ok => Self::Ok,
            ServerOp::Err(text) => Self::Error(String::from_utf8_lossy(text).into_owned()),
            ServerOp::Msg { subject, sid, reply, header, payload } => Self::Message {
                subject: subject.to_vec(),
                sid: sid.to_vec(),
                reply: reply.map(<[u8]>::to_vec),
                header: header.map(<[u8]>::to_vec),
                payload: payload.to_vec(),
            },
        })
    }

    /// The message without the subscription it was for, if it is one.
    fn content(&self) -> Option<[&[u8]; 4]> {
        let Self::Message { subject, reply, header, payload, .. } = self else { return None };
        Some([subject, reply.as_deref().unwrap_or_default(), header.as_deref().unwrap_or_default(), payload])
    }

    /// Whether it is what a server publishes by itself.
    pub(crate) fn is_of_the_system(&self) -> bool {
        matches!(self, Self::Message { subject, .. } if subject.starts_with(b"$SYS."))
    }

    /// Leaves out which subject it is that nobody listens to.
    pub(crate) fn forget_subject_of_nobody(&mut self) {
        if let Self::Message { header: Some(header), .. } = self
            && header.starts_with(NOBODY_LISTENS)
        {
            *header = NOBODY_LISTENS.to_vec();
        }
    }

    /// Who sent it, if it is one of the messages that everybody sent at the same time.
    fn sender(&self) -> Option<u8> {
        let Self::Message { payload, .. } = self else { return None };
        match payload[..] {
            [b'p', sender, b'.', ..] => Some(sender),
            _ => None,
        }
    }

    /// The queue group that got it, if it is a message for a member of one.
    fn queue(&self) -> Option<&[u8]> {
        let Self::Message { sid, .. } = self else { return None };
        sid.strip_prefix(b"Q")?.split(|byte| *byte == b'-').next()
    }
}

/// Takes the whole operations at the start of `bytes` out of it.
pub(crate) fn take(bytes: &mut Vec<u8>, items: &mut Vec<Item>) {
    let mut done = 0;
    loop {
        match parse_server(&bytes[done..], &LIMITS) {
            Ok(Progress::Op(op, taken)) => {
                items.extend(Item::of(op));
                done += taken;
            }
            Ok(Progress::Incomplete { .. }) => break,
            Err(_) => {
                items.push(Item::Garbage(bytes[done..].to_vec()));
                done = bytes.len();
                break;
            }
        }
    }
    bytes.drain(..done);
}

/// How the answer begins that nobody listens, of the servers that name the subject and of those that do not.
const NOBODY_LISTENS: &[u8] = b"NATS/1.0 503\r\n";

/// All that can be compared of a conversation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// What each client saw, but for what it got as a member of a queue group and what everybody sent at the same time.
    pub(crate) clients: Vec<Vec<Item>>,
    /// Of what everybody sent at the same time, what each client got from each sender.
    at_once: Vec<BTreeMap<u8, Vec<Item>>>,
    /// How many times a queue group got a message, by the group and the message without its subscription.
    pub(crate) queues: BTreeMap<(String, Item), usize>,
}

impl Seen {
    /// Which member of a queue group got a message is drawn; and in which order a message goes to several subscriptions
    /// of one client is nowhere said.
    pub(crate) fn new(transcripts: Vec<Vec<Item>>) -> Self {
        let (mut clients, mut at_once, mut queues) = (Vec::new(), Vec::new(), BTreeMap::new());
        for items in transcripts {
            let (mut kept, mut from): (Vec<Item>, BTreeMap<u8, Vec<Item>>) = (Vec::new(), BTreeMap::new());
            for mut item in items {
                let queue = item.queue().map(|queue| String::from_utf8_lossy(queue).into_owned());
                let sender = item.sender();
                if let Item::Message { header, sid, .. } = &mut item {
                    // To which of several subscriptions to the reply subject it is said that nobody listens is nowhere said.
                    if queue.is_some()
                        || header.as_ref().is_some_and(|header| header.starts_with(NOBODY_LISTENS))
                    {
                        sid.clear();
                    }
                    // Whether a header is shown is the matter of the member that was drawn.
                    if queue.is_some() {
                        *header = None;
                    }
                }
                match (queue, sender) {
                    (Some(queue), _) => *queues.entry((queue, item)).or_default() += 1,
                    (None, Some(sender)) => from.entry(sender).or_default().push(item),
                    (None, None) => kept.push(item),
                }
            }
            for list in from.values_mut().chain([&mut kept]) {
                for same in list.chunk_by_mut(|a, b| a.content().is_some() && a.content() == b.content()) {
                    same.sort_unstable();
                }
            }
            clients.push(kept);
            at_once.push(from);
        }
        Self { clients, at_once, queues }
    }

    /// The first thing in which two conversations differ.
    pub(crate) fn difference(&self, theirs: &Self) -> Option<String> {
        for (n, (here, there)) in self.clients.iter().zip(&theirs.clients).enumerate() {
            if let Some(found) = first_difference(here, there) {
                return Some(format!("client {n}, {found}"));
            }
        }
        for (n, (here, there)) in self.at_once.iter().zip(&theirs.at_once).enumerate() {
            let senders: BTreeSet<&u8> = here.keys().chain(there.keys()).collect();
            for sender in senders {
                let of = |lists: &BTreeMap<u8, Vec<Item>>| lists.get(sender).cloned().unwrap_or_default();
                if let Some(found) = first_difference(&of(here), &of(there)) {
                    let sender = char::from(*sender);
                    return Some(format!("client {n}, of what client {sender} sent at once, {found}"));
                }
            }
        }
        let differing =
            |(key, count): &(&(String, Item), &usize), other: &Self| other.queues.get(*key) != Some(*count);
        let here = self.queues.iter().find(|entry| differing(entry, theirs));
        let there = theirs.queues.iter().find(|entry| differing(entry, self));
        match (here, there) {
            (None, None) => None,
            (here, there) => {
                Some(format!("queue groups:\n  nats-server: {there:?}\n  here:        {here:?}"))
            }
        }
    }
}

fn first_difference(here: &[Item], there: &[Item]) -> Option<String> {
    if here == there {
        return None;
    }
    let at = here.iter().zip(there).take_while(|(a, b)| a == b).count();
    let window = |items: &[Item]| format!("{:?}", &items[at.min(items.len())..items.len().min(at + 4)]);
    Some(format!(
        "after {at} equal items ({:?}):\n  nats-server: {}\n  here:        {}",
        &here[at.saturating_sub(3)..at],
        window(there),
        window(here)
    ))
}
