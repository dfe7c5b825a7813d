//! `trunkline export`: the configuration as a deployment, in files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anstyle::{AnsiColor, Style};
use serde_json::json;
use trunkline::config::Loaded;

use crate::export::{self, ExportError, Options, Owner, Plan, Target, Written};
use crate::failure::Failure;
use crate::output;
use crate::settings::{self, GlobalArgs};

const NAME: Style = AnsiColor::Cyan.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();

/// Write a deployment of the configuration
///
/// The bus with a health check, what it runs on, and the components, which start when it is ready; credentials for all of
/// them, limits, and no more rights than they need. Nothing is published outside of the deployment.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline export compose --out deploy
  trunkline export kubernetes --out deploy --image search=registry.internal/search:1.4
  trunkline --config production.yaml export systemd --out deploy
  trunkline export compose --out deploy --force --json | jq -r '.files[]'")]
pub(crate) struct ExportArgs {
    /// What it is for
    #[arg(value_enum)]
    target: Target,

    /// Directory for the files; it is made where there is none
    #[arg(long, value_name = "DIRECTORY")]
    out: PathBuf,

    /// Replace files that are there; they are kept in a directory of backups
    #[arg(long)]
    force: bool,

    /// Image of a component, or of trunkline, redis or nats, in the place of components.NAME.image
    #[arg(long = "image", value_name = "NAME=IMAGE")]
    images: Vec<String>,

    /// Have containers run the commands of the configuration, and not those of their images
    #[arg(long)]
    commands: bool,

    /// Keep to the Redis or NATS servers that the configuration names, and deploy none
    #[arg(long)]
    external: bool,

    /// One JSON document: directory, files, notes, next
    #[arg(long)]
    json: bool,
}

/// Writes it.
pub(crate) fn run(global: &GlobalArgs, args: &ExportArgs) -> Result<(), Failure> {
    let loaded = settings::load(global, [])?;
    let options = Options {
        target: args.target,
        images: images(&args.images)?,
        commands: args.commands,
        external: args.external,
    };
    let (plan, written) = export(&loaded, options, &args.out, args.force)?;
    let next = next(&plan, &args.out);
    if args.json {
        let document = json!({
            "directory": written.directory,
            "files": written.files,
            "backup": written.backup,
            "notes": plan.notes,
            "next": next,
        });
        return Ok(output::json_document(&document)?);
    }
    output::note(&format!("{NAME}wrote{NAME:#} {}", written.directory.display()));
    for file in &written.files {
        output::line(&written.directory.join(file).display().to_string())?;
    }
    if let Some(backup) = &written.backup {
        output::note(&format!("{NAME}kept{NAME:#}  what was there in {}", backup.display()));
    }
    for note in &plan.notes {
        output::note(&format!("{WARNING}note{WARNING:#}  {note}"));
    }
    output::note(&format!("{NAME}next{NAME:#}"));
    for line in next {
        output::note(&format!("  {line}"));
    }
    Ok(())
}

fn export(
    loaded: &Loaded,
    options: Options,
    out: &Path,
    force: bool,
) -> Result<(Plan, Written), ExportError> {
    let mut owner = Owner::of_process();
    if options.target != Target::Compose {
        owner = owner.keeping();
    }
    let plan = export::plan(loaded, options)?;
    let files = export::render(&plan, &owner)?;
    let written = export::write(out, &files, owner, force)?;
    Ok((plan, written))
}

fn images(given: &[String]) -> Result<BTreeMap<String, String>, ExportError> {
    given
        .iter()
        .map(|text| match text.split_once('=') {
            Some((name, image)) if !name.is_empty() && !image.is_empty() => {
                Ok((name.to_owned(), image.to_owned()))
            }
            _ => Err(ExportError::Image { given: text.clone() }),
        })
        .collect()
}

/// The commands to run next.
fn next(plan: &Plan, out: &Path) -> Vec<String> {
    let quoted =
        shlex::try_quote(&out.display().to_string()).map_or_else(|_| out.display().to_string(), Into::into);
    let out = quoted;
    let secrets = format!("{out}/{}", export::secrets_directory(plan.target));
    let image = plan.images.get("trunkline");
    let build = match image {
        // Somebody else builds it.
        Some(_) => None,
        None => Some(format!(
            "docker build --file {out}/Dockerfile --tag trunkline:{} PATH-TO-TRUNKLINE",
            env!("CARGO_PKG_VERSION")
        )),
    };
    let mut next: Vec<String> = Vec::new();
    match plan.target {
        Target::Compose => {
            next.extend(build);
            next.push(format!("docker compose --project-directory {out} up --detach --wait"));
            next.push(format!(
                "docker compose --project-directory {out} exec -e TRUNKLINE_URL=\"$(cat {secrets}/operator_url)\" trunkline /usr/local/bin/trunkline sub '>'"
            ));
        }
        Target::Systemd => {
            next.push(format!("sudo cp -r {out}/etc/. /etc/"));
            next.push(
                "sudo chmod 700 /etc/trunkline/secrets && sudo chown -R root: /etc/trunkline".to_owned(),
            );
            next.push(
                "sudo systemctl daemon-reload && sudo systemctl enable --now trunkline.target".to_owned(),
            );
            next.push("systemctl list-dependencies trunkline.target".to_owned());
        }
        Target::Kubernetes => {
            next.extend(build);
            next.push(format!("kubectl apply --kustomize {out}"));
            next.push("kubectl --namespace trunkline rollout status deployment/trunkline".to_owned());
        }
    }
    next
}
