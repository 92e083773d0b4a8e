//! The statements that write rows; `sql.rs` has the others. No I/O.

use crate::catalog::{LAST_PROCESSED_AT, SOURCE_EPOCH, SOURCE_LSN, Table};
use crate::sql::{
    ROW, ROW_BY_ROW, deleted_table, input, key_equal, key_looked_up, literal, names, quote,
};

/// Writes rows whose keys nobody else writes meanwhile: the fence holds their partitions. It looks before it
/// writes. A row that another transaction inserts after the look breaks the primary key; the batch is then
/// done again by [`upsert`].
///
/// The writer's connection reads the source from the outer side of a nested loop, so that rows are written
/// in the order of their keys.
pub(crate) fn merge(table: &Table, omitted: &[usize]) -> String {
    let written = Written::new(table, omitted);
    format!(
        "merge into {table} as t using ({fresh}) as s on {same_row} \
         when matched and (t.{SOURCE_EPOCH}, t.{SOURCE_LSN}) <= (s.{SOURCE_EPOCH}, s.{SOURCE_LSN}) \
         then update set {set} \
         when not matched then insert ({inserted}) values ({values})",
        table = quote(&table.name),
        fresh = fresh(table, &written.columns),
        same_row = key_equal(table, "t", "s"),
        set = assignments(&written.updated, "s"),
        inserted = written.inserted.join(", "),
        values = prefixed(&written.inserted, "s"),
    )
}

/// Writes rows whoever else writes rows of these keys. An insert that might meet one and an update cost a
/// record of the write-ahead log each that [`merge`] does without.
pub(crate) fn upsert(table: &Table, omitted: &[usize]) -> String {
    let written = Written::new(table, omitted);
    format!(
        "insert into {table} as t ({inserted}) \
         select {values} from ({fresh}) as s \
         on conflict ({keys}) do update set {set} \
         where (t.{SOURCE_EPOCH}, t.{SOURCE_LSN}) <= (excluded.{SOURCE_EPOCH}, excluded.{SOURCE_LSN})",
        table = quote(&table.name),
        inserted = written.inserted.join(", "),
        values = prefixed(&written.inserted, "s"),
        fresh = fresh(table, &written.columns),
        keys = names(table, table.key_columns()).join(", "),
        set = assignments(&written.updated, "excluded"),
    )
}

/// See [`crate::sql::CopyStatements`]. What is not new is left to [`merge`], which compares positions.
pub(crate) fn new_keys(table: &Table) -> String {
    let keys: Vec<usize> = table.key_columns().collect();
    format!(
        "select coalesce(array_agg(s.{ROW} order by {order}), '{{}}'), to_json(now()) #>> '{{}}' \
         from ({input}) as s \
         where not exists (select from {table} t where {same_row} {ROW_BY_ROW}) \
         and {not_deleted}",
        order = prefixed(&names(table, keys.iter().copied()), "s"),
        input = input(table, &keys),
        table = quote(&table.name),
        same_row = key_equal(table, "t", "s"),
        not_deleted = not_deleted(table),
    )
}

/// See [`crate::sql::CopyStatements`].
pub(crate) fn copy(table: &Table) -> String {
    let columns = Written::new(table, &[]).inserted.join(", ");
    format!("copy {table} ({columns}) from stdin", table = quote(&table.name))
}

/// See [`crate::sql::Statements::partial`].
pub(crate) fn partial(table: &Table, kept: &[usize]) -> String {
    let written = Written::new(table, kept);
    format!(
        "with s as materialized (select i.*{stamp} from ({input}) as i), \
         done as (update {table} t set {set} from s where {found} \
         and (t.{SOURCE_EPOCH}, t.{SOURCE_LSN}) <= (s.{SOURCE_EPOCH}, s.{SOURCE_LSN}) \
         returning s.{ROW}) \
         select s.{ROW}, exists (select from done where done.{ROW} = s.{ROW}) as applied, \
         exists (select from {table} t where {same_row} {ROW_BY_ROW}) \
         or not ({not_deleted}) as known \
         from s",
        stamp = stamp(table),
        input = input(table, &written.columns),
        table = quote(&table.name),
        set = assignments(&written.updated, "s"),
        found = key_looked_up(table, "t", "s"),
        same_row = key_equal(table, "t", "s"),
        not_deleted = not_deleted(table),
    )
}

