//! A plan in the templates of its target: the files of the deployment, as they will lie on the disk.

use std::path::PathBuf;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, Value, context};
use serde_json::json;
use trunkline::config::{Ready, Restart};

use super::Target;
use super::components::ComponentPlan;
use super::error::ExportError;
use super::nats::Node;
use super::plan::{BUS, Plan};
use super::secrets::{Reader, SecretFile};
use super::size;
use super::write::Owner;

/// Images of the versions that the tests run the bus on; of NATS the one before, whose image is known to be there.
const REDIS_IMAGE: &str = "redis:8.2.3";
const NATS_IMAGE: &str = "nats:2.15.0-alpine";

const TEMPLATES: [(&str, &str); 20] = [
    ("Dockerfile", include_str!("templates/Dockerfile")),
    ("Dockerfile.dockerignore", include_str!("templates/Dockerfile.dockerignore")),
    ("gitignore", include_str!("templates/gitignore")),
    ("redis.conf", include_str!("templates/redis.conf")),
    ("nats.conf", include_str!("templates/nats.conf")),
    ("compose/compose.yaml", include_str!("templates/compose/compose.yaml")),
    ("systemd/confined.conf", include_str!("templates/systemd/confined.conf")),
    ("systemd/trunkline.target", include_str!("templates/systemd/trunkline.target")),
    ("systemd/trunkline.service", include_str!("templates/systemd/trunkline.service")),
    ("systemd/redis.service", include_str!("templates/systemd/redis.service")),
    ("systemd/nats.service", include_str!("templates/systemd/nats.service")),
    ("systemd/component.service", include_str!("templates/systemd/component.service")),
    ("kubernetes/macros.txt", include_str!("templates/kubernetes/macros.txt")),
    ("kubernetes/kustomization.yaml", include_str!("templates/kubernetes/kustomization.yaml")),
    ("kubernetes/namespace.yaml", include_str!("templates/kubernetes/namespace.yaml")),
    ("kubernetes/network-policy.yaml", include_str!("templates/kubernetes/network-policy.yaml")),
    ("kubernetes/trunkline.yaml", include_str!("templates/kubernetes/trunkline.yaml")),
    ("kubernetes/redis.yaml", include_str!("templates/kubernetes/redis.yaml")),
    ("kubernetes/nats.yaml", include_str!("templates/kubernetes/nats.yaml")),
    ("kubernetes/components.yaml", include_str!("templates/kubernetes/components.yaml")),
];

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Everybody.
    Plain,
    /// Its owner alone.
    Secret,
}

/// A file of a deployment; or a directory for data, where there is no content.
pub(crate) struct File {
    /// Below the directory of the deployment.
    pub(crate) path: PathBuf,
    pub(crate) content: Option<String>,
    pub(crate) mode: Mode,
}

/// The files of a deployment, in the order in which people should look at them.
///
/// # Errors
/// A template that asks for what the plan does not have: a mistake in this program, which tests find.
pub(crate) fn render(plan: &Plan, owner: &Owner) -> Result<Vec<File>, ExportError> {
    let renderer = Renderer { plan, environment: environment()?, context: shared(plan, owner) };
    let mut files = match plan.target {
        Target::Compose => renderer.compose()?,
        Target::Systemd => renderer.systemd()?,
        Target::Kubernetes => renderer.kubernetes()?,
    };
    let secrets = secrets_directory(plan.target);
    files.extend(plan.secrets.iter().map(|secret| File {
        path: PathBuf::from(format!("{secrets}/{}", secret.name)),
        content: Some(secret.content.clone()),
        mode: Mode::Secret,
    }));
    files.push(renderer.file(".gitignore", "gitignore", context! { secrets_directory => secrets })?);
    Ok(files)
}

/// Where the secrets lie below the directory of the deployment.
pub(crate) fn secrets_directory(target: Target) -> &'static str {
    match target {
        Target::Systemd => "etc/trunkline/secrets",
        _ => "secrets",
    }
}

