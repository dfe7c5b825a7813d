//! The components of a deployment: what each runs, in which image, and the file with its environment.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use trunkline::config::{Command, Component, Ready, Restart};

use super::Target;
use super::error::ExportError;
use super::plan::Options;
use super::secrets::{Reader, SecretFile};
use crate::env_file;

/// Directories in which systemd looks for programs that are named without one.
const SYSTEM_PATH: [&str; 4] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];

/// Where a component finds the bus, with the credentials of its user.
#[derive(Clone)]
pub(super) struct Urls {
    pub(super) trunkline: String,
    pub(super) nats: String,
}

/// A component as a service.
pub(crate) struct ComponentPlan {
    /// Its name in the configuration.
    pub(crate) name: String,
    /// Its name in the deployment.
    pub(crate) service: String,
    /// Unset only for compose, where a variable names it.
    pub(crate) image: Option<String>,
    /// What it runs; in containers the image's own unless asked for.
    pub(crate) command: Option<Vec<String>>,
    pub(crate) cwd: Option<PathBuf>,
    /// Services that start before it.
    pub(crate) depends_on: Vec<String>,
    /// What has to answer before it starts, as `trunkline wait` takes it.
    pub(crate) waits: Vec<String>,
    /// Port at which its being ready is asked for, where others wait for that.
    pub(crate) awaited_port: Option<u16>,
    pub(crate) ready: Ready,
    pub(crate) restart: Restart,
    /// Seconds until it is killed.
    pub(crate) stop_timeout: u64,
    /// The file of its environment.
    pub(crate) environment: String,
}

/// The service of one component.
pub(super) fn component(
    name: &str,
    components: &BTreeMap<String, Component>,
    options: &Options,
    notes: &mut Vec<String>,
) -> Result<ComponentPlan, ExportError> {
    let target = options.target;
    let component = &components[name];
    let image = options.images.get(name).or(component.image.as_ref()).cloned();
    if image.is_none() && target == Target::Kubernetes {
        return Err(ExportError::NoImage { component: name.to_owned() });
    }
    let cwd = component.cwd.as_ref().map(|cwd| absolute(cwd));
    let command = match target.is_container() && !options.commands {
        true => None,
        false => {
            let mut words = words(name, &component.command)?;
            if target == Target::Systemd {
                words[0] = program(name, &words[0], cwd.as_deref(), notes);
            }
            Some(words)
        }
    };
    Ok(ComponentPlan {
        name: name.to_owned(),
        service: service(target, name),
        image,
        command,
        // Of the directory on this machine a container knows nothing.
        cwd: (target == Target::Systemd).then(|| cwd.unwrap_or_else(|| absolute(Path::new(".")))),
        depends_on: component.depends_on.iter().map(|name| service(target, name)).collect(),
        waits: waits(component, components, target),
        awaited_port: awaited_port(name, components),
        ready: component.ready.clone(),
        restart: component.restart,
        stop_timeout: component.stop_timeout.as_secs().max(1),
        environment: format!("{name}.env"),
    })
}

/// What the components that this one depends on are asked. When they run, or have written a line, nobody but `up` sees.
fn waits(component: &Component, components: &BTreeMap<String, Component>, target: Target) -> Vec<String> {
    let dependencies = component.depends_on.iter().filter_map(|name| Some((name, components.get(name)?)));
    let waits = dependencies.filter_map(|(name, dependency)| {
        let service = service(target, name);
        match &dependency.ready {
            Ready::Started | Ready::Log(_) => None,
            Ready::Responder(subject) => Some(format!("responder:{subject}")),
            Ready::Http(url) => {
                let mut url = url.clone();
                if target.is_container() && url.host_str().is_some_and(is_local) {
                    // Fails for URLs without a host, which this one has.
                    let _ = url.set_host(Some(service.as_str()));
                }
                Some(url.to_string())
            }
            Ready::Tcp(address) => {
                let (host, port) = address.rsplit_once(':')?;
                let host = if target.is_container() && is_local(host) { service.as_str() } else { host };
                Some(format!("tcp://{host}:{port}"))
            }
        }
    });
    waits.collect()
}

/// The port at which a component is asked by those that depend on it, if that is its own.
fn awaited_port(name: &str, components: &BTreeMap<String, Component>) -> Option<u16> {
    components.values().find(|other| other.depends_on.iter().any(|dependency| dependency == name))?;
    match &components[name].ready {
        Ready::Http(url) if url.host_str().is_some_and(is_local) => url.port_or_known_default(),
        Ready::Tcp(address) => {
            let (host, port) = address.rsplit_once(':')?;
            is_local(host).then(|| port.parse().ok())?
        }
        _ => None,
    }
}

/// Whether a host is the machine, or the container, that asks.
fn is_local(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback() || address.is_unspecified())
}

