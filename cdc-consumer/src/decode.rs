//! From a record's bytes to a change in a batch.
//!
//! Holds the compiled plans. Asks for a schema it does not have instead of fetching it: this module does
//! no I/O and never waits.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::batch::{Batch, Refused};
use crate::catalog::Table;
use crate::envelope::{EnvelopeError, Operation};
use crate::fold::{Action, Entry, SnapshotEnd};
use crate::headers::RecordHeaders;
use crate::offsets::{Anchor, Partition, Progress, SourcePosition};
use crate::plan::{FieldError, PlanError, RowPlan, ValuePlan};
use crate::schema::Node;
use crate::view::ViewSpec;
use crate::wire::{self, WireError};

/// A view with its table.
#[derive(Debug)]
pub struct View {
    pub spec: ViewSpec,
    pub table: Table,
}

impl View {
    /// Columns of the key, and of a row.
    pub fn shape(&self) -> (usize, usize) {
        (self.table.key_columns().len(), self.table.width())
    }
}

/// One Kafka record as received. Borrows librdkafka's buffer.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    /// What Kafka stored with the record, in milliseconds from 1970; -1 without.
    pub timestamp_millis: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: &'a dyn RecordHeaders,
}

impl Record<'_> {
    /// What this record's log is known by.
    pub fn anchor(&self) -> Anchor {
        Anchor { offset: self.offset, timestamp_millis: self.timestamp_millis }
    }
}

/// How far a record got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded {
    /// It is in the batch: as a change, as ignored, or as refused.
    Taken,
    /// The registry must be asked first; nothing was changed.
    NeedsSchema(u32),
}

/// Why the consumer cannot go on with a topic at all.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("topic {topic}, schema {schema_id}, table {table}: the schema does not fit the view")]
    Plan {
        topic: String,
        schema_id: u32,
        table: String,
        #[source]
        source: Box<PlanError>,
    },
    #[error(
        "a change in topic {topic} has no record key: the source table has no primary key; \
         add one, or set message.key.columns in the connector"
    )]
    NoKey { topic: String },
    #[error("a record arrived from topic {0}, which no view declares")]
    UnknownTopic(String),
}

/// Why one record cannot become a change.
#[derive(Debug, thiserror::Error)]
enum RecordError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the envelope could not be read")]
    Envelope(#[from] EnvelopeError),
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("an insert or update carries no row in 'after'")]
    NoRow,
}

/// Decodes records of all declared topics.
#[derive(Debug)]
pub struct Decoder {
    views: Arc<Vec<View>>,
    schemas: HashMap<u32, Arc<Node>>,
    /// One for each view.
    plans: Vec<Plans>,
}

/// Of one view, by schema id. Few schemas write a topic: going through them takes less than hashing.
#[derive(Debug, Default)]
struct Plans {
    keys: Vec<(u32, RowPlan)>,
    values: Vec<(u32, ValuePlan)>,
}

fn by_id<P>(plans: &[(u32, P)], schema_id: u32) -> Option<&P> {
    plans.iter().find(|(id, _)| *id == schema_id).map(|(_, plan)| plan)
}

impl Decoder {
    pub fn new(views: Arc<Vec<View>>) -> Self {
        let plans = views.iter().map(|_| Plans::default()).collect();
        Self { views, schemas: HashMap::new(), plans }
    }

    fn key_plan(&self, view: usize, schema_id: u32) -> Option<&RowPlan> {
        self.plans.get(view).and_then(|plans| by_id(&plans.keys, schema_id))
    }

    fn value_plan(&self, view: usize, schema_id: u32) -> Option<&ValuePlan> {
        self.plans.get(view).and_then(|plans| by_id(&plans.values, schema_id))
    }

    /// Gives the schema that [`Decoded::NeedsSchema`] asked for.
    pub fn learn(&mut self, schema_id: u32, schema: Arc<Node>) {
        self.schemas.insert(schema_id, schema);
    }

    /// See [`ValuePlan::defaulted_columns`]: of the schemas met so far.
    pub fn defaulted_columns(&self) -> impl Iterator<Item = &str> {
        let plans = self.plans.iter().flat_map(|plans| &plans.values);
        plans.flat_map(|(_, plan)| &plan.defaulted_columns).map(String::as_str)
    }

