//! A machine for the services of a compose file, as far as processes need one: each with a network address, a root directory
//! and rights of its own, made of what the kernel has. It takes root, as the daemon that does this elsewhere does.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use trunkline_testkit::environment;

use super::{Exported, at};
use crate::command::{Ended, Running, start};

/// Longest wait for the whole deployment. Three servers elect a leader and place streams first.
const PATIENCE: Duration = Duration::from_secs(120);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A bridge, with one end of a cable in a network namespace for each of its arguments. Nothing leads out.
const NETWORK: &str = r#"
mount -t tmpfs tmpfs /run
ip link add bus type bridge
ip link set bus up
number=10
for name in "$@"; do
  ip netns add "$name"
  ip link add "end$number" type veth peer name eth0 netns "$name"
  ip link set "end$number" master bus up
  ip -n "$name" address add "10.77.0.$number/24" dev eth0
  ip -n "$name" link set eth0 up
  ip -n "$name" link set lo up
  number=$((number + 1))
done
echo 'the network is there' >&2
exec sleep 600
"#;

fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + u8::try_from(index).expect("few services"))
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Whether this machine lets this test have namespaces; says what is missing otherwise.
pub(crate) fn can_be_made() -> bool {
    let mut probe = Command::new("unshare");
    probe.args(["--net", "--mount", "true"]);
    let ended = start(probe, b"").end();
    if !ended.status.success() {
        eprintln!("not tried: containers cannot be made here: {}", ended.stderr.trim());
    }
    ended.status.success()
}

/// A compose file whose services run.
pub(crate) struct Containers<'a> {
    exported: &'a Exported,
    services: BTreeMap<String, Value>,
    document: Value,
    network: Running,
    running: BTreeMap<String, Running>,
}

