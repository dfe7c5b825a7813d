//! What a span says of a message: its name and its attributes, by the semantic conventions for messaging
//! (<https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/>) and for generative AI.
//!
//! What the conventions have no name for is called `trunkline.…`.

use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;
use trunkline_core::Message;

use crate::bus::Inner;
use crate::config::Backend as BackendKind;
use crate::envelope::Envelope;

/// Longest token that stands in a template as it is.
const TOKEN_BYTES_MAX: usize = 40;

/// What is done with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bus) enum Operation {
    Publish,
    DeadLetter,
    Redrive,
    Request,
    Receive,
    Process,
    Respond,
    Ack,
    Nak,
    Term,
}

impl Operation {
    /// `messaging.operation.name`, which begins the span's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::DeadLetter => "dead_letter",
            Self::Redrive => "redrive",
            Self::Request => "request",
            Self::Receive => "receive",
            Self::Process => "process",
            Self::Respond => "respond",
            Self::Ack => "ack",
            Self::Nak => "nak",
            Self::Term => "term",
        }
    }

    /// `messaging.operation.type`.
    fn kind_of_operation(self) -> &'static str {
        match self {
            Self::Publish | Self::DeadLetter | Self::Redrive | Self::Request => "send",
            Self::Receive => "receive",
            Self::Process | Self::Respond => "process",
            Self::Ack | Self::Nak | Self::Term => "settle",
        }
    }

    /// Whether it is done with a message that somebody else sent.
    pub(super) fn takes(self) -> bool {
        matches!(self, Self::Receive | Self::Process | Self::Respond)
    }

    pub(super) fn span_kind(self) -> SpanKind {
        match self {
            Self::Publish | Self::DeadLetter | Self::Redrive => SpanKind::Producer,
            Self::Process => SpanKind::Consumer,
            Self::Respond => SpanKind::Server,
            Self::Request | Self::Receive | Self::Ack | Self::Nak | Self::Term => SpanKind::Client,
        }
    }
}

/// A subject without what may be different in every message, so that spans can be grouped: tokens that look like ids
/// stand as `*`.
pub(super) fn template(subject: &str) -> String {
    if is_temporary(subject) {
        return "(temporary)".to_owned();
    }
    let mut out = String::with_capacity(subject.len());
    for (at, token) in subject.split('.').enumerate() {
        if at > 0 {
            out.push('.');
        }
        out.push_str(if looks_like_an_id(token) { "*" } else { token });
    }
    out
}

/// Whether a token names one thing of many: a number, a long token with digits such as a UUID, or one that is very long.
fn looks_like_an_id(token: &str) -> bool {
    let digits = token.bytes().filter(u8::is_ascii_digit).count();
    digits == token.len() || token.len() > TOKEN_BYTES_MAX || (token.len() >= 8 && digits >= 2)
}

fn is_temporary(subject: &str) -> bool {
    subject.starts_with("_INBOX.")
}

/// What every span on this message says.
pub(super) fn of_message(
    inner: &Inner,
    operation: Operation,
    template: &str,
    message: &Message,
    envelope: Option<&Envelope>,
) -> Vec<KeyValue> {
    let mut all = of_destination(operation, template, message.subject.as_str());
    all.push(KeyValue::new("messaging.client.id", inner.options.source.clone()));
    all.push(KeyValue::new("trunkline.backend", backend(inner)));
    all.push(KeyValue::new(
        "messaging.message.body.size",
        i64::try_from(message.payload.len()).unwrap_or(i64::MAX),
    ));
    all.extend(of_server(&inner.backend.status().borrow().server));
    if let Some(reason) = message.headers.get("Trunkline-Dead-Reason") {
        all.push(KeyValue::new("trunkline.dead_letter.reason", reason.to_owned()));
    }
    if let Some(envelope) = envelope {
        all.extend(of_envelope(envelope));
    }
    all
}

