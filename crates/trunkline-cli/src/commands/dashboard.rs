//! `trunkline dashboard`: where the dashboard of a bus is, with the token that opens it.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::admin::{AdminError, DashboardPlace, RuntimeFile};
use crate::duration;
use crate::failure::Failure;
use crate::output;
use crate::settings::GlobalArgs;

/// Programs that open a file in the browser of this user; the first that there is.
const OPENERS: [&str; 3] = ["xdg-open", "open", "sensible-browser"];

/// Print the address of the dashboard of a running bus, or open it
///
/// The address has the admin token in it: whoever has it may do what an operator may.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline dashboard
  trunkline dashboard --open
  trunkline dashboard --http http://127.0.0.1:8222")]
pub(crate) struct DashboardArgs {
    /// Open it in the browser. The token reaches it in a file that only this user may read, not on a command line
    #[arg(long)]
    open: bool,

    /// Longest wait for an answer
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "5s")]
    timeout: Duration,

    #[command(flatten)]
    place: DashboardPlace,
}

/// Does it.
pub(crate) async fn run(global: &GlobalArgs, args: &DashboardArgs) -> Result<(), Failure> {
    let (url, port) = args.place.find(global, args.timeout).await?;
    if args.open {
        let file = RuntimeFile::redirect(port, |file| file.write_all(page(&url).as_bytes()))
            .map_err(|source| AdminError::NotOpened { reason: source.to_string() })?;
        open(&file)?;
    }
    output::line(&url)?;
    Ok(())
}

/// A page that goes on to another one.
fn page(url: &str) -> String {
    // The token is percent-encoded, so an address has no character here that means something in HTML but `&`.
    let url = url.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
    format!(
        "<!doctype html>\n<meta http-equiv=\"refresh\" content=\"0;url={url}\">\n<title>Trunkline</title>\n"
    )
}

fn open(file: &Path) -> Result<(), AdminError> {
    for opener in OPENERS {
        let mut command = Command::new(opener);
        command.arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match command.status() {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => {
                return Err(AdminError::NotOpened { reason: format!("{opener} ended with {status}") });
            }
            Err(_) => {}
        }
    }
    Err(AdminError::NotOpened { reason: format!("there is none of {}", OPENERS.join(", ")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_that_goes_on_cannot_be_left_by_what_is_in_the_address() {
        let shown = page("http://h:1/dashboard#token=a\"><script>&");
        assert!(shown.contains("url=http://h:1/dashboard#token=a&quot;>&lt;script>&amp;\">"), "{shown}");
    }
}