impl<'a> Containers<'a> {
    /// Starts all services, each as soon as what it depends on is as its conditions say, as `docker compose up --wait` does.
    #[track_caller]
    pub(crate) fn up(exported: &'a Exported, document: Value) -> Containers<'a> {
        let services = at(&document, "/services").as_object().expect("services").clone();
        let services: BTreeMap<String, Value> = services.into_iter().collect();
        let mut network = Command::new("unshare");
        network.args(["--net", "--mount", "sh", "-ec", NETWORK, "sh"]).args(services.keys());
        let mut network = start(network, b"");
        network.until_it_says("the network is there");
        let mut containers = Containers { exported, services, document, network, running: BTreeMap::new() };
        let deadline = Instant::now() + PATIENCE;
        while containers.running.len() < containers.services.len() {
            assert!(Instant::now() < deadline, "only these run: {:?}", containers.running.keys());
            let mut waiting =
                containers.services.keys().filter(|name| !containers.running.contains_key(*name));
            let next = waiting.find(|name| containers.may_start(name)).cloned();
            match next {
                Some(name) => containers.start(&name),
                // Health is asked for again and again, by a compose file's own words, too.
                None => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        containers
    }

    fn may_start(&self, name: &str) -> bool {
        let gates = self.services[name].get("depends_on").and_then(Value::as_object);
        gates.into_iter().flatten().all(|(other, gate)| {
            let Some(running) = self.running.get(other) else { return false };
            match at(gate, "/condition").as_str().expect("text") {
                "service_started" => true,
                "service_healthy" => self.is_healthy(other),
                "service_completed_successfully" => {
                    let state = std::fs::read_to_string(format!("/proc/{}/stat", running.pid()));
                    // One that has ended and has not been waited for; how it ended is seen at its end.
                    state.is_ok_and(|state| state.contains(") Z "))
                }
                other => panic!("{other} is no condition"),
            }
        })
    }

    fn is_healthy(&self, name: &str) -> bool {
        let test = strings(at(&self.services[name], "/healthcheck/test"));
        let command = match test[0].as_str() {
            "CMD" => test[1..].to_vec(),
            "CMD-SHELL" => vec!["sh".to_owned(), "-c".to_owned(), test[1].clone()],
            other => panic!("{other} is no kind of test"),
        };
        self.exec(name, &[], &command).status.success()
    }

    /// Runs a command in the container of a service, with its environment and rights.
    pub(crate) fn exec(&self, name: &str, variables: &[(&str, &str)], command: &[String]) -> Ended {
        let (user, group) = user(&self.services[name]);
        let mut inside = Command::new("nsenter");
        inside.env_clear().envs(self.environment(name)).envs(variables.iter().copied());
        inside.args([
            "--target",
            &self.running[name].pid().to_string(),
            "--mount",
            "--net",
            "--root",
            "--wd=/",
        ]);
        inside.args(["--setuid", &user, "--setgid", &group, "--"]).args(command);
        start(inside, b"").end()
    }

    /// Waits for the end of a service that runs once.
    pub(crate) fn end(&mut self, name: &str) -> Ended {
        self.running.remove(name).expect("it runs").end()
    }

    /// Asks a service to end, as `docker compose stop` does, and waits for it.
    pub(crate) fn stop(&mut self, name: &str) -> Ended {
        self.running[name].signal(Signal::SIGTERM);
        self.end(name)
    }

    fn environment(&self, name: &str) -> BTreeMap<String, String> {
        let service = &self.services[name];
        let mut variables = BTreeMap::from([("PATH".to_owned(), PATH.to_owned())]);
        for file in service.get("env_file").map(strings).into_iter().flatten() {
            for line in self.exported.read(file.trim_start_matches("./")).lines() {
                let (name, value) = line.split_once('=').expect("NAME=value");
                let value = match value.strip_prefix('\'').and_then(|value| value.strip_suffix('\'')) {
                    Some(value) => value.replace("\\'", "'"),
                    None => value.to_owned(),
                };
                variables.insert(name.to_owned(), value);
            }
        }
        for (name, value) in service.get("environment").and_then(Value::as_object).into_iter().flatten() {
            variables.insert(name.clone(), value.as_str().expect("text").to_owned());
        }
        variables
    }

    fn start(&mut self, name: &str) {
        let service = &self.services[name];
        let image = at(service, "/image").as_str().expect("text");
        let (mut words, mut programs) = (Vec::new(), vec![env!("CARGO_BIN_EXE_trunkline").to_owned()]);
        match service.get("entrypoint") {
            Some(entrypoint) => words.extend(strings(entrypoint)),
            // As the Dockerfile beside the compose file has it.
            None if image.starts_with("trunkline:") => words.push("/usr/local/bin/trunkline".to_owned()),
            None => {}
        }
        words.extend(service.get("command").map(strings).unwrap_or_default());
        if image.starts_with("nats:") {
            programs.push(environment::nats_server().display().to_string());
        }
        let root = self.exported.directory.path().join("roots").join(name);
        std::fs::create_dir_all(&root).expect("a directory for its root");
        let mut script = self.root(name, &root, !image.starts_with("trunkline:"), &programs);
        let (user, group) = user(service);
        script.push_str("exec env -i");
        for (name, value) in self.environment(name) {
            write!(script, " {}", quoted(&format!("{name}={value}"))).expect("text grows");
        }
        write!(script, " setpriv --no-new-privs chroot --userspec={user}:{group} --groups= .")
            .expect("text grows");
        for word in &words {
            write!(script, " {}", quoted(word)).expect("text grows");
        }
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/root/run/netns/{name}", self.network.pid()));
        command.args(["unshare", "--mount", "sh", "-ec", &script]);
        self.running.insert(name.to_owned(), start(command, b""));
    }

    /// Makes the root directory of a service, and works in it. It is read-only but for what is mounted.
    fn root(&self, name: &str, root: &Path, has_system: bool, programs: &[String]) -> String {
        let service = &self.services[name];
        let mut script =
            format!("mount -t tmpfs -o mode=0755 tmpfs {0}; cd {0}\n", quoted(&root.display().to_string()));
        script.push_str(
            "mkdir -p etc proc dev usr/local/bin\nmount --rbind /proc proc; mount --rbind /dev dev\n",
        );
        // An image with one program needs its libraries, as that of these tests is not a static one.
        let system: &[&str] = if has_system { &["lib", "lib64", "bin", "sbin"] } else { &["lib", "lib64"] };
        for directory in system {
            writeln!(
                script,
                "if [ -d /usr/{directory} ]; then mkdir usr/{directory}; mount --rbind /usr/{directory} usr/{directory}; ln -s usr/{directory} {directory}; fi"
            )
            .expect("text grows");
        }
        let mut mount = |from: &str, to: &str, options: &str| {
            let (from, to) = (quoted(from), quoted(to.trim_start_matches('/')));
            writeln!(
                script,
                "mkdir -p \"$(dirname {to})\"; [ -d {from} ] && mkdir -p {to} || touch {to}; mount --bind {from} {to}; mount -o remount,bind{options} {to}"
            )
            .expect("text grows");
        };
        let file = |kind: &str, name: &str| {
            let file = at(&self.document, &format!("/{kind}/{name}/file")).as_str().expect("a path");
            self.exported.out().join(file).display().to_string()
        };
        for program in programs {
            let name = Path::new(program).file_name().and_then(|name| name.to_str()).expect("a name");
            mount(program, &format!("usr/local/bin/{name}"), ",ro");
        }
        for secret in service.get("secrets").map(strings).unwrap_or_default() {
            mount(&file("secrets", &secret), &format!("run/secrets/{secret}"), ",ro");
        }
        for config in service.get("configs").and_then(Value::as_array).into_iter().flatten() {
            let [source, target] = ["/source", "/target"].map(|key| at(config, key).as_str().expect("text"));
            mount(&file("configs", source), target, ",ro");
        }
        for volume in service.get("volumes").map(strings).unwrap_or_default() {
            let (from, to) = volume.split_once(':').expect("FROM:TO");
            mount(&self.exported.out().join(from).display().to_string(), to, "");
        }
        for tmpfs in service.get("tmpfs").map(strings).unwrap_or_default() {
            let (to, options) = tmpfs.split_once(':').expect("DIRECTORY:OPTIONS");
            let to = quoted(to.trim_start_matches('/'));
            writeln!(script, "mkdir -p {to}; mount -t tmpfs -o {} tmpfs {to}", quoted(options))
                .expect("text grows");
        }
        for (index, (other, service)) in self.services.iter().enumerate() {
            let aliases = service.pointer("/networks/bus/aliases").map(strings).unwrap_or_default();
            writeln!(script, "echo {} {other} {} >>etc/hosts", address(index), aliases.join(" "))
                .expect("text grows");
        }
        script.push_str("echo 127.0.0.1 localhost >>etc/hosts\nmount -o remount,ro .\n");
        script
    }
}

/// A list of texts, with what compose would put variables in for.
fn strings(list: &Value) -> Vec<String> {
    let list = list.as_array().unwrap_or_else(|| panic!("{list} is no list"));
    list.iter().map(|text| text.as_str().expect("text").replace("$$", "$")).collect()
}

fn user(service: &Value) -> (String, String) {
    let user = at(service, "/user").as_str().expect("a user");
    let (user, group) = user.split_once(':').expect("USER:GROUP");
    (user.to_owned(), group.to_owned())
}
