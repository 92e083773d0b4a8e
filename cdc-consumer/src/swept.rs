//! Rows that were swept in the views readers see, in a generation that is built anew.
//!
//! Compaction may have taken the record that ended the snapshot, and with it all that told of these rows: the
//! topic keeps their last state for ever. The old views know them; see [`crate::sweep`].

use anyhow::Context;
use sqlx::PgConnection;

use crate::catalog::{SOURCE_EPOCH, SOURCE_LSN, Table};
use crate::database::{Database, Place, schema_of};
use crate::metrics;
use crate::sql::{deleted_table, key_equal, names, quote};
use crate::view::ViewSpec;

/// Removes them. Nobody else writes the new generation meanwhile.
pub(crate) async fn remove(
    database: &Database,
    place: Place,
    specs: &[ViewSpec],
) -> anyhow::Result<()> {
    let mut connection = database.connect_to(place.generation).await?;
    for spec in specs {
        let new = schema_of(place.generation);
        let table = Table::read(&mut connection, &new, &spec.table).await?;
        let rows = remove_from(&mut connection, &table, &schema_of(place.published)).await;
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
    let known = sqlx::query_scalar("select to_regclass($1) is not null")
        .bind(format!("{old}.{}", deleted_table(table)))
        .fetch_one(&mut *connection);
    if !known.await? {
        return Ok(0); // a view that is new
    }
    sqlx::query_scalar(&statement(table, old)).fetch_one(connection).await
}

/// Remembers them as the sweep did. What came again since stands above the place where it was removed, in
/// whatever epoch: a compacted topic may tell of fewer lives of the source.
fn statement(table: &Table, old: &str) -> String {
    let keys = names(table, table.key_columns());
    let removed: Vec<_> = keys.iter().map(|key| format!("t.{key}")).collect();
    format!(
        "with gone as (delete from {table} t using {old}.{deleted} d \
         where {swept} and d.deleted_at = 'infinity' and t.{SOURCE_LSN} < d.{SOURCE_LSN} \
         and not exists (select from {old}.{table} o where {shown}) \
         returning {removed}, t.{SOURCE_EPOCH}, t.{SOURCE_LSN}), \
         remembered as (insert into {deleted} as d ({keys}, {SOURCE_EPOCH}, {SOURCE_LSN}, deleted_at) \
         select {keys}, {SOURCE_EPOCH}, {SOURCE_LSN} + 1, 'infinity' from gone order by {keys} \
         on conflict ({keys}) do update set {SOURCE_EPOCH} = excluded.{SOURCE_EPOCH}, \
         {SOURCE_LSN} = excluded.{SOURCE_LSN}, deleted_at = excluded.deleted_at) \
         select count(*) from gone",
        table = quote(&table.name),
        deleted = deleted_table(table),
        swept = key_equal(table, "t", "d"),
        shown = key_equal(table, "o", "t"),
        removed = removed.join(", "),
        keys = keys.join(", "),
    )
}
