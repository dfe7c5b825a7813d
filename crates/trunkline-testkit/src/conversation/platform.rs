//! The three parts as the library plays them, as the scripts of the stock clients do beside it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use trunkline::backend::Fut;
use trunkline::topics::payload::{ChannelInbound, ChannelOutbound, ToolCall, ToolResult};
use trunkline::{Bus, Event, HandlerError, Received, Request, RequestError, Responder, Token};

use super::{City, PATIENCE, PLAYERS, TRACEPARENT, conversation_id};

const ME: &str = "rust";
/// As long as the gateway waits for a tool when nobody is in a hurry.
const TOOL_TIMEOUT: Duration = Duration::from_secs(8);
/// When the answer about a city that takes for ever is not wanted any more.
const HURRY: Duration = Duration::from_secs(2);

/// Answers that somebody waits for, by conversation.
type Awaited = Arc<Mutex<HashMap<String, oneshot::Sender<Received>>>>;

/// Channel, gateway and tool, each on a connection of its own.
pub(super) struct Platform {
    tool: Responder,
    channel: Bus,
    awaited: Awaited,
    /// What takes messages for gateway and channel; they run until this stops.
    tasks: JoinSet<()>,
}

impl Platform {
    pub(super) async fn start(connect: &impl Fn(&'static str) -> Fut<'static, Bus>) -> Self {
        let mut tasks = JoinSet::new();
        let tool = start_tool(&connect("tool-rust").await).await;
        start_gateway(&connect("gateway-rust").await, &mut tasks).await;
        let (channel, awaited) = (connect("channel-rust").await, Awaited::default());
        start_channel(&channel, &awaited, &mut tasks).await;
        Self { tool, channel, awaited, tasks }
    }

    /// Holds the conversations of this channel with every gateway about every tool.
    pub(super) async fn talk(&self) {
        let all = |city: City| {
            let pairs = PLAYERS.into_iter().flat_map(|gateway| PLAYERS.map(|tool| (gateway, tool)));
            pairs.map(move |(gateway, tool)| self.turn(gateway, tool, city))
        };
        join_all(all(City::Oslo).chain(all(City::Atlantis))).await;
        join_all(all(City::Limbo)).await;
    }

    pub(super) async fn stop(mut self) {
        self.tool.stop().await;
        self.tasks.abort_all();
        while let Some(ended) = self.tasks.join_next().await {
            // A handler that fails panics, and its task with it: that is the panic of the test.
            if let Err(failed) = ended
                && failed.is_panic()
            {
                std::panic::resume_unwind(failed.into_panic());
            }
        }
    }

    /// What somebody says, and what they are told.
    async fn turn(&self, gateway: &str, tool: &str, city: City) {
        let id = conversation_id(ME, gateway, tool, city);
        let (sender, answer) = oneshot::channel();
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), sender);
        let inbound = ChannelInbound {
            sender: "ann".to_owned(),
            text: city.name().to_owned(),
            metadata: json!({ "tool": format!("weather-{tool}") }),
            ..ChannelInbound::default()
        };
        let correlation = format!("made-for-{id}");
        let topic = self.channel.topics().channel(&format!("{ME}-{gateway}")).expect("a token").inbound();
        let mut saying = self.channel.publish(topic, &inbound).conversation(&id).correlation_id(&correlation);
        saying = saying.header("traceparent", TRACEPARENT);
        if city == City::Limbo {
            let deadline = std::time::SystemTime::now() + HURRY;
            saying = saying.deadline(jiff::Timestamp::try_from(deadline).expect("it is not far from now"));
        }
        saying.await.expect("the bus is there");
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        let message = answer.unwrap_or_else(|_| panic!("no answer in {id}")).expect("the channel listens");
        let envelope = message.envelope().unwrap_or_else(|| panic!("{id}: {message:?}"));
        assert_eq!(envelope.source.as_deref(), Some(format!("gateway-{gateway}").as_str()), "{id}");
        assert_eq!(envelope.correlation_id.as_deref(), Some(correlation.as_str()), "{id}");
        let outbound: ChannelOutbound = message.decode().expect("an answer of a gateway");
        let expected = match city {
            City::Oslo => format!("sunny in Oslo, says {tool}"),
            City::Atlantis => "error 422: Atlantis sank".to_owned(),
            City::Limbo => "no answer in time".to_owned(),
        };
        assert_eq!((outbound.recipient.as_str(), outbound.text), ("ann", expected), "{id}");
    }
}

async fn start_tool(bus: &Bus) -> Responder {
    let tool = format!("weather-{ME}");
    let call = bus.topics().tool(&tool).expect("a token").call();
    bus.respond(call, forecast).queue(tool).start().await.expect("the bus is there")
}

