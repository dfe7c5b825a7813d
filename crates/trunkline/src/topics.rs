//! The subjects of an agent platform, each with the type of its payload and of its reply.
//!
//! Ids that become part of a subject must be one token; what is not is refused, never escaped. The payloads stand in
//! [`payload`]. Add subjects of your own with [`Topic::new`].

pub mod payload;

use std::borrow::Cow;
use std::marker::PhantomData;

use trunkline_core::{Pattern, Subject, SubjectError, Token};

use payload::{
    AnalyticsEvent, AuditRecord, ChannelInbound, ChannelOutbound, GatewayReply, GatewayRequest, LlmChunk,
    LlmRequest, PolicyReload, SkillEvent, SystemHealth, ToolCall, ToolResult,
};

/// Longest root token, in bytes: it leaves room for ids and for the names of streams and consumers.
pub const SUBJECT_ROOT_BYTES_MAX: usize = 256;

/// A subject, with the type of what is published there and of what answers it. Cheap to clone.
///
/// ```
/// use trunkline::Topic;
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Invoice { cents: u64 }
/// let invoices: Topic<Invoice> = Topic::new("acme.billing.invoice".parse()?).kind("billing.invoice");
/// assert_eq!(invoices.subject().as_str(), "acme.billing.invoice");
/// # Ok::<(), trunkline::SubjectError>(())
/// ```
pub struct Topic<P, R = ()> {
    subject: Subject,
    kind: Cow<'static, str>,
    reply_kind: Cow<'static, str>,
    // `fn` so that a topic is `Send` and `Sync` whatever it carries.
    types: PhantomData<fn(P) -> R>,
}

impl<P, R> Topic<P, R> {
    /// A topic at `subject`, whose envelopes have the type `message` and whose replies have the type `reply`.
    pub fn new(subject: Subject) -> Self {
        Self::named(subject, "message", "reply")
    }

    fn named(subject: Subject, kind: &'static str, reply_kind: &'static str) -> Self {
        Self { subject, kind: kind.into(), reply_kind: reply_kind.into(), types: PhantomData }
    }

    /// Sets the type that envelopes published here have.
    #[must_use]
    pub fn kind(mut self, kind: impl Into<Cow<'static, str>>) -> Self {
        self.kind = kind.into();
        self
    }

    /// Sets the type that envelopes of replies have.
    #[must_use]
    pub fn reply_kind(mut self, kind: impl Into<Cow<'static, str>>) -> Self {
        self.reply_kind = kind.into();
        self
    }

    /// Where it is.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The pattern that matches this subject alone.
    pub fn pattern(&self) -> Pattern {
        Pattern::from(&self.subject)
    }

    pub(crate) fn into_parts(self) -> (Subject, Cow<'static, str>, Cow<'static, str>) {
        (self.subject, self.kind, self.reply_kind)
    }
}

impl<P, R> Clone for Topic<P, R> {
    fn clone(&self) -> Self {
        Self {
            subject: self.subject.clone(),
            kind: self.kind.clone(),
            reply_kind: self.reply_kind.clone(),
            types: PhantomData,
        }
    }
}

impl<P, R> std::fmt::Debug for Topic<P, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Topic").field("subject", &self.subject).field("kind", &self.kind).finish()
    }
}

/// The subjects of the platform below one root token. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Topics {
    root: Token,
}

impl Topics {
    /// The subjects below `root` (`messaging.subject_root`).
    ///
    /// # Errors
    /// A root over [`SUBJECT_ROOT_BYTES_MAX`] bytes.
    pub fn new(root: Token) -> Result<Self, SubjectError> {
        match root.as_bytes().len() {
            length if length > SUBJECT_ROOT_BYTES_MAX => Err(SubjectError::TooLong { length }),
            _ => Ok(Self { root }),
        }
    }

    /// The root token.
    pub fn root(&self) -> &Token {
        &self.root
    }

    /// The subject `rest` below the root.
    ///
    /// # Errors
    /// What is not a literal subject.
    pub fn subject(&self, rest: &str) -> Result<Subject, SubjectError> {
        Subject::new(format!("{}.{rest}", self.root))
    }

    /// The pattern `rest` below the root, such as `channel.*.inbound`, or `>` for everything.
    ///
    /// # Errors
    /// What is not a pattern.
    pub fn pattern(&self, rest: &str) -> Result<Pattern, SubjectError> {
        Pattern::new(format!("{}.{rest}", self.root))
    }

