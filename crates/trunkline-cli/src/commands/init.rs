//! `trunkline init`: from nothing to a configuration that is known to work.

mod answers;
mod document;
mod questions;
mod write;

use std::borrow::Cow;
use std::io::{self, IsTerminal as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use trunkline::config::Loader;

use crate::checks::{self, Findings, Verdict};
use crate::duration;
use crate::failure::{Explain, Failure, Kind};
use crate::interrupt::Interrupts;
use crate::output;
use crate::settings::{GlobalArgs, SettingsError};

use answers::{Answers, Preset};

/// Write a configuration, by a few questions or a preset, and check that it works
///
/// Asks at a terminal; with --preset nobody is asked, and flags and defaults count. An existing file is never changed: --force
/// keeps it as FILE.bak-N. Passwords go into no file: you are told the variable to put them in.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  trunkline init                                             asks, writes config.yaml, checks it
  trunkline init --preset developer                          Redis on this machine, nobody is asked
  trunkline init --preset nats --nats-url nats://nats.internal:4222 --dry-run
  trunkline init --preset enterprise --redis-url rediss://bus@redis.internal:6379/0 --force

Exit code 1 when a check fails: the file stays, and `trunkline doctor` checks again.")]
pub(crate) struct InitArgs {
    /// What the bus is for, without questions
    #[arg(long, value_enum, value_name = "PRESET")]
    preset: Option<Preset>,

    /// The file to write [default: that of --config, else config.yaml]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Where Redis is [default: redis://localhost:6379/0, or what REDIS_URL says]
    #[arg(long, value_name = "URL")]
    redis_url: Option<String>,

    /// Where NATS is, servers separated by commas [default: nats://127.0.0.1:4222, or what NATS_URL says]
    #[arg(long, value_name = "URL")]
    nats_url: Option<String>,

    /// What Redis keys and JetStream names begin with [default: atlas_bus, for developer atlas-dev]
    #[arg(long, value_name = "PREFIX")]
    stream_prefix: Option<String>,

    /// First token of the platform's subjects
    #[arg(long, value_name = "TOKEN", default_value = "nachos")]
    subject_root: String,

    /// Copies of each stream on a NATS cluster: 1, 3 or 5
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=5))]
    replicas: u32,

    /// Address for NATS clients, of this machine only
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4222")]
    listen: SocketAddr,

    /// Address for health, dashboard and admin API, of this machine only
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8222")]
    http: SocketAddr,

    /// Write although the file exists; it is kept as FILE.bak-N
    #[arg(long)]
    force: bool,

    /// Print what would be written, and do nothing
    #[arg(long)]
    dry_run: bool,

    /// Do not look whether the backend is there and set up as it should be
    #[arg(long)]
    no_check: bool,

    /// Longest wait for any one answer of a check
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "3s")]
    timeout: Duration,
}

/// Why there is no new configuration, or one that does not work yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum InitError {
    #[error("there is no terminal to ask questions at")]
    NobodyToAsk,
    #[error("the questions were broken off, and nothing was written")]
    BrokenOff,
    #[error("the terminal cannot be used")]
    Terminal(#[source] io::Error),
    #[error("{} exists", path.display())]
    Exists { path: PathBuf },
    #[error("{} exists too, and only one of the two would be read", other.display())]
    Beside { other: PathBuf },
    #[error("{} is no ordinary file", path.display())]
    NoFile { path: PathBuf },
    #[error("{} would be read as TOML, and this command writes YAML", path.display())]
    Toml { path: PathBuf },
    #[error("{} cannot be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{flag} is {address}, which is reachable from other machines")]
    Reachable { flag: &'static str, address: SocketAddr },
    #[error("{} is written, and {fail} of its checks failed", path.display())]
    Checks { path: PathBuf, fail: usize },
}

impl Explain for InitError {
    fn kind(&self) -> Kind {
        match self {
            Self::NobodyToAsk | Self::Toml { .. } | Self::Reachable { .. } => Kind::Usage,
            _ => Kind::Failed,
        }
    }

    fn hint(&self) -> Option<Cow<'static, str>> {
        let text: Cow<'static, str> = match self {
            Self::NobodyToAsk => {
                "give --preset personal, developer, enterprise, regulatory or nats; with it --redis-url, --nats-url, \
                 --stream-prefix, --subject-root, --listen and --http"
                    .into()
            }
            Self::Exists { .. } => {
                "give --force to replace it, which keeps it as FILE.bak-N; --file to write another; --dry-run to look".into()
            }
            Self::Beside { other } => {
                format!("rename {}, or write elsewhere with --file", other.display()).into()
            }
            Self::NoFile { .. } => "give the path of the file itself with --file".into(),
            Self::Toml { .. } => "give --file a name that ends in .yaml".into(),
            Self::Write { .. } => "give --file a path in a directory that exists and may be written to".into(),
            Self::Reachable { .. } => {
                "other machines need users and TLS first: write the file for this machine, then see docs/security.md".into()
            }
            Self::Checks { .. } => {
                "do what the lines with `fail` say, then `trunkline doctor` checks again".into()
            }
            Self::BrokenOff | Self::Terminal(_) => return None,
        };
        Some(text)
    }
}

