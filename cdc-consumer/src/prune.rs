//! The memory of deleted keys does not grow for ever.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;

use crate::database::{Database, DatabaseError, Generation, answered};
use crate::decode::View;
use crate::recovery::Rounds;
use crate::sql;

/// Pause between two rounds.
const EVERY: Duration = Duration::from_mins(10);
/// Keys forgotten by one statement: short transactions, so that no batch waits long.
const KEYS_MAX: i64 = 10_000;
/// A statement that takes longer is given up, with the rest of its round.
const STATEMENT_MAX: Duration = Duration::from_mins(1);

/// Forgets deleted keys older than `kept`, round after round, until dropped. What fails is tried again in
/// the next round: nothing waits for it.
pub(crate) async fn run(
    database: Database,
    generation: Generation,
    views: Arc<Vec<View>>,
    kept: Duration,
) {
    let mut rounds = Rounds::default();
    loop {
        match round(&database, generation, &views, kept).await {
            Ok(()) => rounds.done(),
            Err(error) => rounds.failed("forget old deleted keys", &error),
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[derive(Debug, thiserror::Error)]
enum PruneError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("could not delete from {0}")]
    Delete(String, #[source] sqlx::Error),
}

async fn round(
    database: &Database,
    generation: Generation,
    views: &[View],
    kept: Duration,
) -> Result<(), PruneError> {
    let mut connection = database.connect_to(generation).await?;
    for view in views {
        let forgotten = prune(&mut connection, view, kept).await?;
        if forgotten > 0 {
            tracing::info!(table = view.table.name, keys = forgotten, "forgot old deleted keys");
        }
    }
    Ok(())
}

async fn prune(
    connection: &mut PgConnection,
    view: &View,
    kept: Duration,
) -> Result<u64, PruneError> {
    let statement = sql::prune(&view.table);
    let mut total = 0;
    loop {
        let deleted = async {
            let query = sqlx::query(&statement).bind(kept.as_secs_f64()).bind(KEYS_MAX);
            let deleted = query.execute(&mut *connection).await;
            deleted.map_err(|error| PruneError::Delete(view.table.name.clone(), error))
        };
        let done = answered(STATEMENT_MAX, deleted).await?;
        total += done.rows_affected();
        if done.rows_affected() < KEYS_MAX.unsigned_abs() {
            return Ok(total);
        }
    }
}
