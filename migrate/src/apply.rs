//! Applies migrations.

use std::time::{Duration, Instant};

use sqlx::PgConnection;
use sqlx::migrate::Migrator;

use crate::MigrateError;
use crate::bootstrap::execute;
use crate::lock::{self, ATTEMPT_MAX, PAUSE};

/// How often it is said who is waited for.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// A column that a view shows cannot be retyped ...
const NOT_SUPPORTED: &str = "0A000";
/// ... nor dropped.
const DEPENDENT_OBJECTS: &str = "2BP01";

/// Applies what is missing of one set of migrations, in the connection's search path.
///
/// Waits for transactions that use the tables to change, for as long as they take.
pub(crate) async fn apply(
    db: &mut PgConnection,
    set: &'static str,
    migrator: &Migrator,
) -> Result<(), MigrateError> {
    let failed = |source: sqlx::Error| MigrateError::Apply { set, source: source.into() };
    let patience = format!("set lock_timeout to '{}ms'", ATTEMPT_MAX.as_millis());
    execute(db, patience).await.map_err(failed)?;
    let mut said = None;
    while let Err(source) = migrator.run(&mut *db).await {
        if !server_error(&source).is_some_and(lock::not_available) {
            let code = server_error(&source).and_then(lock::code);
            let shown =
                code.is_some_and(|code| [NOT_SUPPORTED, DEPENDENT_OBJECTS].contains(&&*code));
            return Err(if shown {
                MigrateError::Shown { set, source }
            } else {
                MigrateError::Apply { set, source }
            });
        }
        if said.is_none_or(|at: Instant| at.elapsed() >= SAY_EVERY) {
            said = Some(Instant::now());
            let sessions = in_the_way(db).await.map_err(failed)?;
            tracing::warn!(set, sessions, "waiting for transactions that use tables to be changed");
        }
        tokio::time::sleep(PAUSE).await;
    }
    execute(db, "reset lock_timeout".to_owned()).await.map_err(failed)?;
    tracing::info!(set, count = migrator.iter().count(), "migrations applied");
    Ok(())
}

fn server_error(error: &sqlx::migrate::MigrateError) -> Option<&sqlx::Error> {
    match error {
        sqlx::migrate::MigrateError::Execute(source)
        | sqlx::migrate::MigrateError::ExecuteMigration(source, _) => Some(source),
        _ => None,
    }
}

/// See [`lock::holders`].
async fn in_the_way(db: &mut PgConnection) -> Result<String, sqlx::Error> {
    let schema: String = sqlx::query_scalar("select current_schema()").fetch_one(&mut *db).await?;
    lock::holders(db, &schema, None).await
}