    /// The subjects of a channel.
    ///
    /// # Errors
    /// An id that is not one token.
    pub fn channel(&self, channel: &str) -> Result<ChannelTopics, SubjectError> {
        let channel = Token::new(channel)?;
        Ok(ChannelTopics {
            inbound: self.subject(&format!("channel.{channel}.inbound"))?,
            outbound: self.subject(&format!("channel.{channel}.outbound"))?,
        })
    }

    /// The subjects of a tool.
    ///
    /// # Errors
    /// An id that is not one token.
    pub fn tool(&self, tool: &str) -> Result<ToolTopics, SubjectError> {
        let tool = Token::new(tool)?;
        Ok(ToolTopics {
            call: self.subject(&format!("tool.{tool}.call"))?,
            result: self.subject(&format!("tool.{tool}.result"))?,
            task: self.subject(&format!("tool.{tool}.task"))?,
        })
    }

    /// What a skill reports: `{root}.skill.{skill}.event`.
    ///
    /// # Errors
    /// An id that is not one token.
    pub fn skill(&self, skill: &str) -> Result<Topic<SkillEvent>, SubjectError> {
        let skill = Token::new(skill)?;
        Ok(Topic::named(self.subject(&format!("skill.{skill}.event"))?, "skill.event", "reply"))
    }

    /// Something that happened, for analytics: `{root}.analytics.{event}`.
    ///
    /// # Errors
    /// An event that is not one token.
    pub fn analytics(&self, event: &str) -> Result<Topic<AnalyticsEvent>, SubjectError> {
        let event = Token::new(event)?;
        Ok(Topic::named(self.subject(&format!("analytics.{event}"))?, "analytics.event", "reply"))
    }

    /// Requests to the gateway: `{root}.gateway.request`.
    pub fn gateway(&self) -> GatewayTopics<'_> {
        GatewayTopics(self)
    }

    /// The subjects of the LLM proxy.
    pub fn llm(&self) -> LlmTopics<'_> {
        LlmTopics(self)
    }

    /// The audit log: `{root}.audit.log`.
    pub fn audit(&self) -> Topic<AuditRecord> {
        Topic::named(self.fixed("audit.log"), "audit.record", "reply")
    }

    /// The subjects that concern the platform as a whole.
    pub fn system(&self) -> SystemTopics<'_> {
        SystemTopics(self)
    }

    /// The pattern of all dead letters. Only the bus publishes there.
    pub fn dead_letters(&self) -> Pattern {
        self.pattern("dead.>").expect("a root of at most 256 bytes and a fixed, short rest make a pattern")
    }

    /// Where the dead letters of a consumer go; the names are checked before.
    pub(crate) fn dead(&self, stream: &str, consumer: &str) -> Subject {
        self.fixed(&format!("dead.{stream}.{consumer}"))
    }

    fn fixed(&self, rest: &str) -> Subject {
        self.subject(rest).expect("a root of at most 256 bytes and a fixed, short rest make a subject")
    }
}

/// The subjects of one channel.
#[derive(Debug, Clone)]
pub struct ChannelTopics {
    inbound: Subject,
    outbound: Subject,
}

impl ChannelTopics {
    /// What people say, channel to gateway: `{root}.channel.{channel}.inbound`.
    pub fn inbound(&self) -> Topic<ChannelInbound> {
        Topic::named(self.inbound.clone(), "channel.inbound", "reply")
    }

    /// What is answered to them, gateway to channel: `{root}.channel.{channel}.outbound`.
    pub fn outbound(&self) -> Topic<ChannelOutbound> {
        Topic::named(self.outbound.clone(), "channel.outbound", "reply")
    }
}

/// The subjects of one tool.
#[derive(Debug, Clone)]
pub struct ToolTopics {
    call: Subject,
    result: Subject,
    task: Subject,
}

impl ToolTopics {
    /// Requests to the tool: `{root}.tool.{tool}.call`.
    pub fn call(&self) -> Topic<ToolCall, ToolResult> {
        Topic::named(self.call.clone(), "tool.call", "tool.result")
    }

    /// A copy of each result, for the gateway and analytics: `{root}.tool.{tool}.result`.
    pub fn result(&self) -> Topic<ToolResult> {
        Topic::named(self.result.clone(), "tool.result", "reply")
    }

    /// Stored work for a consumer: `{root}.tool.{tool}.task`.
    pub fn task(&self) -> Topic<ToolCall> {
        Topic::named(self.task.clone(), "tool.task", "reply")
    }
}

