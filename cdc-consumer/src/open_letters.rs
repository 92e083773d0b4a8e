//! How many dead letters are open, for the metrics: read from the table, since a process that has just
//! begun has counted none.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;

use crate::database::{Database, DatabaseError, Generation, answered};
use crate::decode::View;
use crate::metrics;
use crate::recovery::Rounds;

/// Pause between two rounds.
const EVERY: Duration = Duration::from_secs(10);
/// A round that takes longer is given up, and the next one has a new connection.
const ROUND_MAX: Duration = Duration::from_secs(10);

/// Zero is told as well as any other number: a gauge that stays away alarms nobody.
const COUNT: &str = "
    select v.name, r.reason, count(l.id)
    from unnest($1::text[]) as v (name)
    cross join (values ('refused'), ('parked')) as r (reason)
    left join cdc_dead_letter l on l.view_name = v.name and l.reason = r.reason
    group by v.name, r.reason";

#[derive(Debug, thiserror::Error)]
enum CountError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("could not count the dead letters")]
    Read(#[from] sqlx::Error),
}

/// Counts open dead letters of the declared views, round after round, until dropped.
pub(crate) async fn run(database: Database, generation: Generation, views: Arc<Vec<View>>) {
    let tables: Vec<String> = views.iter().map(|view| view.table.name.clone()).collect();
    let mut connection = None;
    let mut rounds = Rounds::default();
    loop {
        let counted = round(&database, generation, &tables, &mut connection);
        match answered(ROUND_MAX, counted).await {
            Ok(()) => rounds.done(),
            Err(error) => {
                connection = None;
                rounds.failed("count open dead letters", &error);
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn round(
    database: &Database,
    generation: Generation,
    tables: &[String],
    slot: &mut Option<PgConnection>,
) -> Result<(), CountError> {
    let connection = database.connected(slot, generation).await?;
    let counts: Vec<(String, String, i64)> =
        sqlx::query_as(COUNT).bind(tables).fetch_all(connection).await?;
    for (view, reason, count) in counts {
        metrics::dead_letters_open(view, reason, count);
    }
    Ok(())
}