struct Renderer<'a> {
    plan: &'a Plan,
    environment: Environment<'static>,
    context: Value,
}

impl Renderer<'_> {
    fn file(&self, path: &str, template: &str, more: Value) -> Result<File, ExportError> {
        let context = context! { ..more, ..self.context.clone() };
        let content = self.environment.get_template(template)?.render(context)?;
        Ok(File { path: path.into(), content: Some(content), mode: Mode::Plain })
    }

    fn config(&self, path: &str) -> Result<File, ExportError> {
        Ok(File { path: path.into(), content: Some(self.plan.config.to_yaml()?), mode: Mode::Plain })
    }

    /// The file of a NATS server; `server` is its name, or a variable with it.
    fn nats(&self, path: &str, node: &Node, server: &str) -> Result<File, ExportError> {
        let (address, store, auth) = match self.plan.target {
            Target::Compose => ("0.0.0.0", "/data".to_owned(), "../../run/secrets/nats_auth.conf"),
            Target::Kubernetes => ("0.0.0.0", "/data".to_owned(), "nats_auth.conf"),
            Target::Systemd => ("127.0.0.1", format!("/var/lib/trunkline-{}", node.name), "nats_auth.conf"),
        };
        let more = context! { node => Serde(node), address, store_dir => store, auth_file => auth, server_name => server };
        self.file(path, "nats.conf", more)
    }

    /// The settings of the backend in containers, which are the same for all nodes.
    fn backend(&self) -> Result<Option<File>, ExportError> {
        match (&self.plan.redis, &self.plan.nats) {
            (Some(_), _) => self.file("redis.conf", "redis.conf", context! {}).map(Some),
            (_, Some(nats)) => self.nats("nats.conf", &nats.nodes[0], "$NATS_SERVER_NAME").map(Some),
            _ => Ok(None),
        }
    }

    fn dockerfile(&self) -> Result<[File; 2], ExportError> {
        let file = |name| self.file(name, name, context! {});
        Ok([file("Dockerfile")?, file("Dockerfile.dockerignore")?])
    }

    fn compose(&self) -> Result<Vec<File>, ExportError> {
        let mut files = vec![
            self.file("compose.yaml", "compose/compose.yaml", context! {})?,
            self.config("config.yaml")?,
        ];
        files.extend(self.backend()?);
        files.extend(self.dockerfile()?);
        let nodes = self.plan.nats.iter().flat_map(|nats| &nats.nodes).map(|node| node.name.as_str());
        let redis = self.plan.redis.iter().map(|_| "redis");
        files.extend(redis.chain(nodes).map(|service| File {
            path: format!("data/{service}").into(),
            content: None,
            mode: Mode::Secret,
        }));
        Ok(files)
    }

    fn systemd(&self) -> Result<Vec<File>, ExportError> {
        let backends = backends(self.plan);
        let mut services = backends.clone();
        services.push(BUS.to_owned());
        services.extend(self.plan.components.iter().map(|component| component.service.clone()));
        let unit = |name: &str| format!("etc/systemd/system/{name}");
        let mut files = vec![
            self.file(&unit("trunkline.target"), "systemd/trunkline.target", context! { services })?,
            self.file(&unit("trunkline.service"), "systemd/trunkline.service", context! { backends })?,
        ];
        if self.plan.redis.is_some() {
            let service = unit("trunkline-redis.service");
            files.push(self.file(&service, "systemd/redis.service", context! {})?);
            files.push(self.file("etc/trunkline/redis.conf", "redis.conf", context! {})?);
        }
        for node in self.plan.nats.iter().flat_map(|nats| &nats.nodes) {
            let service = unit(&format!("trunkline-{}.service", node.name));
            files.push(self.file(&service, "systemd/nats.service", context! { node => Serde(node) })?);
            files.push(self.nats(&format!("etc/trunkline/{}.conf", node.name), node, &node.name)?);
        }
        for component in &self.plan.components {
            let service = unit(&format!("{}.service", component.service));
            let more = context! { component => shown(component) };
            files.push(self.file(&service, "systemd/component.service", more)?);
        }
        files.push(self.config("etc/trunkline/config.yaml")?);
        Ok(files)
    }

    fn kubernetes(&self) -> Result<Vec<File>, ExportError> {
        let manifest = |name: &str| self.file(name, &format!("kubernetes/{name}"), context! {});
        let mut files = vec![
            manifest("kustomization.yaml")?,
            manifest("namespace.yaml")?,
            manifest("network-policy.yaml")?,
            manifest("trunkline.yaml")?,
        ];
        if self.plan.redis.is_some() {
            files.push(manifest("redis.yaml")?);
        }
        if self.plan.nats.is_some() {
            files.push(manifest("nats.yaml")?);
        }
        if !self.plan.components.is_empty() {
            files.push(manifest("components.yaml")?);
        }
        files.push(self.config("config.yaml")?);
        files.extend(self.backend()?);
        files.extend(self.dockerfile()?);
        Ok(files)
    }
}

