//! The statements that change a view, generated once from its table. No I/O.
//!
//! Every statement takes its rows as arrays of text, one per column, and lets PostgreSQL's own input
//! functions read them. Unqualified names are found through the connection's `search_path`: the schema
//! of the current generation.

use std::fmt::Write;

use crate::catalog::{SOURCE_EPOCH, SOURCE_LSN, Table};
use crate::upsert;

/// The statements of one view.
#[derive(Debug, Clone)]
pub struct Statements {
    /// Writes rows whose keys nobody else writes meanwhile.
    /// Parameters: one `text[]` per column, then epochs `int[]`, LSNs `bigint[]`.
    pub merge: String,
    /// The same whoever else writes; more work.
    pub upsert: String,
    /// Parameters: one `text[]` per key column, then epochs, LSNs. Returns how many were stale.
    pub delete: String,
    /// The same parameters. Removes rows up to the given positions, and those that were removed before at
    /// the position they show; remembers each. Affects as many rows as were removed.
    pub erase: String,
    /// Parameters: epoch, LSN. Removes what the TRUNCATE at that position removed.
    pub truncate: [String; 2],
    /// Keeps other writers out of the view until the transaction ends.
    pub lock: String,
    /// Before anything else where equal keys may come through several partitions: waits for the
    /// transaction of another writer.
    pub turn: Option<String>,
    /// Writes rows of new keys that nobody else writes meanwhile, before [`Self::merge`] writes the others.
    /// `None` where row security applies to us: COPY refuses such a table.
    pub copy: Option<CopyStatements>,
    table: Table,
}

/// Rows of new keys, in three steps.
#[derive(Debug, Clone)]
pub struct CopyStatements {
    /// Before we look: a TRUNCATE waits for us, or we for it and see its floor. A single statement that
    /// looks and writes holds the same lock from its beginning.
    pub hold: String,
    /// Parameters: one `text[]` per key column, then epochs, LSNs. Returns the numbers, from 1, of the
    /// input rows whose key has neither a row nor a later delete, in the order of the keys, and the time
    /// of the transaction.
    pub new_keys: String,
    /// COPY of all columns, epoch, LSN and, if `stamped`, the time.
    pub copy: String,
    pub stamped: bool,
}

impl Statements {
    pub fn new(table: &Table) -> Self {
        Self {
            merge: upsert::merge(table, &[]),
            upsert: upsert::upsert(table, &[]),
            delete: delete(table),
            erase: erase(table),
            truncate: truncate(table),
            lock: lock(table),
            turn: table.key_equality_is_loose().then(|| turn(table)),
            copy: copy(table),
            table: table.clone(),
        }
    }

    /// [`Self::merge`] that leaves columns out: a new row gets their default, an existing one keeps its
    /// values.
    pub fn merge_without(&self, omitted: &[usize]) -> String {
        upsert::merge(&self.table, omitted)
    }

    /// [`Self::upsert`] that leaves columns out.
    pub fn upsert_without(&self, omitted: &[usize]) -> String {
        upsert::upsert(&self.table, omitted)
    }

    /// An update of rows whose `kept` columns the source did not send. Parameters: one `text[]` per
    /// column not kept, then epochs, LSNs. Returns per input row: its number from 1, whether it was
    /// applied, and whether a newer state of its key is known.
    pub fn partial(&self, kept: &[usize]) -> String {
        upsert::partial(&self.table, kept)
    }
}

fn copy(table: &Table) -> Option<CopyStatements> {
    (!table.row_security).then(|| CopyStatements {
        hold: format!("lock table {} in row exclusive mode", quote(&table.name)),
        new_keys: upsert::new_keys(table),
        copy: upsert::copy(table),
        stamped: table.stamped,
    })
}

/// The number of an input row, under a name that no column of a view has.
pub(crate) const ROW: &str = "\"row of the batch\"";

