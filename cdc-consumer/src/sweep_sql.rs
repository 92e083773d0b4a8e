//! The statements that sweep rows a snapshot did not mention; `sql.rs` has the others. No I/O.

use crate::catalog::{SOURCE_EPOCH, SOURCE_LSN, Table};
use crate::sql::{deleted_table, each_key, literal, names, quote};

/// How many pages a view's table has, or the largest of its partitions: tuple ids are those of each.
pub(crate) fn pages(table: &Table) -> String {
    let table = literal(&quote(&table.name));
    format!(
        "select coalesce(max(pg_relation_size(relid)), pg_relation_size({table}::regclass)) \
         / current_setting('block_size')::bigint \
         from pg_partition_tree({table}::regclass)"
    )
}

/// Removes rows below LSN `$3` or epoch `$4` between the tuple ids `$1` and `$2`, and counts them. A key with a
/// dead letter behind the beginning of the snapshot keeps its last good state: the row that mentions it is
/// that letter, or waits behind it.
pub(crate) fn sweep(table: &Table) -> String {
    let keys = names(table, table.key_columns()).into_iter().map(|key| format!("t.{key}"));
    let rows = format!(
        "from {name} t where t.ctid >= $1::text::tid and t.ctid < $2::text::tid \
         and (t.{SOURCE_LSN} < $3 or t.{SOURCE_EPOCH} < $4) \
         and not exists (select {letters} and l.key_text = {key_text})",
        name = quote(&table.name),
        letters = letters_behind(table, "$3"),
        key_text = key_text(&keys.collect::<Vec<_>>()),
    );
    swept(table, &rows)
}

/// Whether dead letters behind the beginning of the snapshot at LSN `$1` may be about any row: those whose key
/// could not be read, and all where PostgreSQL may spell a key otherwise than its record.
pub(crate) fn held(table: &Table) -> String {
    format!(
        "select exists (select {letters} and {unknown})",
        letters = letters_behind(table, "$1"),
        unknown = if key_text_is_known(table) { "l.key_text is null" } else { "true" },
    )
}

/// `from` dead letters `l` of a view whose records lie behind the beginning of the snapshot at this LSN.
fn letters_behind(table: &Table, lsn: &str) -> String {
    let view = literal(&table.name);
    format!("from cdc_dead_letter l {} and l.view_name = {view}", behind(lsn))
}

/// Leaves of the records `l` (`topic`, `partition`, `record_offset`) those behind the beginning of the snapshot at this
/// LSN.
pub(crate) fn behind(lsn: &str) -> String {
    format!(
        "join cdc_offset o on o.topic = l.topic and o.partition = l.partition \
         cross join lateral jsonb_each_text(o.source_snapshots) as s (first_offset, lsn) \
         where s.lsn::bigint = {lsn} and s.first_offset::bigint <= l.record_offset"
    )
}

/// Removes rows that were swept from the view in the schema `old` and that it does not show, and counts them.
/// What came again since stands above the place where it was removed, or in a later life of the source, at
/// whatever LSN. The same change may stand in an earlier one: a compacted topic tells of fewer lives, never
/// of more.
pub(crate) fn sweep_again(table: &Table, old: &str) -> String {
    let rows = format!(
        "from {table} t using {old}.{deleted} d \
         where {swept_there} and d.deleted_at = 'infinity' \
         and t.{SOURCE_LSN} < d.{SOURCE_LSN} and t.{SOURCE_EPOCH} <= d.{SOURCE_EPOCH} \
         and not exists (select from {old}.{table} o where {shown})",
        table = quote(&table.name),
        deleted = deleted_table(table),
        swept_there = same_key(table, "t", "d"),
        shown = same_key(table, "o", "t"),
    );
    swept(table, &rows)
}

/// [`crate::sql::key_equal`] of rows in two generations: each has its own enums, and nothing compares those.
pub(crate) fn same_key(table: &Table, one: &str, other: &str) -> String {
    each_key(table, |column, key| {
        let enumeration = table.column_type(column).is_some_and(|key| {
            key.enumeration || key.element.as_ref().is_some_and(|element| element.enumeration)
        });
        let as_text = if enumeration { "::text" } else { "" };
        format!("{one}.{key}{as_text} = {other}.{key}{as_text}")
    })
}

/// Deletes `rows`, `from` the view as `t`, and counts them. Their keys are remembered for ever, since no record
/// of the topic deletes them: just above the position of the row, where no change stands.
fn swept(table: &Table, rows: &str) -> String {
    let keys = names(table, table.key_columns());
    let removed: Vec<_> = keys.iter().map(|key| format!("t.{key}")).collect();
    format!(
        "with gone as (delete {rows} returning {removed}, t.{SOURCE_EPOCH}, t.{SOURCE_LSN}), \
         remembered as (insert into {deleted} as d ({keys}, {SOURCE_EPOCH}, {SOURCE_LSN}, deleted_at) \
         select {keys}, {SOURCE_EPOCH}, {SOURCE_LSN} + 1, 'infinity' from gone order by {keys} \
         on conflict ({keys}) do update set {SOURCE_EPOCH} = excluded.{SOURCE_EPOCH}, \
         {SOURCE_LSN} = excluded.{SOURCE_LSN}, deleted_at = excluded.deleted_at \
         where (d.{SOURCE_EPOCH}, d.{SOURCE_LSN}) < (excluded.{SOURCE_EPOCH}, excluded.{SOURCE_LSN})) \
         select count(*) from gone",
        removed = removed.join(", "),
        deleted = deleted_table(table),
        keys = keys.join(", "),
    )
}

/// What [`crate::fold::ViewBatch::key_text`] makes of key columns whose text is PostgreSQL's own. Text of columns
/// with different collations has none to be compared by.
fn key_text(columns: &[String]) -> String {
    let text = match columns {
        [only] => format!("{only}::text"),
        several => {
            let part = |column| format!("octet_length({column}::text) || ':' || {column}::text");
            several.iter().map(part).collect::<Vec<_>>().join(" || '|' || ")
        }
    };
    format!("({text}) collate \"default\"")
}

/// Whether PostgreSQL prints each key as its record spells it: not `true` for `t`, nor `1.50` for `1.5`.
fn key_text_is_known(table: &Table) -> bool {
    let known = ["int2", "int4", "int8", "text", "varchar"];
    let mut types = table.key_columns().filter_map(|column| table.column_type(column));
    types.all(|key| key.enumeration || known.contains(&key.base.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_name_their_rows_only_where_postgresql_spells_keys_as_they_do() {
        let unknown = |keys: &[(&str, &str)]| {
            let held = held(&Table::sample("t", keys.len(), keys));
            !held.ends_with(" and l.key_text is null)")
        };
        assert!(!unknown(&[("a", "int8")]));
        assert!(!unknown(&[("a", "text"), ("b", "int4")]));
        for otherwise in ["bool", "bpchar", "citext", "numeric", "timestamptz", "inet", "float8"] {
            assert!(unknown(&[("a", "int8"), ("b", otherwise)]), "{otherwise}");
        }
    }
}
