//! Output of one read batch, gathered for each destination and written once.
//!
//! Small payloads are copied behind their line; large ones stay in the read buffer and are written from there.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hashbrown::HashMap;
use smallvec::SmallVec;
use trunkline::observe::Batch;
use trunkline_protocol::{PlainPub, encode};

use crate::client::Client;
use crate::memory::StagingBounds;
use crate::outbox::{HIGH_WATER_BYTES, Written};

/// Payloads from this size on are not copied.
pub(crate) const VECTORED_BYTES: usize = 4 << 10;
/// A target costs about as much as so many bytes, whether it gets something or not.
const LOOK_BYTES: usize = 64;
/// A byte of an answer that is made for who asks costs about as much as so many that are passed on.
const ANSWER_BYTES: usize = 32;
/// Most subscriptions that are made or ended in one turn: each takes a microsecond or two, and those who publish meanwhile
/// have to look again.
const SUBSCRIPTIONS_MAX: u32 = 64;
/// Whoever sends no more than this to a reader in one turn is not why the reader is behind, and is not paused for it: one
/// that listens to everything and reads nothing must not slow down everybody.
const INNOCENT_BYTES: usize = 16 << 10;
/// Up to so many destinations a scan finds the slot faster than a map.
const SCANNED_SLOTS: usize = 8;

/// One for each worker thread; empty between batches.
#[derive(Default)]
pub(crate) struct Staging {
    slots: Vec<Slot>,
    used: usize,
    /// The slot after the one used last: a subject's receivers come in the same order every time.
    hint: usize,
    index: HashMap<u64, usize, foldhash::fast::RandomState>,
    /// Work since the last flush, in bytes: what is to be written, and [`LOOK_BYTES`] for each target that was looked at.
    load: usize,
    /// Subscriptions that were made or ended since the last flush.
    subscriptions: u32,
    /// Most work of one turn: 16 MiB, or less where the process has little memory. It bounds what is staged for all
    /// destinations together, which with a fan-out to thousands would be thousands of times the batch, and the time that
    /// other connections of the worker thread wait, to some 10 ms.
    turn_bytes: usize,
    /// A destination with more than this is written before the batch is over.
    slot_bytes: usize,
    /// Slots whose buffer grew beyond this give it back.
    kept_bytes: usize,
    /// Destinations that do not keep up, found when writing.
    behind: Option<Arc<Client>>,
    /// The number of the run at hand; see [`Staging::begin_run`].
    run: u64,
    /// What the batch shows to who looks on.
    pub(crate) seen: Batch,
}

#[derive(Default)]
struct Slot {
    client: Option<Arc<Client>>,
    id: u64,
    /// The last run that met it.
    run: u64,
    lines: Vec<u8>,
    /// How often it was written.
    writes: u64,
    /// Where large payloads of the read buffer belong between the lines: `(end of the lines before, payload)`.
    payloads: Vec<(usize, std::ops::Range<usize>)>,
    payload_bytes: usize,
    messages: u64,
    message_bytes: u64,
}

/// A message on its way, as slices of the read buffer.
pub(crate) struct Outgoing<'a> {
    pub(crate) subject: &'a [u8],
    pub(crate) reply: Option<&'a [u8]>,
    pub(crate) header: Option<&'a [u8]>,
    pub(crate) payload: &'a [u8],
    /// Where the payload lies in the read buffer.
    pub(crate) at: usize,
}

/// Where a part of the read buffer lies in it.
#[inline]
pub(crate) fn place_of(part: &[u8], input: &[u8]) -> usize {
    part.as_ptr() as usize - input.as_ptr() as usize
}

/// A client that gets some messages of a run.
pub(crate) struct Receiver<'a> {
    slot: usize,
    sid: &'a [u8],
    /// Messages that it still gets.
    places: usize,
    /// Where the line of its first message stands up to the size, as long as the slot was written so often.
    head: std::ops::Range<usize>,
    writes: u64,
}