/// Ends a subquery of `exists` that is to run for each row: PostgreSQL may read all its rows at once instead,
/// and does so by a plan that was made when there were none.
pub(crate) const ROW_BY_ROW: &str = "offset 0";

/// `"name"` with quotes doubled.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(crate) fn deleted_table(table: &Table) -> String {
    quote(&format!("{}_deleted", table.name))
}

pub(crate) fn names(table: &Table, columns: impl Iterator<Item = usize>) -> Vec<String> {
    columns.map(|column| quote(table.column_name(column))).collect()
}

/// `a.k1 = b.k1 and a.k2 = b.k2`: PostgreSQL's equality, which is looser than Rust's for some types.
pub(crate) fn key_equal(table: &Table, one: &str, other: &str) -> String {
    each_key(table, |_, key| format!("{one}.{key} = {other}.{key}"))
}

/// [`key_equal`] in a join that is to look the rows `one` of a view up from the rows `other`. For a plain `=`
/// PostgreSQL may as well begin with the view, in the order of its index, and does so by a plan that was
/// made when the statistics called the view empty. An array cannot be an element of another.
pub(crate) fn key_looked_up(table: &Table, one: &str, other: &str) -> String {
    let is_array = |column| table.column_type(column).is_some_and(|it| it.element.is_some());
    each_key(table, |column, key| {
        if is_array(column) {
            format!("{one}.{key} = {other}.{key}")
        } else {
            format!("{one}.{key} = any (array[{other}.{key}])")
        }
    })
}

/// Whether a row that PostgreSQL finds equal is the very one: nothing to ask where equal is identical. A
/// key that changes its spelling (`a` to `A` in a `citext`) is sent as delete and insert at one position,
/// through two partitions; the delete must not find the row that was inserted.
fn key_identical(table: &Table, one: &str, other: &str) -> String {
    if !table.key_equality_is_loose() {
        return "true".to_owned();
    }
    each_key(table, |_, key| format!("{one}.{key}::text = {other}.{key}::text"))
}

/// A condition on each key column, given its position and quoted name, joined by `and`.
pub(crate) fn each_key(table: &Table, condition: impl Fn(usize, &str) -> String) -> String {
    let conditions: Vec<_> = table
        .key_columns()
        .map(|column| condition(column, &quote(table.column_name(column))))
        .collect();
    conditions.join(" and ")
}

/// The input arrays as rows of the table's types, numbered by [`ROW`]. `unnest` of several arrays in `from` would
/// first write each into a store of its own. With keys that PostgreSQL may call
/// equal although their text differs, only the newest row of each key: `on conflict` must not meet one
/// twice.
pub(crate) fn input(table: &Table, columns: &[usize]) -> String {
    let width = columns.len();
    let mut inputs = String::new();
    let mut casts = String::new();
    for (index, &column) in columns.iter().enumerate() {
        put(&mut inputs, format_args!("unnest(${}::text[]) as c{index}, ", index + 1));
        let value = cast(table, column, &format!("u.c{index}"));
        put(&mut casts, format_args!("{value} as {}, ", quote(table.column_name(column))));
    }
    let keys = names(table, table.key_columns()).join(", ");
    let (distinct, order) = if table.key_equality_is_loose() {
        (
            format!("distinct on ({keys}) "),
            format!(" order by {keys}, u.{SOURCE_EPOCH} desc, u.{SOURCE_LSN} desc, u.{ROW} desc"),
        )
    } else {
        (String::new(), String::new())
    };
    format!(
        "select {distinct}{casts}u.{SOURCE_EPOCH}, u.{SOURCE_LSN}, u.{ROW} \
         from (select {inputs}unnest(${epochs}::int[]) as {SOURCE_EPOCH}, unnest(${lsns}::bigint[]) as {SOURCE_LSN}, \
         generate_series(1, cardinality(${lsns})::bigint) as {ROW}) as u{order}",
        epochs = width + 1,
        lsns = width + 2,
    )
}

