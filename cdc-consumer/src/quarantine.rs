//! Records kept aside, in the transaction of their batch.
//!
//! A record that cannot be applied is stored with its bytes and the reason; later changes of the same
//! key wait behind it (parked), because applying them would hide that something is missing. Every other
//! key goes on.

use std::collections::HashMap;

use sqlx::{PgTransaction, Row};

use crate::apply::Target;
use crate::batch::{Batch, Refused};
use crate::fold::{Entry, ViewBatch};
use crate::offsets::Partition;
use crate::refetch::FetchError;

/// Why records could not be kept aside.
#[derive(Debug, thiserror::Error)]
pub enum QuarantineError {
    #[error("could not read or write dead letters")]
    Store(#[source] sqlx::Error),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(
        "of {open} keys dead letters are open, more than the limit of {limit}: a flood is a wrong setting, \
         not bad data; look at `cdc-consumer dead-letters list`, mend the cause, then start again"
    )]
    Flood { open: i64, limit: i64 },
    #[error(
        "{kept} records are kept aside, more than {limit}: most are good ones that wait behind a refused one \
         of their key; `cdc-consumer dead-letters retry` or `drop` those that `list` shows as refused, then \
         start again"
    )]
    Backlog { kept: i64, limit: i64 },
    /// A batch without claims: it is made of dead letters.
    #[error("record {offset} was kept aside already and is refused again: {error}")]
    Again { offset: i64, error: String },
}

/// Records kept aside for each key that may have a refused one, at most. Those of one key wait together, so
/// they say nothing about the others; they only must not fill the disk.
const KEPT_PER_KEY: i64 = 100;

/// A change that is kept aside instead of applied.
#[derive(Debug)]
pub struct Fault {
    view: usize,
    claim: usize,
    offset: i64,
    key_text: String,
    chunk_lsn: Option<i64>,
    reason: Reason,
    error: String,
}

#[derive(Debug, Clone, Copy)]
enum Reason {
    Refused,
    Parked,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Parked => "parked",
        }
    }
}

impl Fault {
    /// PostgreSQL refused the row's values.
    pub fn refused(view: usize, batch: &ViewBatch, entry: &Entry, error: &sqlx::Error) -> Self {
        let error = service::telemetry::chain(error).to_string();
        Self::new(view, batch, entry, Reason::Refused, error)
    }

    /// The source did not send a value and the view has none to keep.
    pub fn value_not_sent(view: usize, batch: &ViewBatch, entry: &Entry) -> Self {
        let error = "the source did not send an unchanged long value (TOAST), and the view has no row to \
                     keep it from; set the table's replica identity to full, or snapshot it again";
        Self::new(view, batch, entry, Reason::Refused, error.to_owned())
    }

    fn new(view: usize, batch: &ViewBatch, entry: &Entry, reason: Reason, error: String) -> Self {
        Self {
            view,
            claim: entry.claim,
            offset: entry.offset,
            key_text: batch.key_text(entry),
            chunk_lsn: entry.position.overtaken(),
            reason,
            error,
        }
    }
}

/// Whether an error of PostgreSQL is about the values of a row: a data exception (class 22), a broken
/// constraint (class 23), or one too large for an index, a page or its type (54000; 42622 of a name).
/// Everything else is about the database and would hit any row.
pub fn blames_values(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    let blames = |code: &str| ["22", "23", "54000", "42622"].iter().any(|it| code.starts_with(it));
    code.is_some_and(|code| blames(&code))
}

/// Keys with open dead letters, and the oldest record of each in every partition.
#[derive(Debug, Default)]
pub struct Parked {
    oldest: HashMap<(usize, String), Vec<(Partition, i64)>>,
}

impl Parked {
    /// The fault of a change that must wait, if it must.
    pub fn fault(
        &self,
        view: usize,
        batch: &ViewBatch,
        entry: &Entry,
        partition: Option<&Partition>,
    ) -> Option<Fault> {
        if self.oldest.is_empty() {
            return None;
        }
        let letters = self.oldest.get(&(view, batch.key_text(entry)))?;
        // In another partition (some were added since) offsets tell no order, but the record came later.
        let older = letters.iter().find(|(letter, oldest)| {
            *oldest <= entry.offset || partition.is_some_and(|partition| letter != partition)
        })?;
        let (partition, offset) = older;
        let error =
            format!("an older record of this key, {partition} @ {offset}, is a dead letter");
        Some(Fault::new(view, batch, entry, Reason::Parked, error))
    }
}

