//! Programs that show how the official clients behave where a server shows itself: at the door, under TLS, when it goes away
//! or cuts somebody off. Each program knows the same behaviours by the same names, and speaks to its test as the scripts of
//! [`clients`](crate::clients) do.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::{env, fs, process};

use crate::clients::{ScenarioRun, WITH_WEBSOCKET, script};
use crate::environment;

/// An official client with a program of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BehaviourProgram {
    /// `nats-py`, for Python's asyncio.
    NatsPy,
    /// `nats` 2.x for Node, the classic nats.js.
    NatsJs,
    /// `@nats-io/transport-node` 3.x, its successor.
    TransportNode,
    /// `@nats-io/nats-core` 3.x on the platform's WebSocket, as browsers use it.
    WebSocket,
    /// `libnats`, the C client, as Debian packages it.
    C,
}

impl BehaviourProgram {
    /// The names of the behaviours that this program knows, in its order.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn names(self) -> Vec<String> {
        let mut command = self.command();
        let output = command
            .arg("--list")
            .output()
            .unwrap_or_else(|error| panic!("{command:?} could not be run: {error}"));
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{command:?} ended with {}:\n{stdout}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        stdout.lines().map(str::to_owned).collect()
    }

    /// Starts one behaviour against the server at `url`, with these variables. `server` is how messages call that one.
    ///
    /// # Panics
    /// When the client is not installed; the message says how to get it.
    pub fn start(
        self,
        behaviour: &str,
        url: &str,
        variables: &[(&'static str, OsString)],
        server: &str,
    ) -> ScenarioRun {
        let mut command = self.command();
        command.args([url, behaviour]).envs(variables.iter().map(|(name, value)| (name, value)));
        ScenarioRun::start_program(command, behaviour, format!("{behaviour} with {self:?} on {server}"))
    }

    fn command(self) -> Command {
        let node = |flag: Option<&str>, client| {
            let mut command = Command::new("node");
            command
                .args(flag)
                .env("NODE_PATH", environment::node_path().join("node_modules"))
                .arg(script("node/behaviours.mjs"))
                .args(["--client", client]);
            command
        };
        match self {
            BehaviourProgram::NatsPy => {
                let mut command = Command::new(environment::python());
                // The scripts lie in the source tree, where compiled copies of them have no business.
                command.env("PYTHONDONTWRITEBYTECODE", "1").arg(script("python/behaviours.py"));
                command
            }
            BehaviourProgram::NatsJs => node(None, "nats"),
            BehaviourProgram::TransportNode => node(None, "transport-node"),
            BehaviourProgram::WebSocket => node(Some(WITH_WEBSOCKET), "websocket"),
            BehaviourProgram::C => Command::new(c_program()),
        }
    }
}

/// The program with the C client, compiled when it is first asked for in this process.
fn c_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let sources = script("c");
        let prefix = environment::nats_c();
        // Debian's layout, or that of a client built by hand.
        let libraries = [prefix.join(format!("lib/{}-linux-gnu", env::consts::ARCH)), prefix.join("lib")];
        let library = libraries.iter().find(|path| path.join("libnats.so").exists());
        let library = library.unwrap_or_else(|| panic!("there is no libnats.so below {}", prefix.display()));
        let mut files: Vec<PathBuf> = fs::read_dir(&sources)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .unwrap_or_else(|error| panic!("{}: {error}", sources.display()));
        files.retain(|path| path.extension().is_some_and(|extension| extension == "c"));
        // Beside the tests' own program, under the same name in every run; made under another, since the tests of another
        // process may be running it.
        let program = env::current_exe().expect("a test knows its own path").with_extension("c-behaviours");
        let fresh = program.with_extension(format!("c-behaviours-{}", process::id()));
        // What libnats needs in turn lies beside it; only the older kind of search path counts for that too.
        let mut search = OsString::from("-Wl,--disable-new-dtags,-rpath,");
        search.push(library);
        let mut compiler = Command::new("cc");
        compiler
            .args(["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"])
            .arg("-I")
            .arg(prefix.join("include"))
            .args(&files)
            .arg("-L")
            .arg(library)
            .args(["-lnats", "-o"])
            .arg(&fresh)
            .arg(search)
            .stdin(Stdio::null());
        let output =
            compiler.output().unwrap_or_else(|error| panic!("{compiler:?} could not be run: {error}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{compiler:?} ended with {}:\n{said}", output.status);
        fs::rename(&fresh, &program).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        program
    })
}