/// The subjects of the gateway.
#[derive(Debug, Clone, Copy)]
pub struct GatewayTopics<'a>(&'a Topics);

impl GatewayTopics<'_> {
    /// Requests to the gateway: `{root}.gateway.request`.
    pub fn request(self) -> Topic<GatewayRequest, GatewayReply> {
        Topic::named(self.0.fixed("gateway.request"), "gateway.request", "gateway.reply")
    }
}

/// The subjects of the LLM proxy.
#[derive(Debug, Clone, Copy)]
pub struct LlmTopics<'a>(&'a Topics);

impl LlmTopics<'_> {
    /// Requests that are answered by a reply stream: `{root}.llm.request`.
    pub fn request(self) -> Topic<LlmRequest, LlmChunk> {
        Topic::named(self.0.fixed("llm.request"), "llm.request", "llm.chunk")
    }

    /// The chunks of one session for those who watch: `{root}.llm.stream.{session}`.
    ///
    /// # Errors
    /// A session that is not one token.
    pub fn stream(self, session: &str) -> Result<Topic<LlmChunk>, SubjectError> {
        let session = Token::new(session)?;
        Ok(Topic::named(self.0.subject(&format!("llm.stream.{session}"))?, "llm.chunk", "reply"))
    }
}

/// The subjects that concern the platform as a whole.
#[derive(Debug, Clone, Copy)]
pub struct SystemTopics<'a>(&'a Topics);

impl SystemTopics<'_> {
    /// How a component is, from every component: `{root}.system.health`.
    pub fn health(self) -> Topic<SystemHealth> {
        Topic::named(self.0.fixed("system.health"), "system.health", "reply")
    }

    /// The policy has changed: `{root}.system.policy.reload`.
    pub fn policy_reload(self) -> Topic<PolicyReload> {
        Topic::named(self.0.fixed("system.policy.reload"), "system.policy.reload", "reply")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics() -> Topics {
        Topics::new(Token::new("nachos").unwrap()).unwrap()
    }

    #[test]
    fn subjects_are_those_of_the_contract() {
        let t = topics();
        let (web, search) = (t.channel("web").unwrap(), t.tool("search").unwrap());
        let subjects = [
            web.inbound().subject().to_string(),
            web.outbound().subject().to_string(),
            t.gateway().request().subject().to_string(),
            search.call().subject().to_string(),
            search.result().subject().to_string(),
            search.task().subject().to_string(),
            t.skill("s").unwrap().subject().to_string(),
            t.llm().request().subject().to_string(),
            t.llm().stream("x").unwrap().subject().to_string(),
            t.analytics("turn").unwrap().subject().to_string(),
            t.audit().subject().to_string(),
            t.system().policy_reload().subject().to_string(),
            t.system().health().subject().to_string(),
            t.dead("audit", "siem").to_string(),
            t.dead_letters().to_string(),
        ];
        assert_eq!(
            subjects,
            [
                "nachos.channel.web.inbound",
                "nachos.channel.web.outbound",
                "nachos.gateway.request",
                "nachos.tool.search.call",
                "nachos.tool.search.result",
                "nachos.tool.search.task",
                "nachos.skill.s.event",
                "nachos.llm.request",
                "nachos.llm.stream.x",
                "nachos.analytics.turn",
                "nachos.audit.log",
                "nachos.system.policy.reload",
                "nachos.system.health",
                "nachos.dead.audit.siem",
                "nachos.dead.>",
            ]
        );
    }

    #[test]
    fn ids_are_one_token_or_refused() {
        let t = topics();
        for bad in ["", "a.b", "*", ">", "a b", "a\n", "x>"] {
            assert!(t.channel(bad).is_err(), "{bad:?}");
            assert!(t.tool(bad).is_err(), "{bad:?}");
            assert!(t.skill(bad).is_err(), "{bad:?}");
            assert!(t.analytics(bad).is_err(), "{bad:?}");
            assert!(t.llm().stream(bad).is_err(), "{bad:?}");
        }
        assert!(matches!(t.tool(&"x".repeat(1020)), Err(SubjectError::TooLong { .. })));
    }

    #[test]
    fn a_root_that_leaves_no_room_is_refused() {
        let root = |length: usize| Token::new("r".repeat(length)).unwrap();
        assert!(Topics::new(root(SUBJECT_ROOT_BYTES_MAX)).is_ok());
        assert!(Topics::new(root(SUBJECT_ROOT_BYTES_MAX + 1)).is_err());
    }
}