/// Services that the bus waits for, as units.
fn backends(plan: &Plan) -> Vec<String> {
    let nodes = plan.nats.iter().flat_map(|nats| &nats.nodes).map(|node| format!("trunkline-{}", node.name));
    plan.redis.iter().map(|_| "trunkline-redis".to_owned()).chain(nodes).collect()
}

/// What every template knows.
fn shared(plan: &Plan, owner: &Owner) -> Value {
    let image = |name: &str, default: String| plan.images.get(name).cloned().unwrap_or(default);
    let of_bus: Vec<Value> = plan.secrets.iter().filter_map(secret_of_bus).collect();
    let ports = plan.ports;
    let named = [
        ("nats", ports.nats),
        ("http", ports.http),
        ("websocket", ports.websocket),
        ("metrics", ports.metrics),
    ];
    let named: Vec<Value> =
        named.into_iter().filter_map(|(name, port)| port.map(|port| context! { name, port })).collect();
    let is_mounted =
        |secret: &&SecretFile| matches!(secret.reader, Reader::Bus(_) | Reader::Redis | Reader::Nats);
    let mounted: Vec<String> =
        plan.secrets.iter().filter(is_mounted).map(|secret| secret.name.clone()).collect();
    let cpu = size::millicpus(plan.cpus);
    let components: Vec<Value> = plan.components.iter().map(shown).collect();
    let redis = plan.redis.as_ref().map(|redis| {
        context! { image => image("redis", REDIS_IMAGE.to_owned()), port => redis.port, max_memory => redis.max_memory }
    });
    let nats = plan.nats.as_ref().map(|nats| {
        context! { image => image("nats", NATS_IMAGE.to_owned()), nodes => Serde(&nats.nodes), max_memory_store => nats.max_memory_store }
    });
    let bus_image = image(BUS, format!("trunkline:{}", env!("CARGO_PKG_VERSION")));
    context! {
        version => env!("CARGO_PKG_VERSION"),
        target => plan.target.as_str(),
        external => plan.external,
        memory_bytes => plan.memory,
        // With a point, as text: YAML's own numbers lose digits.
        cpus => format!("{}", plan.cpus),
        cpu_percent => cpu.div_ceil(10),
        // A pod is placed where a tenth of its processors is free.
        limits => context! { cpu, request => cpu.div_ceil(10), memory => size::kubernetes(plan.memory) },
        // What the collector of nats-server keeps to; the rest is for what it does not count.
        go_memory => format!("{}B", plan.memory / 5 * 4),
        owner => format!("{}:{}", owner.uid, owner.gid),
        owner_options => format!("uid={},gid={}", owner.uid, owner.gid),
        bus => context! {
            image => bus_image,
            health => plan.health.clone(),
            secrets => of_bus,
            named_ports => named,
        },
        redis,
        nats,
        components,
        mounted,
    }
}

