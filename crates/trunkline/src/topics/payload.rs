//! What is published on the platform's subjects. Fields are camelCase JSON; those that a reader does not know are
//! passed over, and those marked optional may be absent or `null`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use crate::health::{HealthCheck, SystemHealth};

/// Something a person said: `{root}.channel.{channel}.inbound`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ChannelInbound {
    /// Who said it, as the channel names people.
    pub sender: String,
    /// What was said.
    pub text: String,
    /// The channel's own name for the room, thread or session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<String>,
    /// What came along with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// Whatever else the channel knows.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub metadata: Value,
}

/// Something to say to a person: `{root}.channel.{channel}.outbound`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ChannelOutbound {
    /// To whom, as the channel names people.
    pub recipient: String,
    /// What to say.
    pub text: String,
    /// The channel's own name for the room, thread or session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<String>,
    /// What goes along with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// Whatever else the channel should know.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub metadata: Value,
}

/// A file or picture that goes with a message, by reference.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Attachment {
    /// What people call it.
    pub name: String,
    /// Its MIME type.
    pub media_type: String,
    /// Where it is.
    pub url: String,
}

/// Something a channel or the command line wants of the gateway: `{root}.gateway.request`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayRequest {
    /// What is wanted, such as `message` or `conversation.close`.
    pub action: String,
    /// What is said, where something is said.
    pub text: String,
    /// What the action needs.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub arguments: Value,
}

/// What the gateway answers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayReply {
    /// What is said in return.
    pub text: String,
    /// What the action brought.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub result: Value,
}

/// A call of a tool: `{root}.tool.{tool}.call`, and stored at `.task`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ToolCall {
    /// The caller's name for this call, which the model gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// What the tool is to do it with.
    pub arguments: Value,
}

/// What a tool brought: the reply to a call, and a copy at `{root}.tool.{tool}.result`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ToolResult {
    /// The call it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// What came out.
    pub output: Value,
    /// The tool ran and says that it failed; what the model should be told is in `output`.
    pub is_error: bool,
}

/// What a skill reports: `{root}.skill.{skill}.event`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SkillEvent {
    /// What happened, such as `started`, `step` or `finished`.
    pub event: String,
    /// The particulars.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

/// One turn of a dialogue with a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LlmMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What was said.
    pub content: Value,
}

/// A prompt for the LLM proxy, answered by a reply stream of [`LlmChunk`]: `{root}.llm.request`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LlmRequest {
    /// Which model; empty is the proxy's default.
    pub model: String,
    /// The dialogue so far.
    pub messages: Vec<LlmMessage>,
    /// Descriptions of the tools the model may call, as its vendor wants them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Value>,
    /// Where watchers follow along: the session of `{root}.llm.stream.{session}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Temperature, token limits and the like.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub parameters: Value,
}

/// A piece of a model's answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LlmChunk {
    /// The text this chunk adds.
    pub text: String,
    /// A call of a tool that the model wants, as its vendor writes it.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub tool_call: Value,
    /// On the last chunk: why the model stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// On the last chunk: tokens read and written.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub usage: Value,
}

/// Something that happened, for analytics: `{root}.analytics.{event}`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AnalyticsEvent {
    /// What happened.
    pub event: String,
    /// The particulars.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub properties: Value,
}

/// A line of the audit log: `{root}.audit.log`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuditRecord {
    /// Who did it.
    pub actor: String,
    /// What was done.
    pub action: String,
    /// To what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What came of it, such as `allowed`, `denied` or `failed`.
    pub outcome: String,
    /// The particulars.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub details: Value,
}

/// The policy has changed and is to be read anew: `{root}.system.policy.reload`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyReload {
    /// Which policy; empty is all of them.
    pub policy: String,
    /// The version that now holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_camel_case_and_unknown_ones_are_passed_over() {
        let call: ToolCall =
            serde_json::from_str(r#"{"callId":"c1","arguments":{"q":1},"more":true}"#).unwrap();
        assert_eq!(call.call_id.as_deref(), Some("c1"));
        let result = ToolResult { output: Value::from("x"), ..ToolResult::default() };
        assert_eq!(serde_json::to_string(&result).unwrap(), r#"{"output":"x","isError":false}"#);
        let health: SystemHealth = serde_json::from_str(r#"{"component":"web","reason":null}"#).unwrap();
        assert_eq!(health.reason, None);
    }
}