/// The bare `bit` would mean `bit(1)`: an assignment checks the column's length instead.
fn cast(table: &Table, column: usize, value: &str) -> String {
    match table.column_type(column) {
        Some(target) if target.base == "bit" => format!("{value}::pg_catalog.varbit"),
        Some(target) => format!("{value}::{}", target.cast),
        None => value.to_owned(),
    }
}

/// Remembers the keys, then removes the rows. A key is remembered even when its row is not there: the
/// upsert it forbids may come later, from a replay.
fn delete(table: &Table) -> String {
    let keys: Vec<usize> = table.key_columns().collect();
    let key_names = names(table, keys.iter().copied()).join(", ");
    format!(
        "with gone as materialized ({input}), \
         remembered as (insert into {deleted} as d ({key_names}, {SOURCE_EPOCH}, {SOURCE_LSN}) \
         select {key_names}, {SOURCE_EPOCH}, {SOURCE_LSN} from gone order by {key_names} \
         on conflict ({key_names}) do update set {SOURCE_EPOCH} = excluded.{SOURCE_EPOCH}, \
         {SOURCE_LSN} = excluded.{SOURCE_LSN}, deleted_at = excluded.deleted_at \
         where (d.{SOURCE_EPOCH}, d.{SOURCE_LSN}) < (excluded.{SOURCE_EPOCH}, excluded.{SOURCE_LSN})), \
         removed as (delete from {table} t using gone g where {found} \
         and ((t.{SOURCE_EPOCH}, t.{SOURCE_LSN}) < (g.{SOURCE_EPOCH}, g.{SOURCE_LSN}) \
         or (t.{SOURCE_EPOCH}, t.{SOURCE_LSN}) = (g.{SOURCE_EPOCH}, g.{SOURCE_LSN}) and {identical})) \
         select count(*) from gone g join {table} t on {found} \
         where (t.{SOURCE_EPOCH}, t.{SOURCE_LSN}) > (g.{SOURCE_EPOCH}, g.{SOURCE_LSN})",
        input = input(table, &keys),
        deleted = deleted_table(table),
        table = quote(&table.name),
        found = key_looked_up(table, "t", "g"),
        identical = key_identical(table, "t", "g"),
    )
}

/// The deleted-key memory keeps the position the row showed. What the connector sends again at that
/// position holds again; what a replay brings back at that position, the replayed tombstone removes.
fn erase(table: &Table) -> String {
    let keys: Vec<usize> = table.key_columns().collect();
    let key_names = names(table, keys.iter().copied());
    let removed: Vec<_> = key_names.iter().map(|key| format!("t.{key}")).collect();
    let key_names = key_names.join(", ");
    format!(
        "with gone as materialized ({input}), \
         removed as (delete from {table} t using gone g where {found} and {identical} \
         and ((t.{SOURCE_EPOCH}, t.{SOURCE_LSN}) <= (g.{SOURCE_EPOCH}, g.{SOURCE_LSN}) \
         or exists (select from {deleted} d where {remembered_key} \
         and (d.{SOURCE_EPOCH}, d.{SOURCE_LSN}) = (t.{SOURCE_EPOCH}, t.{SOURCE_LSN}) {ROW_BY_ROW})) \
         returning {removed}, t.{SOURCE_EPOCH}, t.{SOURCE_LSN}) \
         insert into {deleted} as d ({key_names}, {SOURCE_EPOCH}, {SOURCE_LSN}) \
         select {key_names}, {SOURCE_EPOCH}, {SOURCE_LSN} from removed order by {key_names} \
         on conflict ({key_names}) do update set {SOURCE_EPOCH} = excluded.{SOURCE_EPOCH}, \
         {SOURCE_LSN} = excluded.{SOURCE_LSN}, deleted_at = excluded.deleted_at",
        input = input(table, &keys),
        table = quote(&table.name),
        found = key_looked_up(table, "t", "g"),
        identical = key_identical(table, "t", "g"),
        removed = removed.join(", "),
        remembered_key = key_equal(table, "d", "t"),
        deleted = deleted_table(table),
    )
}

