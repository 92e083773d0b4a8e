//! A batch takes effect: one transaction, offsets first, then rows. The only place that makes an
//! [`Applied`].

use std::collections::HashMap;

use sqlx::{Connection, PgConnection};

use crate::batch::{Batch, Claim};
use crate::database::Place;
use crate::decode::View;
use crate::fence::{self, Answer, FenceError};
use crate::fold::Counts;
use crate::quarantine::{self, QuarantineError};
use crate::refetch::RecordFetcher;
use crate::sql::Statements;
use crate::sweep::{self, SweepError};
use crate::view::ViewSpec;
use crate::write::ViewWork;

/// Proof that a batch is in the database. What `commit` tells the broker.
#[derive(Debug)]
#[expect(clippy::manual_non_exhaustive, reason = "nobody else in this crate may make one either")]
pub struct Applied {
    pub claims: Vec<Claim>,
    /// Per view, in the order of the declaration.
    pub outcomes: Vec<Outcome>,
    pub record_count: usize,
    /// Commit times at the source of a sample of the changes: (view, microseconds from 1970).
    pub source_times: Vec<(usize, i64)>,
    _made_here_only: (),
}

/// Where the records of one view ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Outcome {
    pub applied: u64,
    pub folded: u64,
    pub stale: u64,
    pub ignored: u64,
    pub quarantined: u64,
}

/// What came of an attempt.
#[derive(Debug)]
pub enum Attempt {
    Applied(Box<Applied>),
    /// Somebody else owns a partition, or the database was rewound: acquire again.
    Fenced,
}

