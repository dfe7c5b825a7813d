//! `trunkline doctor`: what is wrong here, and what to do about it.

mod config;
mod host;
mod ports;
mod work;

use std::borrow::Cow;
use std::time::Duration;

use trunkline::config::{Backend, Config};

use crate::checks::{self, Findings, Verdict};
use crate::duration;
use crate::failure::{Explain, Failure};
use crate::interrupt::Interrupts;
use crate::output;
use crate::settings::GlobalArgs;

/// Check the configuration, its backend and this machine
///
/// Looks at configuration, ports, backend, persistence, eviction, clocks, permissions, certificates, disks, file
/// descriptors, memory, consumers and dead letters, and says what to do where something is wrong. Changes nothing, and
/// needs no running bus; what it cannot see without one it says.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline doctor
  trunkline doctor --config /etc/trunkline/config.yaml --timeout 10s
  trunkline doctor --json | jq -r '.checks[] | select(.verdict == \"fail\") | .fix'

Exit code 1 when a check fails; warnings alone are 0.")]
pub(crate) struct DoctorArgs {
    /// Longest wait for any one answer
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "3s")]
    timeout: Duration,

    /// One JSON document: ok, warn, fail, and the checks with check, verdict, text and fix
    #[arg(long)]
    json: bool,
}

/// Why the doctor is not content.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DoctorError {
    /// What was found stands above.
    #[error("{fail} of the checks failed")]
    Failed {
        /// How many.
        fail: usize,
    },
    /// The operating system refuses a handler.
    #[error("cannot listen to signals")]
    Signals(#[source] std::io::Error),
    /// Somebody had enough.
    #[error("stopped before all was looked at")]
    Interrupted,
}

impl Explain for DoctorError {
    fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Failed { .. } => Some("each line with `fail` has its fix below it".into()),
            _ => None,
        }
    }
}

/// Looks at everything, and fails when a check does.
pub(crate) async fn run(global: &GlobalArgs, args: &DoctorArgs) -> Result<(), Failure> {
    let interrupts = Interrupts::listen().map_err(DoctorError::Signals)?;
    let mut findings = Findings::new(args.json);
    tokio::select! {
        looked = look(global, args, &mut findings) => looked?,
        () = interrupts.stop().cancelled() => return Err(DoctorError::Interrupted.into()),
    }
    findings.done();
    match args.json {
        true => output::json_document(&findings.document())?,
        false => output::note(&findings.sum()),
    }
    match findings.count(Verdict::Fail) {
        0 => Ok(()),
        fail => Err(DoctorError::Failed { fail }.into()),
    }
}

async fn look(global: &GlobalArgs, args: &DoctorArgs, findings: &mut Findings) -> Result<(), Failure> {
    findings.looking_at("the configuration");
    let (found, loaded) = config::check(global);
    findings.add(found)?;
    let Some(loaded) = loaded else {
        // Without a configuration nothing else can be asked for; this machine is what it is.
        findings.add(host::check(&Config::default(), None))?;
        return Ok(());
    };
    let config = &loaded.config;
    findings.looking_at("the ports");
    let up = match config.messaging.backend {
        Backend::Nats => None,
        _ => {
            let (found, up) = ports::check(config, args.timeout).await;
            findings.add(found)?;
            up
        }
    };
    let reachable = checks::backend::check(config, args.timeout, findings).await?;
    findings.looking_at("certificates");
    findings.add(config::certificates(config))?;
    findings.looking_at("this machine");
    findings.add(config::disks(&loaded))?;
    findings.add(host::check(config, up.as_ref().map(|up| up.pid)))?;
    findings.looking_at("consumers and dead letters");
    findings.add(work::check(global, config, reachable, up.is_some(), args.timeout).await)?;
    Ok(())
}
