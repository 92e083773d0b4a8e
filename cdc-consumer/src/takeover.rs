//! Taking a partition over from an owner that stands still.
//!
//! PostgreSQL ends a session whose client is silent inside a transaction, and with it the locks that the next
//! owner waits for. Inside COPY it does not: reading from the client is a part of that statement, which no
//! timeout interrupts. So whoever waits for a partition looks for such sessions and ends them.

use std::time::Duration;

use sqlx::{PgConnection, Row};

use crate::board::Board;
use crate::database::IDLE_IN_TRANSACTION_MAX;
use crate::fence::{self, FenceError, Wanted};
use crate::offsets::Progress;

/// No acquisition waits as long for its locks: the database is away, and nobody said so.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// [`fence::acquire`], however long a previous owner has been standing still. Meanwhile nothing is read of the
/// other partitions either, so we are not ready.
pub(crate) async fn acquire(
    connection: &mut PgConnection,
    wanted: &Wanted,
    owner: &str,
    board: &Board,
) -> Result<Progress, FenceError> {
    loop {
        let silent = || sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
        let asked = fence::acquire(connection, wanted, owner);
        let acquired = tokio::time::timeout(ANSWER_MAX, asked).await.unwrap_or_else(|_| {
            Err(FenceError::Acquire { partition: wanted.partition.clone(), source: silent() })
        });
        match acquired {
            Err(FenceError::Acquire { partition, source }) if lock_not_available(&source) => {
                let ended = tokio::time::timeout(ANSWER_MAX, end_silent_copies(connection)).await;
                let ended = ended.unwrap_or_else(|_| Err(silent()));
                let ended = ended.map_err(|source| FenceError::Acquire { partition, source })?;
                board.waits_for_owner(&wanted.partition);
                tracing::warn!(
                    kafka.partition = %wanted.partition,
                    ended,
                    "a previous owner still changes rows of this partition, waiting for it"
                );
            }
            other => {
                if other.is_ok() {
                    board.ownership_known();
                }
                return other;
            }
        }
    }
}

fn lock_not_available(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() == Some("55P03")
}

/// Sessions of ours, of whatever process, that have waited for their client in COPY for too long.
const END_SILENT_COPIES: &str = "
    select count(pg_terminate_backend(pid))
    from pg_stat_activity
    where datname = current_database()
      and usename = current_user
      and application_name = current_setting('application_name')
      and state = 'active'
      and wait_event = 'ClientRead'
      and query like 'copy %'
      and query_start < now() - make_interval(secs => $1)";

/// Ends them, and returns how many there were.
pub(crate) async fn end_silent_copies(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    let query = sqlx::query(END_SILENT_COPIES).bind(IDLE_IN_TRANSACTION_MAX.as_secs_f64());
    query.fetch_one(connection).await?.try_get(0)
}
