//! What came of the removals, for people and for scripts.

use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use super::list::Guard;
use super::trial::Ending;

/// Whether a removal was noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// Each test that is named for the guard failed without it.
    Caught,
    NotCaught,
    /// The sources do not compile without the guard: the list is wrong, nothing was shown.
    Broken,
}

impl Verdict {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Caught => "caught",
            Self::NotCaught => "NOT CAUGHT",
            Self::Broken => "BROKEN",
        }
    }
}

/// A test and how it ended without the guard.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Notice {
    pub(crate) test: String,
    pub(crate) ending: Ending,
}

/// What came of one removal.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Finding {
    pub(crate) name: String,
    promise: String,
    pub(crate) verdict: Verdict,
    tests: Vec<Notice>,
    /// What the compiler said to a removal that does not compile.
    #[serde(skip_serializing_if = "Option::is_none")]
    compiler: Option<String>,
    /// How long the tests took.
    seconds: f64,
}

impl Finding {
    pub(crate) fn of(guard: &Guard, tests: Vec<Notice>, duration: Duration) -> Self {
        let noticed = tests.iter().all(|notice| notice.ending != Ending::Passed);
        Self {
            name: guard.name.clone(),
            promise: guard.promise.clone(),
            verdict: if noticed { Verdict::Caught } else { Verdict::NotCaught },
            tests,
            compiler: None,
            seconds: duration.as_secs_f64(),
        }
    }

    pub(crate) fn broken(guard: &Guard, compiler: String) -> Self {
        Self {
            verdict: Verdict::Broken,
            compiler: Some(compiler),
            ..Self::of(guard, vec![], Duration::ZERO)
        }
    }
}

pub(crate) fn json(findings: &[Finding]) -> anyhow::Result<String> {
    serde_json::to_string_pretty(findings).context("cannot write JSON")
}

/// A line a guard, a line a test, and the sum.
pub(crate) fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut lines =
        vec![format!("{:<width$}  {:<10}  {:>7}", "GUARD REMOVED", "RESULT", "SECONDS")];
    for finding in findings {
        lines.push(format!(
            "{:<width$}  {:<10}  {:>7.1}  {}",
            finding.name,
            finding.verdict.as_str(),
            finding.seconds,
            finding.promise
        ));
        lines.extend(finding.tests.iter().map(|notice| {
            let ending = match &notice.ending {
                Ending::Passed => "PASSED all the same".to_owned(),
                Ending::Failed(reason) => reason.clone(),
                Ending::TimedOut => "did not end in time".to_owned(),
                Ending::Unknown => "does not exist".to_owned(),
            };
            format!("{:<width$}    {}: {ending}", "", notice.test)
        }));
        lines.extend(finding.compiler.clone());
    }
    let caught = findings.iter().filter(|finding| finding.verdict == Verdict::Caught).count();
    lines.push(format!("{caught} of {} removals were caught", findings.len()));
    lines.join("\n")
}

/// Removals that do not compile.
pub(crate) fn broken(findings: &[Finding]) -> String {
    let lines = findings.iter().map(|Finding { name, compiler, .. }| {
        format!(
            "the sources do not compile without {name}: mend its list in guards/\n{}",
            compiler.as_deref().unwrap_or_default()
        )
    });
    let lines: Vec<_> = lines.collect();
    if lines.is_empty() { "each guard can be taken out".to_owned() } else { lines.join("\n") }
}

/// The guards as the list has them.
pub(crate) fn listed(guards: &[Guard]) -> String {
    let width = guards.iter().map(|guard| guard.name.len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for guard in guards {
        lines.push(format!("{:<width$}  {}", guard.name, guard.promise));
        let tests = guard.tests().into_iter();
        lines.extend(tests.map(|test| format!("{:<width$}    {}", "", test.name)));
    }
    lines.join("\n")
}

pub(crate) fn list_json(guards: &[Guard]) -> anyhow::Result<String> {
    let guards = guards.iter().map(|guard| {
        let tests: Vec<String> = guard.tests().into_iter().map(|test| test.name).collect();
        serde_json::json!({"name": guard.name, "promise": guard.promise, "tests": tests})
    });
    serde_json::to_string_pretty(&guards.collect::<Vec<_>>()).context("cannot write JSON")
}
