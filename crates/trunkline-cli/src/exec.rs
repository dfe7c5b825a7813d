//! A command that is run for a message: the payload on its stdin, its stdout the answer.
//!
//! The command gets a process group of its own, which is killed when its time is over or its answer is no longer
//! wanted, so that nothing it started stays behind.

use std::borrow::Cow;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::failure::Explain;

/// Most bytes a command may answer; more than any server carries in one message by default.
const STDOUT_BYTES_MAX: u64 = 64 << 20;

/// As much of its stderr as is kept to explain a failure.
const STDERR_BYTES_MAX: u64 = 64 << 10;

/// Why a command gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ExecError {
    #[error("cannot run {program:?}")]
    Spawn { program: String, source: io::Error },
    #[error("{program:?} ended with {status}{}", colon(said))]
    Exit { program: String, status: ExitStatus, said: String },
    #[error("{program:?} was not done within {waited:?} (--timeout) and was killed")]
    Timeout { program: String, waited: Duration },
    #[error("{program:?} wrote more than {limit} bytes and was killed")]
    TooLarge { program: String, limit: u64 },
    #[error("lost the pipes of {program:?}")]
    Pipe { program: String, source: io::Error },
}

impl Explain for ExecError {
    fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Spawn { .. } => Some(
                "give a program on the PATH and its arguments; for pipes and redirects use --exec \"sh -c '…'\"".into(),
            ),
            Self::Timeout { .. } => Some("give it longer with --timeout".into()),
            _ => None,
        }
    }
}

impl ExecError {
    /// The exit status, of a command that ended by itself.
    pub(crate) fn code(&self) -> Option<i32> {
        match self {
            Self::Exit { status, .. } => status.code(),
            _ => None,
        }
    }
}

fn colon(said: &str) -> String {
    match said {
        "" => String::new(),
        said => format!(": {said}"),
    }
}

/// A program and its arguments.
#[derive(Debug, Clone)]
pub(crate) struct ExecCommand {
    program: String,
    arguments: Vec<String>,
}

impl FromStr for ExecCommand {
    type Err = String;

    /// Splits a command line by the rules of a shell; no shell runs it.
    fn from_str(line: &str) -> Result<Self, String> {
        let words = shlex::split(line).ok_or("a quote is not closed")?;
        let mut words = words.into_iter();
        let program = words.next().filter(|program| !program.is_empty()).ok_or("a command is missing")?;
        Ok(Self { program, arguments: words.collect() })
    }
}

/// Kills a process group when dropped, unless the process has ended and its number may be another's by now.
struct GroupGuard(Option<Pid>);

impl Drop for GroupGuard {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It can only fail when all of the group has ended in this moment, which is what is wanted.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

impl ExecCommand {
    /// Runs it with `payload` on stdin and these variables, and returns what it wrote to stdout.
    ///
    /// # Errors
    /// Anything but an exit with status 0 within `limit`; see [`ExecError`].
    ///
    /// # Cancel safety
    /// Dropping the future kills the command and all that it started.
    pub(crate) async fn run(
        &self,
        payload: &[u8],
        variables: &[(&str, &str)],
        limit: Duration,
    ) -> Result<Vec<u8>, ExecError> {
        let program = || self.program.clone();
        // What makes spans in the command finds its parent in this variable, which is OpenTelemetry's for that.
        let context = trunkline::Context::current();
        let parent = context.as_ref().filter(|context| context.trace_id().is_some());
        let parent = parent.and_then(trunkline::Context::traceparent).map(|value| ("TRACEPARENT", value));
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .envs(variables.iter().copied().chain(parent))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| ExecError::Spawn { program: program(), source })?;
        let mut guard = GroupGuard(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
        let result = tokio::time::timeout(limit, self.converse(&mut child, payload)).await;
        match result {
            Err(_) => Err(ExecError::Timeout { program: program(), waited: limit }),
            Ok(Err(error)) => Err(error),
            Ok(Ok((status, stdout, stderr))) => {
                guard.0 = None;
                self.judge(status, stdout, &stderr)
            }
        }
    }

