//! Alerts and dashboard name metrics and labels that there are, and a real Prometheus finds something for every panel.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::prometheus::Prometheus;
use super::scene::Scene;
use super::{eventually, files};

/// Labels that Prometheus itself adds, or that histograms have.
const GIVEN: [&str; 3] = ["job", "instance", "le"];
/// Panels of what is not there while all is well.
const EMPTY: [&str; 1] = ["Checks that are not well"];

/// What was scraped: the labels of each metric.
type Known = BTreeMap<String, BTreeSet<String>>;

/// Names in a query: metrics of ours with the labels that are compared there, and labels by which something is grouped.
#[derive(Debug, Default, PartialEq)]
struct Named {
    metrics: Vec<(String, Vec<String>)>,
    grouped: Vec<String>,
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

fn named(query: &str) -> Named {
    let mut named = Named::default();
    let mut rest = query;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '"') {
        rest = &rest[start..];
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted.split_once('"').expect("a string ends").1;
            continue;
        }
        let name = word(rest);
        rest = &rest[name.len()..];
        if name.starts_with("trunkline_") {
            let labels = match rest.strip_prefix('{') {
                None => Vec::new(),
                Some(inside) => {
                    let (inside, _) = inside.split_once('}').expect("a selector ends");
                    inside.split(',').map(|pair| word(pair.trim()).to_owned()).collect()
                }
            };
            named.metrics.push((name.to_owned(), labels));
        } else if ["by", "without", "on", "ignoring"].contains(&name) {
            let (inside, after) =
                rest.trim_start().strip_prefix('(').and_then(|it| it.split_once(')')).expect("labels");
            named.grouped.extend(inside.split(',').map(|label| label.trim().to_owned()));
            rest = after;
        }
    }
    named
}

/// Everything that a query, and the legend under it, names is there.
#[track_caller]
fn check(what: &str, query: &str, legend: &str, known: &Known) {
    let named = named(query);
    assert!(!named.metrics.is_empty() || query.starts_with("up{"), "{what}: {query} names nothing of ours");
    let mut all: BTreeSet<&str> = GIVEN.into();
    for (metric, labels) in &named.metrics {
        let Some(found) = known.get(metric) else { panic!("{what}: there is no {metric}") };
        for label in labels {
            let there = found.contains(label) || GIVEN.contains(&label.as_str());
            assert!(there, "{what}: {metric} has no label {label}, it has {found:?}");
        }
        all.extend(found.iter().map(String::as_str));
    }
    let shown =
        legend.split("{{").skip(1).filter_map(|part| part.split_once("}}")).map(|(label, _)| label.trim());
    for label in named.grouped.iter().map(String::as_str).chain(shown) {
        assert!(all.contains(label), "{what}: no metric of {query} has the label {label}");
    }
}

#[test]
fn names_in_queries_are_found() {
    let query =
        r#"sum by (le, stream) (rate(trunkline_a_bucket{stream=~"x}y", job="by (z)"}[1m])) > trunkline_b"#;
    let expected = Named {
        metrics: vec![
            ("trunkline_a_bucket".to_owned(), vec!["stream".to_owned()]),
            ("trunkline_b".to_owned(), Vec::new()),
        ],
        grouped: vec!["le".to_owned(), "stream".to_owned()],
    };
    // The brace within a string ends the selector early, which takes labels away and adds none.
    assert_eq!(named(query), expected);
}

fn dashboard() -> Value {
    let file = std::fs::read_to_string(files().join("trunkline.dashboard.json")).expect("it is there");
    serde_json::from_str(&file).expect("JSON")
}

/// Metric and label of each variable of the dashboard that is read from a metric.
fn variables() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let list = dashboard["templating"]["list"].as_array().expect("variables").iter();
    let queries = list.filter(|variable| variable["type"] == "query").map(|variable| {
        let query = variable["query"]["query"].as_str().expect("a query");
        assert_eq!(variable["definition"], query, "Grafana shows the one and asks the other");
        let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (metric, label) =
            inside.and_then(|inside| inside.split_once(", ")).expect("a metric and a label");
        (metric.to_owned(), label.to_owned())
    });
    queries.collect()
}

