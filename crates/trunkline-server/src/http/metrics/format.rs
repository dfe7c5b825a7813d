//! The two text formats of metrics: OpenMetrics for who asks for it, as Prometheus does, and the classic one for everybody
//! else.

use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers a text in OpenMetrics in the format that is asked for.
pub(super) fn negotiate(headers: &HeaderMap, body: String) -> Response {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let open = accepted.flat_map(|value| value.split(',')).any(|kind| {
        let mut parts = kind.split(';').map(str::trim);
        let named =
            parts.next().is_some_and(|name| name.eq_ignore_ascii_case("application/openmetrics-text"));
        named && !parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    });
    match open {
        true => ([(header::CONTENT_TYPE, OPEN_METRICS)], body).into_response(),
        false => ([(header::CONTENT_TYPE, CLASSIC)], classic(&body)).into_response(),
    }
}

/// The same metrics as <https://prometheus.io/docs/instrumenting/exposition_formats/> has them: there a family has the name
/// of its series, `_total` and `_info` included, information is a gauge, units are part of the name alone, and no end is
/// marked.
fn classic(open: &str) -> String {
    let mut text = String::with_capacity(open.len() + open.len() / 8);
    // The help of a family comes before its type, which decides on the name in it.
    let mut help = None;
    for line in open.lines() {
        match line.strip_prefix("# ").and_then(|line| line.split_once(' ')) {
            Some(("HELP", rest)) => help = rest.split_once(' '),
            Some(("TYPE", rest)) => {
                let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    _ => ("", kind),
                };
                if let Some((_, words)) = help.take() {
                    text.push_str(&format!("# HELP {name}{suffix} {words}\n"));
                }
                text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
            }
            Some(("UNIT", _)) => {}
            _ if line == "# EOF" => {}
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_in_the_classic_format_has_the_names_of_its_series() {
        let open = "# HELP a_b What it is.\n# TYPE a_b counter\na_b_total{x=\"# HELP y\"} 3\n# HELP c d\n# TYPE c info\n\
                    c_info{v=\"1\"} 1\n# HELP e f\n# TYPE e histogram\n# UNIT e seconds\ne_sum 1.0\ne_count 2\n# EOF\n";
        let expected = "# HELP a_b_total What it is.\n# TYPE a_b_total counter\na_b_total{x=\"# HELP y\"} 3\n\
                        # HELP c_info d\n# TYPE c_info gauge\nc_info{v=\"1\"} 1\n# HELP e f\n# TYPE e histogram\n\
                        e_sum 1.0\ne_count 2\n";
        assert_eq!(classic(open), expected);
    }

    #[test]
    fn open_metrics_is_for_who_asks_for_it() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, expected) in [
            (None, CLASSIC),
            (Some("*/*"), CLASSIC),
            (Some("text/plain"), CLASSIC),
            (Some("application/openmetrics-text;q=0, text/plain"), CLASSIC),
            (Some("Application/OpenMetrics-Text; version=1.0.0"), OPEN_METRICS),
            (Some(prometheus), OPEN_METRICS),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, accept.parse().expect("a header"));
            }
            let answer = negotiate(&headers, "# EOF\n".to_owned());
            assert_eq!(answer.headers()[header::CONTENT_TYPE], expected, "{accept:?}");
        }
    }
}
