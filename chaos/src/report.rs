//! What a run showed, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::fault::{Kind, Server};
use crate::history::Anomaly;
use crate::nemesis::Outcome;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    /// Length of the run without start and check.
    pub(crate) minutes: f64,
    /// Faults that were to begin within that length.
    pub(crate) planned: usize,
    pub(crate) faults: Vec<FaultLine>,
    pub(crate) writes: Writes,
    /// Looks of the watcher at the views.
    pub(crate) looks: u64,
    /// From the end of the writes until the views were equal to the source; none if they did not
    /// become so.
    pub(crate) equal_after_seconds: Option<f64>,
    /// Ended by a signal, before its time.
    pub(crate) interrupted: bool,
    pub(crate) anomalies: Vec<AnomalyLine>,
    pub(crate) history: PathBuf,
}

/// Row changes.
#[derive(Debug, Serialize)]
pub(crate) struct Writes {
    pub(crate) acknowledged: u64,
    pub(crate) unknown: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct AnomalyLine {
    pub(crate) kind: Anomaly,
    pub(crate) count: u64,
    pub(crate) details: Vec<String>,
}

/// Seconds from the heal until new rows were visible and the process that was hit applied again.
#[derive(Debug, Serialize, PartialEq)]
pub(crate) struct FaultLine {
    pub(crate) fault: Kind,
    pub(crate) injected: usize,
    /// Of faults that nothing else was mixed up with.
    pub(crate) recovery_p50: Option<f64>,
    pub(crate) recovery_max: Option<f64>,
    /// Of faults that met another one, or its recovery.
    pub(crate) overlapping: usize,
    pub(crate) overlapping_max: Option<f64>,
    /// Of the injected ones, those that met nothing they could have broken.
    pub(crate) missed: usize,
    /// Pauses of a consumer during which the other one took over.
    pub(crate) takeovers: usize,
    /// From a consumer's pause until the other one had taken over.
    pub(crate) takeover_p50: Option<f64>,
    pub(crate) takeover_max: Option<f64>,
}

impl FaultLine {
    /// One line for each kind that was injected.
    pub(crate) fn all(outcomes: &[Outcome]) -> Vec<Self> {
        let mut kinds: BTreeMap<Kind, Vec<&Outcome>> = BTreeMap::new();
        for outcome in outcomes {
            kinds.entry(outcome.kind).or_default().push(outcome);
        }
        kinds.into_iter().map(|(kind, outcomes)| Self::of(kind, &outcomes)).collect()
    }

    fn of(fault: Kind, outcomes: &[&Outcome]) -> Self {
        let recoveries = |alone: bool| {
            let chosen = outcomes.iter().filter(|outcome| outcome.alone == alone);
            Times::of(chosen.filter_map(|outcome| outcome.recovery))
        };
        let (alone, overlapping) = (recoveries(true), recoveries(false));
        let takeovers = Times::of(outcomes.iter().filter_map(|outcome| outcome.takeover));
        Self {
            fault,
            injected: outcomes.len(),
            recovery_p50: alone.middle(),
            recovery_max: alone.max(),
            overlapping: outcomes.iter().filter(|outcome| !outcome.alone).count(),
            overlapping_max: overlapping.max(),
            missed: outcomes.iter().filter(|outcome| outcome.missed).count(),
            takeovers: takeovers.0.len(),
            takeover_p50: takeovers.middle(),
            takeover_max: takeovers.max(),
        }
    }
}

/// Seconds in rising order.
struct Times(Vec<f64>);

impl Times {
    fn of(times: impl Iterator<Item = Duration>) -> Self {
        let mut all: Vec<f64> = times.map(crate::fault::rounded).collect();
        all.sort_by(f64::total_cmp);
        Self(all)
    }

    /// The value that half of all do not exceed.
    fn middle(&self) -> Option<f64> {
        self.0.get(self.0.len().saturating_sub(1) / 2).copied()
    }

    fn max(&self) -> Option<f64> {
        self.0.last().copied()
    }
}

impl Report {
    pub(crate) fn anomaly_count(&self) -> u64 {
        self.anomalies.iter().map(|line| line.count).sum()
    }

    /// Whether every promise was kept and all of it was looked at.
    pub(crate) fn passed(&self) -> bool {
        self.anomalies.is_empty() && self.equal_after_seconds.is_some() && self.proves_something()
    }

