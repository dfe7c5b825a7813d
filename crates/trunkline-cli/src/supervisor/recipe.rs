//! From what the configuration says of a component to what is run: program, directory, environment.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use trunkline::config::{Command, Component, env_name, keys};

use crate::env_file::{self, BadLine, EnvFileError};
use crate::failure::Explain;

/// Most programs that are looked at for one of a similar name.
const PROGRAMS_MAX: usize = 20_000;

/// Why a component cannot be run. All of it can be told before anything is started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum RecipeError {
    #[error("component {component:?}: there is no program {program:?} in any directory of its PATH, {path}")]
    NotOnPath { component: String, program: String, path: String, nearest: Option<String> },
    #[error("component {component:?}: there is no file {}", program.display())]
    NotFound { component: String, program: PathBuf },
    #[error("component {component:?}: {} may not be executed", program.display())]
    NotExecutable { component: String, program: PathBuf },
    #[error("component {component:?}: a quote of its command is not closed: {line}")]
    Quote { component: String, line: String },
    #[error("component {component:?}: its directory {} cannot be entered", cwd.display())]
    Directory { component: String, cwd: PathBuf, source: io::Error },
    #[error("component {component:?}: its env_file {} cannot be read", path.display())]
    EnvFile { component: String, path: PathBuf, source: io::Error },
    #[error("component {component:?}: its env_file {}", path.display())]
    EnvLine { component: String, path: PathBuf, source: BadLine },
}

impl Explain for RecipeError {
    fn hint(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::NotOnPath { component, nearest: Some(nearest), .. } => {
                format!("did you mean {nearest:?}? It stands in components.{component}.command").into()
            }
            Self::NotOnPath { component, .. } => format!(
                "install it, give its whole path in components.{component}.command, or set PATH in components.{component}.env"
            )
            .into(),
            Self::NotFound { component, .. } => format!(
                "relative paths in components.{component}.command are taken from its cwd, else from where `up` was started"
            )
            .into(),
            Self::NotExecutable { program, .. } => {
                format!("`chmod +x {}`, or name its interpreter in the command", program.display()).into()
            }
            Self::Quote { component, .. } => {
                format!("write components.{component}.command as a list: [program, argument, …]").into()
            }
            Self::Directory { component, .. } => {
                format!("components.{component}.cwd is taken from where `up` was started").into()
            }
            Self::EnvFile { component, .. } => {
                format!("components.{component}.env_file is taken from where `up` was started").into()
            }
            Self::EnvLine { .. } => "each line is NAME=value, a comment that begins with #, or empty".into(),
        })
    }
}

/// What is run.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) cwd: Option<PathBuf>,
    /// Set beside those of this process.
    pub(super) variables: BTreeMap<String, String>,
    /// Of this process and not for components.
    pub(super) removed: Vec<String>,
}

impl Recipe {
    /// Looks at everything that the component needs. `injected` leads it to the bus; what the configuration says wins.
    ///
    /// # Errors
    /// See [`RecipeError`].
    pub(super) fn prepare(
        name: &str,
        component: &Component,
        injected: &[(String, String)],
    ) -> Result<Self, RecipeError> {
        let mut words = words(name, &component.command)?.into_iter();
        let program = words.next().unwrap_or_default();
        // Python keeps what it prints for itself where nobody sits at a terminal; it would be shown late or never.
        let mut variables = BTreeMap::from([("PYTHONUNBUFFERED".to_owned(), "1".to_owned())]);
        variables.extend(injected.iter().cloned());
        if let Some(path) = &component.env_file {
            variables.extend(read_env_file(name, path)?);
        }
        variables.extend(component.env.clone());
        if let Some(cwd) = &component.cwd {
            let directory =
                |source| RecipeError::Directory { component: name.to_owned(), cwd: cwd.clone(), source };
            if !fs::metadata(cwd).map_err(directory)?.is_dir() {
                return Err(directory(io::ErrorKind::NotADirectory.into()));
            }
        }
        let path =
            variables.get("PATH").map(OsString::from).or_else(|| env::var_os("PATH")).unwrap_or_default();
        let program = find(name, &program, component.cwd.as_deref(), &path)?;
        let cwd = component.cwd.clone();
        Ok(Self { program, arguments: words.collect(), cwd, variables, removed: own_variables() })
    }
}

