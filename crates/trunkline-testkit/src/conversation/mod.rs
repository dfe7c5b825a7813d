//! Conversations between components in several languages: channel, gateway, tool and back, each part played by the Rust
//! library and by the stock clients in turn.
//!
//! One process of each client plays all three parts, and each channel talks to each gateway about each tool, so that every
//! combination of players is there. In each of them there is an answer, an error of the tool, and a tool that takes longer
//! than the answer is wanted. The players check what they are told; somebody who watches all subjects checks the rest: that each
//! hop carries on correlation, conversation and cause, and that a copy of each result is published.

mod platform;

use std::collections::HashMap;
use std::time::Duration;

use trunkline::backend::Fut;
use trunkline::{Bus, Envelope, Event, Payload, Subscription};

use crate::clients::{ClientLibrary, ScenarioRun};

/// Who plays a part: the library, and the stock clients, as subjects name them.
const PLAYERS: [&str; 4] = ["rust", "nats-py", "nats-js", "transport-node"];
/// What passes from message to message in the headers.
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// A tool that gives up at a deadline by the clock of its language may be off by so much.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(5);
/// Longer than anything here may take; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(25);

/// What a conversation is about, and so how it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum City {
    /// There is an answer.
    Oslo,
    /// The tool fails.
    Atlantis,
    /// The tool never comes to an end.
    Limbo,
}

impl City {
    const ALL: [City; 3] = [City::Oslo, City::Atlantis, City::Limbo];

    fn name(self) -> &'static str {
        match self {
            Self::Oslo => "Oslo",
            Self::Atlantis => "Atlantis",
            Self::Limbo => "Limbo",
        }
    }

    fn from_name(name: &str) -> Self {
        let city = Self::ALL.into_iter().find(|city| city.name() == name);
        city.unwrap_or_else(|| panic!("nobody asks about {name:?}"))
    }
}

/// Holds all conversations on one bus: stock clients connect to `url`, and `connect` makes a connection of the library for the part
/// that it is given the name of.
///
/// # Panics
/// When anything in them is not as it should be.
pub fn check_conversations(url: &str, connect: impl Fn(&'static str) -> Fut<'static, Bus>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime for the test");
    let mut clients = ClientLibrary::ALL.map(|library| ScenarioRun::start(library, "conversation", url));
    let mut observer = runtime.block_on(Observer::start(connect("observer")));
    let platform = runtime.block_on(platform::Platform::start(&connect));
    for client in &mut clients {
        client.wait_for_line("ready-to-talk");
    }
    runtime.block_on(async {
        observer.say("talk.begin").await;
        platform.talk().await;
    });
    for client in &mut clients {
        client.wait_for_line("talked");
    }
    runtime.block_on(observer.say("talk.end"));
    for client in clients {
        client.finish();
    }
    runtime.block_on(async {
        platform.stop().await;
        observer.check().await;
    });
    // A task that does not end must fail this test, not hang the whole run.
    runtime.shutdown_timeout(Duration::from_secs(1));
}

fn conversation_id(channel: &str, gateway: &str, tool: &str, city: City) -> String {
    format!("c-{channel}-{gateway}-{tool}-{}", city.name())
}

/// Every combination of channel, gateway and tool.
fn combinations() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let pairs = PLAYERS.into_iter().flat_map(|channel| PLAYERS.map(|gateway| (channel, gateway)));
    pairs.flat_map(|(channel, gateway)| PLAYERS.map(|tool| (channel, gateway, tool)))
}

/// Sees everything that is published on the subjects of the platform.
struct Observer {
    bus: Bus,
    everything: Subscription,
    /// What was seen, by conversation.
    seen: HashMap<String, Vec<Seen>>,
}

/// A message, without what the observer does not look at.
struct Seen {
    subject: String,
    envelope: Envelope,
}

impl Observer {
    async fn start(bus: Fut<'static, Bus>) -> Self {
        let bus = bus.await;
        let pattern = bus.topics().pattern(">").expect("a pattern");
        let everything = bus.subscribe(pattern).await.expect("the bus is there");
        Self { bus, everything, seen: HashMap::new() }
    }

    async fn say(&self, subject: &str) {
        self.bus.publish_bytes(subject.parse().expect("a subject"), "").await.expect("the bus is there");
        self.bus.flush().await.expect("the bus is there");
    }

