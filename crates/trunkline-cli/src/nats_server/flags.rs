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
    /// Bytes of the log's file past which another is begun.
    pub(crate) log_size_limit: Option<i64>,
    /// Bytes of a message that traces show.
    pub(crate) max_traced_msg_len: Option<i64>,
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
    #[error("bad flag syntax: {0}")]
    Syntax(String),
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    #[error("flag needs an argument: -{0}")]
    NoValue(String),
    #[error("invalid value {value:?} for flag -{flag}: {problem}")]
    Number { flag: String, value: String, problem: &'static str },
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
    /// It changes nothing here.
    Ignored(Form),
    /// Unless it says no, or nothing; why not.
    Refused {
        form: Form,
        reason: &'static str,
    },
    Signal,
    Help,
    HelpTls,
    Version,
}

/// What stands behind a flag that is not kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Number,
    Switch,
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
        "log_size_limit" => Number(|flags, bytes| flags.log_size_limit = Some(bytes)),
        "max_traced_msg_len" => Number(|flags, bytes| flags.max_traced_msg_len = Some(bytes)),
        // There is nothing to store or to profile, and without others nobody to tell of; scripts give these all the same.
        "sd" | "store_dir" | "cluster_name" | "cluster_advertise" => Ignored(Form::Text),
        "profile" | "connect_retries" => Ignored(Form::Number),
        "no_advertise" => Ignored(Form::Switch),
        "js" | "jetstream" => Refused { form: Form::Switch, reason: NO_JETSTREAM },
        "s" | "syslog" => Refused { form: Form::Switch, reason: NO_SYSLOG },
        "r" | "remote_syslog" => Refused { form: Form::Text, reason: NO_SYSLOG },
        "routes" | "cluster" | "cluster_listen" => Refused { form: Form::Text, reason: NO_CLUSTER },
        _ => return None,
    })
}

/// What a command line asks for beside a server. All of it is read first: a mistake behind `-v` is told.
#[derive(Default)]
struct Asked {
    version: bool,
    help: bool,
    help_tls: bool,
    signal: Option<String>,
    /// What stands behind the flags.
    command: Option<String>,
}

/// Reads the command line behind the program's name.
///
/// # Errors
/// The first mistake.
pub(crate) fn parse(arguments: &[String]) -> Result<Request, FlagError> {
    let (mut flags, mut asked) = (Flags::default(), Asked::default());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(flag) = argument.strip_prefix('-').filter(|flag| !flag.is_empty()) else {
            asked.command = Some(argument.clone());
            break;
        };
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        if flag.is_empty() {
            asked.command = rest.next().cloned();
            break;
        }
        if flag.starts_with(['-', '=']) {
            return Err(FlagError::Syntax(argument.clone()));
        }
        let (name, given) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        read(name, given, &mut rest, (&mut flags, &mut asked))?;
    }
    // As where a script's variable is not set.
    flags.config = flags.config.filter(|path| !path.as_os_str().is_empty());
    let command = asked.command.as_ref().map(|word| word.to_ascii_lowercase());
    Ok(match command.as_deref() {
        _ if asked.version => Request::Version,
        _ if asked.help => Request::Help,
        _ if asked.help_tls => Request::HelpTls,
        Some("version") => Request::Version,
        Some("help") => Request::Help,
        Some(_) => return Err(FlagError::Command(asked.command.unwrap_or_default())),
        None => asked.signal.map_or_else(|| Request::Serve(Box::new(flags)), Request::Signal),
    })
}