/// What a component is called as a service.
pub(super) fn service(target: Target, name: &str) -> String {
    match target {
        Target::Compose => name.to_owned(),
        Target::Systemd => format!("trunkline-{name}"),
        // Names of services are names in DNS.
        Target::Kubernetes => name.to_lowercase().replace('_', "-").trim_matches('-').to_owned(),
    }
}

/// The file with the environment of a component: where the bus is, and what the configuration says.
pub(super) fn environment(
    name: &str,
    component: &Component,
    (urls, reporting): (&Urls, &[(String, String)]),
    target: Target,
    notes: &mut Vec<String>,
) -> Result<SecretFile, ExportError> {
    // As `up` has it: Python keeps what it prints for itself where nobody sits at a terminal.
    let mut variables = BTreeMap::from([("PYTHONUNBUFFERED".to_owned(), "1".to_owned())]);
    // The same: what components see is in the record that `up` keeps.
    variables.extend(reporting.iter().cloned());
    if let Some(path) = &component.env_file {
        variables.extend(read_env_file(name, path)?);
    }
    variables.extend(component.env.clone());
    // What leads to the bus of this machine leads nowhere in the deployment.
    for (variable, url) in [("TRUNKLINE_URL", &urls.trunkline), ("NATS_URL", &urls.nats)] {
        if variables.insert(variable.to_owned(), url.clone()).is_some() {
            notes.push(format!("{variable} of component {name} leads to the bus of the deployment instead"));
        }
    }
    let mut content = String::new();
    for (variable, value) in variables {
        if value.contains(['\n', '\r', '\0']) {
            return Err(ExportError::Variable { component: name.to_owned(), variable });
        }
        content.push_str(&format!("{variable}={}\n", quoted(&value, target)));
    }
    Ok(SecretFile { name: format!("{name}.env"), content, reader: Reader::Component(name.to_owned()) })
}

/// A value as the reader of the file takes it for what it is.
fn quoted(value: &str, target: Target) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "_-./:@,+=%~^".contains(letter);
    match target {
        // Everything behind the first `=` is the value.
        Target::Kubernetes => value.to_owned(),
        _ if value.chars().all(is_plain) => value.to_owned(),
        // Within single quotes nothing is replaced.
        Target::Compose => format!("'{}'", value.replace('\'', "\\'")),
        Target::Systemd => {
            let mut text = String::from("\"");
            for letter in value.chars() {
                if "\"\\$`".contains(letter) {
                    text.push('\\');
                }
                text.push(letter);
            }
            text.push('"');
            text
        }
    }
}

fn read_env_file(name: &str, path: &Path) -> Result<Vec<(String, String)>, ExportError> {
    env_file::read(path).map_err(|source| ExportError::EnvFile {
        component: name.to_owned(),
        path: path.to_owned(),
        source,
    })
}

fn words(name: &str, command: &Command) -> Result<Vec<String>, ExportError> {
    match command {
        Command::Args(args) => Ok(args.clone()),
        Command::Line(line) => shlex::split(line)
            .filter(|words| !words.is_empty())
            .ok_or_else(|| ExportError::Command { component: name.to_owned() }),
    }
}

/// The program as a unit names it: with its whole path, unless systemd finds it by itself.
fn program(name: &str, program: &str, cwd: Option<&Path>, notes: &mut Vec<String>) -> String {
    let path = match program.contains('/') {
        true => {
            let directory = absolute(cwd.unwrap_or(Path::new(".")));
            Some(directory.join(program))
        }
        false if SYSTEM_PATH.iter().any(|directory| Path::new(directory).join(program).is_file()) => None,
        false => std::env::var_os("PATH").and_then(|path| {
            std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file())
        }),
    };
    let Some(path) = path else { return program.to_owned() };
    if ["/home", "/root", "/tmp"].iter().any(|directory| path.starts_with(directory)) {
        notes.push(format!(
            "component {name} runs {}, where its unit cannot look: install it below /usr/local or /opt, and change ExecStart",
            path.display()
        ));
    }
    path.display().to_string()
}

fn absolute(path: &Path) -> PathBuf {
    // Fails only for an empty path, or without a working directory; then it stays what it was.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    // `.` at the end is what is left of the working directory itself.
    path.components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_for_who_reads_them() {
        let odd = r#"a 'b' "c" $HOME \d #e"#;
        for (target, value, expected) in [
            (Target::Compose, "nats://u:p@h:1,nats://i", "nats://u:p@h:1,nats://i"),
            (Target::Compose, odd, r#"'a \'b\' "c" $HOME \d #e'"#),
            (Target::Systemd, odd, r#""a 'b' \"c\" \$HOME \\d #e""#),
            (Target::Kubernetes, odd, odd),
        ] {
            assert_eq!(quoted(value, target), expected);
        }
    }
}