/// Variables that configure the server of this process: secrets among them, and nothing that a component has a use for.
fn own_variables() -> Vec<String> {
    let is_own = |path: &str| {
        path == "messaging.redis_url"
            || ["server", "runtime", "components"].iter().any(|own| path.starts_with(own))
    };
    // Every key has a name made of its whole path, and keys of `messaging` a short one too.
    let own = keys().iter().filter(|key| is_own(&key.path));
    own.flat_map(|key| {
        let long = format!("TRUNKLINE_{}", key.path.replace('.', "_").to_uppercase());
        [long, env_name(&key.path)]
    })
    .flat_map(|name| [format!("{name}_FILE"), name])
    .filter(|name| env::var_os(name).is_some())
    .collect()
}

fn words(name: &str, command: &Command) -> Result<Vec<String>, RecipeError> {
    match command {
        Command::Args(words) => Ok(words.clone()),
        Command::Line(line) => shlex::split(line)
            .filter(|words| words.first().is_some_and(|program| !program.is_empty()))
            .ok_or_else(|| RecipeError::Quote { component: name.to_owned(), line: line.clone() }),
    }
}

fn read_env_file(name: &str, path: &Path) -> Result<Vec<(String, String)>, RecipeError> {
    let (component, path_buf) = (name.to_owned(), path.to_owned());
    env_file::read(path).map_err(|error| match error {
        EnvFileError::Unreadable(source) => RecipeError::EnvFile { component, path: path_buf, source },
        EnvFileError::Line(source) => RecipeError::EnvLine { component, path: path_buf, source },
    })
}

/// The file that a name stands for, by the rules of a shell.
fn find(name: &str, program: &str, cwd: Option<&Path>, path: &OsStr) -> Result<PathBuf, RecipeError> {
    let component = || name.to_owned();
    if program.contains('/') {
        // The component runs in its directory, and what looks at the file here does not.
        let found = cwd.unwrap_or(Path::new(".")).join(program);
        let absolute = std::path::absolute(&found).unwrap_or(found);
        return match fs::metadata(&absolute) {
            Ok(meta) if meta.is_file() && is_executable(&meta) => Ok(absolute),
            Ok(_) => Err(RecipeError::NotExecutable { component: component(), program: absolute }),
            Err(_) => Err(RecipeError::NotFound { component: component(), program: absolute }),
        };
    }
    let mut not_executable = None;
    for directory in env::split_paths(path) {
        let candidate = directory.join(program);
        match fs::metadata(&candidate) {
            Ok(meta) if meta.is_file() && is_executable(&meta) => {
                return Ok(std::path::absolute(&candidate).unwrap_or(candidate));
            }
            Ok(meta) if meta.is_file() => not_executable = not_executable.or(Some(candidate)),
            _ => {}
        }
    }
    Err(match not_executable {
        Some(program) => RecipeError::NotExecutable { component: component(), program },
        None => RecipeError::NotOnPath {
            component: component(),
            program: program.to_owned(),
            path: path.to_string_lossy().into_owned(),
            nearest: nearest(program, path),
        },
    })
}

fn is_executable(meta: &fs::Metadata) -> bool {
    meta.permissions().mode() & 0o111 != 0
}

