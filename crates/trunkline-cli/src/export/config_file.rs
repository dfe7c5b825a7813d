//! The bus's own configuration file: what the source says, with the addresses of the deployment, and without secrets.

use serde_json::{Map, Value};
use trunkline::config::{Entry, Origin, keys};

use super::error::ExportError;

/// What stands at the head of the file.
const HEAD: &str = "# The bus's configuration, made by `trunkline export`. Secrets lie in files that variables name: TRUNKLINE_…_FILE.\n";

/// A configuration as nested maps.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConfigFile(Value);

impl ConfigFile {
    /// What some source has set, as far as `keep` wants it; no secrets.
    pub(super) fn new(entries: &[Entry], keep: impl Fn(&str) -> bool) -> ConfigFile {
        let mut file = ConfigFile(Value::Object(Map::new()));
        // A short form such as `allow_responses: true` sets nothing but defaults, and is more than nothing.
        let is_set = |entry: &&Entry| {
            !matches!(entry.origin, Origin::Default) || entry.key.contains(".allow_responses.")
        };
        for entry in entries.iter().filter(is_set).filter(|entry| !entry.secret && keep(&entry.key)) {
            match &entry.value {
                // A limit that was taken away, and would be back where its key is not given.
                Value::Null if has_default(&entry.key) => file.set(&entry.key, "off"),
                Value::Null => {}
                value => file.set(&entry.key, value.clone()),
            }
        }
        file
    }

    /// The value at a path such as `messaging.streams[0].name`.
    pub(super) fn get(&self, path: &str) -> Option<&Value> {
        steps(path).iter().try_fold(&self.0, |value, step| match step {
            Step::Key(key) => value.get(*key),
            Step::Index(index) => value.get(*index),
        })
    }

    /// Sets the value at a path, and makes the maps and lists that lead there.
    pub(super) fn set(&mut self, path: &str, new: impl Into<Value>) {
        let mut place = &mut self.0;
        for step in steps(path) {
            place = match step {
                Step::Key(key) => {
                    if !place.is_object() {
                        *place = Value::Object(Map::new());
                    }
                    place.as_object_mut().expect("it was just made one").entry(key).or_insert(Value::Null)
                }
                Step::Index(index) => {
                    if !place.is_array() {
                        *place = Value::Array(Vec::new());
                    }
                    let list = place.as_array_mut().expect("it was just made one");
                    if list.len() <= index {
                        list.resize(index + 1, Value::Null);
                    }
                    &mut list[index]
                }
            };
        }
        *place = new.into();
    }

    /// The file.
    pub(super) fn to_yaml(&self) -> Result<String, ExportError> {
        Ok(format!("{HEAD}{}", serde_saphyr::to_string(&self.0)?))
    }
}

fn has_default(path: &str) -> bool {
    keys().iter().any(|key| key.path == path && key.default.is_some())
}

enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

fn steps(path: &str) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    for segment in path.split('.') {
        let (key, indexes) = segment.split_once('[').unwrap_or((segment, ""));
        steps.push(Step::Key(key));
        let indexes = indexes.split('[').filter_map(|index| index.trim_end_matches(']').parse().ok());
        steps.extend(indexes.map(Step::Index));
    }
    steps
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use trunkline::config::Loader;

    use super::*;

    #[test]
    fn what_is_set_is_read_back_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let text = "messaging: {backend: redis, publish_timeout: 7s, outbox: on, streams: [{name: a, subjects: ['x.*', 'on']}, {name: '7', subjects: [y], max_age: 7d}]}\n\
                    server: {listen: ':4555', auth: {token: secret}, limits: {auth_failures: off, max_payload: 2MiB}, permissions: {subscribe: a.>, allow_responses: true}}\n\
                    components: {a: {command: x}}\n";
        std::fs::write(directory.path().join("config.yaml"), text).unwrap();
        let load = || Loader::new().env([("", ""); 0]).working_dir(directory.path()).load().unwrap();
        let source = load();
        let file = ConfigFile::new(&source.entries(), |key| !key.starts_with("components."));
        assert_eq!(file.get("messaging.streams[1].max_age"), Some(&json!("7d")));
        let yaml = file.to_yaml().unwrap();
        assert!(!yaml.contains("secret") && !yaml.contains("components"), "{yaml}");
        std::fs::write(directory.path().join("config.yaml"), &yaml).unwrap();
        let copy = load();
        assert_eq!(copy.config.messaging, source.config.messaging, "{yaml}");
        let (copied, server) = (copy.config.server, source.config.server);
        assert_eq!((copied.listen, copied.limits), (server.listen, server.limits), "{yaml}");
        assert_eq!(copied.permissions, server.permissions, "{yaml}");
    }
}