    /// Waits until all messages have been seen, then looks at how they belong together.
    async fn check(&mut self) {
        let complete = async {
            // Four messages make a conversation; a reply goes to an inbox, which nobody else sees.
            let expected = combinations().count() * City::ALL.len() * 4;
            let mut count = 0;
            while count < expected {
                match self.everything.next().await {
                    Some(Event::Message(message)) => count += usize::from(self.take(&message)),
                    other => panic!("after {count} of {expected} messages there came {other:?}"),
                }
            }
        };
        let complete = tokio::time::timeout(PATIENCE, complete).await;
        if complete.is_err() {
            let short = self.seen.iter().filter(|(_, messages)| messages.len() != 4);
            let short: Vec<_> = short
                .map(|(id, seen)| (id, seen.iter().map(|seen| seen.subject.as_str()).collect::<Vec<_>>()))
                .collect();
            panic!("not everything was published within {PATIENCE:?}; incomplete are {short:?}");
        }
        for (channel, gateway, tool) in combinations() {
            for city in City::ALL {
                let id = conversation_id(channel, gateway, tool, city);
                let seen = self.seen.remove(&id).unwrap_or_else(|| panic!("{id} was not held"));
                check_hops(&id, (channel, gateway, tool), city, &seen);
            }
        }
        assert!(self.seen.is_empty(), "conversations that nobody held: {:?}", self.seen.keys());
    }

    /// Takes note of a message; `false` for what is of no conversation, such as a server's own health.
    fn take(&mut self, message: &trunkline::Received) -> bool {
        let Some(envelope) = message.envelope() else { return false };
        let Some(conversation) = envelope.trace.conversation_id.clone() else { return false };
        assert_eq!(message.headers().get("traceparent"), Some(TRACEPARENT), "{conversation}: {envelope:?}");
        let seen = Seen { subject: message.subject().to_string(), envelope: envelope.clone() };
        self.seen.entry(conversation).or_default().push(seen);
        true
    }
}

fn check_hops(id: &str, (channel, gateway, tool): (&str, &str, &str), city: City, seen: &[Seen]) {
    let at = |subject: String| {
        let mut found = seen.iter().filter(|seen| seen.subject == subject).map(|seen| &seen.envelope);
        match (found.next(), found.next()) {
            (Some(envelope), None) => envelope,
            (None, _) => panic!("{id}: nothing was published at {subject}"),
            (Some(_), Some(_)) => panic!("{id}: more than one message was published at {subject}"),
        }
    };
    let inbound = at(format!("nachos.channel.{channel}-{gateway}.inbound"));
    let call = at(format!("nachos.tool.weather-{tool}.call"));
    let result = at(format!("nachos.tool.weather-{tool}.result"));
    let outbound = at(format!("nachos.channel.{channel}-{gateway}.outbound"));
    assert!(inbound.correlation_id.is_some(), "{id}: {inbound:?}");
    for (envelope, kind, source, cause) in [
        (inbound, "channel.inbound", format!("channel-{channel}"), None),
        (call, "tool.call", format!("gateway-{gateway}"), Some(inbound)),
        (result, "tool.result", format!("tool-{tool}"), Some(call)),
        (outbound, "channel.outbound", format!("gateway-{gateway}"), Some(inbound)),
    ] {
        assert_eq!(envelope.kind, kind, "{id}");
        assert_eq!(envelope.source.as_deref(), Some(source.as_str()), "{id}: {envelope:?}");
        assert_eq!(envelope.correlation_id, inbound.correlation_id, "{id}: {envelope:?}");
        let cause = cause.map(|cause| cause.id.as_str());
        assert_eq!(envelope.trace.causation_id.as_deref(), cause, "{id}: {envelope:?}");
        assert!(envelope.timestamp.is_some(), "{id}: {envelope:?}");
    }
    let deadline = call.deadline.unwrap_or_else(|| panic!("{id}: the call has no deadline"));
    assert_eq!(outbound.deadline, None, "{id}: only requests inherit a deadline");
    let Payload::Json(payload) = &result.payload else { panic!("{id}: {result:?}") };
    assert_eq!(payload["isError"], city != City::Oslo, "{id}: {payload}");
    if city == City::Limbo {
        assert_eq!(inbound.deadline, Some(deadline), "{id}: the gateway passes on how long there is");
        let gave_up = result.timestamp.expect("checked above");
        assert!(gave_up >= deadline - CLOCK_TOLERANCE, "{id}: gave up at {gave_up}, before {deadline}");
    }
}
