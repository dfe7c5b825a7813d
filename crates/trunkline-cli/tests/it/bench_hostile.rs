//! `bench hostile`: what it measures. How much it is, only a quiet machine can tell.

use std::time::Duration;

use serde_json::Value;

use crate::command::{command, start};

#[test]
fn bench_hostile_holds_round_trips_with_a_hostile_client_against_those_without() {
    let few = ["--runs", "1", "--duration", "200ms", "--timeout", "60s", "--json"];
    let wanted = ["churn", "handshakes", "passwords"];
    let bench = start(command(&[&["bench", "hostile"], &wanted[..], &few[..]].concat()), b"");
    // Its hostile client runs in the idle class: where other tests leave no processor idle it waits, as long as the bench lets it.
    let output = bench.end_within(Duration::from_secs(3 * 60)).ok();
    let report: Value = serde_json::from_slice(&output).expect("one JSON document");
    let attacks = report["attacks"].as_array().expect("a list");
    let names: Vec<_> = attacks.iter().map(|attack| attack["attack"].as_str().unwrap_or_default()).collect();
    assert_eq!(names, wanted);
    for attack in attacks {
        assert!(attack["done"].as_u64().is_some_and(|done| done > 0), "{attack}");
        for values in ["p50Us", "p99Us", "perSecond"] {
            for side in ["calm", "hostile"] {
                assert!(attack[values][side]["median"].as_f64().is_some_and(|value| value > 0.0), "{attack}");
            }
        }
        assert!(attack["p99UsBusy"]["median"].as_f64().is_some_and(|value| value > 0.0), "{attack}");
        assert!(attack["rssBytesMax"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{attack}");
    }
}
