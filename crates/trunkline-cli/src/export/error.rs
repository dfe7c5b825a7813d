//! Why a configuration cannot be exported.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use trunkline_server::HashError;

use crate::env_file::EnvFileError;
use crate::failure::{Explain, Kind};

/// Why there is no deployment.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ExportError {
    #[error("the system gives no random bytes to make credentials of: {reason}")]
    Random { reason: String },
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error("component \"{component}\" has no image to run in")]
    NoImage { component: String },
    #[error("--image {given} is not NAME=IMAGE")]
    Image { given: String },
    #[error("--image names \"{name}\", which is no service of this deployment")]
    UnknownImage { name: String },
    #[error("component \"{component}\" would be called {service}, as another service of this deployment is")]
    ServiceName { component: String, service: String },
    #[error(
        "variable {variable} of component \"{component}\" has a line break or a NUL, which the file of its environment cannot hold"
    )]
    Variable { component: String, variable: String },
    #[error("components.{component}.env_file {} cannot be used", path.display())]
    EnvFile { component: String, path: PathBuf, source: EnvFileError },
    #[error("the command of component \"{component}\" has an open quote")]
    Command { component: String },
    #[error("{} cannot be read, which {key} names", path.display())]
    Unreadable { key: String, path: PathBuf, source: io::Error },
    #[error("{} is there already", first_few(paths))]
    Exists { paths: Vec<PathBuf> },
    #[error("{} cannot be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("a template of the deployment cannot be filled in")]
    Template(#[from] minijinja::Error),
    #[error("the configuration of the deployment cannot be written as YAML")]
    Yaml(#[from] serde_saphyr::ser::Error),
    #[error("the users of the deployment cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

impl Explain for ExportError {
    fn kind(&self) -> Kind {
        match self {
            Self::Image { .. } | Self::UnknownImage { .. } => Kind::Usage,
            _ => Kind::Failed,
        }
    }

    fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::NoImage { component } => {
                Some(format!("give --image {component}=IMAGE, or set components.{component}.image").into())
            }
            Self::Image { .. } => Some("for example --image search=registry.internal/search:1.4".into()),
            Self::UnknownImage { .. } => {
                Some("NAME is a component, or trunkline, redis or nats where the deployment has them".into())
            }
            Self::ServiceName { component, .. } => {
                Some(format!("give the component another name than {component}").into())
            }
            Self::Variable { .. } => Some("put the value into a file that the component reads".into()),
            Self::Exists { .. } => Some(
                "choose another --out, or --force, which moves what is there into a directory of backups"
                    .into(),
            ),
            Self::Write { .. } => Some("--out is a directory that this user may write to".into()),
            _ => None,
        }
    }
}

/// The first few paths, and how many more there are.
fn first_few(paths: &[PathBuf]) -> String {
    const SHOWN_MAX: usize = 3;
    let shown: Vec<String> = paths.iter().take(SHOWN_MAX).map(|path| path.display().to_string()).collect();
    match paths.len().saturating_sub(SHOWN_MAX) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