    async fn converse(
        &self,
        child: &mut Child,
        payload: &[u8],
    ) -> Result<(ExitStatus, Vec<u8>, Vec<u8>), ExecError> {
        let pipe = |source| ExecError::Pipe { program: self.program.clone(), source };
        let stdin = child.stdin.take();
        let write = async move {
            if let Some(mut stdin) = stdin {
                // A command need not read what it is given: a pipe that it closed is no failure.
                let _ = stdin.write_all(payload).await;
            }
        };
        let stdout = read_up_to(child.stdout.take(), STDOUT_BYTES_MAX + 1);
        let stderr = read_up_to(child.stderr.take(), STDERR_BYTES_MAX);
        let ((), stdout, stderr) = tokio::join!(write, stdout, stderr);
        let (stdout, stderr) = (stdout.map_err(pipe)?, stderr.map_err(pipe)?);
        if stdout.len() as u64 > STDOUT_BYTES_MAX {
            return Err(ExecError::TooLarge { program: self.program.clone(), limit: STDOUT_BYTES_MAX });
        }
        let status = child.wait().await.map_err(pipe)?;
        Ok((status, stdout, stderr))
    }

    fn judge(&self, status: ExitStatus, stdout: Vec<u8>, stderr: &[u8]) -> Result<Vec<u8>, ExecError> {
        let said = String::from_utf8_lossy(stderr);
        let said = said.trim();
        if status.success() {
            if !said.is_empty() {
                tracing::info!(program = %self.program, "{said}");
            }
            return Ok(stdout);
        }
        let last = said.lines().next_back().unwrap_or_default().to_owned();
        Err(ExecError::Exit { program: self.program.clone(), status, said: last })
    }
}

async fn read_up_to(pipe: Option<impl AsyncRead + Unpin>, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        let mut pipe = pipe.take(max);
        pipe.read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    async fn run(line: &str, payload: &[u8], limit: Duration) -> Result<Vec<u8>, ExecError> {
        line.parse::<ExecCommand>().unwrap().run(payload, &[("MESSAGE_SUBJECT", "a.b")], limit).await
    }

    #[tokio::test]
    async fn stdout_is_the_answer_byte_for_byte() {
        let payload: Vec<u8> = (0..=255).cycle().take(200_000).collect();
        assert_eq!(run("cat", &payload, LONG).await.unwrap(), payload);
        assert_eq!(run("sh -c 'printf %s \"$MESSAGE_SUBJECT\"'", b"", LONG).await.unwrap(), b"a.b");
    }

    #[tokio::test]
    async fn a_command_need_not_read_its_input() {
        let payload = vec![b'x'; 1 << 20];
        assert_eq!(run("echo done", &payload, LONG).await.unwrap(), b"done\n");
    }

    #[tokio::test]
    async fn a_failure_says_the_status_and_the_last_words() {
        let error = run("sh -c 'echo one >&2; echo no such city >&2; exit 3'", b"", LONG).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.ends_with("no such city"), "{text}");
        assert!(matches!(run("/nonexistent/program", b"", LONG).await, Err(ExecError::Spawn { .. })));
    }

    #[tokio::test]
    async fn a_command_that_takes_too_long_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        let line = format!("sh -c 'sleep 1000 & echo $! >{}; wait'", pid_file.display());
        let error = run(&line, b"", Duration::from_secs(1)).await.unwrap_err();
        assert!(matches!(error, ExecError::Timeout { .. }), "{error}");
        let grandchild = std::fs::read_to_string(&pid_file).unwrap();
        let stat = format!("/proc/{}/stat", grandchild.trim());
        // Where nobody reaps orphans, a killed process stays listed as a zombie.
        let lives = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        let gone = async {
            while lives() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, gone).await.expect("the grandchild is killed too");
    }

    #[test]
    fn command_lines_are_split_like_a_shell_would() {
        let command: ExecCommand = "jq -c '.a b'".parse().unwrap();
        assert_eq!(command.program, "jq");
        assert_eq!(command.arguments, ["-c", ".a b"]);
        assert!("".parse::<ExecCommand>().is_err());
        assert!("sh -c 'open".parse::<ExecCommand>().is_err());
    }
}
