//! The gateway: takes what people say, asks the model, calls the tools that the model wants, and answers.
//!
//! It names no conversation, correlation or cause anywhere: what is published while a message is handled inherits them
//! from that message.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trunkline::backend::PublishError;
use trunkline::topics::payload::{
    AnalyticsEvent, ChannelInbound, ChannelOutbound, LlmMessage, LlmRequest, ToolCall, ToolResult,
};
use trunkline::{
    Bus, DecodeError, Event, Received, RequestError, StreamReplyError, SubjectError, Subscription, Token,
};

use super::{DemoError, llm};

/// Conversations that are handled at once; further messages wait on the bus.
const CONVERSATIONS_MAX: usize = 16;
/// How often the model may be asked for one answer.
const ROUNDS_MAX: usize = 4;
/// How often a tool is tried.
const TRIES_MAX: u32 = 3;
/// Longest wait for a tool.
const TOOL_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest silence of the model.
const MODEL_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a tool is tried again; twice as long each time.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no answer to a message.
#[derive(Debug, thiserror::Error)]
enum TurnError {
    #[error("the message cannot be read")]
    Decode(#[from] DecodeError),
    #[error("the model cannot be asked")]
    Ask(#[from] RequestError),
    #[error("the model broke off")]
    Model(#[from] StreamReplyError),
    #[error("a subject cannot be named")]
    Subject(#[from] SubjectError),
    #[error("the answer cannot be sent")]
    Publish(#[from] PublishError),
    #[error("the model went on calling tools")]
    Rounds,
}

/// What one answer took.
#[derive(Debug, Default)]
struct Effort {
    model_calls: u32,
    tool_calls: u32,
    retries: u32,
}

/// Starts the gateway. Several of them would share the messages: they are one queue group.
pub(super) async fn start(bus: &Bus, tasks: &TaskTracker, stop: &CancellationToken) -> Result<(), DemoError> {
    let inbound = bus.topics().pattern("channel.*.inbound")?;
    let messages = bus.subscribe(inbound).queue(Token::new("gateway")?).await?;
    let (bus, stop) = (bus.clone(), stop.clone());
    tasks.spawn(async move {
        // Dropped by `stop`, and the conversations under way with it.
        stop.run_until_cancelled(serve(bus, messages)).await;
    });
    Ok(())
}

async fn serve(bus: Bus, mut messages: Subscription) {
    let mut conversations = JoinSet::new();
    while let Some(event) = messages.next().await {
        match event {
            Event::Message(message) => {
                // While the message is processed, everything published inherits its conversation and correlation.
                let processing = message.process(handle(bus.clone(), message.clone()));
                conversations.spawn(processing);
            }
            Event::Gap(gap) => tracing::warn!(missed = gap.missed, "messages of people were lost"),
        }
        while conversations.try_join_next().is_some() {}
        if conversations.len() >= CONVERSATIONS_MAX {
            conversations.join_next().await;
        }
    }
    conversations.join_all().await;
}

async fn handle(bus: Bus, message: Received) {
    let started = Instant::now();
    let mut effort = Effort::default();
    let outcome = match answer(&bus, &message, &mut effort).await {
        Ok(()) => "answered",
        Err(error) => {
            tracing::warn!(%error, "a message could not be answered");
            "failed"
        }
    };
    let event = AnalyticsEvent {
        event: "turn".to_owned(),
        properties: json!({
            "outcome": outcome,
            "millis": u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "modelCalls": effort.model_calls,
            "toolCalls": effort.tool_calls,
            "retries": effort.retries,
        }),
    };
    let published = match bus.topics().analytics("turn") {
        Ok(topic) => bus.publish(topic, &event).await.map_err(TurnError::from),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = published {
        tracing::warn!(%error, "analytics missed a turn");
    }
}

async fn answer(bus: &Bus, message: &Received, effort: &mut Effort) -> Result<(), TurnError> {
    let inbound: ChannelInbound = message.decode()?;
    let text = match think(bus, &inbound.text, effort).await {
        Ok(text) => text,
        Err(error) => {
            // The person gets an answer, whatever happens behind it.
            let text = format!("Sorry, that did not work: {error}.");
            reply(bus, message, &inbound, text).await?;
            return Err(error);
        }
    };
    reply(bus, message, &inbound, text).await
}

async fn reply(
    bus: &Bus,
    message: &Received,
    inbound: &ChannelInbound,
    text: String,
) -> Result<(), TurnError> {
    // {root}.channel.{channel}.inbound
    let channel = message.subject().tokens().nth(2).unwrap_or_default();
    let topic = bus.topics().channel(channel)?.outbound();
    let outbound = ChannelOutbound {
        recipient: inbound.sender.clone(),
        text,
        thread_id: inbound.thread_id.clone(),
        ..ChannelOutbound::default()
    };
    bus.publish(topic, &outbound).await?;
    Ok(())
}

/// Asks the model until it has an answer, calling the tools it wants in between.
async fn think(bus: &Bus, question: &str, effort: &mut Effort) -> Result<String, TurnError> {
    let mut dialogue = vec![LlmMessage { role: "user".to_owned(), content: question.into() }];
    for _ in 0..ROUNDS_MAX {
        effort.model_calls += 1;
        let (text, call) = ask(bus, dialogue.clone()).await?;
        let Some(call) = call else {
            return Ok(text);
        };
        let result = call_tool(bus, &call, effort).await?;
        let output = json!({"output": result.output, "isError": result.is_error});
        dialogue.push(LlmMessage { role: "assistant".to_owned(), content: call.to_json() });
        dialogue.push(LlmMessage { role: "tool".to_owned(), content: output });
    }
    Err(TurnError::Rounds)
}

/// Asks the model once: the words come one by one, and at the end perhaps a call of a tool.
async fn ask(bus: &Bus, messages: Vec<LlmMessage>) -> Result<(String, Option<llm::ToolWish>), TurnError> {
    let request = LlmRequest {
        model: "stand-in".to_owned(),
        messages,
        tools: vec![json!({"name": "weather"}), json!({"name": "calculator"})],
        session_id: trunkline::Context::current().and_then(|context| context.trace().conversation_id.clone()),
        parameters: Value::Null,
    };
    let mut chunks =
        bus.request_stream(bus.topics().llm().request(), &request).idle_timeout(MODEL_TIMEOUT).await?;
    let (mut text, mut wish) = (String::new(), None);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        text.push_str(&chunk.text);
        wish = wish.or_else(|| llm::ToolWish::from_json(&chunk.tool_call));
    }
    Ok((text, wish))
}

/// Calls a tool, again where that may help. What does not work in the end is told to the model, which explains it.
async fn call_tool(bus: &Bus, wish: &llm::ToolWish, effort: &mut Effort) -> Result<ToolResult, TurnError> {
    let topic = bus.topics().tool(&wish.name)?.call();
    let call = ToolCall { call_id: None, arguments: wish.arguments.clone() };
    effort.tool_calls += 1;
    let mut pause = RETRY_PAUSE;
    let mut tries = 1;
    loop {
        let error = match bus.request(topic.clone(), &call).tool(&wish.name).timeout(TOOL_TIMEOUT).await {
            Ok(result) => return Ok(result),
            Err(error) => error,
        };
        if !error.is_retryable() || tries == TRIES_MAX {
            return Ok(ToolResult { output: error.to_string().into(), is_error: true, call_id: None });
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
        tries += 1;
        effort.retries += 1;
    }
}