/// The program of a similar name, if there is one.
fn nearest(program: &str, path: &OsStr) -> Option<String> {
    let names = env::split_paths(path)
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flat_map(|entries| entries.flatten())
        .take(PROGRAMS_MAX)
        .filter_map(|entry| entry.file_name().into_string().ok());
    // One letter in three may be wrong, and at most two.
    let allowed = (program.chars().count() / 3).min(2);
    names
        .map(|name| (strsim::damerau_levenshtein(program, &name), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use trunkline::config::Loader;

    use super::*;

    fn prepare(directory: &Path, fields: &str) -> Result<Recipe, RecipeError> {
        let yaml = format!("{{tool: {{{fields}}}}}");
        let loader = Loader::new().env([("TRUNKLINE_COMPONENTS", yaml.as_str())]).working_dir(directory);
        let config = loader.load().unwrap().config;
        let injected = [("NATS_URL".to_owned(), "nats://bus".to_owned())];
        Recipe::prepare("tool", &config.components["tool"], &injected)
    }

    fn file(directory: &Path, name: &str, mode: u32, text: &str) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn what_the_configuration_says_of_the_environment_wins() {
        let directory = tempfile::tempdir().unwrap();
        let env_file = file(directory.path(), "a.env", 0o600, "A=file\nB=file\nNATS_URL=nats://other\n");
        let fields =
            format!("command: 'sh -c \"echo $A\"', env_file: {}, env: {{A: own}}", env_file.display());
        let recipe = prepare(directory.path(), &fields).unwrap();
        assert!(recipe.program.is_absolute() && recipe.program.ends_with("sh"), "{recipe:?}");
        assert_eq!(recipe.arguments, ["-c", "echo $A"]);
        for (name, value) in
            [("A", "own"), ("B", "file"), ("NATS_URL", "nats://other"), ("PYTHONUNBUFFERED", "1")]
        {
            assert_eq!(recipe.variables[name], value);
        }
    }

    #[test]
    fn a_program_is_found_on_the_path_or_from_the_directory_of_the_component() {
        let directory = tempfile::tempdir().unwrap();
        let program = file(directory.path(), "serve", 0o755, "#!/bin/sh\n");
        let at = directory.path().display();
        for fields in [
            format!("command: serve, env: {{PATH: {at}}}"),
            format!("command: ./serve, cwd: {at}"),
            format!("command: [{at}/serve]"),
        ] {
            let recipe = prepare(directory.path(), &fields).unwrap();
            assert_eq!(fs::canonicalize(recipe.program).unwrap(), fs::canonicalize(&program).unwrap());
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_a_way_out() {
        let directory = tempfile::tempdir().unwrap();
        file(directory.path(), "serve", 0o755, "");
        file(directory.path(), "plain", 0o644, "");
        let bad = file(directory.path(), "bad.env", 0o600, "A=1\nnonsense\n");
        let at = directory.path().display();
        for (fields, error, hint) in [
            (
                format!("command: srve, env: {{PATH: {at}}}"),
                "there is no program \"srve\"",
                "did you mean \"serve\"?",
            ),
            (
                format!("command: entirely-else, env: {{PATH: {at}}}"),
                "entirely-else",
                "set PATH in components.tool.env",
            ),
            (format!("command: plain, env: {{PATH: {at}}}"), "plain may not be executed", "chmod +x"),
            ("command: ./nothing".to_owned(), "there is no file /", "taken from its cwd"),
            ("command: 'sh -c \"open'".to_owned(), "a quote of its command is not closed", "as a list"),
            (
                "command: sh, cwd: /nonexistent".to_owned(),
                "its directory /nonexistent cannot be entered",
                "cwd",
            ),
            (
                "command: sh, env_file: /nonexistent".to_owned(),
                "its env_file /nonexistent cannot be read",
                "env_file",
            ),
            (
                format!("command: sh, env_file: {}", bad.display()),
                "line 2: expected NAME=value",
                "NAME=value",
            ),
        ] {
            let failure = prepare(directory.path(), &fields).unwrap_err();
            let text = crate::failure::chain(&failure);
            assert!(text.starts_with("component \"tool\"") && text.contains(error), "{text}");
            let given = failure.hint().unwrap_or_default().into_owned();
            assert!(given.contains(hint), "{given}");
        }
    }
}
