//! What members of consumers share: leases and counts in one key-value bucket, who is a member in another.
//!
//! Both are laid out as NATS's own key-value buckets, so that `nats kv` shows them. Reads are served by the leader: a
//! lease that was read from a copy that lags behind would be another one.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use base64::Engine as _;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::api::{Api, Failure, codes};
use super::names::nanos;

/// A member is forgotten when it has not been heard of for so long.
const FORGET_AFTER: Duration = Duration::from_secs(15);
/// How often a member is heard of.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often a count is tried again when others count at the same time.
const COUNT_RETRIES: u32 = 8;
/// Delay before a member that could not be listed is listed again.
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// Refuses a write unless the key's last one has this revision.
const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";

/// See the module's text.
pub(super) struct Bucket {
    api: Arc<Api>,
    leases: String,
    members: String,
}

/// A value, and the revision that wrote it.
pub(super) struct Entry {
    pub(super) revision: u64,
    pub(super) value: Bytes,
}

#[derive(Serialize, Deserialize, Default)]
struct Count {
    missed: u64,
}

impl Bucket {
    pub(super) fn new(api: &Arc<Api>, prefix: &str) -> Self {
        Self { api: api.clone(), leases: format!("{prefix}_leases"), members: format!("{prefix}_members") }
    }

    /// Makes both buckets where they are missing, with as many copies as the stream has of its messages: while a server is
    /// away, its consumers go on only with what they share. Buckets with fewer copies, for other streams, get more.
    pub(super) async fn ensure(&self, replicas: u64) -> Result<(), Failure> {
        let bucket = |name: &str, storage: &str, age: Duration, replicas: u64| {
            json!({
                "name": format!("KV_{name}"), "subjects": [format!("$KV.{name}.>")],
                "retention": "limits", "storage": storage, "num_replicas": replicas,
                "max_msgs_per_subject": 1, "max_age": nanos(age), "discard": "new",
                "allow_rollup_hdrs": true, "deny_delete": true, "allow_direct": true,
            })
        };
        for config in [
            bucket(&self.leases, "file", Duration::ZERO, replicas),
            // Who lives says so again and again: this need not be on disk.
            bucket(&self.members, "memory", FORGET_AFTER, replicas),
        ] {
            let name = config["name"].as_str().unwrap_or_default();
            match self.api.call(&format!("STREAM.CREATE.{name}"), &config).await {
                Ok(_) => {}
                // It is there with another number of copies.
                Err(failure) if failure.is(&[codes::STREAM_NAME_IN_USE]) => {
                    match self.add_copies(name, replicas).await {
                        // The bucket is there, and serves; a worker need not be allowed to change it.
                        Err(failure @ Failure::Denied { .. }) => {
                            tracing::warn!(bucket = name, replicas, %failure, "copies not added to a bucket");
                        }
                        done => done?,
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    async fn add_copies(&self, name: &str, replicas: u64) -> Result<(), Failure> {
        let mut answer = self.api.look(&format!("STREAM.INFO.{name}"), &json!({})).await?;
        let config = &mut answer["config"];
        if config["num_replicas"].as_u64().is_some_and(|copies| copies >= replicas) {
            return Ok(());
        }
        config["num_replicas"] = json!(replicas);
        self.api.call(&format!("STREAM.UPDATE.{name}"), config).await.map(drop)
    }

    fn lease_subject(&self, what: &str, stream: &str, consumer: &str) -> String {
        format!("$KV.{}.{what}.{stream}.{consumer}", self.leases)
    }

    fn member_subject(&self, stream: &str, consumer: &str, member: &str) -> String {
        format!("$KV.{}.{stream}.{consumer}.{member}", self.members)
    }

    async fn get(&self, subject: &str) -> Result<Option<Entry>, Failure> {
        let what = format!("STREAM.MSG.GET.KV_{}", self.leases);
        let answer = match self.api.look(&what, &json!({ "last_by_subj": subject })).await {
            Ok(answer) => answer,
            Err(failure) if failure.is(&[codes::NO_MESSAGE_FOUND, codes::STREAM_NOT_FOUND]) => {
                return Ok(None);
            }
            Err(failure) => return Err(failure),
        };
        let message = &answer["message"];
        let data = message["data"].as_str().unwrap_or_default();
        let value = base64::engine::general_purpose::STANDARD.decode(data);
        let value = value.map_err(|error| Failure::unexpected("a value of the bucket", error))?;
        let revision = message["seq"].as_u64();
        let revision = revision.ok_or_else(|| Failure::unexpected("a value of the bucket", "no seq"))?;
        Ok(Some(Entry { revision, value: value.into() }))
    }

    /// Writes if the last revision is this one (0: there is none), and returns the new revision; `None` when it is not.
    async fn put(&self, subject: String, value: Bytes, expected: u64) -> Result<Option<u64>, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(EXPECTED, expected.to_string().as_str());
        let wait = self.api.link.publish_timeout;
        let answer = self.api.ask(subject, Some(headers), value, wait).await?;
        let answer: Value = serde_json::from_slice(&answer.payload)
            .map_err(|error| Failure::unexpected("the confirmation of the bucket", error))?;
        match (&answer["error"], answer["seq"].as_u64()) {
            (Value::Null, Some(revision)) => Ok(Some(revision)),
            (Value::Null, None) => Err(Failure::unexpected("the confirmation of the bucket", "no seq")),
            (error, _) if error["err_code"] == codes::WRONG_LAST_SEQUENCE => Ok(None),
            (error, _) => Err(Failure::unexpected("the confirmation of the bucket", error)),
        }
    }

    pub(super) async fn lease(&self, stream: &str, consumer: &str) -> Result<Option<Entry>, Failure> {
        self.get(&self.lease_subject("lease", stream, consumer)).await
    }

    pub(super) async fn put_lease(
        &self,
        stream: &str,
        consumer: &str,
        value: Bytes,
        expected: u64,
    ) -> Result<Option<u64>, Failure> {
        self.put(self.lease_subject("lease", stream, consumer), value, expected).await
    }

    /// Messages that members of a consumer have found missing.
    pub(super) async fn missed(&self, stream: &str, consumer: &str) -> Result<u64, Failure> {
        let entry = self.get(&self.lease_subject("missed", stream, consumer)).await?;
        Ok(entry.map_or(0, |entry| read_count(&entry)))
    }

    /// Adds to the messages that members of a consumer have found missing.
    pub(super) async fn add_missed(&self, stream: &str, consumer: &str, missed: u64) -> Result<(), Failure> {
        let subject = self.lease_subject("missed", stream, consumer);
        for _ in 0..COUNT_RETRIES {
            let entry = self.get(&subject).await?;
            let before = entry.as_ref().map_or(0, read_count);
            let value = json!({ "missed": before.saturating_add(missed) }).to_string();
            let expected = entry.map_or(0, |entry| entry.revision);
            if self.put(subject.clone(), value.into(), expected).await?.is_some() {
                return Ok(());
            }
        }
        Err(Failure::NotConnected("others count at the same time".to_owned()))
    }

    /// Enters a member, and waits until it is listed.
    pub(super) async fn enter(&self, stream: &str, consumer: &str, member: &str) -> Result<(), Failure> {
        let subject = self.member_subject(stream, consumer, member);
        let until = Instant::now() + self.api.link.publish_timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.api.ask(subject.as_str(), None, Bytes::new(), left).await {
                Ok(_) => return Ok(()),
                Err(failure @ Failure::NotConnected(_)) if left < RETRY_DELAY => return Err(failure),
                // A server of a cluster may hear a moment later than we who leads a bucket that was just made.
                Err(Failure::NotConnected(_)) => tokio::time::sleep(RETRY_DELAY).await,
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Keeps a member listed.
    pub(super) async fn beat(&self, stream: &str, consumer: &str, member: &str) {
        let subject = self.member_subject(stream, consumer, member).into();
        let beat = OutboundMessage { subject, reply: None, payload: Bytes::new(), headers: None };
        if self.api.link.connection().is_some() {
            // One that is lost is made good by the next.
            let _ = self.api.link.client.publish_message(beat).await;
        }
    }

    pub(super) async fn strike(&self, stream: &str, consumer: &str, member: &str) -> Result<(), Failure> {
        let filter = self.member_subject(stream, consumer, member);
        let what = format!("STREAM.PURGE.KV_{}", self.members);
        self.api.call(&what, &json!({ "filter": filter })).await.map(drop)
    }

    /// How many members of a consumer are listed.
    pub(super) async fn members(&self, stream: &str, consumer: &str) -> Result<u64, Failure> {
        let filter = self.member_subject(stream, consumer, "*");
        let what = format!("STREAM.INFO.KV_{}", self.members);
        match self.api.look(&what, &json!({ "subjects_filter": filter })).await {
            Ok(answer) => {
                Ok(answer["state"]["subjects"].as_object().map_or(0, |subjects| subjects.len() as u64))
            }
            Err(failure) if failure.is(&[codes::STREAM_NOT_FOUND]) => Ok(0),
            Err(failure) => Err(failure),
        }
    }

    /// Forgets what belongs to a consumer, or to all of a stream. What cannot be forgotten does little harm: a lease
    /// runs out, and a count is too high.
    pub(super) async fn forget(&self, stream: &str, consumer: Option<&str>) {
        let consumer = consumer.unwrap_or("*");
        let filter = format!("$KV.{}.*.{stream}.{consumer}", self.leases);
        let what = format!("STREAM.PURGE.KV_{}", self.leases);
        if let Err(failure) = self.api.call(&what, &json!({ "filter": filter })).await
            && !failure.is(&[codes::STREAM_NOT_FOUND])
        {
            tracing::debug!(stream, consumer, %failure, "what consumers shared is not forgotten");
        }
    }
}

fn read_count(entry: &Entry) -> u64 {
    serde_json::from_slice::<Count>(&entry.value).unwrap_or_default().missed
}
