//! A tool and who calls it, in one program. With `TRUNKLINE_URL=nats://127.0.0.1:4222` both meet on a running bus instead.

use serde_json::json;
use trunkline::topics::payload::{ToolCall, ToolResult};
use trunkline::{Bus, config::Config};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bus = Bus::connect(Config::load()?).await?;
    let shout = bus.topics().tool("shout")?.call();
    let tool = bus.respond(shout.clone(), async |_request, call: ToolCall| {
        let text = call.arguments["text"].as_str().unwrap_or_default().to_uppercase();
        Ok(ToolResult { output: json!({ "text": text }), ..Default::default() })
    });
    let _tool = tool.queue("shout").start().await?;
    let call = ToolCall { arguments: json!({ "text": "hello" }), ..Default::default() };
    let reply: ToolResult = bus.request(shout, &call).conversation("c-42").await?;
    println!("{}", reply.output["text"]);
    Ok(())
}
