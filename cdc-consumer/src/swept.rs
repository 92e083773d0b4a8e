//! Rows that were swept in the views readers see, in a generation that is built anew.
//!
//! Compaction may have taken the record that ended the snapshot, and with it all that told of these rows: the
//! topic keeps their last state for ever. The old views know them; see [`crate::sweep`].

use anyhow::Context;
use sqlx::PgConnection;

use crate::catalog::Table;
use crate::database::{Database, Place, schema_of};
use crate::metrics;
use crate::sql;
use crate::sweep_sql;
use crate::view::ViewSpec;

/// Removes them. Nobody else writes the new generation meanwhile.
pub(crate) async fn remove(
    database: &Database,
    place: Place,
    specs: &[ViewSpec],
) -> anyhow::Result<()> {
    let mut connection = database.connect_to(place.generation).await?;
    let (new, old) = (schema_of(place.generation), schema_of(place.published));
    for spec in specs {
        let table = Table::read(&mut connection, &new, &spec.table).await?;
        let rows = remove_from(&mut connection, &table, &old).await;
        let rows = rows.with_context(|| {
            format!("could not remove rows of {} that an earlier snapshot swept", spec.table)
        })?;
        if rows > 0 {
            metrics::swept(&spec.table, rows.unsigned_abs());
            tracing::info!(table = spec.table, rows, "removed rows that an earlier snapshot swept");
        }
    }
    Ok(())
}

async fn remove_from(
    connection: &mut PgConnection,
    table: &Table,
    old: &str,
) -> Result<i64, sqlx::Error> {
    if !is_known(connection, table, old).await? {
        return Ok(0); // a view that is new
    }
    let statement = sweep_sql::sweep_again(table, old);
    match sqlx::query_scalar(&statement).fetch_one(connection).await {
        Err(error) if keys_differ(&error) => {
            tracing::warn!(
                table = table.name,
                "the key has other columns, types or collations than in the views readers see: rows that an earlier \
                 snapshot swept there may be back in the new ones; compare these with the source \
                 (`cdc-consumer verify`)"
            );
            Ok(0)
        }
        removed => removed,
    }
}

/// Whether there is such a view in the schema `old`.
pub(crate) async fn is_known(
    connection: &mut PgConnection,
    table: &Table,
    old: &str,
) -> Result<bool, sqlx::Error> {
    let known = sqlx::query_scalar("select to_regclass($1) is not null")
        .bind(format!("{old}.{}", sql::deleted_table(table)));
    known.fetch_one(connection).await
}

/// A column that is not there, two types that nothing compares, or two collations, neither of which is the default.
pub(crate) fn keys_differ(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    matches!(code.as_deref(), Some("42703" | "42883" | "42P22"))
}
