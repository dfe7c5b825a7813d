//! Deployments out of a configuration: what `trunkline export` writes.
//!
//! `plan` decides what runs, with which addresses and credentials, the same for all targets; `config_file` makes the bus's
//! own file of it, `secrets` what must not stand there. `render` puts a plan into the templates of a target, and `write`
//! onto the disk. Nothing here talks to a bus.

mod components;
mod config_file;
mod error;
mod nats;
mod plan;
mod redis;
mod render;
mod secrets;
mod size;
mod users;
mod write;

pub(crate) use error::ExportError;
pub(crate) use plan::{Options, Plan, plan};
pub(crate) use render::{render, secrets_directory};
pub(crate) use write::{Owner, Written, write};

/// For what a deployment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Target {
    /// Docker Compose: compose.yaml, a network of its own, data in directories beside it
    Compose,
    /// systemd: a unit for each service of one machine, under a target
    Systemd,
    /// Kubernetes: manifests in a kustomization, a namespace of their own
    Kubernetes,
}

impl Target {
    /// Whether services run in containers, each with a network address and a file system of its own.
    pub(crate) fn is_container(self) -> bool {
        self != Target::Systemd
    }

    /// Name of the command and of the directory of its templates.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Target::Compose => "compose",
            Target::Systemd => "systemd",
            Target::Kubernetes => "kubernetes",
        }
    }
}
