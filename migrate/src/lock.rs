//! Waiting for tables and views that others use, without keeping everybody else waiting.
//!
//! Whoever comes to a table for which somebody waits, waits behind him. So a wait is short, and between two the
//! others go on.

use std::time::Duration;

use sqlx::PgConnection;

use crate::bootstrap::execute;

/// Longest wait in one attempt: others queue behind it. Two of them stay below `deadlock_timeout` (1 s): of a
/// reader who holds one view and waits for another, and the swap that waits for him, `PostgreSQL` would
/// end either.
pub(crate) const ATTEMPT_MAX: Duration = Duration::from_millis(400);

/// Between two attempts, for those who wait.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

/// Whether an attempt was given up because others did not let it through.
pub(crate) fn not_available(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("55P03")
}

/// The server's code of an error, if it is the server's.
pub(crate) fn code(error: &sqlx::Error) -> Option<std::borrow::Cow<'_, str>> {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code)
}

/// The process ids of sessions whose transactions use a table or view of a schema and are older than an attempt,
/// as text. `name`, quoted for SQL, narrows it to one.
pub(crate) async fn holders(
    db: &mut PgConnection,
    schema: &str,
    name: Option<&str>,
) -> Result<String, sqlx::Error> {
    let sql = "select coalesce(string_agg(distinct a.pid::text, ', '), 'none any more')
         from pg_locks as l
         join pg_stat_activity as a on a.pid = l.pid
         join pg_class as c on c.oid = l.relation
         where l.locktype = 'relation' and l.granted
             and l.database = (select oid from pg_database where datname = current_database())
             and c.relnamespace = to_regnamespace($1)
             and c.oid = coalesce(to_regclass($1 || '.' || $2), c.oid)
             and a.pid <> pg_backend_pid()
             and a.xact_start < clock_timestamp() - make_interval(secs => $3)";
    // The owner is not told how old the transactions of others are.
    execute(db, "set role none".to_owned()).await?;
    let held = sqlx::query_scalar(sql)
        .bind(schema)
        .bind(name)
        .bind(ATTEMPT_MAX.as_secs_f64())
        .fetch_one(&mut *db)
        .await?;
    execute(db, "set role migrator".to_owned()).await?;
    Ok(held)
}
