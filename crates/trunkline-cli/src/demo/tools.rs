//! The tools: one that can be relied on, and one whose service behind it fails now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use trunkline::topics::payload::{ToolCall, ToolResult};
use trunkline::{Bus, HandlerError, Request, Responder};

use super::{DemoError, calculator};

/// Every so many calls the weather service fails.
const FAILS_EVERY: u64 = 3;
/// How long the weather service takes.
const WEATHER_DELAY: Duration = Duration::from_millis(120);
/// How the weather may be.
const SKIES: [&str; 6] = ["sunny", "cloudy", "raining", "snowing", "windy", "foggy"];

/// Starts the calculator.
pub(super) async fn start_calculator(bus: &Bus) -> Result<Responder, DemoError> {
    let call = bus.topics().tool("calculator")?.call();
    Ok(bus.respond(call, calculate).queue("calculator").start().await?)
}

/// Starts the weather tool.
pub(super) async fn start_weather(bus: &Bus) -> Result<Responder, DemoError> {
    let call = bus.topics().tool("weather")?.call();
    let calls = Arc::new(AtomicU64::new(0));
    let forecast = move |request: Request, call: ToolCall| {
        let number = calls.fetch_add(1, Ordering::Relaxed) + 1;
        forecast(request, call, number)
    };
    Ok(bus.respond(call, forecast).queue("weather").start().await?)
}

async fn calculate(request: Request, call: ToolCall) -> Result<ToolResult, HandlerError> {
    let expression = call.arguments["expression"].as_str().unwrap_or_default();
    let result = match calculator::evaluate(expression) {
        Ok(value) => ToolResult { output: number(value), ..ToolResult::default() },
        // No failure of the tool: the model is told what is wrong with what it asked.
        Err(error) => ToolResult { output: error.to_string().into(), is_error: true, call_id: None },
    };
    publish_copy(&request, "calculator", &result).await?;
    Ok(result)
}

/// Whole numbers without a fraction, as people write them.
fn number(value: f64) -> Value {
    // Up to 2^53 every whole number is exact, so the cast loses nothing.
    match value.fract() == 0.0 && value.abs() < 9e15 {
        true => (value as i64).into(),
        false => value.into(),
    }
}

async fn forecast(request: Request, call: ToolCall, number: u64) -> Result<ToolResult, HandlerError> {
    tokio::time::sleep(WEATHER_DELAY).await;
    if number.is_multiple_of(FAILS_EVERY) {
        let text = "the weather service did not answer";
        let failed = ToolResult { output: text.into(), is_error: true, call_id: call.call_id };
        publish_copy(&request, "weather", &failed).await?;
        return Err(HandlerError::new(text).code(503));
    }
    let city = call.arguments["city"].as_str().unwrap_or_default();
    let output = Value::from(weather_of(city));
    let result = ToolResult { output, call_id: call.call_id, is_error: false };
    publish_copy(&request, "weather", &result).await?;
    Ok(result)
}

/// Everybody may see what tools bring: a copy of each result is published.
async fn publish_copy(request: &Request, tool: &str, result: &ToolResult) -> Result<(), HandlerError> {
    let bus = request.bus();
    bus.publish(bus.topics().tool(tool)?.result(), result).tool(tool).await?;
    Ok(())
}

/// Always the same for the same city.
fn weather_of(city: &str) -> String {
    let sum: usize = city.bytes().map(usize::from).sum();
    format!("{} and {} °C", SKIES[sum % SKIES.len()], sum % 30)
}
