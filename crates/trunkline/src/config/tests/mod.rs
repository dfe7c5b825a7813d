//! The rules of configuration: what is refused and how, which source wins, what is shown.

mod mistakes;
mod shown;
mod sources;
mod values;

use super::*;

/// Loads `text` as `config.yaml` or `.toml` with nothing else set.
fn load_file(name: &str, text: &str) -> Result<Loaded, ConfigError> {
    load_all(name, text, &[], &[])
}

fn load_all(
    name: &str,
    text: &str,
    env: &[(&str, &str)],
    flags: &[(&str, &str, &str)],
) -> Result<Loaded, ConfigError> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    if !name.is_empty() {
        std::fs::write(directory.path().join(name), text).expect("the file is written");
    }
    let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let loader = Loader::new().env(env).working_dir(directory.path());
    flags.iter().fold(loader, |loader, (key, value, flag)| loader.flag(*key, *value, *flag)).load()
}

fn load_env(env: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    load_all("", "", env, &[])
}

fn entry(loaded: &Loaded, key: &str) -> Entry {
    let found = loaded.entries().into_iter().find(|entry| entry.key == key);
    found.unwrap_or_else(|| panic!("no entry {key}"))
}