/// Waits for the writers that are inside, before the TRUNCATE looks for rows: a row they add while it
/// runs, it would not see, nor they its floor. Readers are not disturbed.
fn lock(table: &Table) -> String {
    format!("lock table {} in share row exclusive mode", quote(&table.name))
}

/// Writers of a view whose equal keys may be spelled differently take turns, since no partition owns such
/// a key: two at once would not see each other's changes, and wait for each other's rows in a circle. Not
/// a lock on the table, which would keep the autovacuum away.
fn turn(table: &Table) -> String {
    let view = literal(&quote(&table.name));
    format!("select pg_advisory_xact_lock({TURN}, {view}::regclass::oid::bigint::bit(32)::integer)")
}

/// Tells our advisory locks from those of other programs in the database.
const TURN: i32 = 0x0063_6463;

/// First the floor, then the rows below it. A row above it was written after the TRUNCATE.
fn truncate(table: &Table) -> [String; 2] {
    let floor = format!(
        "insert into cdc_floor as f (view_name, {SOURCE_EPOCH}, {SOURCE_LSN}) \
         values ({view}, $1, $2) on conflict (view_name) do update \
         set {SOURCE_EPOCH} = excluded.{SOURCE_EPOCH}, {SOURCE_LSN} = excluded.{SOURCE_LSN} \
         where (f.{SOURCE_EPOCH}, f.{SOURCE_LSN}) < (excluded.{SOURCE_EPOCH}, excluded.{SOURCE_LSN})",
        view = literal(&table.name)
    );
    let rows = format!(
        "delete from {table} where ({SOURCE_EPOCH}, {SOURCE_LSN}) < ($1, $2)",
        table = quote(&table.name)
    );
    [floor, rows]
}

/// Forgets keys deleted more than `$1` seconds ago, at most `$2` of them. One that a batch is just deleting
/// again is left alone: waiting for it here, in the table's order, could be waiting in a circle.
pub fn prune(table: &Table) -> String {
    let deleted = deleted_table(table);
    format!(
        "delete from {deleted} where ctid = any (array(select ctid from {deleted} \
         where deleted_at < now() - make_interval(secs => $1) limit $2 for update skip locked))"
    )
}

pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn put(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("writing to a string cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_quoted_and_keys_compared_by_postgresql() {
        let table =
            Table::sample("Odd \" table", 2, &[("a", "int8"), ("B\"", "text"), ("v", "text")]);
        let statements = Statements::new(&table);
        assert!(statements.merge.starts_with("merge into \"Odd \"\" table\" as t using"));
        assert!(statements.merge.contains("then insert (\"a\", \"B\"\"\""));
        let found = "t.\"a\" = any (array[g.\"a\"]) and t.\"B\"\"\" = any (array[g.\"B\"\"\"])";
        assert!(statements.delete.contains(found), "{}", statements.delete);
    }

    #[test]
    fn a_column_may_have_any_short_name() {
        let columns = [("k", "citext"), ("n", "int8"), ("t", "text"), ("u", "text")];
        let statements = Statements::new(&Table::sample("s", 1, &columns));
        assert!(!statements.merge.contains(".n") && !statements.partial(&[2]).contains(".n "));
        assert!(statements.partial(&[2]).contains("select s.\"row of the batch\", "));
    }

    #[test]
    fn keys_with_loose_equality_are_folded_by_postgresql() {
        let strict = Statements::new(&Table::sample("t", 1, &[("k", "int8"), ("v", "text")]));
        let loose = Statements::new(&Table::sample("t", 1, &[("k", "citext"), ("v", "text")]));
        assert!(!strict.merge.contains("distinct on"));
        assert!(loose.merge.contains("distinct on (\"k\")"));
        assert!(loose.delete.contains("distinct on (\"k\")"));
    }
}
