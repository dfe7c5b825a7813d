//! From a message that was seen to an observation: what its envelope and its headers say, and to whom it belongs.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;
use trunkline_core::{Headers, Message};

use super::conversation::Aside;
use super::kept::{Kept, KeptBody};
use super::lately::Lately;
use super::redact::Redaction;
use super::{Observation, Outcome, What};
use crate::envelope::Envelope;

/// So many requests are remembered until their answers come, and twice as many at most.
const REQUESTS_HALF: usize = 4096;
/// The same for correlation ids of messages that named their conversation.
const CORRELATIONS_HALF: usize = 4096;
/// Texts longer than this are nobody's name or id, and are not remembered.
const REMEMBERED_BYTES_MAX: usize = 256;

/// Most bytes that are kept of a subject, of a name or an id, and of a reason; and most receivers.
const SUBJECT_BYTES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 256;
const REASON_BYTES_MAX: usize = 1024;
const RECEIVERS_MAX: usize = 64;

/// A message that was seen.
pub(super) struct Sighting<'a> {
    pub(super) time: Timestamp,
    pub(super) subject: &'a str,
    pub(super) reply: Option<&'a str>,
    pub(super) headers: &'a Headers,
    pub(super) body: &'a [u8],
    /// Who published it, as far as the connection says.
    pub(super) from: Option<String>,
    pub(super) to: Vec<String>,
    pub(super) missed: Vec<String>,
    pub(super) stored: Option<(String, String)>,
    pub(super) nobody: bool,
    /// It is a dead letter that is sent back to work.
    pub(super) redriven: bool,
}

/// What an envelope says, its payload passed over.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    source: Option<String>,
    #[serde(default)]
    correlation_id: Option<String>,
    #[serde(default)]
    trace: Option<TraceHead>,
    #[serde(default)]
    deadline: Option<Timestamp>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TraceHead {
    #[serde(default)]
    conversation_id: Option<String>,
    #[serde(default)]
    persona_id: Option<String>,
    #[serde(default)]
    tool_id: Option<String>,
    #[serde(default)]
    skill_id: Option<String>,
    #[serde(default)]
    causation_id: Option<String>,
}

impl Head {
    fn read(body: &[u8]) -> Option<Self> {
        if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return None;
        }
        serde_json::from_slice(body).ok().or_else(|| {
            // The library takes envelopes with fields of any form, so they are to be seen, too.
            let envelope = Envelope::from_bytes(body)?;
            let trace = envelope.trace;
            Some(Self {
                id: envelope.id,
                kind: envelope.kind,
                source: envelope.source,
                correlation_id: envelope.correlation_id,
                trace: Some(TraceHead {
                    conversation_id: trace.conversation_id,
                    persona_id: trace.persona_id,
                    tool_id: trace.tool_id,
                    skill_id: trace.skill_id,
                    causation_id: trace.causation_id,
                }),
                deadline: envelope.deadline,
            })
        })
    }
}

/// To what a request belongs.
#[derive(Debug, Clone)]
struct Asked {
    conversation: Option<Arc<str>>,
    conversation_id: Option<String>,
    correlation_id: Option<String>,
    /// Its id, which caused the answer.
    id: Option<String>,
    /// Who was given it, where that is one alone.
    responder: Option<String>,
}

/// Turns sightings into observations, and remembers to what answers belong.
#[derive(Debug)]
pub(super) struct Sightings {
    redaction: Redaction,
    payload_max: usize,
    /// `{root}.system.`: what is published there and names no conversation belongs to none.
    system: String,
    /// Requests by where their answers go.
    asked: Lately<String, Asked>,
    /// Conversations by correlation id.
    correlated: Lately<String, Arc<str>>,
    /// Ids of dead letters, where who sends one back is not seen: the message comes again with the same id.
    buried: Option<Lately<String, ()>>,
}

impl Sightings {
    pub(super) fn new(redact: &[String], payload_max: usize, root: &str) -> Self {
        Self {
            redaction: Redaction::new(redact),
            payload_max,
            system: format!("{root}.system."),
            asked: Lately::new(REQUESTS_HALF),
            correlated: Lately::new(CORRELATIONS_HALF),
            buried: None,
        }
    }

    /// From now on a message that comes again after it was a dead letter is taken for one that was sent back.
    pub(super) fn guess_redrives(&mut self) {
        self.buried.get_or_insert_with(|| Lately::new(CORRELATIONS_HALF));
    }

    /// Under which conversation something is indexed.
    fn place(&mut self, seen: &Observation, asked: Option<&Asked>) -> Option<Arc<str>> {
        let correlation = seen.correlation_id.as_deref();
        if let Some(id) = &seen.conversation_id {
            let known = correlation.and_then(|correlation| self.correlated.get(correlation));
            if let Some(known) = known.filter(|known| ***known == **id) {
                return Some(known.clone());
            }
            let place: Arc<str> = id.as_str().into();
            if let Some(correlation) = correlation
                && correlation.len() + id.len() <= REMEMBERED_BYTES_MAX
            {
                self.correlated.insert(correlation.to_owned(), place.clone());
            }
            return Some(place);
        }
        if let Some(place) = asked.and_then(|asked| asked.conversation.clone()) {
            return Some(place);
        }
        let correlation = correlation.filter(|_| !seen.subject.starts_with(&self.system))?;
        Some(self.correlated.get(correlation).cloned().unwrap_or_else(|| correlation.into()))
    }

