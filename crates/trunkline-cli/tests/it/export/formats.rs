//! Every deployment is valid for what reads it, and confines what it runs.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use trunkline_testkit::environment;

use super::{BACKENDS, Exported, PLATFORM, at, check_secrets, export};
use crate::command::text;

/// Reads a file as its reader would, and holds it against that one's schema.
#[track_caller]
fn validated(kind: &str, arguments: &[&str]) -> Vec<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../trunkline-testkit/deploy/validate.py");
    let mut command = Command::new(environment::python());
    command.env("PYTHONPATH", environment::deploy()).arg(script).arg(kind).args(arguments);
    let output = command.output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

pub(super) fn compose(exported: &Exported) -> Value {
    let schema = environment::deploy().join("package/schemas/compose.schema.json");
    validated("compose", &[text(&schema), text(&exported.out().join("compose.yaml"))]).remove(0)
}

#[test]
fn compose_files_are_valid_and_gate_everything_on_the_bus() {
    for backend in BACKENDS {
        let exported = export(PLATFORM, backend, "compose", &[]);
        check_secrets(&exported);
        let document = compose(&exported);
        assert_eq!(at(&document, "/networks/bus/internal"), true);
        let services = at(&document, "/services").as_object().expect("services");
        for (name, service) in services {
            assert!(service.get("ports").is_none(), "{name} publishes ports");
            assert_eq!(at(service, "/read_only"), true, "{name}");
            assert_eq!(at(service, "/cap_drop/0"), "ALL", "{name}");
            assert_eq!(at(service, "/security_opt/0"), "no-new-privileges:true", "{name}");
            assert_eq!(at(service, "/deploy/resources/limits/memory"), "512000000b", "{name}");
            assert_eq!(at(service, "/deploy/resources/limits/cpus"), "0.5", "{name}");
            let user = at(service, "/user").as_str().expect("a user");
            assert!(user.split(':').all(|id| id.parse::<u32>().is_ok_and(|id| id > 0)), "{name}: {user}");
            for secret in service.get("secrets").and_then(Value::as_array).into_iter().flatten() {
                let file = at(&document, &format!("/secrets/{}/file", secret.as_str().expect("a name")));
                assert!(exported.out().join(file.as_str().expect("a path")).is_file(), "{file}");
            }
            let is_component = ["search", "gateway", "migrate_once"].contains(&name.as_str());
            match is_component {
                true => assert_eq!(at(service, "/depends_on/trunkline/condition"), "service_healthy"),
                // What only waits has an end, and no health.
                false if name.ends_with(".wait") => {
                    assert_eq!(at(service, "/depends_on/trunkline/condition"), "service_healthy");
                }
                false => drop(at(service, "/healthcheck/test")),
            }
        }
        let backends: Vec<&String> =
            services.keys().filter(|name| *name == "redis" || name.starts_with("nats-")).collect();
        let expected = match backend {
            "redis" => 1,
            "nats" => 3,
            _ => 0,
        };
        assert_eq!(backends.len(), expected);
        for name in backends {
            let condition = at(services.get("trunkline").expect("the bus"), "/depends_on");
            assert_eq!(condition[name]["condition"], "service_healthy");
            assert!(exported.out().join("data").join(name).is_dir());
        }
        let gateway = &services["gateway"];
        assert_eq!(at(gateway, "/depends_on/search/condition"), "service_started");
        assert_eq!(at(gateway, "/depends_on/gateway.wait/condition"), "service_completed_successfully");
        let waits = &services["gateway.wait"];
        let command = json!(["wait", "--timeout", "5m", "tcp://search:9000"]);
        assert_eq!((at(waits, "/command"), at(waits, "/restart")), (&command, &json!("no")));
        assert_eq!(at(waits, "/env_file"), at(gateway, "/env_file"), "it asks as the one that waits");
        assert_eq!(at(gateway, "/stop_grace_period"), "20s");
        assert_eq!(at(&services["search"], "/image"), "registry.example/search:1.4");
        assert_eq!(at(&services["migrate_once"], "/restart"), "no");
        let file = exported.read("secrets/search.env");
        let url = if backend == "nats" { "@nats:4222\n" } else { "@trunkline:4222\n" };
        assert!(file.contains("NATS_URL=nats://component-search:") && file.contains(url), "{file}");
        assert!(file.contains("REGION=north\n"), "{file}");
        assert!(file.contains("API_KEY='configured key, with $ign and \\'quotes\\''\n"), "{file}");
    }
}