    /// Decodes one record into `batch` and advances its partition, or says which schema it needs.
    pub fn decode(
        &mut self,
        record: &Record<'_>,
        partition: &Partition,
        progress: &mut Progress,
        batch: &mut Batch,
    ) -> Result<Decoded, DecodeError> {
        let found = self.views.iter().position(|view| view.spec.topic == record.topic);
        let view = found.ok_or_else(|| DecodeError::UnknownTopic(record.topic.to_owned()))?;
        let Some(value) = record.value else {
            return self.tombstone(record, view, partition, progress, batch);
        };
        let prefixed = match self.split_value(record, view, value) {
            Ok(prefixed) => prefixed,
            Err(error) => {
                // Later changes of the key must wait; a key that is no better than the value tells none.
                let key = match error {
                    WireError::IdInHeaders => Ok(None),
                    _ => self.prepare_key(view, record),
                };
                if let Ok(Some(schema_id)) = key {
                    return Ok(Decoded::NeedsSchema(schema_id));
                }
                batch.claim(partition, progress, record.anchor());
                self.refuse(record, view, partition, None, &error.into(), batch);
                return Ok(Decoded::Taken);
            }
        };
        let missing =
            [self.prepare_value(view, prefixed.schema_id)?, self.prepare_key(view, record)?];
        if let Some(schema_id) = missing.into_iter().flatten().next() {
            return Ok(Decoded::NeedsSchema(schema_id));
        }
        let outcome = self.take(record, view, prefixed, partition, progress, batch)?;
        if let Err(error) = outcome {
            self.refuse(record, view, partition, Some(prefixed.schema_id), &error, batch);
        }
        Ok(Decoded::Taken)
    }