impl Receiver<'_> {
    /// Whether it gets another one.
    #[inline]
    pub(crate) fn takes(&self) -> bool {
        self.places > 0
    }
}

/// Where a run was staged, to be copied from for others.
pub(crate) struct Template<'a> {
    slot: usize,
    bytes: std::ops::Range<usize>,
    messages: usize,
    sid: &'a [u8],
}

impl Staging {
    /// Bytes to send to `client`, behind what is staged for it already.
    pub(crate) fn line(&mut self, client: &Arc<Client>) -> &mut Vec<u8> {
        let slot = self.slot_of(client);
        &mut self.slots[slot].lines
    }

    /// Counts targets of a message, whether they get it or not.
    #[inline]
    pub(crate) fn looked_at(&mut self, targets: usize) {
        self.load += targets * LOOK_BYTES;
    }

    /// Counts a subscription that was made or ended.
    #[inline]
    pub(crate) fn subscribed(&mut self) {
        self.subscriptions += 1;
    }

    /// Begins a turn.
    #[inline]
    pub(crate) fn begin(&mut self, bounds: StagingBounds) {
        let StagingBounds { turn_bytes, slot_bytes, kept_bytes, .. } = bounds;
        (self.turn_bytes, self.slot_bytes, self.kept_bytes) = (turn_bytes, slot_bytes, kept_bytes);
    }