/// Stores the records that could not be decoded, and finds the keys of the batch that must wait: behind one
/// of these, or behind the dead letters there were before, if there were any.
pub async fn admit(
    tx: &mut PgTransaction<'_>,
    target: &Target,
    batch: &Batch,
    dead_letters: bool,
) -> Result<Parked, QuarantineError> {
    for refused in &batch.refused {
        insert(tx, target, refused, Reason::Refused).await?;
    }
    let mut parked = Parked::default();
    if !dead_letters && batch.refused.is_empty() {
        return Ok(parked);
    }
    for (index, view) in batch.views.iter().enumerate() {
        let keys: Vec<String> = view.entries().iter().map(|entry| view.key_text(entry)).collect();
        let rows = sqlx::query(
            "select key_text, topic, partition, min(record_offset)
             from cdc_dead_letter
             where view_name = $1 and key_text = any($2)
             group by key_text, topic, partition",
        )
        .bind(target.tables.get(index))
        .bind(keys)
        .fetch_all(&mut **tx)
        .await
        .map_err(QuarantineError::Store)?;
        for row in rows {
            let key = row.try_get(0).map_err(QuarantineError::Store)?;
            let topic = row.try_get(1).map_err(QuarantineError::Store)?;
            let number = row.try_get(2).map_err(QuarantineError::Store)?;
            let oldest = row.try_get(3).map_err(QuarantineError::Store)?;
            let letter = (Partition { topic, number }, oldest);
            parked.oldest.entry((index, key)).or_default().push(letter);
        }
    }
    if !batch.refused.is_empty() {
        limit_keys(tx, target).await?;
        limit_all(tx, target).await?;
    }
    Ok(parked)
}

/// Stores the changes at fault, with their records read again from the broker (a batch keeps no raw
/// bytes, so that memory stays small; faults are rare). Returns how many.
pub async fn store(
    tx: &mut PgTransaction<'_>,
    target: &Target,
    batch: &Batch,
    mut faults: Vec<Fault>,
) -> Result<u64, QuarantineError> {
    let count = faults.len() as u64;
    faults.sort_by_key(|fault| (fault.claim, fault.offset));
    let mut refused_more = false;
    for fault in faults {
        let Some(claim) = batch.claims.get(fault.claim) else {
            return Err(QuarantineError::Again { offset: fault.offset, error: fault.error });
        };
        refused_more |= matches!(fault.reason, Reason::Refused);
        let record = target.fetcher.fetch(&claim.partition, fault.offset).await?;
        let (record_key, record_value) = record.unwrap_or_default();
        let schema_id = record_value
            .as_deref()
            .and_then(|value| crate::wire::split(value).ok().map(|prefixed| prefixed.schema_id));
        let refused = Refused {
            view: fault.view,
            partition: claim.partition.clone(),
            offset: fault.offset,
            key_text: Some(fault.key_text),
            record_key,
            record_value,
            schema_id,
            chunk_lsn: fault.chunk_lsn,
            error: fault.error,
        };
        insert(tx, target, &refused, fault.reason).await?;
    }
    if refused_more {
        limit_keys(tx, target).await?;
    }
    if count > 0 {
        limit_all(tx, target).await?;
    }
    Ok(count)
}

/// Keys with a refused record; a record whose key could not be read is one of its own. What waits behind
/// them is no fault, and a row that is bad once is often bad in each of its changes.
async fn limit_keys(tx: &mut PgTransaction<'_>, target: &Target) -> Result<(), QuarantineError> {
    let open: i64 = sqlx::query_scalar(
        "select count(distinct coalesce(view_name || ' ' || key_text, id::text))
         from cdc_dead_letter
         where reason = 'refused'",
    )
    .fetch_one(&mut **tx)
    .await
    .map_err(QuarantineError::Store)?;
    let limit = target.dead_letters_max;
    if open > limit { Err(QuarantineError::Flood { open, limit }) } else { Ok(()) }
}

async fn limit_all(tx: &mut PgTransaction<'_>, target: &Target) -> Result<(), QuarantineError> {
    let kept: i64 = sqlx::query_scalar("select count(*) from cdc_dead_letter")
        .fetch_one(&mut **tx)
        .await
        .map_err(QuarantineError::Store)?;
    let limit = target.dead_letters_max.saturating_mul(KEPT_PER_KEY);
    if kept > limit { Err(QuarantineError::Backlog { kept, limit }) } else { Ok(()) }
}

async fn insert(
    tx: &mut PgTransaction<'_>,
    target: &Target,
    refused: &Refused,
    reason: Reason,
) -> Result<(), QuarantineError> {
    sqlx::query(
        "insert into cdc_dead_letter
             (view_name, topic, partition, record_offset, key_text, record_key, record_value,
              schema_id, chunk_lsn, reason, error)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
         on conflict (topic, partition, record_offset) do nothing",
    )
    .bind(target.tables.get(refused.view))
    .bind(&refused.partition.topic)
    .bind(refused.partition.number)
    .bind(refused.offset)
    .bind(&refused.key_text)
    .bind(&refused.record_key)
    .bind(&refused.record_value)
    .bind(refused.schema_id.map(i64::from))
    .bind(refused.chunk_lsn)
    .bind(reason.as_str())
    .bind(&refused.error)
    .execute(&mut **tx)
    .await
    .map(|_| ())
    .map_err(QuarantineError::Store)
}
