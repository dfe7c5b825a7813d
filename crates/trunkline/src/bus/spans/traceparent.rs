//! W3C trace context in the headers of a message: `traceparent`, and beside it `tracestate`.
//!
//! They come from outside. What is not exactly of the form of <https://www.w3.org/TR/trace-context/> is taken for absent:
//! it never fails a message, and while nobody makes spans it passes on as it came.

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use trunkline_core::Headers;

pub(in crate::bus) const TRACEPARENT: &str = "traceparent";
pub(in crate::bus) const TRACESTATE: &str = "tracestate";

/// Bytes of a `traceparent` of version 00: `00-` trace id `-` span id `-` flags.
const BYTES: usize = 55;
/// Longest `tracestate` that is read. The recommendation asks for 512 to be passed on.
const TRACESTATE_BYTES_MAX: usize = 512;

/// The span that sent a message, if its headers name one.
pub(super) fn read(headers: &Headers) -> Option<SpanContext> {
    let mut values = headers.get_all(TRACEPARENT);
    let (value, None) = (values.next()?, values.next()) else {
        // Of two it is not known which one is meant.
        return None;
    };
    let (trace_id, rest) = trace_id(value).zip(value.get(36..BYTES))?;
    let span_id = SpanId::from_hex(&rest[..16]).ok()?;
    let flags = u8::from_str_radix(&rest[17..], 16).ok()?;
    let trace_id = TraceId::from_hex(trace_id).ok()?;
    // Later versions may have given the other bits a meaning; of this one only the first has.
    let flags = TraceFlags::new(flags) & TraceFlags::SAMPLED;
    Some(SpanContext::new(trace_id, span_id, flags, true, state(headers)))
}

/// What the members of `tracestate` are; none where it is not well-formed.
fn state(headers: &Headers) -> TraceState {
    let mut whole = String::new();
    for value in headers.get_all(TRACESTATE) {
        if whole.len() + value.len() >= TRACESTATE_BYTES_MAX {
            return TraceState::NONE;
        }
        if !whole.is_empty() {
            whole.push(',');
        }
        whole.push_str(value);
    }
    let is_text = whole.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    let has_names = whole.split(',').all(|member| !member.trim_start().starts_with('='));
    match is_text && has_names {
        true => whole.parse().unwrap_or(TraceState::NONE),
        false => TraceState::NONE,
    }
}

/// The trace id of a `traceparent`, 32 hexadecimal digits, if it is one.
pub(in crate::bus) fn trace_id(value: &str) -> Option<&str> {
    let bytes = value.as_bytes();
    let head = bytes.get(..BYTES)?;
    // A later version may go on behind these fields, this one may not.
    let whole = match bytes.get(BYTES) {
        None => true,
        Some(next) => *next == b'-' && !head.starts_with(b"00"),
    };
    let dashes = [2, 35, 52];
    let digits = head.iter().enumerate().all(|(at, byte)| match dashes.contains(&at) {
        true => *byte == b'-',
        false => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    });
    let zero = |part: &[u8]| part.iter().all(|byte| *byte == b'0');
    let valid = whole && digits && !head.starts_with(b"ff") && !zero(&head[3..35]) && !zero(&head[36..52]);
    valid.then(|| &value[3..35])
}

/// The id of the span in a `traceparent`, 16 hexadecimal digits, if it is one.
pub(in crate::bus) fn span_id(value: &str) -> Option<&str> {
    trace_id(value).map(|_| &value[36..52])
}

/// The headers that name a span; the second is absent where there is no state.
pub(super) fn written(span: &SpanContext) -> (String, Option<String>) {
    let flags = if span.is_sampled() { 1 } else { 0 };
    let parent = format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id());
    let state = span.trace_state().header();
    (parent, (!state.is_empty()).then_some(state))
}

/// Names a span in the headers of a message, in place of the one that they named.
pub(super) fn write(span: &SpanContext, headers: &mut Headers) {
    let (parent, state) = written(span);
    headers.set(TRACEPARENT, parent).expect("a literal name and hexadecimal digits");
    headers.remove(TRACESTATE);
    if let Some(state) = state {
        // A sampler may have put anything into it; the trace holds without.
        let _ = headers.append(TRACESTATE, state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in pairs {
            headers.append((*name).to_owned(), (*value).to_owned()).unwrap();
        }
        headers
    }

    #[test]
    fn what_is_written_reads_back() {
        let came = headers(&[("Traceparent", GOOD), ("tracestate", "a=1,b=2"), ("tracestate", "c=3")]);
        let span = read(&came).unwrap();
        assert!(span.is_sampled() && span.is_remote());
        let mut sent = headers(&[("TRACEPARENT", "else"), ("tracestate", "d=4"), ("X", "1")]);
        write(&span, &mut sent);
        let sent: Vec<_> = sent.iter().collect();
        assert_eq!(sent, [("X", "1"), ("traceparent", GOOD), ("tracestate", "a=1,b=2,c=3")]);
    }

    #[test]
    fn what_is_not_of_the_form_is_taken_for_absent() {
        let later = format!("cc{}-what-comes-later", &GOOD[2..]);
        assert_eq!((trace_id(&later), span_id(&later)), (Some(&GOOD[3..35]), Some("00f067aa0ba902b7")));
        for hostile in [
            "",
            "00-1-2-01",
            &GOOD[..54],
            &format!("{GOOD}-"),
            &format!("{GOOD}0"),
            &format!("cc{}0", &GOOD[2..]),
            &format!("ff{}", &GOOD[2..]),
            &GOOD.to_uppercase(),
            &GOOD.replace("4bf9", "zzzz"),
            &GOOD.replace("4bf9", "+bf9"),
            &GOOD.replace('-', "_"),
            &GOOD.replace("4bf9", "4bé"),
            &format!("00-{:032}-00f067aa0ba902b7-01", 0),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            &"0".repeat(100_000),
        ] {
            assert!(read(&headers(&[("traceparent", hostile)])).is_none(), "{hostile}");
            assert_eq!((trace_id(hostile), span_id(hostile)), (None, None), "{hostile}");
        }
        assert!(read(&headers(&[("traceparent", GOOD), ("traceparent", GOOD)])).is_none(), "two of them");
    }

    #[test]
    fn a_state_that_cannot_be_read_does_not_take_the_parent_along() {
        for hostile in ["=", "no pair", "a=1\u{7}", "ü=1", &format!("a={}", "x".repeat(511))] {
            let span = read(&headers(&[("traceparent", GOOD), ("tracestate", hostile)])).unwrap();
            assert_eq!(span.trace_state().header(), "", "{hostile}");
        }
    }
}