    /// Whether it is time to write what is staged, and to let others have their turn.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.load > self.turn_bytes || self.subscriptions >= SUBSCRIPTIONS_MAX
    }

    /// Stages a message for a subscription `sid` of `client`. `input` is the read buffer.
    #[inline]
    pub(crate) fn message(&mut self, client: &Arc<Client>, sid: &[u8], m: &Outgoing<'_>, input: &[u8]) {
        let at = self.slot_of(client);
        let slot = &mut self.slots[at];
        // Clients that did not ask for headers get the message without them, as from nats-server.
        let header = m.header.filter(|_| client.headers());
        slot.messages += 1;
        let bytes = m.payload.len() + header.map_or(0, <[u8]>::len);
        slot.message_bytes += bytes as u64;
        self.load += bytes + m.subject.len();
        if m.payload.len() < VECTORED_BYTES {
            encode::msg(&mut slot.lines, m.subject, sid, m.reply, header, m.payload);
        } else {
            encode::msg_head(&mut slot.lines, m.subject, sid, m.reply, header, m.payload.len());
            slot.payloads.push((slot.lines.len(), m.at..m.at + m.payload.len()));
            slot.payload_bytes += m.payload.len();
            slot.lines.extend_from_slice(b"\r\n");
        }
        if slot.lines.len() + slot.payload_bytes > self.slot_bytes {
            self.write_slot(at, input);
        }
    }

    /// Stages what the server itself has to say on a subscription `sid` of `client`.
    pub(crate) fn answer(&mut self, client: &Arc<Client>, sid: &[u8], subject: &[u8], payload: &[u8]) {
        let at = self.slot_of(client);
        let slot = &mut self.slots[at];
        slot.messages += 1;
        slot.message_bytes += payload.len() as u64;
        self.load += ANSWER_BYTES * payload.len() + subject.len();
        encode::msg(&mut slot.lines, subject, sid, None, None, payload);
    }

    /// Begins to look at the receivers of a run of messages.
    #[inline]
    pub(crate) fn begin_run(&mut self) {
        self.run += 1;
    }

    /// Whether the run at hand meets `client` for the first time.
    #[inline]
    pub(crate) fn is_new_in_run(&mut self, client: &Arc<Client>) -> bool {
        let slot = self.slot_of(client);
        std::mem::replace(&mut self.slots[slot].run, self.run) != self.run
    }

    /// Stages messages on `subject` for a client and its subscription. `input` is the read buffer. What another client was
    /// staged of the same messages is copied, where `template` has it.
    #[inline]
    pub(crate) fn run<'s>(
        &mut self,
        (client, sid): (&Arc<Client>, &'s [u8]),
        subject: &[u8],
        messages: &[PlainPub<'_>],
        template: &mut Option<Template<'s>>,
        input: &[u8],
    ) {
        let at = self.slot_of(client);
        let is_alike = |t: &&Template<'_>| t.messages == messages.len() && t.sid.len() == sid.len();
        let copied = match template.as_ref().filter(is_alike) {
            Some(template) => self.copy_run(template, at, sid, subject, messages),
            None => false,
        };
        let slot = &mut self.slots[at];
        if !copied {
            let start = slot.lines.len();
            encode::plain_msgs(&mut slot.lines, subject, sid, messages);
            *template =
                Some(Template { slot: at, bytes: start..slot.lines.len(), messages: messages.len(), sid });
        }
        let bytes: usize = messages.iter().map(|one| one.payload_len).sum();
        slot.messages += messages.len() as u64;
        slot.message_bytes += bytes as u64;
        self.load += bytes + messages.len() * subject.len();
        if slot.lines.len() + slot.payload_bytes > self.slot_bytes {
            self.write_slot(at, input);
            template.take_if(|template| template.slot == at);
        }
    }

    /// A client and its subscription, which are to get so many messages of a run, one by one.
    #[inline]
    pub(crate) fn receiver<'s>(
        &mut self,
        (client, sid): (&Arc<Client>, &'s [u8]),
        places: usize,
    ) -> Receiver<'s> {
        Receiver { slot: self.slot_of(client), sid, places, head: 0..0, writes: 0 }
    }

    /// Stages one of the messages that a receiver takes.
    #[inline]
    pub(crate) fn receive(&mut self, receiver: &mut Receiver<'_>, subject: &[u8], message: &PlainPub<'_>) {
        let slot = &mut self.slots[receiver.slot];
        receiver.places -= 1;
        slot.messages += 1;
        slot.message_bytes += message.payload_len as u64;
        self.load += message.payload_len + subject.len();
        if receiver.head.is_empty() || receiver.writes != slot.writes {
            let start = slot.lines.len();
            encode::plain_msgs(&mut slot.lines, subject, receiver.sid, std::slice::from_ref(message));
            (receiver.head, receiver.writes) = (start..slot.lines.len() - message.tail.len(), slot.writes);
            return;
        }
        slot.lines.reserve(receiver.head.len() + message.tail.len());
        slot.lines.extend_from_within(receiver.head.clone());
        slot.lines.extend_from_slice(message.tail);
    }

    /// Writes for those who have got much.
    pub(crate) fn end_receiving<'r, 's: 'r>(
        &mut self,
        receivers: impl Iterator<Item = &'r Receiver<'s>>,
        input: &[u8],
    ) {
        for receiver in receivers {
            let slot = &self.slots[receiver.slot];
            if slot.lines.len() + slot.payload_bytes > self.slot_bytes {
                self.write_slot(receiver.slot, input);
            }
        }
    }

    fn copy_run(
        &mut self,
        template: &Template<'_>,
        at: usize,
        sid: &[u8],
        subject: &[u8],
        messages: &[PlainPub<'_>],
    ) -> bool {
        let Ok([from, to]) = self.slots.get_disjoint_mut([template.slot, at]) else { return false };
        let mut name_at = to.lines.len() + encode::plain_sid_at(subject);
        to.lines.extend_from_slice(&from.lines[template.bytes.clone()]);
        if *sid != *template.sid {
            for message in messages {
                let name = name_at..name_at + sid.len();
                name_at = name.end + 1 + message.tail.len() + encode::plain_sid_at(subject);
                to.lines[name].copy_from_slice(sid);
            }
        }
        true
    }

    #[inline]
    fn slot_of(&mut self, client: &Arc<Client>) -> usize {
        let id = client.id;
        let mut at = self.hint;
        if at >= self.used || self.slots[at].id != id {
            at = self.find(id).unwrap_or_else(|| self.add(client));
        }
        self.hint = if at + 1 < self.used { at + 1 } else { 0 };
        at
    }

    fn find(&self, id: u64) -> Option<usize> {
        if self.used <= SCANNED_SLOTS {
            return self.slots[..self.used].iter().position(|slot| slot.id == id);
        }
        self.index.get(&id).copied()
    }

    fn add(&mut self, client: &Arc<Client>) -> usize {
        let at = self.used;
        if at == self.slots.len() {
            self.slots.push(Slot::default());
        }
        self.slots[at].client = Some(client.clone());
        self.slots[at].id = client.id;
        self.used += 1;
        if self.used == SCANNED_SLOTS + 1 {
            self.index.extend(self.slots[..self.used].iter().enumerate().map(|(at, slot)| (slot.id, at)));
        } else if self.used > SCANNED_SLOTS {
            self.index.insert(client.id, at);
        }
        at
    }

    /// Writes everything, the batch's own client last: its PONG then says that the others were served. Returns a
    /// destination that does not keep up, if there is one.
    pub(crate) fn flush(&mut self, own: u64, input: &[u8]) -> Option<Arc<Client>> {
        // First, so that whoever has got something finds it in the record.
        self.seen.hand_over();
        let mut own_slot = None;
        for at in 0..self.used {
            if self.slots[at].id == own {
                own_slot = Some(at);
            } else {
                self.write_slot(at, input);
            }
        }
        if let Some(at) = own_slot {
            self.write_slot(at, input);
        }
        for slot in &mut self.slots[..self.used] {
            slot.client = None;
            if slot.lines.capacity() > self.kept_bytes {
                slot.lines = Vec::new();
            }
        }
        if self.used > SCANNED_SLOTS {
            self.index.clear();
            // A burst to thousands of clients leaves no buffers behind.
            self.slots.truncate(SCANNED_SLOTS * 8);
        }
        (self.used, self.hint, self.load, self.subscriptions) = (0, 0, 0, 0);
        self.behind.take()
    }

    /// Takes what is staged for each client instead of writing it, for what is fuzzed.
    pub(crate) fn take(&mut self, input: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let taken = self.slots[..self.used].iter().map(|slot| {
            let (mut bytes, mut from) = (Vec::new(), 0);
            for (until, payload) in &slot.payloads {
                bytes.extend_from_slice(&slot.lines[from..*until]);
                bytes.extend_from_slice(&input[payload.clone()]);
                from = *until;
            }
            bytes.extend_from_slice(&slot.lines[from..]);
            (slot.id, bytes)
        });
        let taken = taken.collect();
        *self = Self::default();
        taken
    }

    fn write_slot(&mut self, at: usize, input: &[u8]) {
        let slot = &mut self.slots[at];
        let total = slot.lines.len() + slot.payload_bytes;
        let Some(client) = slot.client.as_ref().filter(|_| total > 0) else { return };
        // Counted first: who has got a message and looks at `/varz` then finds it there.
        if slot.messages > 0 {
            client.sent.messages.fetch_add(slot.messages, Ordering::Relaxed);
            client.sent.bytes.fetch_add(slot.message_bytes, Ordering::Relaxed);
        }
        let written = {
            let mut slices: SmallVec<[IoSlice<'_>; 16]> = SmallVec::new();
            let mut from = 0;
            for (until, payload) in &slot.payloads {
                slices.push(IoSlice::new(&slot.lines[from..*until]));
                slices.push(IoSlice::new(&input[payload.clone()]));
                from = *until;
            }
            slices.push(IoSlice::new(&slot.lines[from..]));
            client.write(&slices, total)
        };
        if total > INNOCENT_BYTES
            && let Written::Pending(pending @ 1..) = written
        {
            if pending > HIGH_WATER_BYTES {
                self.behind = Some(client.clone());
            }
            // Not only after the batch: one large message may be kept for many readers.
            client.keep_memory();
        }
        slot.writes += 1;
        slot.lines.clear();
        slot.payloads.clear();
        (slot.payload_bytes, slot.messages, slot.message_bytes) = (0, 0, 0);
    }
}