#[test]
fn a_component_without_image_is_asked_for_by_name_in_compose() {
    let config = "messaging: {}\ncomponents: {web-chat: {command: 'run --price $5'}}\nruntime: {resources: {memory: 64MiB, cpus: 2}}\n";
    let exported = export(config, "in_memory", "compose", &["--commands"]);
    let document = compose(&exported);
    let service = at(&document, "/services/web-chat");
    let image = at(service, "/image").as_str().expect("text");
    assert!(image.starts_with("${WEB_CHAT_IMAGE:?") && image.contains("component web-chat"), "{image}");
    assert_eq!(at(service, "/command/2"), "$$5");
    assert_eq!(at(service, "/deploy/resources/limits/memory"), "67108864b");
    assert!(exported.read("config.yaml").contains("64MiB"));
    let exported =
        export(config, "in_memory", "compose", &["--image", "web-chat=chat:1", "--image", "trunkline=bus:2"]);
    let document = compose(&exported);
    assert_eq!(at(&document, "/services/web-chat/image"), "chat:1");
    assert_eq!(at(&document, "/services/trunkline/image"), "bus:2");
}

#[test]
fn manifests_of_kubernetes_are_valid_and_confined() {
    for backend in BACKENDS {
        let exported = export(PLATFORM, backend, "kubernetes", &[]);
        check_secrets(&exported);
        let kubectl = environment::deploy().join("bin/kubectl");
        let built =
            Command::new(kubectl).arg("kustomize").arg(exported.out()).output().expect("kubectl runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let manifests = exported.directory.path().join("built.yaml");
        std::fs::write(&manifests, &built.stdout).expect("written");
        let documents = validated("kubernetes", &[text(&manifests)]);
        let of_kind = |kind: &str| documents.iter().filter(|document| document["kind"] == kind).count();
        assert_eq!(of_kind("Namespace"), 1);
        assert_eq!(of_kind("NetworkPolicy"), 1);
        assert_eq!(
            (of_kind("Deployment"), of_kind("Job")),
            (3, 1),
            "the bus, two components, and one that runs once"
        );
        assert_eq!(of_kind("StatefulSet"), usize::from(backend != "in_memory"));
        let names: Vec<&str> =
            documents.iter().filter_map(|document| document["metadata"]["name"].as_str()).collect();
        for document in &documents {
            if let Some(kind) = document.pointer("/spec/type") {
                assert_eq!(kind, "ClusterIP");
            }
            let Some(pod) = document.pointer("/spec/template/spec") else { continue };
            let name = at(document, "/metadata/name").as_str().expect("a name");
            assert_eq!(at(pod, "/securityContext/runAsNonRoot"), true);
            assert_eq!(at(pod, "/automountServiceAccountToken"), false);
            let containers = ["containers", "initContainers"].iter().filter_map(|list| pod[*list].as_array());
            for container in containers.flatten() {
                assert_eq!(at(container, "/securityContext/readOnlyRootFilesystem"), true);
                assert_eq!(at(container, "/securityContext/allowPrivilegeEscalation"), false);
                assert_eq!(at(container, "/securityContext/capabilities/drop/0"), "ALL");
                assert_eq!(at(container, "/resources/limits/memory"), "512M");
                assert_eq!(at(container, "/resources/limits/cpu"), "500m");
                // What is referred to was generated, with the hash of its content in its name.
                for reference in container["envFrom"].as_array().into_iter().flatten() {
                    let reference = at(reference, "/secretRef/name").as_str().expect("a name");
                    assert!(names.contains(&reference), "{reference} of {names:?}");
                }
            }
            match ["search", "gateway", "migrate-once"].contains(&name) {
                true => assert!(pod["initContainers"][0]["name"] == "wait-for-bus", "{name}"),
                false => drop(at(pod, "/containers/0/readinessProbe")),
            }
        }
        let named = |kind: &str, name: &str| {
            documents.iter().find(|document| document["kind"] == kind && document["metadata"]["name"] == name)
        };
        let search = named("Deployment", "search").expect("search");
        assert_eq!(at(search, "/spec/template/spec/containers/0/readinessProbe/tcpSocket/port"), 9000);
        let service = named("Service", "search").expect("a service that leads to it when it is ready");
        assert_eq!(at(service, "/spec/ports/0/port"), 9000);
        let gateway = named("Deployment", "gateway").expect("gateway");
        let waits = at(gateway, "/spec/template/spec/initContainers/1");
        assert_eq!(at(waits, "/args"), &json!(["wait", "--timeout", "5m", "tcp://search:9000"]));
        assert!(named("Service", "gateway").is_none(), "nobody waits for it");
    }
}

#[test]
fn units_of_systemd_are_valid() {
    for backend in BACKENDS {
        let exported = export(PLATFORM, backend, "systemd", &[]);
        check_secrets(&exported);
        let units = exported.out().join("etc/systemd/system");
        // Programs need not be installed here: each is stood in for by one that is.
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&units).expect("units") {
            let path = entry.expect("an entry").path();
            let unit = std::fs::read_to_string(&path).expect("text");
            let unit = ["trunkline ", "redis-server ", "nats-server "].iter().fold(unit, |unit, program| {
                let unit = unit.replace(&format!("ExecStart={program}"), "ExecStart=/bin/true ");
                unit.replace(&format!("ExecStartPre={program}"), "ExecStartPre=/bin/true ")
            });
            std::fs::write(&path, unit).expect("written");
            names.push(path);
        }
        let verified = Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--generators=no", "--recursive-errors=yes"])
            .env("SYSTEMD_UNIT_PATH", format!("{}:", units.display()))
            .args(&names)
            .output()
            .expect("systemd-analyze runs");
        let said = String::from_utf8_lossy(&verified.stderr);
        let about_ours: Vec<&str> = said.lines().filter(|line| line.contains("trunkline")).collect();
        assert!(verified.status.success() && about_ours.is_empty(), "{said}");

        let bus = exported.read("etc/systemd/system/trunkline.service");
        assert!(
            bus.contains("Type=notify")
                && bus.contains("MemoryMax=512000000")
                && bus.contains("CPUQuota=50%")
        );
        let search = exported.read("etc/systemd/system/trunkline-search.service");
        assert!(search.contains(r#"ExecStart=python3 -c "print('100%% of $$HOME')""#), "{search}");
        assert!(search.contains("Requires=trunkline.service") && search.contains("After=trunkline.service"));
        let gateway = exported.read("etc/systemd/system/trunkline-gateway.service");
        assert!(gateway.contains("After=trunkline.service trunkline-search.service"), "{gateway}");
        // The program is stood in for, as above.
        let waits = "ExecStartPre=/bin/true wait --timeout 5m tcp://127.0.0.1:9000\nTimeoutStartSec=6min\n";
        assert!(gateway.contains(waits) && !search.contains("ExecStartPre"), "{gateway}");
        assert!(gateway.contains("Restart=always") && gateway.contains("TimeoutStopSec=20s"));
    }
}

#[test]
fn servers_that_are_there_already_are_kept_to_with_their_credentials_and_certificates() {
    let config = "messaging:\n  redis_url: rediss://bus:configured-password-of-redis@redis.example:6379/0\n  wait_replicas: 1\n  redis_tls: { ca_file: search.env }\nserver: { tls: { cert_file: search.env, key_file: search.env } }\ncomponents: { a: { command: x, image: i } }\n";
    for (target, directory) in
        [("compose", "/run/secrets"), ("systemd", "/run/credentials/trunkline.service")]
    {
        let exported = export(config, "redis", target, &["--external"]);
        let at_root = |path: &str| match target {
            "systemd" => format!("etc/trunkline/{path}"),
            _ => path.to_owned(),
        };
        let file = exported.read(&at_root("config.yaml"));
        assert!(file.contains("wait_replicas: 1") && !file.contains("redis.example"), "{file}");
        for key in ["server_tls_cert_file", "server_tls_key_file", "messaging_redis_tls_ca_file"] {
            assert!(file.contains(&format!("{directory}/{key}")), "{file}");
            assert_eq!(exported.read(&at_root(&format!("secrets/{key}"))), "REGION=north\n");
        }
        let url = exported.read(&at_root("secrets/redis_url"));
        assert_eq!(url, "rediss://bus:configured-password-of-redis@redis.example:6379/0");
        assert!(exported.read(&at_root("secrets/a.env")).contains("NATS_URL=tls://component-a:"));
        let files = exported.files();
        let is_redis = |path: &std::path::PathBuf| path.file_name().is_some_and(|name| name == "redis.conf");
        assert!(!files.iter().any(is_redis), "no Redis is deployed: {files:?}");
    }
    let config = "messaging:\n  nats_url: nats://nats.example:4222\n  nats_auth: { username: bus, password: configured }\ncomponents: { a: { command: x, image: i } }\n";
    let exported = export(config, "nats", "kubernetes", &["--external"]);
    assert!(exported.read("secrets/a.env").contains("NATS_URL=nats://bus:configured@nats.example:4222"));
    assert_eq!(exported.read("secrets/nats_auth_password"), "configured");
    assert!(!exported.out().join("nats.yaml").exists());
    let built =
        Command::new(environment::deploy().join("bin/kubectl")).arg("kustomize").arg(exported.out()).output();
    let built = built.expect("kubectl runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}
