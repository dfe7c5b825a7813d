//! Reading a stream without a consumer, by direct get, and deleting single messages of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use async_nats::{HeaderMap, StatusCode};
use base64::Engine as _;
use futures_util::StreamExt as _;
use serde_json::{Map, Value, json};
use trunkline_core::{Headers, Message, Pattern, StreamOffset, Subject};

use super::JetStream;
use super::api::{Failure, codes, is_at_least};
use super::names::{StartAt, nanos, parse_time, print_time, start_at};
use super::streams::Found;
use crate::backend::nats::message::Decoder;
use crate::backend::{ReadPage, ReadRequest, Start, StoredMessage, StreamError};

/// Most messages asked for at a time.
const BATCH_MESSAGES: usize = 256;
/// Most bytes of one answer, which is in memory at once.
const BATCH_BYTES: usize = 16 << 20;
/// Since then several messages come in one answer, and the first can be asked for by its time.
const BATCHES_SINCE: (u64, u64, u64) = (2, 11, 0);
/// How long a consumer that is only there to look up a time outlives a client that died before it removed it.
const LOOK_UP_TIME: Duration = Duration::from_secs(5);
/// What direct get adds to a message, to say where it stands.
const ADDED: [&str; 8] = [
    "Nats-Stream",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
    "Nats-UpTo-Sequence",
    "Nats-Pending-Messages",
];

/// One answer to a direct get.
#[derive(Default)]
struct Batch {
    messages: Vec<StoredMessage>,
    /// Sequence of the last message, also of one that the bus cannot read.
    last: Option<u64>,
    /// Messages that match and stand behind, as far as the server says.
    pending: Option<u64>,
}

impl JetStream {
    pub(super) async fn read_page(&self, name: &str, request: ReadRequest) -> Result<ReadPage, StreamError> {
        let found = self.find(name).await?;
        let (first, last) = (found.state.first_seq, found.state.last_seq);
        let mut page = ReadPage { messages: Vec::new(), next: request.from, end: false, missed: 0 };
        let mut at = match start_at(name, request.from, last)? {
            StartAt::New => {
                page.next = after(last);
                page.end = true;
                return Ok(page);
            }
            at => at,
        };
        if let (StartAt::Sequence(n), Start::After(_)) = (at, request.from) {
            page.missed = first.saturating_sub(n);
        }
        let max = request.max.max(1);
        let failed = |failure| self.api.stream_error(name, failure);
        if let StartAt::Time(time) = at
            && !self.gives_batches()
        {
            at = StartAt::Sequence(self.sequence_at(&found, time).await.map_err(failed)?);
        }
        while page.messages.len() < max {
            let want = BATCH_MESSAGES.min(max - page.messages.len());
            let batch = self.direct_get(&found, at, request.filter.as_ref(), want).await.map_err(failed)?;
            let Some(reached) = batch.last else {
                match self.behind_replica(&found, at, request.filter.as_ref()).await.map_err(failed)? {
                    Some((sequence, stored)) => {
                        page.messages.extend(stored);
                        page.next = after(sequence);
                        at = StartAt::Sequence(sequence + 1);
                        continue;
                    }
                    None => {
                        let before = match page.next {
                            Start::After(StreamOffset::Sequence(n)) => n,
                            _ => 0,
                        };
                        page.next = after(last.max(before));
                        page.end = true;
                        return Ok(page);
                    }
                }
            };
            page.messages.extend(batch.messages);
            page.next = after(reached);
            at = StartAt::Sequence(reached + 1);
            if batch.pending == Some(0) && (found.replicas() == 1 || reached >= last) {
                page.next = after(reached.max(last));
                page.end = true;
                return Ok(page);
            }
        }
        Ok(page)
    }

    /// Whether the server is new enough for [`BATCHES_SINCE`].
    fn gives_batches(&self) -> bool {
        is_at_least(&self.api.link.client.server_info().version, BATCHES_SINCE)
    }