async fn forecast(request: Request, call: ToolCall) -> Result<ToolResult, HandlerError> {
    let city = City::from_name(call.arguments["city"].as_str().unwrap_or_default());
    let result = |output: String, is_error| ToolResult {
        call_id: call.call_id.clone(),
        output: output.into(),
        is_error,
    };
    match city {
        City::Oslo => {
            let result = result(format!("sunny in Oslo, says {ME}"), false);
            publish_copy(&request, &result).await?;
            Ok(result)
        }
        City::Atlantis => {
            publish_copy(&request, &result("it sank".to_owned(), true)).await?;
            Err(HandlerError::new("Atlantis sank").code(422))
        }
        City::Limbo => {
            let (given_up, copy) = (request.clone(), result("gave up".to_owned(), true));
            // Outlives the handler, which the bus drops at the deadline.
            tokio::spawn(request.context().clone().scope(async move {
                given_up.cancellation().cancelled().await;
                publish_copy(&given_up, &copy).await.expect("the bus is there");
            }));
            std::future::pending().await
        }
    }
}

async fn publish_copy(request: &Request, result: &ToolResult) -> Result<(), HandlerError> {
    let bus = request.bus();
    let topic = bus.topics().tool(&format!("weather-{ME}"))?.result();
    bus.publish(topic, result).await?;
    Ok(())
}

async fn start_gateway(bus: &Bus, tasks: &mut JoinSet<()>) {
    for channel in PLAYERS {
        let inbound = bus.topics().channel(&format!("{channel}-{ME}")).expect("a token").inbound();
        let subscribing = bus.subscribe(inbound.pattern()).queue(Token::new("gateway").expect("a token"));
        let mut messages = subscribing.await.expect("the bus is there");
        let bus = bus.clone();
        tasks.spawn(async move {
            let mut answering = JoinSet::new();
            loop {
                tokio::select! {
                    event = messages.next() => match event {
                        Some(Event::Message(message)) => {
                            // Within its context, what is published belongs to the message.
                            answering.spawn(message.context().scope(answer(bus.clone(), message)));
                        }
                        other => panic!("the gateway's subscription gave {other:?}"),
                    },
                    Some(answered) = answering.join_next() => answered.expect("answers do not panic"),
                }
            }
        });
    }
}

async fn answer(bus: Bus, message: Received) {
    let inbound: ChannelInbound = message.decode().expect("what a channel says");
    let tool = inbound.metadata["tool"].as_str().expect("the channel names a tool");
    let call = ToolCall {
        call_id: Some(format!("call-{}", fastrand::u64(..))),
        arguments: json!({ "city": inbound.text }),
    };
    let topic = bus.topics().tool(tool).expect("a token").call();
    let asked = bus.request::<_, ToolResult>(topic, &call).tool(tool).timeout(TOOL_TIMEOUT).received().await;
    let text = match asked {
        Ok(reply) => {
            let context = message.context();
            let envelope = reply.envelope().unwrap_or_else(|| panic!("no envelope: {reply:?}"));
            assert_eq!(envelope.kind, "tool.result");
            assert_eq!(envelope.correlation_id.as_deref(), context.correlation_id());
            assert_eq!(envelope.trace.conversation_id, context.trace().conversation_id);
            assert_ne!(envelope.trace.causation_id, context.trace().causation_id, "the call caused it");
            assert_eq!(reply.headers().get("traceparent"), Some(TRACEPARENT));
            let result: ToolResult = reply.decode().expect("what a tool says");
            assert!(result.call_id == call.call_id && !result.is_error, "{result:?}");
            result.output.as_str().unwrap_or_default().to_owned()
        }
        Err(RequestError::Timeout { .. } | RequestError::Service { code: 408, .. }) => {
            "no answer in time".to_owned()
        }
        Err(RequestError::Service { code, message, .. }) => format!("error {code}: {message}"),
        Err(error) => panic!("{tool} cannot be asked: {error}"),
    };
    let channel = message.subject().tokens().nth(2).expect("the channel's subject names it");
    let topic = bus.topics().channel(channel).expect("a token").outbound();
    let outbound = ChannelOutbound { recipient: inbound.sender, text, ..ChannelOutbound::default() };
    bus.publish(topic, &outbound).await.expect("the bus is there");
}

async fn start_channel(bus: &Bus, awaited: &Awaited, tasks: &mut JoinSet<()>) {
    for gateway in PLAYERS {
        let outbound = bus.topics().channel(&format!("{ME}-{gateway}")).expect("a token").outbound();
        let mut messages = bus.subscribe(outbound.pattern()).await.expect("the bus is there");
        let awaited = awaited.clone();
        tasks.spawn(async move {
            loop {
                let Some(Event::Message(message)) = messages.next().await else {
                    panic!("the channel's subscription ended, or has a gap")
                };
                let id =
                    message.context().trace().conversation_id.clone().expect("an answer in a conversation");
                let waiting = awaited.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                let waiting = waiting.unwrap_or_else(|| panic!("nobody waits for an answer in {id}"));
                // Who waited may have given up, and has said so.
                let _ = waiting.send(message);
            }
        });
    }
}
