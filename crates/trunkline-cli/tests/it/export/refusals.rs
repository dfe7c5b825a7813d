//! What is not written, and why; and that nothing which is there gets lost.

use std::fs;

use super::{PLATFORM, export_in, project};

#[test]
fn export_replaces_nothing_unless_told_and_keeps_what_it_replaces() {
    let directory = project(PLATFORM, "in_memory");
    export_in(directory.path(), "compose", &[]).ok();
    let out = directory.path().join("out");
    let token = |path: &str| fs::read_to_string(out.join(path)).expect("a secret");
    let first = token("secrets/operator_url");
    fs::write(out.join("compose.yaml"), "# changed by hand\n").expect("written");

    let refused = export_in(directory.path(), "compose", &[]);
    assert_eq!(refused.code(), 1);
    assert!(
        refused.stderr.contains("compose.yaml") && refused.stderr.contains("there already"),
        "{refused:?}"
    );
    assert!(refused.stderr.contains("--force"), "{refused:?}");
    assert_eq!(token("secrets/operator_url"), first, "nothing was touched");

    let document = &export_in(directory.path(), "compose", &["--force", "--json"]);
    let document: serde_json::Value = serde_json::from_slice(&document.stdout).expect("JSON");
    let backup = std::path::PathBuf::from(document["backup"].as_str().expect("a backup"));
    let kept = fs::read_to_string(backup.join("compose.yaml")).expect("it was kept");
    assert_eq!(kept, "# changed by hand\n");
    assert_eq!(fs::read_to_string(backup.join("secrets/operator_url")).expect("kept"), first);
    assert_ne!(token("secrets/operator_url"), first, "credentials are new");
    let listed = document["files"].as_array().expect("files");
    assert!(listed.iter().any(|file| file == "compose.yaml") && document["next"].is_array());
}

#[test]
fn what_a_deployment_cannot_do_without_is_told() {
    for (config, target, arguments, code, expected) in [
        (
            "messaging: {}\ncomponents: {a: {command: x}}\n",
            "kubernetes",
            &[][..],
            1,
            &["component \"a\" has no image", "--image a=IMAGE"][..],
        ),
        ("messaging: {}\n", "compose", &["--image", "a"], 2, &["--image a is not NAME=IMAGE"]),
        ("messaging: {}\n", "compose", &["--image", "b=c"], 2, &["\"b\"", "no service"]),
        (
            "messaging: {}\ncomponents: {redis: {command: x}}\n",
            "compose",
            &[],
            1,
            &["component \"redis\" would be called redis"],
        ),
        (
            "messaging: {}\ncomponents: {a_b: {command: x, image: i}, a-b: {command: x, image: i}}\n",
            "kubernetes",
            &[],
            1,
            &["would be called a-b"],
        ),
        (
            "messaging: {}\ncomponents: {a: {command: x, env_file: gone.env}}\n",
            "systemd",
            &[],
            1,
            &["components.a.env_file gone.env cannot be used"],
        ),
        (
            "messaging: {}\ncomponents: {a: {command: x, env: {A: \"b\\nc\"}}}\n",
            "compose",
            &[],
            1,
            &["variable A of component \"a\" has a line break"],
        ),
    ] {
        let directory = project(config, "in_memory");
        let ended = export_in(directory.path(), target, arguments);
        assert_eq!(ended.code(), code, "{config}: {ended:?}");
        for expected in expected {
            assert!(ended.stderr.contains(expected), "{config}: {ended:?}");
        }
        assert!(!directory.path().join("out").exists(), "nothing is written");
    }
}
