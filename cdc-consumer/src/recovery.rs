//! What to do about every failure: wait and try again, set the record aside, or stop.
//!
//! One `match` per error type, none with a wildcard: a new failure does not compile until somebody
//! decides. Unsure means stop: stopping is recoverable, a hole is not.
#![deny(clippy::wildcard_enum_match_arm)]

use std::time::Duration;

use crate::apply::ApplyError;
use crate::catalog::CatalogError;
use crate::database::DatabaseError;
use crate::decode::DecodeError;
use crate::fence::FenceError;
use crate::pipeline::SessionError;
use crate::quarantine::{QuarantineError, blames_values};
use crate::registry::RegistryError;
use crate::schema::SchemaError;
use crate::source::SourceError;
use crate::sweep::SweepError;

/// The answers to a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Infrastructure: waiting can mend it. Again, for ever, with growing pauses, not ready meanwhile.
    Retry,
    /// A table is not what it was: begin a new session, which reads the catalogue again.
    Restart,
    /// Values of single records: find them and set them aside.
    Quarantine,
    /// Anything else: stop with a message.
    Halt,
}

/// Decides about a batch that was not applied.
pub fn of_apply(error: &ApplyError) -> Recovery {
    match error {
        ApplyError::Write { source, .. } if blames_values(source) => Recovery::Quarantine,
        ApplyError::Transaction(source) | ApplyError::Write { source, .. } => of_database(source),
        ApplyError::Fence(error) => of_fence(error),
        ApplyError::Quarantine(error) => of_quarantine(error),
        ApplyError::Sweep(error) => match error {
            SweepError::Database(error) => of_connection(error),
            SweepError::Source(error) => of_source(error),
            SweepError::Store(source) => of_database(source),
            SweepError::NoPartitions(_) | SweepError::Held(_) => Recovery::Retry,
            SweepError::Damaged(_) => Recovery::Halt,
        },
    }
}

fn of_quarantine(error: &QuarantineError) -> Recovery {
    match error {
        QuarantineError::Store(source) => of_database(source),
        QuarantineError::Fetch(_) => Recovery::Retry,
        QuarantineError::Flood { .. }
        | QuarantineError::Backlog { .. }
        | QuarantineError::Again { .. } => Recovery::Halt,
    }
}

/// Decides about stored progress.
pub fn of_fence(error: &FenceError) -> Recovery {
    match error {
        FenceError::Acquire { source, .. }
        | FenceError::Move(source)
        | FenceError::Read(source) => of_database(source),
        FenceError::Lineage(_) => Recovery::Halt,
    }
}

/// Decides about a schema that did not come.
pub fn of_registry(error: &RegistryError) -> Recovery {
    match error {
        RegistryError::Settings(_) => Recovery::Halt,
        // Also "not found": a registry that restarts or lags behind its topics learns the id later.
        RegistryError::Fetch { .. } => Recovery::Retry,
        RegistryError::Schema { source, .. } => match source {
            SchemaError::Invalid(_)
            | SchemaError::NotJson(_)
            | SchemaError::Misused(_)
            | SchemaError::Recursive(_)
            | SchemaError::TooLarge
            | SchemaError::Unexpected(_) => Recovery::Halt,
        },
    }
}

/// Decides about a session that ended.
pub fn of_session(error: &SessionError) -> Recovery {
    match error {
        SessionError::Source(error) => of_source(error),
        SessionError::Database(error) => of_connection(error),
        SessionError::Catalog(error) => of_catalog(error),
        SessionError::Fence(error) => of_fence(error),
        SessionError::Registry(error) => of_registry(error),
        SessionError::Apply(error) => of_apply(error),
        SessionError::Decode(error) => match error {
            DecodeError::Plan { .. } | DecodeError::NoKey { .. } | DecodeError::UnknownTopic(_) => {
                Recovery::Halt
            }
        },
        SessionError::Gone { .. }
        | SessionError::Ahead { .. }
        | SessionError::OtherLog { .. }
        | SessionError::Recreated { .. }
        | SessionError::AnotherTopic { .. } => Recovery::Halt,
        SessionError::TableChanged(_) => Recovery::Restart,
        // What is left of the log, the next session asks before it reads: only if the record read last is gone
        // alone, it goes on.
        SessionError::Hole { .. }
        | SessionError::Fenced
        | SessionError::WriterStuck
        | SessionError::WriterDied
        | SessionError::Stopped => Recovery::Retry,
    }
}