/// The input rows that are not older than the delete of their key or a TRUNCATE, in the order of the keys.
fn fresh(table: &Table, columns: &[usize]) -> String {
    format!(
        "select s.*{stamp} from ({input}) as s where {not_deleted} order by {keys}",
        stamp = stamp(table),
        input = input(table, columns),
        not_deleted = not_deleted(table),
        keys = names(table, table.key_columns()).join(", "),
    )
}

/// Whether an input row `s` is not older than the delete of its key or a TRUNCATE. The floor is read once.
fn not_deleted(table: &Table) -> String {
    let floor = |part| {
        let view = literal(&table.name);
        format!("coalesce((select f.{part} from cdc_floor f where f.view_name = {view}), -1)")
    };
    format!(
        "not exists (select from {deleted} d where {same_key} \
         and (d.{SOURCE_EPOCH}, d.{SOURCE_LSN}) > (s.{SOURCE_EPOCH}, s.{SOURCE_LSN})) \
         and (s.{SOURCE_EPOCH}, s.{SOURCE_LSN}) >= ({epoch}, {lsn})",
        deleted = deleted_table(table),
        same_key = key_equal(table, "d", "s"),
        epoch = floor(SOURCE_EPOCH),
        lsn = floor(SOURCE_LSN),
    )
}

/// What a statement writes.
struct Written {
    /// Positions of the columns whose values come with the rows.
    columns: Vec<usize>,
    /// Names that a new row gets values for.
    inserted: Vec<String>,
    /// Names that a known row gets new values for: the key, too, where an equal one may be spelled
    /// differently.
    updated: Vec<String>,
}

impl Written {
    fn new(table: &Table, omitted: &[usize]) -> Self {
        let sent = |column: &usize| !omitted.contains(column);
        let keys = table.key_columns().filter(|_| table.key_equality_is_loose());
        let columns: Vec<usize> = (0..table.width()).filter(sent).collect();
        let mut inserted = names(table, columns.iter().copied());
        let mut updated = names(table, keys.chain(table.value_columns()).filter(sent));
        for names in [&mut inserted, &mut updated] {
            names.extend([SOURCE_EPOCH.to_owned(), SOURCE_LSN.to_owned()]);
            names.extend(table.stamped.then(|| LAST_PROCESSED_AT.to_owned()));
        }
        Self { columns, inserted, updated }
    }
}

/// The time of the transaction as one more column, if the table wants it.
fn stamp(table: &Table) -> String {
    if table.stamped { format!(", now() as {LAST_PROCESSED_AT}") } else { String::new() }
}

/// `a = s.a, b = s.b`
fn assignments(columns: &[String], from: &str) -> String {
    let each: Vec<_> = columns.iter().map(|name| format!("{name} = {from}.{name}")).collect();
    each.join(", ")
}

/// `s.a, s.b`
fn prefixed(columns: &[String], from: &str) -> String {
    let each: Vec<_> = columns.iter().map(|name| format!("{from}.{name}")).collect();
    each.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_the_record_does_not_know_is_neither_inserted_nor_overwritten() {
        let table = Table::sample("t", 1, &[("k", "int8"), ("old", "text"), ("new", "text")]);
        for statement in [merge, upsert] {
            assert!(statement(&table, &[]).contains("\"new\""));
            let older = statement(&table, &[2]);
            assert!(older.contains("\"old\" = "), "{older}");
            assert!(!older.contains("\"new\""), "{older}");
        }
    }
}