fn secret_of_bus(secret: &SecretFile) -> Option<Value> {
    match &secret.reader {
        Reader::Bus(variable) => Some(context! { name => secret.name.clone(), variable => variable.clone() }),
        _ => None,
    }
}

/// A component as templates see it.
fn shown(component: &ComponentPlan) -> Value {
    let variable: String = component
        .name
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_uppercase() } else { '_' })
        .collect();
    context! {
        name => component.name.clone(),
        service => component.service.clone(),
        image => component.image.clone(),
        image_variable => format!("{variable}_IMAGE"),
        command => component.command.clone(),
        cwd => component.cwd.as_ref().map(|cwd| cwd.display().to_string()),
        depends_on => component.depends_on.clone(),
        waits => component.waits.clone(),
        awaited_port => component.awaited_port,
        restart => match component.restart {
            Restart::No => "no",
            Restart::OnFailure => "on-failure",
            Restart::Always => "always",
        },
        stop_timeout => component.stop_timeout,
        environment => component.environment.clone(),
        probe => probe(&component.ready).map(Serde),
    }
}

/// How a pod asks a component whether it is ready, where that can be asked from outside.
fn probe(ready: &Ready) -> Option<serde_json::Value> {
    match ready {
        Ready::Http(url) => {
            let path = match url.query() {
                Some(query) => format!("{}?{query}", url.path()),
                None => url.path().to_owned(),
            };
            let scheme = url.scheme().to_uppercase();
            let port = url.port_or_known_default()?;
            Some(json!({ "httpGet": { "path": path, "port": port, "scheme": scheme }, "periodSeconds": 5 }))
        }
        Ready::Tcp(address) => {
            let port: u16 = address.rsplit_once(':')?.1.parse().ok()?;
            Some(json!({ "tcpSocket": { "port": port }, "periodSeconds": 5 }))
        }
        _ => None,
    }
}

fn environment() -> Result<Environment<'static>, ExportError> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    environment.set_syntax(syntax.trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build()?);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    // JSON, which is YAML as well.
    environment.add_filter("quote", |value: Value| quote(&value));
    // In compose files a dollar begins a variable.
    environment
        .add_filter("compose", |value: Value| Ok::<_, minijinja::Error>(quote(&value)?.replace('$', "$$")));
    // In arguments of containers, `$(NAME)` is a variable.
    environment.add_filter("kubernetes", |value: Value| {
        Ok::<_, minijinja::Error>(quote(&value)?.replace("$(", "$$("))
    });
    environment.add_filter("bytes", |bytes: u64| format!("{bytes}b"));
    environment.add_filter("unit", |words: Vec<String>| {
        let words: Vec<String> = words.iter().map(|word| unit_word(word)).collect();
        words.join(" ")
    });
    // A path takes no quotes there.
    environment.add_filter("path", |path: String| path.replace('%', "%%"));
    for (name, source) in TEMPLATES {
        environment.add_template(name, source)?;
    }
    Ok(environment)
}

fn quote(value: &Value) -> Result<String, minijinja::Error> {
    let invalid =
        |error| minijinja::Error::new(minijinja::ErrorKind::BadSerialization, "no JSON").with_source(error);
    serde_json::to_string(value).map_err(invalid)
}

/// A word of a command line in a unit, whose rules are those of a shell and then some.
fn unit_word(word: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "_-./:=@,+".contains(letter);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    let mut text = String::from("\"");
    for letter in word.chars() {
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            '%' | '$' => text.extend([letter, letter]),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            letter => text.push(letter),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_unit_are_taken_for_what_they_are() {
        for (word, expected) in [
            ("/usr/bin/python3", "/usr/bin/python3"),
            ("two words", "\"two words\""),
            ("", "\"\""),
            ("100%", "\"100%%\""),
            ("$HOME", "\"$$HOME\""),
            (r#"a"b\c"#, r#""a\"b\\c""#),
            ("it's", "\"it's\""),
        ] {
            assert_eq!(unit_word(word), expected);
        }
    }
}
