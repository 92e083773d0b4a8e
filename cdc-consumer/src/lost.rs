//! What readers would lose if the new views took the place of theirs.
//!
//! A topic made again without a new snapshot, a snapshot that is still being sent, a topic that the views file misspells:
//! each leaves rows in the old views that the new ones neither show nor know as deleted. Offsets do not tell.

use anyhow::{Context, ensure};
use sqlx::PgConnection;

use crate::catalog::{SOURCE_EPOCH, SOURCE_LSN, Table};
use crate::database::{Database, Place, schema_of};
use crate::sql::{deleted_table, literal, names, quote};
use crate::sweep_sql::same_key;
use crate::swept::{is_known, keys_differ};
use crate::view::ViewSpec;

/// Rows that the new views lacked at a look.
pub(crate) struct Lost<'s> {
    /// Its temporary tables hold their keys.
    connection: PgConnection,
    place: Place,
    views: Vec<(&'s ViewSpec, Table, String)>,
}

impl<'s> Lost<'s> {
    /// Looks before anybody is held up: at that moment the new views may only be a little behind.
    pub(crate) async fn look(
        database: &Database,
        place: Place,
        specs: &'s [ViewSpec],
    ) -> anyhow::Result<Self> {
        let mut connection = database.connect_to(place.generation).await?;
        let (new, old) = (schema_of(place.generation), schema_of(place.published));
        let mut views = vec![];
        for (number, spec) in specs.iter().enumerate() {
            let table = Table::read(&mut connection, &new, &spec.table).await?;
            if !is_known(&mut connection, &table, &old).await? {
                continue; // a view that is new
            }
            let keys = format!("pg_temp.lacking_{number}");
            let look = look_sql(&table, spec, &old, &keys);
            match sqlx::query(&look).execute(&mut connection).await {
                Err(error) if keys_differ(&error) => tracing::warn!(
                    table = table.name,
                    "the key has other columns, types or collations than in the views readers see: whether their \
                     rows are all in the new ones cannot be told; compare these with the source (`cdc-consumer verify`)"
                ),
                looked => {
                    let looked = looked.with_context(|| {
                        format!("could not look for rows that {} lacks", spec.table)
                    });
                    if looked?.rows_affected() > 0 {
                        views.push((spec, table, keys));
                    }
                }
            }
        }
        Ok(Self { connection, place, views })
    }

    /// Fails where some are still missing, once nobody changes either generation. Others cannot be: the old views
    /// got theirs from the logs since, which the new ones have read as far.
    pub(crate) async fn check(&mut self) -> anyhow::Result<()> {
        let Self { connection, place: Place { generation, published }, views } = self;
        for (spec, table, keys) in views {
            let sql = check_sql(table, spec, &schema_of(*published), keys);
            let counted = sqlx::query_scalar(&sql).fetch_one(&mut *connection).await;
            let rows: i64 = counted
                .with_context(|| format!("could not count the rows that {} lacks", spec.table))?;
            ensure!(
                rows == 0,
                "{rows} rows of {} that readers see are neither in generation {generation} nor deleted there, and \
                 in topic {} no snapshot has ended that says they are gone: the topic was made again, or is another one, \
                 or its snapshot is still being sent. Let that one end, or take a new snapshot (docs/operations.md, \"A \
                 slot was lost\") and let it end, then say this again; or publish without these rows: \
                 --with-missing-rows",
                spec.table,
                spec.topic
            );
        }
        Ok(())
    }
}

/// Keeps the keys of rows that are missing.
fn look_sql(table: &Table, spec: &ViewSpec, old: &str, keys: &str) -> String {
    format!(
        "create temporary table {keys} as select {columns} from {old}.{table} o where {missing}",
        keys = keys.trim_start_matches("pg_temp."),
        columns = names(table, table.key_columns()).join(", "),
        missing = is_missing(table, spec, old),
        table = quote(&table.name),
    )
}

/// Counts those of them that still are. A key with a refused record may have no row; what becomes of that is decided
/// where dead letters are.
fn check_sql(table: &Table, spec: &ViewSpec, old: &str, keys: &str) -> String {
    format!(
        "select greatest(0, count(*) - (
             select count(*) from cdc_dead_letter where view_name = {view} and reason = 'refused'))
         from {keys} k join {old}.{table} o on {same} where {missing}",
        view = literal(&spec.table),
        same = same_key(table, "k", "o"),
        missing = is_missing(table, spec, old),
        table = quote(&table.name),
    )
}

/// Whether the view that is found by its name lacks the row `o` of the one in the schema `old`, and no snapshot of its
/// topic ended that is as new as those known there: what it did not mention is gone. Rows that a migration brought are of no
/// topic.
fn is_missing(table: &Table, spec: &ViewSpec, old: &str) -> String {
    format!(
        "not exists (
             select from cdc_snapshot n where n.view_name = {view} and n.topic = {topic} and not exists (
                 select from {old}.cdc_snapshot e
                 where e.view_name = {view} and e.record_timestamp > n.record_timestamp))
         and o.{SOURCE_LSN} > 0
         and not exists (select from {table} n where {shown})
         and not exists (select from {deleted} n where {shown})
         and not exists (
             select from cdc_floor f where f.view_name = {view}
             and (o.{SOURCE_EPOCH}, o.{SOURCE_LSN}) < (f.{SOURCE_EPOCH}, f.{SOURCE_LSN}))",
        view = literal(&spec.table),
        topic = literal(&spec.topic),
        table = quote(&table.name),
        deleted = deleted_table(table),
        shown = same_key(table, "n", "o"),
    )
}

/// Fails where readers would lose all rows of a view: the new generation has it, and nobody fills it.
pub(crate) async fn all_declared(
    connection: &mut PgConnection,
    place: Place,
    specs: &[ViewSpec],
) -> anyhow::Result<()> {
    let (new, old) = (schema_of(place.generation), schema_of(place.published));
    let tables: Vec<&str> = specs.iter().map(|spec| spec.table.as_str()).collect();
    let undeclared: Vec<String> = sqlx::query_scalar(
        "select quote_ident(t.tablename)
         from pg_tables t
         where t.schemaname = $1
             and to_regclass(format('%I.%I', $1, t.tablename || '_deleted')) is not null
             and to_regclass(format('%I.%I', $2, t.tablename)) is not null
             and t.tablename <> all ($3)",
    )
    .bind(&old)
    .bind(new)
    .bind(tables)
    .fetch_all(&mut *connection)
    .await
    .context("could not read which views there are")?;
    for view in undeclared {
        let rows: bool = sqlx::query_scalar(&format!("select exists (select from {old}.{view})"))
            .fetch_one(&mut *connection)
            .await
            .with_context(|| format!("could not read {view}"))?;
        ensure!(
            !rows,
            "the views file does not declare {view}, which has rows: it would be published empty. Declare it, \
             or drop its table in a migration"
        );
    }
    Ok(())
}
