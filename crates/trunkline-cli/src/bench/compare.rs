//! `--compare NAME=COMMAND`: what a server is called and how it is started on a port of our choice. No processes here.

use std::path::Path;

use super::error::BenchError;

const PORT: &str = "{port}";

/// A server that bench starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerSpec {
    pub(super) name: String,
    /// Program and arguments, with `{port}` somewhere.
    words: Vec<String>,
}

impl ServerSpec {
    /// Reads `NAME=COMMAND`. Two programs need no `{port}`: `nats-server` gets its address appended, and
    /// `trunkline` without arguments is started as `trunkline up` on it.
    ///
    /// # Errors
    /// [`BenchError::CompareSpec`] when there is no name, no command, or nowhere to put the port.
    pub(super) fn parse(given: &str) -> Result<Self, BenchError> {
        let refuse = |reason| BenchError::CompareSpec { given: given.to_owned(), reason };
        let (name, command) = given.split_once('=').ok_or_else(|| refuse("there is no `=`"))?;
        let name = name.trim();
        if name.is_empty() {
            return Err(refuse("the name is empty"));
        }
        let mut words = shlex::split(command).ok_or_else(|| refuse("a quote is not closed"))?;
        let program = words.first().ok_or_else(|| refuse("the command is empty"))?;
        if !words.iter().any(|word| word.contains(PORT)) {
            let base = Path::new(program).file_name().unwrap_or_default();
            let more: &[&str] = match base.to_str() {
                Some("nats-server") => &["-p", PORT, "-a", "127.0.0.1"],
                Some("trunkline") if words.len() == 1 => {
                    &["up", "--listen", "127.0.0.1:{port}", "--http", "127.0.0.1:0"]
                }
                _ => return Err(refuse("the command has no {port}")),
            };
            words.extend(more.iter().map(|&word| word.to_owned()));
        }
        Ok(Self { name: name.to_owned(), words })
    }

    /// A server whose program and arguments are known, with `{port}` where its port belongs.
    pub(super) fn new(name: &str, words: &[&str]) -> Self {
        Self { name: name.to_owned(), words: words.iter().map(|&word| word.to_owned()).collect() }
    }

    /// Program and arguments for `port`.
    pub(super) fn command(&self, port: u16) -> (String, Vec<String>) {
        let port = port.to_string();
        let mut words = self.words.iter().map(|word| word.replace(PORT, &port));
        (words.next().unwrap_or_default(), words.collect())
    }

    /// The command as it was given, for reports.
    pub(super) fn line(&self) -> String {
        self.words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(given: &str, name: &str, command: &str) {
        let spec = ServerSpec::parse(given).expect("valid");
        let (program, arguments) = spec.command(4333);
        let line = [vec![program], arguments].concat().join(" ");
        assert_eq!((spec.name.as_str(), line.as_str()), (name, command));
    }

    #[test]
    fn known_programs_get_their_address_appended() {
        check("nats=nats-server", "nats", "nats-server -p 4333 -a 127.0.0.1");
        check("old=/opt/nats-server -D", "old", "/opt/nats-server -D -p 4333 -a 127.0.0.1");
        check("t=./trunkline", "t", "./trunkline up --listen 127.0.0.1:4333 --http 127.0.0.1:0");
    }

    #[test]
    fn the_port_is_put_where_the_command_says() {
        check("n=nats-server -p {port}", "n", "nats-server -p 4333");
        check("t=trunkline up --listen 127.0.0.1:{port}", "t", "trunkline up --listen 127.0.0.1:4333");
        check("s=sh -c 'exec other --listen=:{port}'", "s", "sh -c exec other --listen=:4333");
        check("a=b=c {port}", "a", "b=c 4333");
    }

    #[test]
    fn what_cannot_be_started_is_refused() {
        for given in ["nats-server", "=nats-server", "a=", "a='b {port}", "a=other", "t=trunkline up"] {
            let outcome = ServerSpec::parse(given);
            assert!(matches!(outcome, Err(BenchError::CompareSpec { .. })), "{given}");
        }
    }
}