    /// A value without a prefix may look as if it had one; headers tell. They need not be asked when the
    /// prefix names a schema by which values of this topic were read before: bytes that are no prefix hardly
    /// name just that one, and what follows them would not be a value of it to the last byte.
    fn split_value<'a>(
        &self,
        record: &Record<'_>,
        view: usize,
        value: &'a [u8],
    ) -> Result<wire::Prefixed<'a>, WireError> {
        let prefixed = wire::split(value);
        let known =
            prefixed.is_ok_and(|prefixed| self.value_plan(view, prefixed.schema_id).is_some());
        if !known && record.headers.name_schema() {
            return Err(WireError::IdInHeaders);
        }
        prefixed
    }

    /// A tombstone exists for log compaction: the delete before it did the work. One that stands alone
    /// tells that compaction took the delete away, so the row goes now.
    fn tombstone(
        &mut self,
        record: &Record<'_>,
        view: usize,
        partition: &Partition,
        progress: &mut Progress,
        batch: &mut Batch,
    ) -> Result<Decoded, DecodeError> {
        let lone = record.key.filter(|key| !progress.follows_its_delete(record.offset, key));
        if lone.is_some()
            && let Some(schema_id) = self.prepare_key(view, record)?
        {
            return Ok(Decoded::NeedsSchema(schema_id));
        }
        // Read again, it must not touch what followed it, which is in the view already.
        let repeated = progress.repeats(record.offset);
        let position =
            if repeated { SourcePosition::BELOW_ALL } else { progress.newest_position() };
        let claim = batch.claim(partition, progress, record.anchor());
        let key = match lone.map(wire::split).transpose() {
            Ok(key) => key,
            // The row it is about may stay for ever: that is not to be ignored.
            Err(error) => {
                self.refuse(record, view, partition, None, &error.into(), batch);
                return Ok(Decoded::Taken);
            }
        };
        let plan = key.and_then(|key| Some((key, self.key_plan(view, key.schema_id)?)));
        let Some(view_batch) = batch.views.get_mut(view) else { return Ok(Decoded::Taken) };
        let Some((key, plan)) = plan else {
            view_batch.counts.ignored += 1;
            return Ok(Decoded::Taken);
        };
        let entry = Entry { action: Action::Erase, position, ..Entry::at(claim, record.offset) };
        if let Err(error) = view_batch.add(entry, |row| plan.write_key(key.body, row)) {
            self.refuse(record, view, partition, None, &error.into(), batch);
        }
        Ok(Decoded::Taken)
    }

    /// Compiles the plan of a value schema, or names the schema if it is missing.
    fn prepare_value(&mut self, view: usize, schema_id: u32) -> Result<Option<u32>, DecodeError> {
        if self.value_plan(view, schema_id).is_some() {
            return Ok(None);
        }
        let Some(schema) = self.schemas.get(&schema_id) else { return Ok(Some(schema_id)) };
        let Some(View { spec, table }) = self.views.get(view) else { return Ok(None) };
        let plan = ValuePlan::compile(schema, spec, table)
            .map_err(|source| plan_error(spec, table, schema_id, source))?;
        plan.report(spec, table, schema_id);
        if let Some(plans) = self.plans.get_mut(view) {
            plans.values.push((schema_id, plan));
        }
        Ok(None)
    }

    /// The same for a record's key. A key without a prefix is found at fault later.
    fn prepare_key(
        &mut self,
        view: usize,
        record: &Record<'_>,
    ) -> Result<Option<u32>, DecodeError> {
        let Some(Ok(key)) = record.key.map(wire::split) else { return Ok(None) };
        let schema_id = key.schema_id;
        if self.key_plan(view, schema_id).is_some() {
            return Ok(None);
        }
        let Some(schema) = self.schemas.get(&schema_id) else { return Ok(Some(schema_id)) };
        let Some(View { spec, table }) = self.views.get(view) else { return Ok(None) };
        let plan = RowPlan::compile_key(schema, spec, table)
            .map_err(|source| plan_error(spec, table, schema_id, source))?;
        if let Some(plans) = self.plans.get_mut(view) {
            plans.keys.push((schema_id, plan));
        }
        Ok(None)
    }

    /// The record as a change. The outer error stops the topic, the inner one is this record's own.
    fn take(
        &self,
        record: &Record<'_>,
        view: usize,
        value: wire::Prefixed<'_>,
        partition: &Partition,
        progress: &mut Progress,
        batch: &mut Batch,
    ) -> Result<Result<(), RecordError>, DecodeError> {
        let Some(plan) = self.value_plan(view, value.schema_id) else { return Ok(Ok(())) };
        let envelope = match plan.envelope.read(value.body) {
            Ok(envelope) => envelope,
            Err(error) => {
                batch.claim(partition, progress, record.anchor());
                return Ok(Err(error.into()));
            }
        };
        let repeated = progress.repeats(record.offset);
        let last_commit = || envelope.last_commit();
        let position = progress.place(record.offset, envelope.lsn, envelope.origin, last_commit);
        let claim = batch.claim(partition, progress, record.anchor());
        let Some(view_batch) = batch.views.get_mut(view) else { return Ok(Ok(())) };
        if envelope.ends_snapshot {
            let timestamp_millis = record.timestamp_millis;
            let end = SnapshotEnd { lsn: envelope.lsn, timestamp_millis, repeated };
            view_batch.snapshot_end = Some(end.or_later(view_batch.snapshot_end));
        }
        let action = match envelope.operation {
            Operation::Create | Operation::Update | Operation::Read => Action::Upsert,
            Operation::Delete => Action::Delete,
            Operation::Message => {
                view_batch.counts.ignored += 1;
                return Ok(Ok(()));
            }
            Operation::Truncate => {
                view_batch.truncated_at = view_batch.truncated_at.max(Some(position));
                view_batch.counts.truncations += 1;
                return Ok(Ok(()));
            }
        };
        let Some(key) = record.key else {
            return Err(DecodeError::NoKey { topic: record.topic.to_owned() });
        };
        if action == Action::Delete {
            progress.last_delete = Some((record.offset, key.to_vec()));
        }
        let entry = Entry {
            action,
            position,
            source_time_micros: envelope.source_time_micros,
            begins: matches!(envelope.operation, Operation::Create | Operation::Read),
            ..Entry::at(claim, record.offset)
        };
        // Of a row's first change only one lacks values: that which follows it to another key.
        let whole = || match envelope.operation {
            Operation::Read => true,
            Operation::Create => !record.headers.name_old_key(),
            _ => false,
        };
        Ok(wire::split(key).map_err(RecordError::from).and_then(|key| {
            let key_plan = self.key_plan(view, key.schema_id);
            let folded = view_batch.add(entry, |row| {
                if let Some(key_plan) = key_plan {
                    key_plan.write_key(key.body, row)?;
                }
                match (action, envelope.after) {
                    (Action::Upsert, Some(after)) => Ok(plan.row.write(after, whole, row)?),
                    (Action::Upsert, None) => Err(RecordError::NoRow),
                    (Action::Delete | Action::Erase, _) => Ok(()),
                }
            });
            folded.map(|_| ())
        }))
    }

    /// Keeps a record aside, under its key if that can be read.
    fn refuse(
        &self,
        record: &Record<'_>,
        view: usize,
        partition: &Partition,
        schema_id: Option<u32>,
        error: &RecordError,
        batch: &mut Batch,
    ) {
        let claim = batch.claims.iter().find(|claim| claim.partition == *partition);
        batch.refuse(Refused {
            chunk_lsn: claim.and_then(|claim| claim.lineage.chunk_before(record.offset)),
            view,
            partition: partition.clone(),
            offset: record.offset,
            key_text: record.key.and_then(|key| self.key_text(view, key)),
            record_key: record.key.map(<[u8]>::to_vec),
            record_value: record.value.map(<[u8]>::to_vec),
            schema_id,
            error: service::telemetry::chain(error).to_string(),
        });
    }

    fn key_text(&self, view: usize, key: &[u8]) -> Option<String> {
        let key = wire::split(key).ok()?;
        let plan = self.key_plan(view, key.schema_id)?;
        let mut alone = Batch::new([self.views.get(view)?.shape()]);
        let view = alone.views.first_mut()?;
        let entry = Entry::at(0, 0);
        view.add(entry, |row| plan.write_key(key.body, row)).ok()?;
        view.entries().first().map(|entry| view.key_text(entry))
    }
}

fn plan_error(spec: &ViewSpec, table: &Table, schema_id: u32, source: PlanError) -> DecodeError {
    let (topic, table) = (spec.topic.clone(), table.name.clone());
    DecodeError::Plan { topic, schema_id, table, source: Box::new(source) }
}

/// The topics a consumer of these views reads.
pub fn topics(views: &[View]) -> BTreeSet<&str> {
    views.iter().map(|view| view.spec.topic.as_str()).collect()
}