    /// Not that anything was well: that there was something to see, for the whole time.
    pub(crate) fn proves_something(&self) -> bool {
        let met: usize = self.faults.iter().map(|line| line.injected - line.missed).sum();
        !self.interrupted
            && self.looks > 0
            && self.writes.acknowledged > 0
            && (met > 0 || self.planned == 0)
    }

    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{:<18} {:>8} {:>9} {:>9} {:>12} {:>9}\n",
            "FAULT", "INJECTED", "P50", "MAX", "OVERLAPPING", "MAX"
        );
        for line in &self.faults {
            let FaultLine { fault, injected, overlapping, .. } = line;
            let (p50, max) = (time(line.recovery_p50), time(line.recovery_max));
            let mixed = time(line.overlapping_max);
            self::line(
                &mut text,
                format_args!(
                    "{fault:<18} {injected:>8} {p50:>9} {max:>9} {overlapping:>12} {mixed:>9}"
                ),
            );
        }
        self.remarks(&mut text);
        let Writes { acknowledged, unknown } = self.writes;
        let equal = match self.equal_after_seconds {
            Some(seconds) => format!("{seconds:.1} s after the last write"),
            None => "NO".to_owned(),
        };
        line(&mut text, format_args!(""));
        let injected: usize = self.faults.iter().map(|line| line.injected).sum();
        for (name, value) in [
            ("faults", format!("{injected} injected of {} planned", self.planned)),
            ("row changes", format!("{acknowledged} acknowledged, {unknown} of unknown outcome")),
            ("looks at views", self.looks.to_string()),
            ("views equal", equal),
            ("anomalies", self.anomaly_count().to_string()),
        ] {
            line(&mut text, format_args!("{name:<18} {value}"));
        }
        for AnomalyLine { kind, count, details } in &self.anomalies {
            line(&mut text, format_args!("  {kind:?}: {count}"));
            for details in details {
                line(&mut text, format_args!("    {details}"));
            }
        }
        if self.interrupted {
            line(&mut text, format_args!("interrupted before its time"));
        } else if !self.proves_something() {
            let Self { planned, .. } = self;
            line(
                &mut text,
                format_args!("proves nothing: no look, no write, or no fault of {planned}"),
            );
        }
        line(&mut text, format_args!("{:<18} {}", "seed", self.seed));
        line(&mut text, format_args!("{:<18} {}", "history", self.history.display()));
        text
    }

    /// What the columns do not say of single kinds.
    fn remarks(&self, text: &mut String) {
        for FaultLine { fault, injected, missed, takeovers, takeover_p50, takeover_max, .. } in
            &self.faults
        {
            if *missed > 0 {
                line(text, format_args!("{fault}: {missed} of {injected} met nothing to break"));
            }
            if *fault == Kind::Pause(Server::Consumer) {
                let (p50, max) = (time(*takeover_p50), time(*takeover_max));
                line(
                    text,
                    format_args!(
                        "{fault}: the other consumer took over in {takeovers} of {injected}, \
                         p50 {p50}, max {max}"
                    ),
                );
            }
        }
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(text, "{arguments}").expect("writing to a string cannot fail");
}

fn time(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.2} s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(alone: bool, recovery: Option<u64>) -> Outcome {
        let recovery = recovery.map(Duration::from_millis);
        Outcome { kind: Kind::EndSessions, alone, recovery, takeover: None, missed: false }
    }

    #[test]
    fn times_of_lonely_and_of_overlapping_faults_are_kept_apart() {
        let outcomes = [
            outcome(true, Some(300)),
            outcome(true, Some(100)),
            outcome(true, Some(200)),
            outcome(true, Some(900)),
            outcome(false, Some(7000)),
            outcome(false, None),
        ];
        let lines = FaultLine::all(&outcomes);
        assert_eq!(
            lines,
            [FaultLine {
                fault: Kind::EndSessions,
                injected: 6,
                recovery_p50: Some(0.2),
                recovery_max: Some(0.9),
                overlapping: 2,
                overlapping_max: Some(7.0),
                missed: 0,
                takeovers: 0,
                takeover_p50: None,
                takeover_max: None,
            }]
        );
    }

    #[test]
    fn what_was_planned_missed_and_not_taken_over_is_told() {
        let fault = |kind, takeover: Option<u64>, missed| Outcome {
            kind,
            takeover: takeover.map(Duration::from_secs),
            missed,
            ..outcome(true, Some(100))
        };
        let paused = Kind::Pause(Server::Consumer);
        let report = report(&[
            fault(paused, Some(8), false),
            fault(paused, None, false),
            fault(Kind::LoseCommitReply, None, true),
            fault(Kind::LoseCommitReply, None, false),
        ]);
        let table = Report { planned: 9, ..report }.table();
        for told in [
            "pause-consumer: the other consumer took over in 1 of 2, p50 8.00 s, max 8.00 s",
            "lose-commit-reply: 1 of 2 met nothing to break",
            "faults             4 injected of 9 planned",
        ] {
            assert!(table.contains(told), "{told} is missing:\n{table}");
        }
    }

    fn report(outcomes: &[Outcome]) -> Report {
        Report {
            seed: 1,
            minutes: 1.0,
            planned: 1,
            faults: FaultLine::all(outcomes),
            writes: Writes { acknowledged: 1, unknown: 0 },
            looks: 1,
            equal_after_seconds: Some(0.5),
            interrupted: false,
            anomalies: Vec::new(),
            history: PathBuf::from("history"),
        }
    }

    #[test]
    fn a_run_passes_only_whole_equal_and_without_anomaly_and_when_it_saw_something() {
        let good = || report(&[outcome(true, Some(100))]);
        assert!(good().passed());
        assert!(!Report { interrupted: true, ..good() }.passed());
        assert!(!Report { equal_after_seconds: None, ..good() }.passed());
        assert!(good().proves_something());
        let writes = Writes { acknowledged: 0, unknown: 9 };
        for nothing in [
            Report { looks: 0, ..good() },
            Report { writes, ..good() },
            Report { faults: Vec::new(), ..good() },
            report(&[Outcome { missed: true, ..outcome(true, Some(100)) }]),
        ] {
            assert!(!nothing.passed() && !nothing.proves_something(), "{}", nothing.table());
        }
        assert!(Report { planned: 0, faults: Vec::new(), ..good() }.passed());
        let details = vec!["row 1".to_owned()];
        let anomalies = vec![AnomalyLine { kind: Anomaly::Backward, count: 3, details }];
        let bad = Report { anomalies, ..good() };
        assert!(!bad.passed());
        assert!(bad.table().contains("Backward: 3\n    row 1"), "{}", bad.table());
    }
}
