//! What the files say that describe the system.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The parsed compose file.
pub(crate) struct Compose {
    pub(crate) file: Value,
}

impl Compose {
    pub(crate) fn read() -> Self {
        let text = fs::read_to_string(root().join("docker-compose.yml"))
            .expect("docker-compose.yml can be read");
        Self { file: serde_saphyr::from_str(&text).expect("docker-compose.yml is YAML") }
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.file["services"].as_object().expect("services is a map").iter()
    }

    pub(crate) fn has(&self, service: &str) -> bool {
        self.file["services"].get(service).is_some()
    }

    pub(crate) fn service(&self, name: &str) -> &Value {
        assert!(self.has(name), "there is no service {name}");
        &self.file["services"][name]
    }

    pub(crate) fn text(&self, service: &str, field: &str) -> &str {
        let value = &self.service(service)[field];
        value.as_str().unwrap_or_else(|| panic!("{service} {field} is {value}, not a text"))
    }

    pub(crate) fn environment(&self, service: &str) -> BTreeMap<String, String> {
        environment(self.service(service))
    }
}

pub(crate) fn environment(service: &Value) -> BTreeMap<String, String> {
    let values = service["environment"].as_object().into_iter().flatten();
    values
        .map(|(name, value)| {
            let text = value.as_str().unwrap_or_else(|| panic!("{name} is {value}: quote it"));
            (name.clone(), text.to_owned())
        })
        .collect()
}

/// The fixed `name=value` lines of the configuration files that devstack writes. They are read from
/// its source because nothing but this test needs them outside the crate.
pub(crate) fn local_properties() -> BTreeMap<String, String> {
    let lines = include_str!("../../../devstack/src/configuration.rs").lines();
    let settings = lines.filter_map(|line| {
        let (name, value) = line.rsplit_once('"').map_or(line, |(_, tail)| tail).split_once('=')?;
        let plain = name.chars().all(|c| c.is_ascii_lowercase() || c == '.');
        plain.then(|| (name.to_owned(), value.to_owned()))
    });
    settings.collect()
}

/// `.env.example`: what it sets, and every name in it including those commented out.
pub(crate) struct EnvExample {
    pub(crate) set: BTreeMap<String, String>,
    pub(crate) names: BTreeSet<String>,
}

pub(crate) fn env_example() -> EnvExample {
    let text = fs::read_to_string(root().join(".env.example")).expect(".env.example can be read");
    let mut example = EnvExample { set: BTreeMap::new(), names: BTreeSet::new() };
    for line in text.lines() {
        let (active, setting) =
            line.strip_prefix('#').map_or((true, line), |rest| (false, rest.trim_start()));
        let Some((name, value)) = setting.split_once('=') else { continue };
        if !name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_') {
            continue;
        }
        example.names.insert(name.to_owned());
        if active {
            example.set.insert(name.to_owned(), value.to_owned());
        }
    }
    example
}

/// `${NAME:-default}` as compose reads it when nothing is set.
pub(crate) fn with_default_passwords(text: &str) -> String {
    let mut parts = text.split("${");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (variable, rest) = part.split_once('}').expect("a closed variable");
        plain.push_str(variable.split_once(":-").expect("a default").1);
        plain.push_str(rest);
    }
    plain
}

/// Every variable that a program reads.
pub(crate) fn settings_of(program: &str) -> BTreeSet<String> {
    let sources = fs::read_dir(root().join(program).join("src")).expect("a program has sources");
    let mut settings = BTreeSet::new();
    for source in sources {
        let path = source.expect("an entry can be read").path();
        let text = fs::read_to_string(path).expect("a source can be read");
        let names = text.split("env = \"").skip(1).filter_map(|rest| rest.split('"').next());
        settings.extend(names.map(str::to_owned));
    }
    assert!(!settings.is_empty(), "{program} has no settings: mend this test");
    settings
}

pub(crate) fn strings(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.map(|item| item.as_str().expect("a text").to_owned()).collect()
}

/// Names of all connectors that there are.
pub(crate) fn connectors() -> BTreeSet<String> {
    fs::read_dir(root().join("connectors"))
        .expect("connectors/ can be read")
        .map(|entry| entry.expect("an entry can be read").file_name())
        .filter_map(|name| Some(name.to_str()?.strip_suffix(".json")?.to_owned()))
        .collect()
}

pub(crate) fn connector(name: &str) -> Value {
    let text = fs::read_to_string(connector_path(name)).expect("the connector can be read");
    serde_json::from_str(&text).expect("the connector is JSON")
}

pub(crate) fn connector_path(name: &str) -> PathBuf {
    root().join("connectors").join(format!("{name}.json"))
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate has a parent directory")
}