/// Asks, writes and checks.
pub(crate) async fn run(global: &GlobalArgs, args: InitArgs) -> Result<(), Failure> {
    let interrupts = Interrupts::listen().map_err(InitError::Terminal)?;
    tokio::select! {
        done = make(global, args) => done,
        () = interrupts.stop().cancelled() => Err(InitError::BrokenOff.into()),
    }
}

async fn make(global: &GlobalArgs, args: InitArgs) -> Result<(), Failure> {
    let path = args.file.clone().or_else(|| global.config.clone()).unwrap_or_else(|| "config.yaml".into());
    if !args.dry_run {
        // Nobody shall answer questions for a file that cannot be written.
        write::may_write(&path, args.force)?;
    }
    let answers = match args.preset {
        Some(preset) => Answers::from_flags(preset, &args)?,
        None if io::stdin().is_terminal() && io::stderr().is_terminal() => {
            let (asked, shown) = (args.clone(), path.clone());
            let terminal = questions::Terminal::keep().map_err(InitError::Terminal)?;
            let answers = tokio::task::spawn_blocking(move || questions::ask(&asked, &shown)).await;
            drop(terminal);
            answers.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?
        }
        None => return Err(InitError::NobodyToAsk.into()),
    };
    let text = document::text(&answers);
    if args.dry_run {
        output::bytes(text.as_bytes())?;
        return Ok(());
    }
    let backup = write::write(&path, &text, args.force)?;
    output::note(&match backup {
        Some(backup) => format!("wrote {}; the one before is {}", path.display(), backup.display()),
        None => format!("wrote {}", path.display()),
    });
    for secret in &answers.secrets {
        output::note(&format!("it has no password: set the variable before you start\n  {}", secret.how));
    }
    match args.no_check {
        true => {
            next(&path);
            Ok(())
        }
        false => check(&path, &answers, args.timeout).await,
    }
}

/// Looks at the backend as the new file names it.
async fn check(path: &Path, answers: &Answers, limit: Duration) -> Result<(), Failure> {
    let secrets = answers.secrets.iter().map(|secret| (secret.variable.into(), secret.value.clone().into()));
    let loader = Loader::new().file(path).env(std::env::vars_os().chain(secrets));
    let config = loader.load().map_err(SettingsError::from)?.config;
    let mut findings = Findings::new(false);
    checks::backend::check(&config, limit, &mut findings).await?;
    findings.done();
    match findings.count(Verdict::Fail) {
        0 => {
            next(path);
            Ok(())
        }
        fail => Err(InitError::Checks { path: path.to_owned(), fail }.into()),
    }
}

/// Says what to do with the file.
fn next(path: &Path) {
    // These are found without being named.
    let found = [Path::new("config.yaml"), Path::new("config.yml")].contains(&path);
    let flag = if found { String::new() } else { format!(" --config {}", path.display()) };
    output::note(&format!("try next  trunkline up{flag}"));
}
