//! What was measured, as a table at the end of a test: on the terminal and in a file.

use std::fmt::Write;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

static NEW_FILE: Once = Once::new();

/// Lines of one test. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    file: PathBuf,
    lines: Arc<Mutex<Vec<(String, String)>>>,
}

impl Report {
    pub(crate) fn new(file: PathBuf) -> Self {
        Self { file, lines: Arc::default() }
    }

    pub(crate) fn line(&self, what: impl Into<String>, value: impl Into<String>) {
        self.lines.lock().unwrap().push((what.into(), value.into()));
    }

    pub(crate) fn time(&self, what: impl Into<String>, time: Duration) {
        let milliseconds = time.as_secs_f64() * 1000.0;
        let value = if milliseconds < 1000.0 {
            format!("{milliseconds:.1} ms")
        } else {
            format!("{:.1} s", time.as_secs_f64())
        };
        self.line(what, value);
    }

    /// Writes what was noted under the test's name. Standard error is not captured, so the table
    /// shows without `--nocapture`.
    pub(crate) fn print(&self) {
        let lines = self.lines.lock().unwrap();
        if lines.is_empty() {
            return;
        }
        let width = lines.iter().map(|(what, _)| what.chars().count()).max().unwrap_or_default();
        let thread = std::thread::current();
        let mut text = format!("\n{}\n", thread.name().unwrap_or("a test"));
        for (what, value) in lines.iter() {
            writeln!(text, "  {what:<width$}  {value}").unwrap();
        }
        NEW_FILE.call_once(|| std::fs::write(&self.file, "").unwrap());
        let mut file = File::options().append(true).create(true).open(&self.file).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        std::io::stderr().write_all(text.as_bytes()).unwrap();
    }
}