    /// Cuts texts of others to what somebody reads of them, and hides what reasons show of payloads.
    fn bound(&self, seen: &mut Observation) {
        cut(&mut seen.subject, SUBJECT_BYTES_MAX);
        seen.reply.iter_mut().for_each(|reply| cut(reply, SUBJECT_BYTES_MAX));
        let names = [
            &mut seen.from,
            &mut seen.id,
            &mut seen.kind,
            &mut seen.correlation_id,
            &mut seen.causation_id,
            &mut seen.conversation_id,
            &mut seen.persona_id,
            &mut seen.tool_id,
            &mut seen.skill_id,
            &mut seen.trace_id,
            &mut seen.stream,
            &mut seen.consumer,
            &mut seen.offset,
        ];
        names.into_iter().flatten().for_each(|name| cut(name, NAME_BYTES_MAX));
        seen.to.truncate(RECEIVERS_MAX);
        seen.to.iter_mut().for_each(|name| cut(name, NAME_BYTES_MAX));
        if let Some(reason) = &mut seen.reason {
            self.redaction.apply_to_text(reason);
            cut(reason, REASON_BYTES_MAX);
        }
    }

    /// What is to be kept of a message: one observation, and where it had to be dropped for somebody, or was for nobody,
    /// another.
    pub(super) fn read(&mut self, sighting: Sighting<'_>, out: &mut Vec<(Kept, Aside)>) {
        let Sighting { time, subject, reply, headers, body, from, to, missed, stored, nobody, redriven } =
            sighting;
        let mut seen = Observation::new(What::Published, time, subject);
        if redriven {
            seen.what = What::Redriven;
        }
        seen.size = (headers.size_bytes() + body.len()) as u64;
        seen.reply = reply.or_else(|| headers.get("Trunkline-Reply-To")).map(str::to_owned);
        seen.trace_id = headers.get("traceparent").and_then(trace_id);
        (seen.from, seen.to) = (from, to);
        if let Some((stream, offset)) = stored {
            (seen.stream, seen.offset) = (Some(stream), Some(offset));
        }
        let mut aside = Aside::default();
        let head = Head::read(body);
        let is_envelope = head.is_some();
        if let Some(head) = head {
            aside.deadline = fill(&mut seen, head);
        }
        let asked = self.asked.get(subject).cloned();
        if let Some(asked) = &asked {
            seen.conversation_id = seen.conversation_id.or_else(|| asked.conversation_id.clone());
            seen.correlation_id = seen.correlation_id.or_else(|| asked.correlation_id.clone());
            seen.causation_id = seen.causation_id.or_else(|| asked.id.clone());
            seen.from = seen.from.or_else(|| asked.responder.clone());
            aside.ends_request = answer(headers, &mut seen);
        }
        bury(headers, &mut seen);
        self.bound(&mut seen);
        if let (Some(buried), Some(id)) = (&mut self.buried, &seen.id) {
            match seen.what {
                What::DeadLettered => buried.insert(id.clone(), ()),
                What::Published if buried.get(id).is_some() => seen.what = What::Redriven,
                _ => {}
            }
        }
        let conversation = self.place(&seen, asked.as_ref());
        if let Some(reply) = reply.filter(|reply| reply.len() <= REMEMBERED_BYTES_MAX) {
            let responder = seen.to.first().filter(|_| seen.to.len() == 1).cloned();
            let asked = Asked {
                conversation: conversation.clone(),
                conversation_id: seen.conversation_id.clone(),
                correlation_id: seen.correlation_id.clone(),
                id: seen.id.clone(),
                responder,
            };
            self.asked.insert(reply.to_owned(), asked);
        }
        let mut also = Vec::new();
        if nobody {
            also.push(Observation {
                what: What::NoResponders,
                to: Vec::new(),
                outcome: None,
                ..seen.clone()
            });
        }
        if !missed.is_empty() {
            also.push(Observation {
                what: What::Gap,
                missed: Some(missed.len() as u64),
                to: missed,
                outcome: None,
                reason: Some("the receiver does not keep up".to_owned()),
                ..seen.clone()
            });
        }
        let body = KeptBody::of(body, is_envelope, self.payload_max, &self.redaction);
        out.push((Kept { conversation: conversation.clone(), seen, body }, aside));
        out.extend(also.into_iter().map(|seen| {
            let kept = Kept { conversation: conversation.clone(), seen, body: KeptBody::Nothing };
            (kept, Aside::default())
        }));
    }