/// Reads one flag, and its value from behind it where it is not `given` with it.
fn read<'a>(
    name: &str,
    given: Option<String>,
    rest: &mut impl Iterator<Item = &'a String>,
    (flags, asked): (&mut Flags, &mut Asked),
) -> Result<(), FlagError> {
    let is_on = |given: &Option<String>| switch(name, given.as_deref());
    let mut value =
        || given.clone().or_else(|| rest.next().cloned()).ok_or_else(|| FlagError::NoValue(name.to_owned()));
    match meaning(name).ok_or_else(|| FlagError::Unknown(name.to_owned()))? {
        Meaning::Text(set) => set(flags, value()?),
        Meaning::File(set) => set(flags, value()?.into()),
        Meaning::Number(set) => set(flags, number(name, value()?)?),
        Meaning::Switch(set) => set(flags, is_on(&given)?),
        Meaning::Ignored(form) => {
            if says_something(name, form, &given, value)? {
                flags.ignored.push(format!("-{name}"));
            }
        }
        Meaning::Refused { form, reason } => {
            if says_something(name, form, &given, value)? {
                return Err(FlagError::NotServed { flag: name.to_owned(), reason });
            }
        }
        Meaning::Signal => asked.signal = Some(value()?),
        Meaning::Help => asked.help = is_on(&given)?,
        Meaning::HelpTls => asked.help_tls = is_on(&given)?,
        Meaning::Version => asked.version = is_on(&given)?,
    }
    Ok(())
}

/// Whether a flag asks for anything: it is on, or has a value that is not empty.
fn says_something(
    name: &str,
    form: Form,
    given: &Option<String>,
    mut value: impl FnMut() -> Result<String, FlagError>,
) -> Result<bool, FlagError> {
    match form {
        Form::Switch => switch(name, given.as_deref()),
        Form::Text => Ok(!value()?.is_empty()),
        Form::Number => Ok(number(name, value()?)? != 0),
    }
}

/// A number as Go reads it: with a sign, and with a prefix where it is not decimal.
fn number(flag: &str, value: String) -> Result<i64, FlagError> {
    let (is_negative, digits) = match value.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, value.strip_prefix('+').unwrap_or(&value)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, &lower[..]),
    };
    let is_number = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
    let parsed = i128::from_str_radix(digits, radix).unwrap_or(i128::MAX);
    let signed = if is_negative { -parsed } else { parsed };
    let wrong = |problem| FlagError::Number { flag: flag.to_owned(), value: value.clone(), problem };
    match is_number {
        false => Err(wrong("parse error")),
        true => i64::try_from(signed).map_err(|_| wrong("value out of range")),
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
        let without_others =
            flags("--no_advertise --cluster_name=x --connect_retries 3 --cluster= --no_advertise=0");
        assert_eq!(without_others.ignored, ["-no_advertise", "-cluster_name", "-connect_retries"]);
        assert!(request("--profile x").is_err());
    }

    #[test]
    fn mistakes_are_told_in_the_words_of_nats_server() {
        let text = |line: &str| request(line).unwrap_err().to_string();
        assert_eq!(text("-p abc"), "invalid value \"abc\" for flag -p: parse error");
        assert_eq!(text("--bogus"), "flag provided but not defined: -bogus");
        assert_eq!(text("-p"), "flag needs an argument: -p");
        assert_eq!(text("extra"), "unrecognized command: \"extra\"");
        assert_eq!(text("---p"), "bad flag syntax: ---p");
        assert_eq!(text("-=3"), "bad flag syntax: -=3");
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

    #[test]
    fn all_of_a_line_is_read_before_anything_is_done() {
        assert_eq!(request("-h -v -t -sl quit=1"), Ok(Request::Version));
        assert_eq!(request("-sl quit=1 -t"), Ok(Request::Signal("quit=1".to_owned())));
        assert_eq!(request("-D VERSION"), Ok(Request::Version));
        assert!(matches!(request("-v -p abc"), Err(FlagError::Number { .. })));
        assert!(matches!(request("-p 1 extra -v"), Err(FlagError::Command(_))));
    }

    #[test]
    fn numbers_are_those_of_go() {
        for (text, value) in [("0x10", 16), ("010", 8), ("0b11", 3), ("+5", 5), ("-1", -1), ("-0", 0)] {
            assert_eq!(flags(&format!("-p {text}")).port, Some(value), "{text}");
        }
        for text in ["1e3", "4.5", "0x", "08", "5_", "--5"] {
            assert!(request(&format!("-p={text}")).is_err(), "{text}");
        }
        let text = request("-p 99999999999999999999").unwrap_err().to_string();
        assert_eq!(text, "invalid value \"99999999999999999999\" for flag -p: value out of range");
    }
}
