//! Which changes are made at the source, in which order. Pure: the same seed gives the same changes.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::cli::Mix;

/// Keys that [`Mix::Random`] changes again and again, per writer.
const HOT_KEYS: usize = 25;
/// One in so many changes of [`Mix::Random`] is of a hot key.
const HOT_ONE_IN: u32 = 3;
/// Changes for each cold key, about.
const CHANGES_PER_COLD_KEY: u64 = 5;
/// Rows of one transaction at the source.
const TRANSACTION_ROWS: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
}

impl Operation {
    /// Debezium's letter.
    pub(crate) fn letter(self) -> char {
        match self {
            Self::Create => 'c',
            Self::Update => 'u',
            Self::Delete => 'd',
        }
    }
}

/// The changes one writer makes, in its order. Writers share no key, so any interleaving is valid.
pub(crate) struct Operations {
    random: SmallRng,
    mix: Mix,
    left: u64,
    changes: u64,
    writer: i64,
    writers: i64,
    /// Keys of this writer, in its own numbering, that have a row.
    live: Vec<i64>,
    created: i64,
    /// Of [`Mix::Random`]: whether each key has a row.
    rows: Vec<bool>,
}

impl Operations {
    /// The part of `writer`, from 0, of `writers`.
    pub(crate) fn new(mix: Mix, changes: u64, seed: u64, writer: u16, writers: u16) -> Self {
        let (number, count) = (u64::from(writer), u64::from(writers));
        let own = changes / count + u64::from(number < changes % count);
        let cold = usize::try_from(own / CHANGES_PER_COLD_KEY).unwrap_or(usize::MAX);
        let keys = if mix == Mix::Random { HOT_KEYS + cold } else { 0 };
        Self {
            random: SmallRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9).wrapping_add(number)),
            mix,
            left: own,
            changes: own,
            writer: i64::from(writer),
            writers: i64::from(writers),
            live: Vec::new(),
            created: 0,
            rows: vec![false; keys],
        }
    }

    /// The changes of the next transaction, with their keys; empty at the end. `rows` says how many it
    /// has, `None` leaves it to the mix.
    pub(crate) fn transaction(&mut self, rows: Option<usize>) -> Vec<(Operation, i64)> {
        let rows = match (rows, self.mix) {
            (Some(rows), _) => rows,
            (None, Mix::Random) => self.random.random_range(1..TRANSACTION_ROWS * 2),
            (None, Mix::Mixed | Mix::Insert | Mix::Update) => TRANSACTION_ROWS,
        };
        self.take(rows).collect()
    }

    fn pick(&mut self) -> (Operation, i64) {
        match self.mix {
            Mix::Random => self.pick_random(),
            Mix::Insert => self.create(),
            Mix::Update if self.changes - self.left <= self.changes / 5 => self.create(),
            Mix::Update => self.change(Operation::Update),
            Mix::Mixed => match self.random.random_range(0..100) {
                0..70 => self.create(),
                70..95 => self.change(Operation::Update),
                _ => self.change(Operation::Delete),
            },
        }
    }

    fn create(&mut self) -> (Operation, i64) {
        let key = self.created;
        self.created += 1;
        self.live.push(key);
        (Operation::Create, key)
    }

    fn change(&mut self, operation: Operation) -> (Operation, i64) {
        if self.live.is_empty() {
            return self.create();
        }
        let index = self.random.random_range(0..self.live.len());
        let key = match operation {
            Operation::Delete => self.live.swap_remove(index),
            Operation::Create | Operation::Update => self.live[index],
        };
        (operation, key)
    }

    fn pick_random(&mut self) -> (Operation, i64) {
        let hot = self.rows.len() == HOT_KEYS || self.random.random_ratio(1, HOT_ONE_IN);
        let range = if hot { 0..HOT_KEYS } else { HOT_KEYS..self.rows.len() };
        let index = self.random.random_range(range);
        let operation = match (self.rows[index], self.random.random_ratio(1, 3)) {
            (false, _) => Operation::Create,
            (true, true) => Operation::Delete,
            (true, false) => Operation::Update,
        };
        self.rows[index] = operation != Operation::Delete;
        (operation, i64::try_from(index).expect("an index is far smaller"))
    }
}

impl Iterator for Operations {
    type Item = (Operation, i64);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let (operation, key) = self.pick();
        Some((operation, key * self.writers + self.writer))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    /// Counts per letter; fails where a change does not suit its row's state.
    fn check(mix: Mix, changes: u64) -> HashMap<char, u64> {
        let mut counts = HashMap::new();
        let mut owners = HashMap::new();
        for writer in 0..4 {
            let mut rows = HashSet::new();
            for (operation, key) in Operations::new(mix, changes, 7, writer, 4) {
                let fits = match operation {
                    Operation::Create => rows.insert(key),
                    Operation::Update => rows.contains(&key),
                    Operation::Delete => rows.remove(&key),
                };
                assert!(fits, "{operation:?} of {key}");
                assert_eq!(*owners.entry(key).or_insert(writer), writer, "{key} has two writers");
                *counts.entry(operation.letter()).or_insert(0) += 1;
            }
        }
        assert_eq!(counts.values().sum::<u64>(), changes);
        counts
    }

    #[test]
    fn every_change_suits_its_row_and_every_key_has_one_writer() {
        assert_eq!(check(Mix::Insert, 10_001)[&'c'], 10_001);
        let update = check(Mix::Update, 10_000);
        assert_eq!((update[&'c'], update[&'u']), (2000, 8000));
        let mixed = check(Mix::Mixed, 100_000);
        assert!((69_000..71_000).contains(&mixed[&'c']), "{mixed:?}");
        assert!((24_000..26_000).contains(&mixed[&'u']), "{mixed:?}");
        assert!((4_500..5_500).contains(&mixed[&'d']), "{mixed:?}");
        let random = check(Mix::Random, 100_000);
        assert!(random.values().all(|&count| count > 20_000), "{random:?}");
        assert_eq!(check(Mix::Random, 3).values().sum::<u64>(), 3);
    }

    #[test]
    fn a_seed_gives_the_same_changes_again() {
        let all = |seed| Operations::new(Mix::Random, 1000, seed, 1, 4).collect::<Vec<_>>();
        assert_eq!(all(3), all(3));
        assert_ne!(all(3), all(4));
    }

    #[test]
    fn transactions_hold_all_changes() {
        let mut parts = Operations::new(Mix::Random, 1000, 3, 1, 4);
        let mut joined = Vec::new();
        loop {
            let transaction = parts.transaction(None);
            if transaction.is_empty() {
                break;
            }
            joined.extend(transaction);
        }
        let mut whole = Operations::new(Mix::Random, 1000, 3, 1, 4);
        assert_eq!(joined.len(), whole.by_ref().count());
    }
}