    /// Remembers a request that is being handled here and may have been published where nobody saw it.
    pub(super) fn ask(&mut self, seen: &Observation) {
        let conversation = self.place(seen, None);
        if let Some(reply) = seen.reply.as_ref().filter(|reply| reply.len() <= REMEMBERED_BYTES_MAX)
            && self.asked.get(reply).is_none()
        {
            let asked = Asked {
                conversation,
                conversation_id: seen.conversation_id.clone(),
                correlation_id: seen.correlation_id.clone(),
                id: seen.id.clone(),
                responder: None,
            };
            self.asked.insert(reply.clone(), asked);
        }
    }

    /// What is to be kept of an observation that somebody else has made.
    pub(super) fn take(&mut self, mut seen: Observation) -> (Kept, Aside) {
        self.bound(&mut seen);
        let body = KeptBody::of_read(seen.body.take(), self.payload_max, &self.redaction);
        let found = match (&seen.what, &seen.reply) {
            (What::NoResponders | What::Handled, Some(reply)) => self.asked.get(reply),
            _ => self.asked.get(seen.subject.as_str()),
        };
        let asked = found.cloned();
        if let Some(asked) = &asked {
            seen.conversation_id = seen.conversation_id.or_else(|| asked.conversation_id.clone());
            seen.correlation_id = seen.correlation_id.or_else(|| asked.correlation_id.clone());
        }
        let answers = seen.what == What::Published && seen.outcome.is_some();
        let conversation = self.place(&seen, asked.as_ref());
        if matches!(seen.what, What::Published | What::Handled) {
            self.ask(&seen);
        }
        (Kept { conversation, seen, body }, Aside { deadline: None, ends_request: answers })
    }
}

/// Cuts a text that is too long, with a mark.
fn cut(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let end = (0..=bytes_max - '…'.len_utf8()).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push('…');
        text.shrink_to_fit();
    }
}

/// What a message says of itself, to whoever has it in hand; with its body where that is wanted.
pub(super) fn look_at(message: &Message, payload_max: Option<usize>) -> Observation {
    let mut seen = Observation::new(What::Handled, Timestamp::now(), message.subject.as_str());
    seen.size = (message.headers.size_bytes() + message.payload.len()) as u64;
    seen.reply = message.reply.as_ref().map(ToString::to_string);
    seen.trace_id = message.headers.get("traceparent").and_then(trace_id);
    let head = Head::read(&message.payload);
    if let Some(payload_max) = payload_max {
        let body = KeptBody::of(&message.payload, head.is_some(), payload_max, &Redaction::default());
        seen.body = body.show();
    }
    if let Some(head) = head {
        fill(&mut seen, head);
    }
    seen
}

/// Takes over what an envelope says; returns its deadline.
fn fill(seen: &mut Observation, head: Head) -> Option<Timestamp> {
    let trace = head.trace.unwrap_or_default();
    (seen.id, seen.kind, seen.correlation_id) = (Some(head.id), Some(head.kind), head.correlation_id);
    (seen.conversation_id, seen.persona_id) = (trace.conversation_id, trace.persona_id);
    (seen.tool_id, seen.skill_id) = (trace.tool_id, trace.skill_id);
    seen.causation_id = trace.causation_id;
    seen.from = head.source.or(seen.from.take());
    head.deadline
}

/// What an answer says of itself. Returns whether it is the last one.
fn answer(headers: &Headers, seen: &mut Observation) -> bool {
    let error = headers.get("Nats-Service-Error");
    let ends = !matches!(headers.get("Trunkline-Frame"), Some("chunk"));
    if error.is_some() || headers.get("Nats-Service-Error-Code").is_some() {
        seen.outcome = Some(Outcome::AnsweredError);
        seen.reason = error.map(str::to_owned);
    } else if ends {
        seen.outcome = Some(Outcome::Answered);
    }
    ends
}

/// Turns the sight of a message among the dead letters into what it means.
fn bury(headers: &Headers, seen: &mut Observation) {
    let Some(reason) = headers.get("Trunkline-Dead-Reason") else { return };
    let text = |name| headers.get(name).map(str::to_owned);
    seen.what = What::DeadLettered;
    seen.reason = Some(reason.to_owned());
    seen.attempt = headers.get("Trunkline-Dead-Attempts").and_then(|attempts| attempts.parse().ok());
    seen.stream = text("Trunkline-Dead-Stream");
    seen.consumer = text("Trunkline-Dead-Consumer");
    seen.offset = text("Trunkline-Dead-Offset");
    if let Some(subject) = text("Trunkline-Dead-Subject") {
        seen.subject = subject;
    }
    // It is nobody's question any more.
    seen.reply = None;
    seen.from = seen.consumer.clone().or(seen.from.take());
}

/// The trace in a `traceparent`; <https://www.w3.org/TR/trace-context/#traceparent-header>.
fn trace_id(parent: &str) -> Option<String> {
    let id = parent.split('-').nth(1)?;
    let is_one = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_one && id.bytes().any(|byte| byte != b'0')).then(|| id.to_ascii_lowercase())
}