    /// The first sequence at or after a time, where a direct get cannot be asked for it: a consumer that starts there is
    /// made, says where it stands, and is removed.
    async fn sequence_at(&self, found: &Found, time: SystemTime) -> Result<u64, Failure> {
        let name = format!("at-{}", uuid::Uuid::now_v7().simple());
        let config = json!({
            "name": name, "deliver_policy": "by_start_time", "opt_start_time": print_time(time),
            "ack_policy": "none", "replay_policy": "instant", "mem_storage": true, "num_replicas": 1,
            "inactive_threshold": nanos(LOOK_UP_TIME),
        });
        let request = json!({ "stream_name": found.name, "action": "create", "config": config });
        let what = format!("CONSUMER.CREATE.{}.{name}", found.name);
        let state = super::consumers::State::read(self.api.call(&what, &request).await?)?;
        // It goes by itself when this fails.
        if let Err(failure) =
            self.api.call(&format!("CONSUMER.DELETE.{}.{name}", found.name), &json!({})).await
        {
            tracing::debug!(stream = found.name, %failure, "a consumer that looked up a time is left to expire");
        }
        Ok(state.delivered.stream_seq + 1)
    }

    /// Asks for messages from a place on. Empty when there are none.
    async fn direct_get(
        &self,
        found: &Found,
        at: StartAt,
        filter: Option<&Pattern>,
        max: usize,
    ) -> Result<Batch, Failure> {
        let link = &self.api.link;
        let connection = link.connection().ok_or_else(|| Failure::NotConnected(link.events.reason()))?;
        let several = self.gives_batches();
        let mut request = Map::new();
        match at {
            StartAt::Time(time) => request.insert("start_time".to_owned(), print_time(time).into()),
            StartAt::Sequence(n) => request.insert("seq".to_owned(), n.into()),
            StartAt::New => return Ok(Batch::default()),
        };
        request.insert("next_by_subj".to_owned(), filter.map_or(">", Pattern::as_str).into());
        if several {
            request.insert("batch".to_owned(), max.into());
            request.insert("max_bytes".to_owned(), BATCH_BYTES.into());
        }
        let payload = Value::Object(request).to_string().into();
        let inbox = link.client.new_inbox();
        let subject = format!("$JS.API.DIRECT.GET.{}", found.name);
        let denied = self.api.denied(&subject, connection, link.publish_timeout);
        let asking = async {
            let broken = || Failure::NotConnected(link.events.reason());
            let mut answers = link.client.subscribe(inbox.clone()).await.map_err(|_| broken())?;
            let outbound = OutboundMessage {
                subject: subject.as_str().into(),
                reply: Some(inbox.into()),
                payload,
                headers: None,
            };
            link.client.publish_message(outbound).await.map_err(|_| broken())?;
            let mut decoder = Decoder::default();
            let mut batch = Batch::default();
            while let Some(answer) = answers.next().await {
                match answer.status {
                    Some(StatusCode::NOT_FOUND) => return Ok(batch),
                    Some(StatusCode::NO_RESPONDERS) => {
                        return Err(Failure::NotConnected("nobody serves the messages".to_owned()));
                    }
                    Some(status) if status.as_u16() == 204 => {
                        batch.pending = number(&answer, "Nats-Num-Pending").or(batch.pending);
                        return Ok(batch);
                    }
                    Some(status) => {
                        return Err(Failure::unexpected("the answer to a direct get", status));
                    }
                    None => batch.take(&mut decoder, answer)?,
                }
                if !several {
                    return Ok(batch);
                }
            }
            Err(broken())
        };
        let wait = link.publish_timeout;
        tokio::select! {
            answer = tokio::time::timeout(wait, asking) => answer.unwrap_or_else(|_| {
                Err(Failure::NotConnected(format!("JetStream gave no answer within {wait:?}")))
            }),
            () = link.disconnected() => Err(Failure::NotConnected(link.events.reason())),
            failure = denied => Err(failure),
        }
    }

