//! What writers know of the rows they wrote. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Version of a row, or none when the row is not there.
pub(crate) type State = Option<i64>;

/// Rows of one source table. A row belongs to one writer, so what it must look like is known:
/// one state after an acknowledged write, two after a write whose outcome nobody told.
#[derive(Debug, Default, Clone)]
pub(crate) struct Ledger {
    rows: BTreeMap<i64, Vec<State>>,
    /// What marks a new row whose insert was not answered: it has no id that we know.
    doubtful_marks: BTreeSet<String>,
    ignored: BTreeSet<i64>,
    /// Row changes in acknowledged transactions.
    pub(crate) acknowledged: u64,
    /// Row changes in transactions whose outcome is not known.
    pub(crate) unknown: u64,
    /// Answers that make no sense.
    pub(crate) wrong: Vec<String>,
}

impl Ledger {
    /// What a committed transaction did, in its order.
    pub(crate) fn acknowledge(&mut self, effects: &[(i64, State)]) {
        for &(id, state) in effects {
            self.rows.insert(id, vec![state]);
        }
        self.acknowledged += effects.len() as u64;
    }

    /// What a transaction did if it committed, in its order.
    pub(crate) fn doubt(&mut self, effects: &[(i64, State)]) {
        let last: BTreeMap<i64, State> = effects.iter().copied().collect();
        for (id, state) in last {
            // Of a new row the state before is that it was not there.
            let states = self.rows.entry(id).or_insert_with(|| vec![None]);
            if !states.contains(&state) {
                states.push(state);
            }
        }
        self.unknown += effects.len() as u64;
    }

    /// An insert whose answer, and so the row's id, is missing.
    pub(crate) fn doubt_insert(&mut self, mark: String) {
        self.doubtful_marks.insert(mark);
        self.unknown += 1;
    }

    /// Rows that are there for sure, with their versions. Others are left alone for ever.
    pub(crate) fn live(&self) -> Vec<(i64, i64)> {
        let known = |(id, states): (&i64, &Vec<State>)| match states[..] {
            [Some(version)] => Some((*id, version)),
            _ => None,
        };
        self.rows.iter().filter_map(known).collect()
    }

    /// Rows of the run whose versions are not kept: any state will do.
    pub(crate) fn ignore(&mut self, ids: &[i64]) {
        self.ignored.extend(ids);
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.rows.extend(other.rows);
        self.doubtful_marks.extend(other.doubtful_marks);
        self.ignored.extend(other.ignored);
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.wrong.extend(other.wrong);
    }

    /// What the source table, given as id, version and mark, has lost, and what nobody wrote.
    pub(crate) fn differences(&self, found: &[(i64, i64, String)]) -> Vec<String> {
        let versions: BTreeMap<i64, i64> =
            found.iter().map(|(id, version, _)| (*id, *version)).collect();
        let lost = self.rows.iter().filter_map(|(id, states)| {
            let state = versions.get(id).copied();
            let text = || {
                let allowed: Vec<_> = states.iter().copied().map(show).collect();
                format!("row {id} is {}, written was {}", show(state), allowed.join(" or "))
            };
            (!states.contains(&state)).then(text)
        });
        let unwritten = found.iter().filter_map(|(id, version, mark)| {
            let known = self.rows.contains_key(id)
                || self.doubtful_marks.contains(mark)
                || self.ignored.contains(id);
            (!known).then(|| format!("row {id} ({mark}), version {version}, was written by nobody"))
        });
        lost.chain(unwritten).collect()
    }
}

fn show(state: State) -> String {
    state.map_or_else(|| "absent".to_owned(), |version| format!("version {version}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: i64, version: i64) -> (i64, i64, String) {
        (id, version, format!("row-{id}"))
    }

    fn check(ledger: &Ledger, found: &[(i64, i64, String)], wanted: &[&str]) {
        assert_eq!(ledger.differences(found), wanted, "{ledger:?}");
    }

    #[test]
    fn an_acknowledged_write_must_be_there() {
        let mut ledger = Ledger::default();
        ledger.acknowledge(&[(1, Some(1)), (2, Some(1)), (1, Some(2)), (3, Some(1)), (3, None)]);
        assert_eq!(ledger.acknowledged, 5);
        assert_eq!(ledger.live(), [(1, 2), (2, 1)]);
        check(&ledger, &[row(1, 2), row(2, 1)], &[]);
        check(&ledger, &[row(1, 1), row(2, 1)], &["row 1 is version 1, written was version 2"]);
        check(&ledger, &[row(1, 2)], &["row 2 is absent, written was version 1"]);
        check(
            &ledger,
            &[row(1, 2), row(2, 1), row(3, 1)],
            &["row 3 is version 1, written was absent"],
        );
    }

    #[test]
    fn a_doubtful_write_may_be_there_or_not_but_nothing_else() {
        let mut ledger = Ledger::default();
        ledger.acknowledge(&[(1, Some(1)), (2, Some(4))]);
        ledger.doubt(&[(1, Some(2)), (1, Some(3)), (2, None), (9, Some(1))]);
        assert_eq!((ledger.unknown, ledger.live()), (4, vec![]));
        check(&ledger, &[row(1, 1), row(2, 4)], &[]);
        check(&ledger, &[row(1, 3), row(9, 1)], &[]);
        check(&ledger, &[row(1, 2)], &["row 1 is version 2, written was version 1 or version 3"]);
    }

    #[test]
    fn a_row_nobody_wrote_is_found() {
        let mut ledger = Ledger::default();
        ledger.doubt_insert("row-5".to_owned());
        check(&ledger, &[], &[]);
        check(&ledger, &[row(5, 1)], &[]);
        check(&ledger, &[row(6, 1)], &["row 6 (row-6), version 1, was written by nobody"]);
    }
}
