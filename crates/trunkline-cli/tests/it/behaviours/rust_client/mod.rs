//! How `async-nats`, the client library behind the `nats` backend, behaves. It lives in the process of the test, on a runtime
//! of one thread: what blocks that thread is to the client what SIGSTOP is to others.

mod access;
mod encryption;
mod life;
mod limits;
mod services;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, ConnectError, ConnectOptions, Event, RequestErrorKind, Subscriber};
use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::sync::Notify;

use super::scene::Scene;

pub(super) use access::*;
pub(super) use encryption::*;
pub(super) use life::*;
pub(super) use limits::*;
pub(super) use services::*;

/// Longest wait for anything; all of it takes well under a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a behaviour acts on, and what it reported.
pub(super) struct Stage {
    scene: Scene,
    reports: Vec<Value>,
}

/// Runs one behaviour to its end and returns what it reported.
pub(super) fn run(scene: Scene, behaviour: impl AsyncFnOnce(&mut Stage)) -> Vec<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut stage = Stage { scene, reports: Vec::new() };
    runtime.block_on(behaviour(&mut stage));
    stage.reports
}

impl Stage {
    fn report(&mut self, seen: Value) {
        self.reports.push(seen);
    }

    /// Has something done to the server, while the client stands still.
    fn cue(&mut self, cue: &str) {
        self.scene.act(cue, None);
    }

    /// What the test has set under this name.
    fn variable(&self, name: &str) -> String {
        let variables = self.scene.variables();
        let found = variables.into_iter().find(|(known, _)| *known == name);
        found.and_then(|(_, value)| value.into_string().ok()).unwrap_or_else(|| panic!("{name} is not set"))
    }

    /// The file that the test names under this name.
    fn file(&self, name: &str) -> String {
        let path = self.variable(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    async fn connect(&self, options: ConnectOptions) -> Result<(Client, Story), ConnectError> {
        self.connect_to(&self.scene.url(), options).await
    }

    async fn connect_to(&self, url: &str, options: ConnectOptions) -> Result<(Client, Story), ConnectError> {
        let story = Story::default();
        let client = story.told_by(options).connect(url).await?;
        Ok((client, story))
    }

    /// Connects as somebody who is let in.
    async fn enter(&self, options: ConnectOptions) -> (Client, Story) {
        within("connect", self.connect(options)).await.expect("let in")
    }
}

/// What a client's events said, in their order.
#[derive(Default, Clone)]
struct Story {
    events: Arc<Mutex<Vec<Event>>>,
    changed: Arc<Notify>,
}

impl Story {
    /// These options, with a callback that keeps the events here.
    fn told_by(&self, options: ConnectOptions) -> ConnectOptions {
        let story = self.clone();
        let options = options.reconnect_delay_callback(|_| Duration::from_millis(20));
        options.event_callback(move |event| {
            let story = story.clone();
            async move {
                story.events.lock().expect("nobody panics there").push(event);
                story.changed.notify_waiters();
            }
        })
    }

    fn events(&self) -> Vec<Event> {
        self.events.lock().expect("nobody panics there").clone()
    }

    fn texts(&self) -> Vec<String> {
        self.events().iter().map(ToString::to_string).collect()
    }

    /// Waits until what was said so far is enough.
    async fn until(&self, what: &str, holds: impl Fn(&[Event]) -> bool) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                // In line before looking: an event in between would be missed.
                changed.as_mut().enable();
                if holds(&self.events()) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("{what}: {:?}", self.texts());
        }
    }

    /// Waits for an event of the server's own words, and returns them.
    async fn server_error(&self, part: &str) -> String {
        let part = part.to_lowercase();
        let said = |event: &Event| event.to_string().to_lowercase().contains(&part);
        self.until(&part, |events| events.iter().any(said)).await;
        self.events().iter().find(|event| said(event)).expect("it was just there").to_string()
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.unwrap_or_else(|_| panic!("nothing within {PATIENCE:?}: {what}"))
}

/// Subscribes and waits until the server has dealt with it.
async fn subscribe(client: &Client, subject: &str) -> Subscriber {
    let subscriber = client.subscribe(subject.to_owned()).await.expect("a subscription");
    settle(client).await;
    subscriber
}

/// Returns once the server has dealt with everything sent so far, and this client with everything sent to it by then. Its
/// `flush` alone only says that the bytes were written.
async fn settle(client: &Client) {
    let request = client.request("nobody.answers.this", "".into());
    let error = within("a round trip", request).await.expect_err("nobody answers");
    assert_eq!(error.kind(), RequestErrorKind::NoResponders);
}

async fn publish(client: &Client, subject: &str, payload: &str) {
    client.publish(subject.to_owned(), payload.to_owned().into()).await.expect("a connection");
}

/// The next message, as text.
async fn next(subscriber: &mut Subscriber) -> String {
    let message = within("a message", subscriber.next()).await.expect("the subscription lives");
    String::from_utf8(message.payload.to_vec()).expect("text")
}

/// A message of the connection's own goes to the server and back.
async fn works(client: &Client, subject: &str) {
    let mut subscriber = client.subscribe(subject.to_owned()).await.expect("a subscription");
    publish(client, subject, "through").await;
    assert_eq!(next(&mut subscriber).await, "through");
}
