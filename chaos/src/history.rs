//! What happened, line by line in a file, and what should not have happened.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::fault::rounded;

/// Details kept of one kind of anomaly: thousands of rows may be wrong for one reason.
const DETAILS_MAX: usize = 20;

/// A promise that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Anomaly {
    /// A row showed an older state after a newer one.
    Backward,
    /// A row came back after it had gone.
    Resurrected,
    /// `department_stats` was not what its definition says.
    WrongCount,
    /// A reader was refused by a server that was there, or got no answer.
    Unreadable,
    /// A view did not show a change although it showed later ones of its partition.
    Lost,
    /// The views did not become equal to the source tables.
    Unequal,
    /// A record was kept aside.
    DeadLetter,
    /// A write that was acknowledged is not in the source table, or one that nobody made is.
    LostWrite,
    /// A frozen consumer's partitions stood still although the other consumer was there.
    NoTakeover,
    /// A program of ours ended by itself.
    Ended,
    /// New rows did not reach the view until somebody helped.
    Stuck,
}

/// Cheap to clone; all clones write one file.
#[derive(Debug, Clone)]
pub(crate) struct History {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    file: Mutex<File>,
    started: Instant,
    anomalies: Mutex<Vec<(Anomaly, u64, Vec<String>)>>,
}

impl History {
    /// A new file in `directory`, named after the seed and the time.
    pub(crate) fn create(directory: &Path, seed: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let seconds = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        let path = directory.join(format!("seed-{seed}-{seconds}.jsonl"));
        let file =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let anomalies = Mutex::default();
        let started = Instant::now();
        let shared = Shared { path, file: Mutex::new(file), started, anomalies };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Writes one line: seconds since the beginning, the event's name, and `fields`, an object.
    pub(crate) fn write(&self, event: &str, fields: &Value) {
        let mut line = json!({ "t": rounded(self.shared.started.elapsed()), "event": event });
        if let (Some(line), Some(fields)) = (line.as_object_mut(), fields.as_object()) {
            line.extend(fields.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        let mut file = self.shared.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk must not stop the heals; the report at the end is on standard output, too.
        writeln!(file, "{line}").ok();
    }

    /// Notes a broken promise.
    pub(crate) fn anomaly(&self, kind: Anomaly, details: impl Into<String>) {
        let details = details.into();
        self.write("anomaly", &json!({ "kind": kind, "details": details }));
        let mut all = self.shared.anomalies.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = rounded(self.shared.started.elapsed());
        let details = format!("at {seconds:.1} s: {details}");
        match all.iter_mut().find(|(known, ..)| *known == kind) {
            Some((_, count, shown)) => {
                *count += 1;
                if shown.len() < DETAILS_MAX {
                    shown.push(details);
                }
            }
            None => all.push((kind, 1, vec![details])),
        }
    }

    /// Kind, how often, and the first of the details.
    pub(crate) fn anomalies(&self) -> Vec<(Anomaly, u64, Vec<String>)> {
        self.shared.anomalies.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps a copy of a log beside the history.
    pub(crate) fn keep(&self, log: &Path) {
        let name = log.file_name().unwrap_or_default().to_string_lossy();
        let copy = self.shared.path.with_extension(&*name);
        let outcome = match fs::copy(log, &copy) {
            Ok(_) => json!({ "copy": copy }),
            Err(error) => json!({ "log": log, "error": error.to_string() }),
        };
        self.write("kept", &outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_anomaly_is_counted_and_stands_in_the_file() {
        let directory = std::env::temp_dir().join(format!("chaos-{}", rand::random::<u64>()));
        let history = History::create(&directory, 7).unwrap();
        for row in 0..30 {
            history.anomaly(Anomaly::Backward, format!("row {row}"));
        }
        history.write("inject", &json!({ "fault": "kill-kafka" }));
        let anomalies = history.anomalies();
        assert_eq!(anomalies.len(), 1);
        let (kind, count, details) = &anomalies[0];
        assert_eq!((*kind, *count, details.len()), (Anomaly::Backward, 30, DETAILS_MAX));
        let text = fs::read_to_string(history.path()).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 31);
        assert_eq!(lines[29]["details"], "row 29");
        assert_eq!(lines[30]["fault"], "kill-kafka");
        fs::remove_dir_all(directory).unwrap();
    }
}