/// Title, query and legend of everything that the dashboard shows.
fn panels() -> Vec<(String, Vec<(String, String)>)> {
    let dashboard = dashboard();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut ids = BTreeSet::new();
    let panels = dashboard["panels"].as_array().expect("panels");
    assert!(panels.iter().all(|panel| ids.insert(panel["id"].as_u64())), "ids are given twice");
    let shows = panels.iter().filter(|panel| panel["type"] != "row");
    shows
        .map(|panel| {
            let targets = panel["targets"].as_array().expect("targets").iter();
            (
                text(&panel["title"]),
                targets.map(|it| (text(&it["expr"]), text(&it["legendFormat"]))).collect(),
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_scrapes_everything_that_alerts_and_dashboard_name() {
    let scene = Scene::play().await;
    let prometheus = Prometheus::scraping(&[scene.up.http.trim_start_matches("http://"), &scene.application]);
    prometheus.until_scraped(2);
    let every = r#"{__name__=~"trunkline_.+"}"#;
    let series = prometheus.ask("series", &[("match[]", every)]).expect("series");
    let mut known = Known::new();
    for labels in series.as_array().expect("a list").iter().filter_map(Value::as_object) {
        let name = labels["__name__"].as_str().expect("a name").to_owned();
        known.entry(name).or_default().extend(labels.keys().cloned());
    }
    // Names of the configuration and fixed words: nothing of what was sent.
    let few = known.values().flatten().collect::<BTreeSet<_>>();
    assert!(
        !few.iter().any(|label| ["subject", "id", "user", "client"].contains(&label.as_str())),
        "{few:?}"
    );

    let rules = eventually("a look at all rules", || {
        let found = prometheus.ask("rules", &[("type", "alert")])?;
        let rules = found["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
        match !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok") {
            true => Ok(rules),
            false => Err(found.to_string()),
        }
    });
    for rule in &rules {
        let text = |pointer: &str| rule.pointer(pointer).and_then(Value::as_str).expect("a text");
        let annotations = format!("{}{}", text("/annotations/summary"), text("/annotations/description"));
        let annotations = annotations.replace("$labels.", "");
        let labels: Vec<&str> =
            annotations.split("{{ ").skip(1).map(word).filter(|label| !label.is_empty()).collect();
        let legend: String = labels.iter().map(|label| format!("{{{{{label}}}}}")).collect();
        check(text("/name"), text("/query"), &legend, &known);
    }
    let variables = variables();
    assert!(!variables.is_empty());
    for (metric, label) in variables {
        check("a variable", &metric, &format!("{{{{{label}}}}}"), &known);
    }
    for (title, targets) in panels() {
        for (query, legend) in &targets {
            check(&title, query, legend, &known);
        }
        let shown = |query: &str| query.replace("$instance", ".*").replace("$__rate_interval", "1m");
        eventually(&format!("something in the panel {title:?}"), || {
            let found = targets.iter().map(|(query, _)| prometheus.query(&shown(query)));
            let found =
                found.collect::<Result<Vec<_>, _>>().unwrap_or_else(|error| panic!("{title}: {error}"));
            match found.iter().any(|series| !series.is_empty()) || EMPTY.contains(&&*title) {
                true => Ok(()),
                false => Err("nothing".to_owned()),
            }
        });
    }
    // What is scraped is what has happened.
    for (query, expected) in [
        (r#"sum(trunkline_acked_deliveries_total)"#, "2"),
        (r#"sum(trunkline_consumer_handler_seconds_count{stream="work",consumer="worker"})"#, "4"),
        (r#"sum(trunkline_consumer_end_to_end_seconds_count{stream="work",consumer="worker"})"#, "3"),
        (r#"sum(trunkline_responder_handler_seconds_count{queue="echo"})"#, "1"),
        (r#"sum(trunkline_request_seconds_count)"#, "1"),
        (r#"trunkline_component_ready{component="idle"}"#, "1"),
        (r#"trunkline_consumer_redelivered_messages_total{stream="work",consumer="worker"}"#, "1"),
        (r#"trunkline_stream_messages{stream="dead-nachos"}"#, "1"),
        (r#"sum(trunkline_health_state{state="ok"})"#, "1"),
    ] {
        let found = prometheus.query(query).expect("a query");
        assert_eq!(
            found.first().map(|one| &one["value"][1]),
            Some(&Value::from(expected)),
            "{query}: {found:?}"
        );
    }
    assert_eq!(scene.bus.health().status, "ok");
    scene.bus.drain(crate::command::PATIENCE).await.expect("drained");
}
