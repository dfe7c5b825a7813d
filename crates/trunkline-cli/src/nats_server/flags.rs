//! The command line in the manner of nats-server: `-x v`, `--x v`, `-x=v` and `--x=v` are one flag, long names may have one
//! dash, and the last of several counts.

use std::path::PathBuf;

/// What the command line says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) address: Option<String>,
    /// -1 is any free one.
    pub(crate) port: Option<i64>,
    pub(crate) http_port: Option<i64>,
    pub(crate) name: Option<String>,
    /// Where clients are told that the server is.
    pub(crate) advertise: Option<String>,
    pub(crate) config: Option<PathBuf>,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) ports_file_dir: Option<PathBuf>,
    pub(crate) log_file: Option<PathBuf>,
    pub(crate) log_time: Option<bool>,
    pub(crate) log_time_utc: Option<bool>,
    pub(crate) debug: Option<bool>,
    pub(crate) trace: Option<bool>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) https_port: Option<i64>,
    pub(crate) tls: TlsFlags,
    /// Only to test the configuration.
    pub(crate) test: bool,
    /// Flags that change nothing here, as given.
    pub(crate) ignored: Vec<String>,
}

/// What the command line says of TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsFlags {
    pub(crate) on: Option<bool>,
    /// Clients have to show a certificate.
    pub(crate) verify: Option<bool>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// Run the server, or test its configuration.
    Serve(Box<Flags>),
    /// Tell a running server something: `COMMAND[=PID]`.
    Signal(String),
    Help,
    HelpTls,
    Version,
}

/// A command line that says nothing to be done.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FlagError {
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    #[error("flag needs an argument: -{0}")]
    NoValue(String),
    #[error("invalid value {value:?} for flag -{flag}: parse error")]
    Number { flag: String, value: String },
    #[error("invalid boolean value {value:?} for -{flag}: parse error")]
    Bool { flag: String, value: String },
    #[error("unrecognized command: {0:?}")]
    Command(String),
    /// It would change what the server is, and this one cannot be that.
    #[error("flag -{flag} is not supported by this server: {reason}")]
    NotServed { flag: String, reason: &'static str },
}

/// What a flag means.
#[derive(Clone, Copy)]
enum Meaning {
    Text(fn(&mut Flags, String)),
    File(fn(&mut Flags, PathBuf)),
    Number(fn(&mut Flags, i64)),
    Switch(fn(&mut Flags, bool)),
    /// It has a value and changes nothing here.
    Ignored,
    /// With a value, or without; why not.
    Refused {
        has_value: bool,
        reason: &'static str,
    },
    Signal,
    Help,
    HelpTls,
    Version,
}

const NO_CLUSTER: &str = "it does not cluster; use a NATS cluster, or backend redis on several hosts";
const NO_JETSTREAM: &str = "it has no JetStream";
const NO_SYSLOG: &str = "it logs to stderr or, with -l, to a file";

fn meaning(name: &str) -> Option<Meaning> {
    use Meaning::{File, Ignored, Number, Refused, Switch, Text};
    Some(match name {
        "a" | "addr" | "net" => Text(|flags, text| flags.address = Some(text)),
        "p" | "port" => Number(|flags, port| flags.port = Some(port)),
        "m" | "http_port" => Number(|flags, port| flags.http_port = Some(port)),
        "ms" | "https_port" => Number(|flags, port| flags.https_port = Some(port)),
        "tls" => Switch(|flags, on| flags.tls.on = Some(on)),
        "tlsverify" => Switch(|flags, on| flags.tls.verify = Some(on)),
        "tlscert" => File(|flags, path| flags.tls.cert = Some(path)),
        "tlskey" => File(|flags, path| flags.tls.key = Some(path)),
        "tlscacert" => File(|flags, path| flags.tls.ca = Some(path)),
        "n" | "name" | "server_name" => Text(|flags, text| flags.name = Some(text)),
        "client_advertise" => Text(|flags, text| flags.advertise = Some(text)),
        "c" | "config" => File(|flags, path| flags.config = Some(path)),
        "P" | "pid" => File(|flags, path| flags.pid_file = Some(path)),
        "ports_file_dir" => File(|flags, path| flags.ports_file_dir = Some(path)),
        "l" | "log" => File(|flags, path| flags.log_file = Some(path)),
        "T" | "logtime" => Switch(|flags, on| flags.log_time = Some(on)),
        "logtime_utc" => Switch(|flags, on| flags.log_time_utc = Some(on)),
        "D" | "debug" => Switch(|flags, on| flags.debug = Some(on)),
        "V" | "trace" | "VV" => Switch(|flags, on| flags.trace = Some(on)),
        "DV" | "DVV" => Switch(|flags, on| (flags.debug, flags.trace) = (Some(on), Some(on))),
        "user" => Text(|flags, text| flags.user = Some(text)),
        "pass" => Text(|flags, text| flags.password = Some(text)),
        "auth" => Text(|flags, text| flags.token = Some(text)),
        "t" => Switch(|flags, on| flags.test = on),
        "sl" | "signal" => Meaning::Signal,
        "h" | "help" => Meaning::Help,
        "help_tls" => Meaning::HelpTls,
        "v" | "version" => Meaning::Version,
        // There is nothing to store or to profile; scripts give these all the same.
        "sd" | "store_dir" | "log_size_limit" | "max_traced_msg_len" | "profile" => Ignored,
        "js" | "jetstream" => Refused { has_value: false, reason: NO_JETSTREAM },
        "s" | "syslog" => Refused { has_value: false, reason: NO_SYSLOG },
        "r" | "remote_syslog" => Refused { has_value: true, reason: NO_SYSLOG },
        "no_advertise" => Refused { has_value: false, reason: NO_CLUSTER },
        "routes" | "cluster" | "cluster_name" | "cluster_advertise" | "connect_retries"
        | "cluster_listen" => Refused { has_value: true, reason: NO_CLUSTER },
        _ => return None,
    })
}

