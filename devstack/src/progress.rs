//! Tells the person at the terminal what is happening: a spinner or bar where there is a
//! terminal, plain lines where there is none.

use std::borrow::Cow;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Between two plain lines about the same step when nobody sees a bar.
const PLAIN_LINE_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub struct Progress {
    bars: MultiProgress,
    silent: bool,
}

impl Progress {
    /// Writes to standard error, so that standard output stays usable in pipes.
    pub fn to_terminal() -> Self {
        Self { bars: MultiProgress::new(), silent: false }
    }

    /// Says nothing; for tests.
    pub fn silent() -> Self {
        Self { bars: MultiProgress::new(), silent: true }
    }

    /// Begins a step that ends with [`Step::done`]; dropped without it, the step vanishes.
    pub fn step(&self, name: impl Into<Cow<'static, str>>, doing: &str) -> Step {
        let name = name.into();
        let bar = if self.silent { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        let bar = self.bars.add(bar);
        bar.set_style(style("{spinner} {prefix:<13} {wide_msg} {elapsed}"));
        bar.set_prefix(name.to_string());
        bar.set_message(doing.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        let now = Instant::now();
        Step { progress: self.clone(), bar, name, started: now, spoken: Arc::new(Mutex::new(now)) }
    }

    /// One line above the spinners.
    pub fn line(&self, text: &str) {
        if self.silent {
            return;
        }
        self.bars.suspend(|| {
            // A closed standard error is no reason to stop the stack.
            writeln!(std::io::stderr(), "{text}").ok();
        });
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates of this file are well formed")
}

#[derive(Clone)]
pub struct Step {
    progress: Progress,
    bar: ProgressBar,
    name: Cow<'static, str>,
    started: Instant,
    spoken: Arc<Mutex<Instant>>,
}

impl Step {
    pub fn message(&self, text: impl Into<Cow<'static, str>>) {
        self.bar.set_message(text);
    }

    /// Shows how many of `total` are done, beside the message.
    pub fn count(&self, done: u64, total: u64) {
        if self.bar.length() != Some(total) {
            self.bar.set_length(total);
            self.bar.set_style(style(
                "{spinner} {prefix:<13} {bar:20} {pos}/{len} {wide_msg} {elapsed}",
            ));
        }
        self.bar.set_position(done);
    }

    /// Shows how much of about `total_bytes` is there.
    pub fn bytes(&self, done_bytes: u64, total_bytes: u64) {
        if self.bar.length() != Some(total_bytes) {
            self.bar.set_length(total_bytes);
            self.bar.set_style(style(
                "{spinner} {prefix:<13} {bar:30} {bytes} of about {total_bytes} {elapsed}",
            ));
        }
        self.bar.set_position(done_bytes.min(total_bytes));
        let mut spoken = self.spoken.lock().unwrap_or_else(PoisonError::into_inner);
        if self.bar.is_hidden() && spoken.elapsed() >= PLAIN_LINE_INTERVAL {
            *spoken = Instant::now();
            let (done, total) = (done_bytes >> 20, total_bytes >> 20);
            self.progress.line(&format!("  {:<13} {done} of about {total} MiB", self.name));
        }
    }

    /// Ends the step with a line that stays.
    pub fn done(&self, text: &str) {
        self.bar.finish_and_clear();
        let elapsed = self.started.elapsed().as_secs_f64();
        self.progress.line(&format!("  {:<13} {text} ({elapsed:.1} s)", self.name));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        // The spinner of a failed step must not go on turning below the error.
        if Arc::strong_count(&self.spoken) == 1 {
            self.bar.finish_and_clear();
        }
    }
}
