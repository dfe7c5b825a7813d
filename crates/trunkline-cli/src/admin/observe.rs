//! What the admin API tells of messages: conversations, whole or as a list, and what happens, live.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::Incoming;
use serde::Deserialize;
use trunkline::observe::{ConversationList, ConversationRecord, Observation};

use super::error::AdminError;
use super::events::{Event, Events};
use super::link::{CallError, Link};
use super::place::ServerPlace;
use super::shown;
use crate::duration;
use crate::failure::{Failure, chain};
use crate::settings::GlobalArgs;

/// A server says something at least every 15 s; one that is silent for so long is lost.
const SILENCE_MAX: Duration = Duration::from_secs(40);

/// Which server, how to be let in, and how long to wait for it.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Which server")]
pub(crate) struct ObserveArgs {
    #[command(flatten)]
    server: ServerPlace,

    /// The account of `server.accounts` whose messages are meant; the admin token opens all, users only their own
    /// [default: the one of server.users]
    #[arg(long, value_name = "NAME")]
    account: Option<String>,

    /// Longest wait for an answer
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "5s")]
    api_timeout: Duration,
}

impl ObserveArgs {
    /// The way to the server; nothing is asked yet.
    ///
    /// # Errors
    /// No server is named, or no token is known for it.
    pub(crate) fn observer(&self, global: &GlobalArgs) -> Result<Observer, Failure> {
        let server = self.server.find(global)?;
        // Without a token the server is asked nevertheless: that it is not there is the better answer then.
        let link = Link::new(&server, self.api_timeout)?;
        let question = Question::default().with("account", self.account.as_ref());
        Ok(Observer { link, server: shown(&server.http), question })
    }
}

/// What is asked for; what is not set matches everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct Question(Vec<(&'static str, String)>);

impl Question {
    /// Both questions.
    fn and(&self, other: &Self) -> Self {
        Self(self.0.iter().chain(&other.0).cloned().collect())
    }

    /// The question, and this one more.
    pub(crate) fn with(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.0.extend(value.map(|value| (name, value.to_string())));
        self
    }

    fn path(&self, path: &str) -> String {
        let mut text = path.to_owned();
        for (index, (name, value)) in self.0.iter().enumerate() {
            let sign = if index == 0 { '?' } else { '&' };
            // Writing to a string cannot fail.
            let _ = write!(text, "{sign}{name}={}", percent_encoded(value));
        }
        text
    }
}

/// Every byte that could mean something in an address as its number.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => encoded.push(char::from(byte)),
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

/// Asks a server what it has seen.
pub(crate) struct Observer {
    link: Link,
    server: String,
    /// What stands in every question.
    question: Question,
}

impl Observer {
    /// Where it is.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Conversations, the one seen last first.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub(crate) async fn conversations(&self, question: &Question) -> Result<ConversationList, AdminError> {
        match self.link.get(&self.question.and(question).path("/conversations")).await {
            Err(AdminError::Refused { url, .. }) if self.link.token().is_empty() => {
                Err(AdminError::NoToken { url })
            }
            answered => answered,
        }
    }

    /// One conversation whole, if the record has it.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub(crate) async fn conversation(&self, id: &str) -> Result<Option<ConversationRecord>, AdminError> {
        let path = self.question.path(&format!("/conversations/{}", percent_encoded(id)));
        match self.link.call::<(), _>(Method::GET, &path, None, self.link.limit()).await {
            Ok(record) => Ok(Some(record)),
            Err(CallError::Said(404, _)) => Ok(None),
            Err(error) => Err(error.of(self.server.clone())),
        }
    }

    /// Follows what happens. With `after` what the record still holds of later observations comes first.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub(crate) async fn follow(
        &self,
        question: &Question,
        after: Option<u64>,
    ) -> Result<Follower, AdminError> {
        let path = self.question.and(question).with("after", after).path("/observations");
        let body = self.link.open(&path).await.map_err(|error| error.of(self.server.clone()))?;
        let (server, news) = (self.server.clone(), VecDeque::new());
        let mut follower = Follower { server, body, events: Events::default(), news };
        // It says at once where it begins; who loses the connection goes on from there.
        match tokio::time::timeout(self.link.limit(), follower.next()).await {
            Ok(first) => follower.news.push_front(first?),
            Err(_) => tracing::debug!("the server does not say from where on it tells what happens"),
        }
        Ok(follower)
    }
}

/// Something new.
#[derive(Debug)]
pub(crate) enum News {
    /// Something was seen.
    Seen(Box<Observation>),
    /// So many observations were not told to this follower.
    Missed(u64),
    /// Nothing that was asked for; the observation up to which everything was looked at.
    At(u64),
}

/// Follows what happens, until it is dropped.
pub(crate) struct Follower {
    server: String,
    body: Incoming,
    events: Events,
    news: VecDeque<News>,
}

impl Follower {
    /// The next thing that happens.
    ///
    /// # Errors
    /// The server has gone, or says something that cannot be read.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<News, AdminError> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Ok(news);
            }
            let lost = |reason: String| AdminError::Unreachable { url: self.server.clone(), reason };
            let frame = match tokio::time::timeout(SILENCE_MAX, self.body.frame()).await {
                Err(_) => return Err(lost(format!("nothing was heard of it for {SILENCE_MAX:?}"))),
                Ok(None) => return Err(lost("it has ended the connection".to_owned())),
                Ok(Some(frame)) => frame.map_err(|error| lost(chain(&error)))?,
            };
            let Some(bytes) = frame.data_ref() else { continue };
            for event in self.events.push(bytes).map_err(|error| lost(error.to_string()))? {
                let news = read(&event).map_err(|error| lost(format!("unexpected event: {error}")))?;
                self.news.extend(news);
                self.news.extend(event.id.map(News::At));
            }
        }
    }
}

#[derive(Deserialize)]
struct Missed {
    missed: u64,
}

/// What an event tells; nothing, when it is of a kind that is not known here.
fn read(event: &Event) -> Result<Option<News>, serde_json::Error> {
    Ok(match event.name.as_str() {
        "" | "message" if event.data.is_empty() => None,
        "" | "message" => Some(News::Seen(serde_json::from_str(&event.data)?)),
        "missed" => Some(News::Missed(serde_json::from_str::<Missed>(&event.data)?.missed)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_filters_survive_their_way_in_an_address() {
        let question = Question::default().with("tool", Some("a b&c=d/é")).with("type", None::<&str>);
        let question = question.with("limit", Some(1));
        assert_eq!(question.path("/conversations"), "/conversations?tool=a%20b%26c%3Dd%2F%C3%A9&limit=1");
        assert_eq!(percent_encoded(".."), "%2E%2E");
        assert_eq!(Question::default().path("/x"), "/x");
    }
}