fn of_source(error: &SourceError) -> Recovery {
    match error {
        SourceError::Settings(_) => Recovery::Halt,
        SourceError::Subscribe { .. }
        | SourceError::Ask { .. }
        | SourceError::Assign(_)
        | SourceError::Poll(_)
        | SourceError::Expelled(_) => Recovery::Retry,
    }
}

/// Decides about a connection or the generation.
pub fn of_connection(error: &DatabaseError) -> Recovery {
    match error {
        DatabaseError::Url(_) => Recovery::Halt,
        DatabaseError::Connect(_, source) | DatabaseError::Generation(source) => {
            of_database(source)
        }
        DatabaseError::Silent(_) => Recovery::Retry,
    }
}

fn of_catalog(error: &CatalogError) -> Recovery {
    match error {
        CatalogError::Read { source, .. } => of_database(source),
        CatalogError::NoTable { .. }
        | CatalogError::NoPrimaryKey(_)
        | CatalogError::NoEquality { .. }
        | CatalogError::Nondeterministic { .. }
        | CatalogError::Identity { .. }
        | CatalogError::NoColumn { .. }
        | CatalogError::NotPrepared { .. } => Recovery::Halt,
    }
}

/// The driver's errors: I/O and the server's own troubles pass, everything else does not.
///
/// `sqlx::Error` grows without notice (`non_exhaustive`), so here, and only here, the rest is one arm:
/// the unknown halts.
#[expect(clippy::wildcard_enum_match_arm, reason = "sqlx::Error is non_exhaustive")]
fn of_database(error: &sqlx::Error) -> Recovery {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::WorkerCrashed => Recovery::Retry,
        sqlx::Error::Database(error) => match error.code() {
            Some(code) if passes(&code) => Recovery::Retry,
            Some(code) if table_changed(&code) => Recovery::Restart,
            _ => Recovery::Halt,
        },
        _ => Recovery::Halt,
    }
}

/// SQLSTATEs that waiting mends: connections (08), serialization and deadlocks (40), full disks and too
/// many connections (53), shutdown, crash, start-up and cancelled statements (57), system errors (58),
/// locks not to be had (55P03), a transaction the server ended because we were too slow (25P03, 25P04), a
/// server that only reads (25006): after a failover, a standby that the address still leads to.
fn passes(code: &str) -> bool {
    ["08", "40", "53", "57", "58"].iter().any(|class| code.starts_with(class))
        || ["55P03", "25006", "25P03", "25P04"].contains(&code)
}

/// A migration changed a table since we read the catalogue: no such table (42P01), no such column
/// (42703), another type (42804).
fn table_changed(code: &str) -> bool {
    ["42P01", "42703", "42804"].contains(&code)
}

/// Growing pauses between attempts.
#[derive(Debug, Default)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(2);

    /// The next pause: doubled each time up to a ceiling, shortened by up to half at random, so that
    /// many waiting processes do not come back in step.
    pub fn pause(&mut self) -> Duration {
        let longest = Self::LONGEST.min(Self::FIRST * 2_u32.saturating_pow(self.attempts.min(16)));
        self.attempts = self.attempts.saturating_add(1);
        longest.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// Whether nothing was tried yet.
    pub fn fresh(&self) -> bool {
        self.attempts == 0
    }
}

/// Work that is done in rounds, beside the session, and whose failures nobody waits for.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    failure: Option<String>,
}

impl Rounds {
    /// Says that a round failed: in a warning, unless the one before failed in the same way.
    pub(crate) fn failed(&mut self, work: &str, error: &dyn std::error::Error) {
        let error = service::telemetry::chain(error).to_string();
        if self.failure.as_ref() == Some(&error) {
            tracing::debug!(error, "still could not {work}");
        } else {
            tracing::warn!(error, "could not {work}, trying again later");
        }
        self.failure = Some(error);
    }

    /// A round was done.
    pub(crate) fn done(&mut self) {
        self.failure = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_ceiling() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..40).map(|_| backoff.pause()).collect();
        assert!(pauses[0] <= Backoff::FIRST);
        assert!(pauses.iter().all(|pause| *pause <= Backoff::LONGEST));
        assert!(pauses[39] >= Backoff::LONGEST / 2);
    }

    #[test]
    fn only_what_waiting_can_mend_is_retried() {
        for code in
            ["08006", "25006", "40001", "40P01", "53100", "57P01", "57P03", "58030", "55P03"]
        {
            assert!(passes(code), "{code} passes");
        }
        for code in ["22003", "23505", "28P01", "42501", "42601", "XX001"] {
            assert!(!passes(code), "{code} does not pass");
        }
    }
}
