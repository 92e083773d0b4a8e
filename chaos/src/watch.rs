//! What a reader of a view may see from one look to the next. Pure.

use std::collections::BTreeMap;

use crate::history::Anomaly;

/// A row as a look found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Source epoch and LSN.
    pub(crate) position: (i32, i64),
    /// None where the view has no such column.
    pub(crate) version: Option<i64>,
}

/// What was seen so far of one view. Holds every key for the length of a run: a hundred bytes a
/// key, a few thousand keys a minute.
#[derive(Debug)]
pub(crate) struct Memory {
    view: &'static str,
    present: BTreeMap<i64, Shown>,
    gone: BTreeMap<i64, Shown>,
}

impl Memory {
    pub(crate) fn of(view: &'static str) -> Self {
        Self { view, present: BTreeMap::new(), gone: BTreeMap::new() }
    }

    /// Compares a look with all looks before it. Writers never use an id again, so a row that
    /// went must stay away, and one that is there only goes forward.
    pub(crate) fn look(&mut self, rows: BTreeMap<i64, Shown>) -> Vec<(Anomaly, String)> {
        let mut found = Vec::new();
        for (&id, &now) in &rows {
            if let Some(before) = self.gone.remove(&id) {
                let text =
                    format!("{} {id} went as {before:?} and came back as {now:?}", self.view);
                found.push((Anomaly::Resurrected, text));
            } else if let Some(&before) = self.present.get(&id)
                && !follows(before, now)
            {
                let text = format!("{} {id} was {before:?} and became {now:?}", self.view);
                found.push((Anomaly::Backward, text));
            }
        }
        let before = std::mem::replace(&mut self.present, rows);
        self.gone.extend(before.into_iter().filter(|(id, _)| !self.present.contains_key(id)));
        found
    }
}

/// At the same position nothing changes; at a later one the version is no earlier (a snapshot shows
/// an old version at a new position).
fn follows(before: Shown, now: Shown) -> bool {
    match now.position.cmp(&before.position) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => now.version == before.version,
        std::cmp::Ordering::Greater => match (before.version, now.version) {
            (Some(before), Some(now)) => now >= before,
            (before, now) => before == now,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(epoch: i32, lsn: i64, version: i64) -> Shown {
        Shown { position: (epoch, lsn), version: Some(version) }
    }

    /// Looks at one row again and again, and wants the last look to find this.
    fn check(looks: &[Option<Shown>], wanted: Option<Anomaly>) {
        let mut memory = Memory::of("user_view");
        let mut found = Vec::new();
        for look in looks {
            assert!(found.is_empty(), "too early: {found:?}");
            found = memory.look(look.iter().map(|&row| (1, row)).collect());
        }
        let kinds: Vec<_> = found.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, Vec::from_iter(wanted), "{looks:?}: {found:?}");
    }

    #[test]
    fn a_row_that_goes_forward_and_goes_is_no_anomaly() {
        let forward = [None, Some(shown(0, 5, 1)), Some(shown(0, 5, 1)), Some(shown(0, 9, 4))];
        check(&forward, None);
        check(&[Some(shown(0, 5, 1)), Some(shown(1, 2, 2))], None);
        check(&[Some(shown(0, 5, 1)), None, None], None);
    }

    #[test]
    fn a_row_that_goes_back_is_found() {
        check(&[Some(shown(0, 5, 2)), Some(shown(0, 4, 1))], Some(Anomaly::Backward));
        check(&[Some(shown(1, 5, 2)), Some(shown(0, 9, 3))], Some(Anomaly::Backward));
        check(&[Some(shown(0, 5, 2)), Some(shown(0, 6, 1))], Some(Anomaly::Backward));
        check(&[Some(shown(0, 5, 2)), Some(shown(0, 5, 3))], Some(Anomaly::Backward));
    }

    #[test]
    fn a_row_that_comes_back_is_found() {
        check(&[Some(shown(0, 5, 2)), None, Some(shown(0, 5, 2))], Some(Anomaly::Resurrected));
        check(&[Some(shown(0, 5, 2)), None, Some(shown(0, 7, 3))], Some(Anomaly::Resurrected));
    }

    #[test]
    fn a_view_without_versions_is_judged_by_positions() {
        let row = |lsn| Some(Shown { position: (0, lsn), version: None });
        check(&[row(3), row(3), row(4)], None);
        check(&[row(3), row(2)], Some(Anomaly::Backward));
    }
}