    /// Any copy of a stream serves direct gets, also one that lags behind. Where it has nothing more, the leader has the
    /// last word.
    async fn behind_replica(
        &self,
        found: &Found,
        at: StartAt,
        filter: Option<&Pattern>,
    ) -> Result<Option<(u64, Option<StoredMessage>)>, Failure> {
        let StartAt::Sequence(n) = at else { return Ok(None) };
        if found.replicas() == 1 || n > found.state.last_seq {
            return Ok(None);
        }
        let what = format!("STREAM.MSG.GET.{}", found.name);
        let filter = filter.map_or(">", Pattern::as_str);
        let answer = match self.api.look(&what, &json!({ "seq": n, "next_by_subj": filter })).await {
            Ok(answer) => answer,
            Err(failure) if failure.is(&[codes::NO_MESSAGE_FOUND]) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let message = &answer["message"];
        let sequence = message["seq"].as_u64().ok_or_else(|| Failure::unexpected("a message", "no seq"))?;
        Ok(Some((sequence, read_message(message, sequence))))
    }

    pub(super) async fn delete_messages(
        &self,
        name: &str,
        offsets: Vec<StreamOffset>,
    ) -> Result<u64, StreamError> {
        let found = self.find(name).await?;
        let number = |offset: &StreamOffset| offset.sequence().ok_or(StreamError::ForeignOffset(*offset));
        let numbers = offsets.iter().map(number).collect::<Result<Vec<_>, _>>()?;
        let gone = [codes::NO_MESSAGE_FOUND, codes::SEQUENCE_NOT_FOUND];
        let mut deleted = 0;
        for seq in numbers {
            // A number past the end is another error, which says nothing by itself.
            if seq == 0 || seq > found.state.last_seq {
                continue;
            }
            let what = format!("STREAM.MSG.DELETE.{}", found.name);
            match self.api.call(&what, &json!({ "seq": seq, "no_erase": true })).await {
                Ok(_) => deleted += 1,
                Err(failure) if failure.is(&gone) => {}
                Err(failure) if failure.is(&[codes::STREAM_MSG_DELETE_FAILED]) => {}
                Err(failure) => return Err(self.api.stream_error(name, failure)),
            }
        }
        Ok(deleted)
    }
}

impl Batch {
    fn take(&mut self, decoder: &mut Decoder, answer: async_nats::Message) -> Result<(), Failure> {
        let unexpected = |what: &str| Failure::unexpected("a message of a direct get", what);
        let sequence = number(&answer, "Nats-Sequence").ok_or_else(|| unexpected("no sequence"))?;
        self.last = Some(sequence);
        self.pending = number(&answer, "Nats-Num-Pending");
        let headers = answer.headers.unwrap_or_default();
        let subject: async_nats::Subject =
            text(&headers, "Nats-Subject").ok_or_else(|| unexpected("no subject"))?.into();
        let time = text(&headers, "Nats-Time-Stamp").and_then(|time| parse_time(&time));
        match decoder.decode_stored(subject.clone(), Some(&headers), answer.payload) {
            Ok(mut message) => {
                for name in ADDED {
                    message.headers.remove(name);
                }
                self.messages.push(StoredMessage {
                    offset: StreamOffset::Sequence(sequence),
                    time: time.unwrap_or(SystemTime::UNIX_EPOCH),
                    message: Arc::new(message),
                });
            }
            Err(error) => tracing::warn!(%subject, sequence, %error, "a stored message cannot be read"),
        }
        Ok(())
    }
}

/// A message as the leader gives it, in JSON.
fn read_message(message: &Value, sequence: u64) -> Option<StoredMessage> {
    let base64 = |key: &str| {
        let text = message[key].as_str().unwrap_or_default();
        base64::engine::general_purpose::STANDARD.decode(text).ok()
    };
    let headers = match base64("hdrs")? {
        block if block.is_empty() => Headers::new(),
        block => Headers::decode(&block).ok()?,
    };
    let subject = Subject::new(message["subject"].as_str()?.to_owned()).ok()?;
    let reply = headers.get("Trunkline-Reply-To").and_then(|reply| Subject::new(reply.to_owned()).ok());
    let message_time = message["time"].as_str().and_then(parse_time);
    Some(StoredMessage {
        offset: StreamOffset::Sequence(sequence),
        time: message_time.unwrap_or(SystemTime::UNIX_EPOCH),
        message: Arc::new(Message { subject, reply, headers, payload: base64("data")?.into() }),
    })
}

fn after(sequence: u64) -> Start {
    Start::After(StreamOffset::Sequence(sequence))
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| value.as_str().to_owned())
}

fn number(answer: &async_nats::Message, name: &str) -> Option<u64> {
    answer.headers.as_ref()?.get(name)?.as_str().parse().ok()
}