/// Reads the command line behind the program's name.
///
/// # Errors
/// The first mistake.
pub(crate) fn parse(arguments: &[String]) -> Result<Request, FlagError> {
    let mut flags = Flags::default();
    let mut rest = arguments.iter();
    let mut signal = None;
    while let Some(argument) = rest.next() {
        let Some(flag) = argument.strip_prefix('-').filter(|flag| !flag.is_empty()) else {
            return command(argument);
        };
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        if flag.is_empty() {
            match rest.next() {
                Some(argument) => return command(argument),
                None => break,
            }
        }
        let (name, given) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let meaning = meaning(name).ok_or_else(|| FlagError::Unknown(name.to_owned()))?;
        let is_on = |given: &Option<String>| switch(name, given.as_deref());
        let mut value = || {
            given.clone().or_else(|| rest.next().cloned()).ok_or_else(|| FlagError::NoValue(name.to_owned()))
        };
        match meaning {
            Meaning::Text(set) => set(&mut flags, value()?),
            Meaning::File(set) => set(&mut flags, value()?.into()),
            Meaning::Number(set) => {
                let value = value()?;
                let number = value.parse();
                set(&mut flags, number.map_err(|_| FlagError::Number { flag: name.to_owned(), value })?);
            }
            Meaning::Switch(set) => set(&mut flags, is_on(&given)?),
            Meaning::Ignored => {
                value()?;
                flags.ignored.push(format!("-{name}"));
            }
            Meaning::Refused { has_value, reason } => {
                if has_value {
                    value()?;
                } else if !is_on(&given)? {
                    continue;
                }
                return Err(FlagError::NotServed { flag: name.to_owned(), reason });
            }
            Meaning::Signal => signal = Some(value()?),
            Meaning::Help if is_on(&given)? => return Ok(Request::Help),
            Meaning::HelpTls if is_on(&given)? => return Ok(Request::HelpTls),
            Meaning::Version if is_on(&given)? => return Ok(Request::Version),
            Meaning::Help | Meaning::HelpTls | Meaning::Version => {}
        }
    }
    Ok(signal.map_or_else(|| Request::Serve(Box::new(flags)), Request::Signal))
}

fn command(word: &str) -> Result<Request, FlagError> {
    match word.to_ascii_lowercase().as_str() {
        "version" => Ok(Request::Version),
        "help" => Ok(Request::Help),
        _ => Err(FlagError::Command(word.to_owned())),
    }
}

/// A switch is on unless it says otherwise, in the words that Go's flags know.
fn switch(flag: &str, given: Option<&str>) -> Result<bool, FlagError> {
    match given {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(value) => Err(FlagError::Bool { flag: flag.to_owned(), value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &str) -> Result<Request, FlagError> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    fn flags(line: &str) -> Flags {
        match request(line) {
            Ok(Request::Serve(flags)) => *flags,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn one_dash_or_two_a_space_or_an_equals_sign_are_the_same() {
        for line in ["-p 4333", "--p 4333", "-p=4333", "--port=4333", "-port 4333", "--port 4333"] {
            assert_eq!(flags(line).port, Some(4333), "{line}");
        }
        assert_eq!(flags("-p 1 -port=-1").port, Some(-1), "the last one counts");
    }

    #[test]
    fn switches_take_no_word_behind_them() {
        let both = flags("-DV -a 127.0.0.1");
        assert_eq!(
            (both.debug, both.trace, both.address.as_deref()),
            (Some(true), Some(true), Some("127.0.0.1"))
        );
        assert_eq!(flags("-D=false -T=0").debug, Some(false));
    }

    #[test]
    fn what_changes_nothing_is_noted_and_what_cannot_be_is_refused() {
        assert_eq!(flags("-sd /tmp/x --profile=1").ignored, ["-sd", "-profile"]);
        assert!(matches!(request("-js"), Err(FlagError::NotServed { .. })));
        assert_eq!(request("-js=false"), Ok(Request::Serve(Box::default())));
        assert!(matches!(request("--routes nats://a:1"), Err(FlagError::NotServed { .. })));
    }

    #[test]
    fn mistakes_are_told_in_the_words_of_nats_server() {
        let text = |line: &str| request(line).unwrap_err().to_string();
        assert_eq!(text("-p abc"), "invalid value \"abc\" for flag -p: parse error");
        assert_eq!(text("--bogus"), "flag provided but not defined: -bogus");
        assert_eq!(text("-p"), "flag needs an argument: -p");
        assert_eq!(text("extra"), "unrecognized command: \"extra\"");
        assert_eq!(text("-D=maybe"), "invalid boolean value \"maybe\" for -D: parse error");
    }

    #[test]
    fn a_signal_has_its_process_behind_an_equals_sign() {
        for line in ["--signal ldm=12", "-sl ldm=12", "--signal=ldm=12"] {
            assert_eq!(request(line), Ok(Request::Signal("ldm=12".to_owned())), "{line}");
        }
        assert_eq!(request("help"), Ok(Request::Help));
        assert_eq!(request("-v"), Ok(Request::Version));
    }
}