/// What is said of an envelope.
pub(super) fn of_envelope(envelope: &Envelope) -> Vec<KeyValue> {
    let mut all = vec![
        KeyValue::new("messaging.message.id", envelope.id.clone()),
        KeyValue::new("trunkline.message.type", envelope.kind.clone()),
    ];
    let trace = &envelope.trace;
    for (name, value) in [
        ("messaging.message.conversation_id", &envelope.correlation_id),
        ("gen_ai.conversation.id", &trace.conversation_id),
        ("gen_ai.agent.id", &trace.persona_id),
        ("gen_ai.agent.name", &trace.persona_id),
        ("gen_ai.tool.name", &trace.tool_id),
        ("trunkline.skill.id", &trace.skill_id),
        ("trunkline.causation.id", &trace.causation_id),
    ] {
        if let Some(value) = value {
            all.push(KeyValue::new(name, value.clone()));
        }
    }
    all
}

/// What is said of where a message went.
pub(super) fn of_destination(operation: Operation, template: &str, subject: &str) -> Vec<KeyValue> {
    let mut all = Vec::with_capacity(20);
    all.push(KeyValue::new("messaging.system", "trunkline"));
    all.push(KeyValue::new("messaging.operation.name", operation.name()));
    all.push(KeyValue::new("messaging.operation.type", operation.kind_of_operation()));
    all.push(KeyValue::new("messaging.destination.name", subject.to_owned()));
    if is_temporary(subject) {
        all.push(KeyValue::new("messaging.destination.temporary", true));
    } else if template != subject {
        all.push(KeyValue::new("messaging.destination.template", template.to_owned()));
    }
    all
}

/// Host and port of the server behind the bus, as its status names it (`redis://localhost:6379/0`); nothing where there is
/// none, or where there are several.
fn of_server(server: &str) -> Vec<KeyValue> {
    let address = server.split_once("://").map_or(server, |(_, rest)| rest);
    let address = address.split_once('/').map_or(address, |(address, _)| address);
    let Some((host, port)) = address.rsplit_once(':') else { return Vec::new() };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match port.parse::<u16>() {
        Ok(port) if !host.is_empty() && !host.contains([',', ' ', '@']) => vec![
            KeyValue::new("server.address", host.to_owned()),
            KeyValue::new("server.port", i64::from(port)),
        ],
        _ => Vec::new(),
    }
}

fn backend(inner: &Inner) -> &'static str {
    match inner.backend.capabilities().kind {
        BackendKind::InMemory => "in_memory",
        BackendKind::Redis => "redis",
        BackendKind::Nats => "nats",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_told_by_host_and_port_where_it_is_one() {
        for (server, expected) in [
            ("localhost:6379", Some(("localhost", 6379))),
            ("redis://localhost:6379/0", Some(("localhost", 6379))),
            ("nats://[::1]:4222", Some(("::1", 4222))),
            ("nats://a:1,nats://b:2", None),
            ("this process", None),
            ("a:1, b:2", None),
            ("localhost", None),
            (":1", None),
        ] {
            let expected = expected.map_or_else(Vec::new, |(host, port): (&str, i64)| {
                vec![KeyValue::new("server.address", host), KeyValue::new("server.port", port)]
            });
            assert_eq!(of_server(server), expected, "{server}");
        }
    }

    #[test]
    fn a_template_has_no_ids() {
        for (subject, expected) in [
            ("nachos.channel.web.inbound", "nachos.channel.web.inbound"),
            ("nachos.llm.gpt4.request", "nachos.llm.gpt4.request"),
            ("nachos.session.42.events", "nachos.session.*.events"),
            ("acme.job.0190a7c2-2f4e-7bb3-9e2b-5d1f0a6f8c11.done", "acme.job.*.done"),
            ("acme.user.u1234567.mail", "acme.user.*.mail"),
            (&format!("acme.{}", "x".repeat(41)), "acme.*"),
            ("_INBOX.abc.1", "(temporary)"),
        ] {
            assert_eq!(template(subject), expected, "{subject}");
        }
    }
}