/// Why a batch could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("could not begin or end the transaction of the batch")]
    Transaction(#[source] sqlx::Error),
    #[error("could not write rows of {table}")]
    Write {
        table: String,
        #[source]
        source: sqlx::Error,
    },
    #[error(transparent)]
    Fence(#[from] FenceError),
    #[error(transparent)]
    Quarantine(#[from] QuarantineError),
    #[error(transparent)]
    Sweep(#[from] SweepError),
}

/// How a batch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Care {
    /// Whole sets: one refused value fails the transaction.
    Sets,
    /// After a refused value: halve a failing set until the rows at fault are alone, keep those aside.
    Rows,
}

/// What does not change from batch to batch.
#[derive(Debug)]
pub struct Target {
    pub statements: Vec<Statements>,
    pub tables: Vec<String>,
    pub specs: Vec<ViewSpec>,
    pub place: Place,
    pub dead_letters_max: i64,
    /// Fewer inserts into a view than this in a batch are not worth the round trips of COPY.
    pub copy_rows_min: usize,
    pub fetcher: RecordFetcher,
}

impl Target {
    /// The statements for views whose tables were just read.
    pub fn new(
        views: &[View],
        place: Place,
        dead_letters_max: i64,
        copy_rows_min: usize,
        fetcher: RecordFetcher,
    ) -> Self {
        Self {
            statements: views.iter().map(|view| Statements::new(&view.table)).collect(),
            tables: views.iter().map(|view| view.table.name.clone()).collect(),
            specs: views.iter().map(|view| view.spec.clone()).collect(),
            place,
            dead_letters_max,
            copy_rows_min,
            fetcher,
        }
    }
}

/// Which counters of derived views a batch adds to: those of the first partition it covers, by the order
/// of the declaration. No other batch under way covers that one, so none adds to the same.
fn counter_slot(specs: &[ViewSpec], claims: &[Claim]) -> i32 {
    let slot = |claim: &Claim| {
        let rank = specs.iter().position(|spec| spec.topic == claim.partition.topic)?;
        i32::try_from(rank).ok()?.checked_mul(SLOTS_OF_A_TOPIC)?.checked_add(claim.partition.number)
    };
    claims.iter().filter_map(slot).min().unwrap_or(-1)
}

/// More partitions than any topic has.
const SLOTS_OF_A_TOPIC: i32 = 100_000;

/// Applies one batch.
pub async fn apply(
    connection: &mut PgConnection,
    target: &Target,
    batch: &Batch,
    care: Care,
) -> Result<Attempt, ApplyError> {
    let slot = counter_slot(&target.specs, &batch.claims);
    let mut tx = connection.begin().await.map_err(ApplyError::Transaction)?;
    let answer = fence::pass(&mut tx, &batch.claims, target.place.published, slot).await?;
    let Answer::Passed { dead_letters } = answer else {
        tx.rollback().await.map_err(ApplyError::Transaction)?;
        return Ok(Attempt::Fenced);
    };
    let parked = quarantine::admit(&mut tx, target, batch, dead_letters).await?;
    let mut outcomes = Vec::with_capacity(batch.views.len());
    for (index, view) in batch.views.iter().enumerate() {
        let mut work = ViewWork {
            target,
            index,
            view,
            claims: &batch.claims,
            care,
            faults: vec![],
            outcome: Outcome::default(),
            fallbacks: vec![],
            wanted: HashMap::new(),
            unfolded: 0,
        };
        work.apply(&mut tx, &parked).await?;
        if let Some(end) = view.snapshot_end {
            sweep::note(&mut tx, target, index, end).await?;
        }
        let ViewWork { faults, mut outcome, unfolded, .. } = work;
        let Counts { folded, stale, ignored, truncations } = view.counts;
        outcome.applied += truncations;
        outcome.folded += folded - unfolded;
        outcome.stale += stale;
        outcome.ignored += ignored;
        outcome.quarantined += quarantine::store(&mut tx, target, batch, faults).await?;
        outcome.quarantined +=
            batch.refused.iter().filter(|refused| refused.view == index).count() as u64;
        outcomes.push(outcome);
    }
    tx.commit().await.map_err(ApplyError::Transaction)?;
    Ok(Attempt::Applied(Box::new(receipt(batch, outcomes))))
}

/// The receipt of a batch whose commit went unanswered and turned out to have happened. Which of its
/// changes were stale was in the lost answer; they count as applied.
pub fn settled(batch: &Batch) -> Applied {
    let outcomes = batch.views.iter().enumerate().map(|(index, view)| Outcome {
        applied: view.entries().len() as u64 + view.counts.truncations,
        folded: view.counts.folded,
        stale: view.counts.stale,
        ignored: view.counts.ignored,
        quarantined: batch.refused.iter().filter(|refused| refused.view == index).count() as u64,
    });
    receipt(batch, outcomes.collect())
}

fn receipt(batch: &Batch, outcomes: Vec<Outcome>) -> Applied {
    const SAMPLE: usize = 32;
    let source_times = batch.views.iter().enumerate().flat_map(|(index, view)| {
        let step = view.entries().len().div_ceil(SAMPLE).max(1);
        let times = view.entries().iter().step_by(step).map(|entry| entry.source_time_micros);
        // A tombstone knows none.
        times.filter(|time| *time > 0).map(move |time| (index, time))
    });
    Applied {
        claims: batch.claims.clone(),
        outcomes,
        record_count: batch.record_count,
        source_times: source_times.collect(),
        _made_here_only: (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::Cell;
    use crate::fold::{Action, Entry};
    use crate::offsets::{Partition, Progress};
    use crate::view;

    #[test]
    fn only_changes_that_know_when_they_were_made_tell_how_fresh_a_view_is() {
        let mut batch = Batch::new([(1, 1)]);
        let tombstone = Entry { action: Action::Erase, ..Entry::at(0, 0) };
        let change = Entry { source_time_micros: 7, ..Entry::at(0, 1) };
        for (key, entry) in [("a", tombstone), ("b", change)] {
            let key = |out: &mut String| {
                out.push_str(key);
                Ok::<_, ()>(Cell::Text)
            };
            batch.views[0].add(entry, |row| row.cell(0, key)).expect("a key");
        }
        assert_eq!(settled(&batch).source_times, [(0, 7)]);
    }

    #[test]
    fn batches_without_a_common_partition_never_count_in_one_slot() {
        let specs = view::parse(
            "[[view]]\ntopic = 'users'\ntable = 'a'\n[[view]]\ntopic = 'posts'\ntable = 'b'\n",
        )
        .expect("a valid declaration");
        let slot = |partitions: &[(&str, i32)]| {
            let mut batch = Batch::new([]);
            for &(topic, number) in partitions {
                let partition = Partition { topic: topic.to_owned(), number };
                batch.cover(&partition, &mut Progress::new(0, 1), 1);
            }
            counter_slot(&specs, &batch.claims)
        };
        assert_ne!(slot(&[("posts", 0), ("users", 1)]), slot(&[("users", 0), ("posts", 1)]));
        assert_ne!(slot(&[("posts", 1)]), slot(&[("users", 1)]));
        assert_eq!(slot(&[("posts", 0), ("users", 1)]), slot(&[("users", 2), ("users", 1)]));
    }
}
