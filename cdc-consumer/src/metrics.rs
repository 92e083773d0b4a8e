//! Names and meaning of what `/metrics` shows.

use std::time::Duration;

use crate::apply::Outcome;
use crate::offsets::Partition;

/// Bounds in seconds: from one commit on a fast disk to a backlog of an hour.
pub const FRESHNESS_BOUNDS: &[f64] = &[
    0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0, 30.0, 60.0, 300.0, 3600.0,
];
/// Bounds in seconds for one transaction.
pub const APPLY_BOUNDS: &[f64] =
    &[0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0];
/// Bounds in records.
pub const BATCH_BOUNDS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 4000.0, 10_000.0];

/// Histogram names, for installing their bounds.
pub const FRESHNESS: &str = "cdc_freshness_seconds";
pub const APPLY: &str = "cdc_apply_seconds";
pub const BATCH: &str = "cdc_batch_records";

const RECORDS: &str = "cdc_records_total";
const LAG: &str = "cdc_lag_records";
const FENCED: &str = "cdc_fenced_total";
const LETTERS: &str = "cdc_dead_letters_open";
const SWEPT: &str = "cdc_swept_rows_total";
const PAUSES: &str = "cdc_fetch_pauses_total";
const REPLAYS: &str = "cdc_operator_resets_total";

/// Describes every metric. Call once, after the recorder is installed.
pub fn describe() {
    ::metrics::describe_counter!(
        RECORDS,
        "Records by view and by where they ended: every record read ends in exactly one outcome."
    );
    ::metrics::describe_gauge!(
        LAG,
        "Records of a partition that are not applied yet; NaN when it is no longer ours."
    );
    ::metrics::describe_histogram!(
        FRESHNESS,
        "From the commit at the source to visible in the view."
    );
    ::metrics::describe_histogram!(APPLY, "Duration of a batch's transaction.");
    ::metrics::describe_histogram!(BATCH, "Records in a batch.");
    ::metrics::describe_counter!(
        FENCED,
        "Batches held back because somebody else owns a partition."
    );
    ::metrics::describe_gauge!(
        LETTERS,
        "Dead letters of a view as its table has them, whichever process kept them aside."
    );
    ::metrics::describe_counter!(
        SWEPT,
        "Rows removed because a snapshot of the whole source table did not mention them."
    );
    ::metrics::describe_counter!(
        PAUSES,
        "Times that fetching was stopped because nothing that was read could be taken."
    );
    ::metrics::describe_counter!(
        REPLAYS,
        "Offsets an operator moved with Kafka's tools, honoured."
    );
}

/// How many records of a view are kept aside.
pub fn dead_letters_open(view: String, reason: String, count: i64) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float; the table is far smaller")]
    let count = count as f64;
    ::metrics::gauge!(LETTERS, "view" => view, "reason" => reason).set(count);
}

/// Counts rows that a snapshot did not mention.
pub fn swept(view: &str, rows: u64) {
    ::metrics::counter!(SWEPT, "view" => view.to_owned()).increment(rows);
}

/// Counts the records of a view's part in a batch.
pub fn outcome(view: &str, outcome: &Outcome) {
    let counts = [
        ("applied", outcome.applied),
        ("folded", outcome.folded),
        ("stale", outcome.stale),
        ("ignored", outcome.ignored),
        ("quarantined", outcome.quarantined),
    ];
    for (name, count) in counts {
        ::metrics::counter!(RECORDS, "view" => view.to_owned(), "outcome" => name).increment(count);
    }
}

/// Counts the record that made the consumer stop.
pub fn refused(view: &str) {
    ::metrics::counter!(RECORDS, "view" => view.to_owned(), "outcome" => "refused").increment(1);
}

pub fn lag(partition: &Partition, records: i64) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float; lag is far below 2^52")]
    set_lag(partition, records as f64);
}

/// Whoever owns the partition now knows its lag, we do not. Zero would say that all is well.
pub fn lag_unknown(partition: &Partition) {
    set_lag(partition, f64::NAN);
}

fn set_lag(partition: &Partition, records: f64) {
    let number = partition.number.to_string();
    ::metrics::gauge!(LAG, "topic" => partition.topic.clone(), "partition" => number).set(records);
}

pub fn freshness(view: &str, age: Duration) {
    ::metrics::histogram!(FRESHNESS, "view" => view.to_owned()).record(age);
}

pub fn batch(record_count: usize, duration: Duration) {
    #[expect(clippy::cast_precision_loss, reason = "a batch has far fewer than 2^52 records")]
    let record_count = record_count as f64;
    ::metrics::histogram!(BATCH).record(record_count);
    ::metrics::histogram!(APPLY).record(duration);
}

pub fn fenced() {
    ::metrics::counter!(FENCED).increment(1);
}

pub fn fetching_paused() {
    ::metrics::counter!(PAUSES).increment(1);
}

pub fn operator_reset() {
    ::metrics::counter!(REPLAYS).increment(1);
}
