//! What others must know of the connectors in `connectors/`: the example's own, and any that were added.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", .path.display())]
pub struct ConnectorError {
    path: PathBuf,
    source: io::Error,
}

/// Of a connector's configuration.
#[derive(Debug, Deserialize)]
struct Connector {
    #[serde(rename = "slot.name")]
    slot: Option<String>,
    #[serde(rename = "transforms.route.replacement")]
    topic: Option<String>,
}

/// Their replication slots.
pub(crate) fn slots(root: &Path) -> Result<Vec<String>, ConnectorError> {
    Ok(all(root)?.into_iter().filter_map(|connector| connector.slot).collect())
}

/// Their topics. One that is put together of a table's name is left to its connector.
pub(crate) fn topics(root: &Path) -> Result<Vec<String>, ConnectorError> {
    let topics = all(root)?.into_iter().filter_map(|connector| connector.topic);
    Ok(topics.filter(|topic| !topic.contains('$')).collect())
}

fn all(root: &Path) -> Result<Vec<Connector>, ConnectorError> {
    let directory = root.join("connectors");
    let entries = fs::read_dir(&directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(|source| ConnectorError { path: directory, source })?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    files.into_iter().map(read).collect()
}

fn read(path: PathBuf) -> Result<Connector, ConnectorError> {
    let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?));
    read.map_err(|source| ConnectorError { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connector_that_was_added_is_known_by_its_slot_and_its_topic() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("connectors");
        fs::create_dir(&directory).unwrap();
        let write = |name: &str, text: &str| fs::write(directory.join(name), text).unwrap();
        write(
            "orders.json",
            r#"{"slot.name": "o", "transforms.route.replacement": "order-events"}"#,
        );
        write("many.json", r#"{"slot.name": "m", "transforms.route.replacement": "all-$1"}"#);
        write("plain.json", r#"{"tasks.max": "1"}"#);
        write("register.sh", "no JSON");
        assert_eq!(slots(scratch.path()).unwrap(), ["m", "o"]);
        assert_eq!(topics(scratch.path()).unwrap(), ["order-events"]);
        write("broken.json", "{");
        let error = slots(scratch.path()).unwrap_err();
        assert!(error.to_string().contains("broken.json"), "{error}");
    }
}
