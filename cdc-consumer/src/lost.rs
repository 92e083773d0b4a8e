//! What readers would lose if the new views took the place of theirs.
//!
//! A topic made again without a new snapshot, a snapshot that is still being sent, a topic that the views file misspells:
//! each leaves rows in the old views that the new ones neither show nor know as deleted. Offsets do not tell.

use anyhow::{Context, ensure};
use sqlx::PgConnection;

use crate::catalog::{SOURCE_EPOCH, SOURCE_LSN, Table};
use crate::database::{Database, Place, schema_of};
use crate::sql::{deleted_table, quote};
use crate::sweep_sql::same_key;
use crate::swept::{is_known, keys_differ};
use crate::view::ViewSpec;

/// Looks for rows that are missing in the new views.
pub(crate) struct Lost<'s> {
    database: &'s Database,
    place: Place,
    /// Those that may lack some.
    views: Vec<&'s ViewSpec>,
}

impl<'s> Lost<'s> {
    pub(crate) fn new(database: &'s Database, place: Place, specs: &'s [ViewSpec]) -> Self {
        Self { database, place, views: specs.iter().collect() }
    }

    /// Looks before anybody is held up. A view that lacks rows is looked at again in [`Self::check`]: the new one may only
    /// be a little behind.
    pub(crate) async fn look(&mut self) -> anyhow::Result<()> {
        let mut connection = self.database.connect_to(self.place.generation).await?;
        let mut lacking = vec![];
        for spec in &self.views {
            if missing(&mut connection, self.place, spec).await? > 0 {
                lacking.push(*spec);
            }
        }
        self.views = lacking;
        Ok(())
    }

    /// Fails where rows are missing, once nobody changes either generation.
    pub(crate) async fn check(&self) -> anyhow::Result<()> {
        let generation = self.place.generation;
        let mut connection = self.database.connect_to(generation).await?;
        for spec in &self.views {
            let rows = missing(&mut connection, self.place, spec).await?;
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

/// How many rows of a view the new one lacks.
async fn missing(
    connection: &mut PgConnection,
    place: Place,
    spec: &ViewSpec,
) -> anyhow::Result<i64> {
    let (new, old) = (schema_of(place.generation), schema_of(place.published));
    let table = Table::read(connection, &new, &spec.table).await?;
    if !is_known(connection, &table, &old).await? {
        return Ok(0); // a view that is new
    }
    let sql = missing_sql(&table, &old);
    let counted = sqlx::query_scalar(&sql).bind(&spec.table).bind(&spec.topic);
    match counted.fetch_one(connection).await {
        Err(error) if keys_differ(&error) => {
            tracing::warn!(
                table = table.name,
                "the key has other columns, types or collations than in the views readers see: whether their rows are all in the new \
                 ones cannot be told; compare these with the source (`cdc-consumer verify`)"
            );
            Ok(0)
        }
        counted => {
            counted.with_context(|| format!("could not look for rows that {} lacks", spec.table))
        }
    }
}

/// Counts rows of view `$1` in the schema `old` that the one found by its name lacks, unless a snapshot of topic `$2` ended
/// that is as new as those known in `old`: what it did not mention is gone. A key with a refused record may have no row;
/// what becomes of that is decided where dead letters are. Rows that a migration brought are of no topic.
fn missing_sql(table: &Table, old: &str) -> String {
    format!(
        "select case when exists (
                 select from cdc_snapshot n where n.view_name = $1 and n.topic = $2 and not exists (
                     select from {old}.cdc_snapshot o
                     where o.view_name = $1 and o.record_timestamp > n.record_timestamp))
             then 0
             else greatest(0, (
                 select count(*) from {old}.{table} o
                 where o.{SOURCE_LSN} > 0
                 and not exists (select from {table} n where {shown})
                 and not exists (select from {deleted} n where {shown})
                 and not exists (
                     select from cdc_floor f where f.view_name = $1
                     and (o.{SOURCE_EPOCH}, o.{SOURCE_LSN}) < (f.{SOURCE_EPOCH}, f.{SOURCE_LSN})))
                 - (select count(*) from cdc_dead_letter where view_name = $1 and reason = 'refused'))
             end",
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
