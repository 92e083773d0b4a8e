//! The database everybody writes to: a table of the same shape for each, and the source's rows to
//! compare them with.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use devstack::addresses::{HOST, POSTGRES_PORT, admin_url};
use futures_util::TryStreamExt;
use migrate::{Generation, Passwords};
use serde::Serialize;
use sqlx::{PgConnection, Row};

use crate::figures::float;
use crate::jdbc;
use crate::servers::{admin, execute};
use crate::source::{self, Filled};

pub(crate) const DATABASE: &str = "bench_views";
/// How often it is looked whether everything is visible.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The changes that led to the rows of a table: a row begins with version 1, and each update raises it.
/// Those of deleted rows are missing, now as at the end.
const CHANGES: &str = "coalesce(sum(version), 0)::bigint";
/// What the triggers of `user_view` keep, by its definition.
const WRONG_COUNTS: &str = "select count(*)
    from department_stats as s
    full join department_stats_definition as d on d.department = s.department
    where (s.user_count, s.active_count) is distinct from (d.user_count, d.active_count)";
/// Rows that an error message shows.
const SAMPLES: usize = 3;

/// A table that somebody keeps equal to the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    /// A view of the consumer with nothing but its primary key.
    Bare,
    /// The reference system's `user_view`: an index, and counts per department kept by triggers.
    UserView,
    /// The JDBC sink's: the source's own columns and the primary key.
    Sink,
    /// Equal to the bare one, filled by COPY.
    Copy,
}

impl Table {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "views_1.bench_bare",
            Self::UserView => "views_1.user_view",
            Self::Sink => "public.bench_sink",
            Self::Copy => "public.bench_copy",
        }
    }

    /// What the source's `id` is called here.
    fn key(self) -> &'static str {
        if self == Self::UserView { "user_id" } else { "id" }
    }

    /// The views file that has the consumer keep it.
    pub(crate) fn declaration(self, topic: &str) -> String {
        let (_, table) = self.name().split_once('.').expect("the names above have a schema");
        let key = self.key();
        format!("[[view]]\ntopic = '{topic}'\ntable = '{table}'\nkey = {{ id = '{key}' }}\n")
    }
}

/// How the rows of a table differ from the source's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Difference {
    pub(crate) rows: u64,
    pub(crate) missing: u64,
    pub(crate) surplus: u64,
    pub(crate) different: u64,
    /// Departments whose counts, kept beside the rows, are not what counting the rows gives.
    pub(crate) wrong_counts: u64,
    /// Some of them: key, then the source's row and the table's.
    pub(crate) samples: Vec<String>,
}

impl Difference {
    pub(crate) fn none(&self) -> bool {
        self.missing + self.surplus + self.different + self.wrong_counts == 0
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.none() {
            return write!(f, "all {} rows equal", self.rows);
        }
        let Self { rows, missing, surplus, different, wrong_counts, samples } = self;
        write!(
            f,
            "{rows} rows: {missing} missing, {surplus} too many, {different} different; {wrong_counts} \
             counts wrong"
        )?;
        samples.iter().try_for_each(|sample| write!(f, "\n    {sample}"))
    }
}

/// The target database, made anew for one filled topic.
pub(crate) struct Target {
    pub(crate) filled: Filled,
}

impl Target {
    pub(crate) async fn create(filled: &Filled) -> anyhow::Result<Self> {
        let mut server = admin("postgres").await?;
        execute(&mut server, &format!("drop database if exists {DATABASE} with (force)")).await?;
        let url = admin_url(DATABASE);
        let first = Generation::new(1).context("1 is a generation")?;
        migrate::posts(&url, &Passwords::development()).await?;
        migrate::views(&url, first).await?;
        let mut db = admin(DATABASE).await?;
        let columns = filled.plan.definitions();
        let stamp = "last_processed_at timestamptz not null default now()";
        let sql = format!(
            "set search_path to views_1, public;
             create table bench_bare ({nullable}, {stamp}) with (fillfactor = 85);
             call cdc_view('bench_bare');
             grant select, insert, update, delete, truncate on bench_bare, bench_bare_deleted
                 to cdc_consumer;
             create table public.bench_sink ({columns}) with (fillfactor = 85);
             grant select, insert, update, delete, truncate on public.bench_sink to bench_sink;
             grant connect on database bench_views to bench_sink;
             grant usage on schema public to bench_sink;
             create table public.bench_copy (like bench_bare including all);
             create table public.expected ({columns})",
            // A view has no rules of its own beyond the key.
            nullable = columns.replace(" not null", ""),
        );
        jdbc::create_role(&mut db).await?;
        execute(&mut db, &sql).await?;
        let mut target = Self { filled: filled.clone() };
        target.expect(filled).await?;
        Ok(target)
    }

    /// Takes the source's rows of this moment for those everybody should have.
    pub(crate) async fn expect(&mut self, filled: &Filled) -> anyhow::Result<()> {
        let mut db = admin(DATABASE).await?;
        execute(&mut db, "truncate public.expected").await?;
        copy(&filled.table, &mut db).await?;
        execute(&mut db, "vacuum analyze public.expected").await?;
        self.filled = filled.clone();
        Ok(())
    }

    pub(crate) async fn db(&self) -> anyhow::Result<PgConnection> {
        let mut db = admin(DATABASE).await?;
        execute(&mut db, "set search_path to views_1, public; set timezone to 'UTC'").await?;
        Ok(db)
    }

    /// Empties every table and what is known of offsets, and lets the server write everything out:
    /// each contestant begins with the same.
    pub(crate) async fn reset(&self) -> anyhow::Result<()> {
        let mut db = self.db().await?;
        execute(
            &mut db,
            "truncate bench_bare, bench_bare_deleted, user_view, user_view_deleted, cdc_offset,
                 cdc_floor, cdc_dead_letter, cdc_snapshot, department_stats_slot,
                 public.bench_sink, public.bench_copy",
        )
        .await?;
        execute(&mut db, "checkpoint").await
    }

    /// Waits until the table has a row, then until it has those that were made last. Calls `look`
    /// now and then, which may find a reason to give up.
    pub(crate) async fn wait_until_complete<L>(
        &self,
        table: Table,
        mut look: impl FnMut() -> L,
    ) -> anyhow::Result<Times>
    where
        L: Future<Output = anyhow::Result<()>>,
    {
        let started = std::time::Instant::now();
        let mut db = self.db().await?;
        let (name, key) = (table.name(), table.key());
        let changes: Arc<str> = format!("select {CHANGES} from {name}").into();
        let last: Arc<str> = format!("select count(*) from {name} where {key} = any ($1)").into();
        let keys = &self.filled.last_keys;
        let mut first = None;
        for round in 0_u64.. {
            if first.is_none() {
                let looked = started.elapsed();
                let found: i64 = sqlx::query_scalar(&changes).fetch_one(&mut db).await?;
                first = (found > 0).then_some((looked, found.unsigned_abs()));
            }
            if let Some((first_row, first_changes)) = first {
                let query = sqlx::query_scalar(&last).bind(keys);
                let found: i64 = query.fetch_one(&mut db).await?;
                if usize::try_from(found) == Ok(keys.len()) {
                    let last_row = started.elapsed();
                    let all = format!("select {CHANGES} from public.expected");
                    let all: i64 = sqlx::query_scalar(&all).fetch_one(&mut db).await?;
                    let first_share = float(first_changes) / float(all.unsigned_abs().max(1));
                    return Ok(Times { first_row, first_share, last_row });
                }
            }
            if round.is_multiple_of(50) {
                look().await?;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        unreachable!("the loop only ends with a result")
    }

    /// Compares a table with the source, row for row.
    pub(crate) async fn compare(&self, table: Table) -> anyhow::Result<Difference> {
        let mut db = self.db().await?;
        let key = table.key();
        let columns = self.filled.plan.columns();
        let values = |row: &str| {
            let names = columns.iter().skip(1).map(|column| format!("{row}.{column}"));
            names.collect::<Vec<_>>().join(", ")
        };
        let (expected, found) = (values("e"), values("t"));
        let joined = format!(
            "from public.expected e full join {table} t on t.{key} = e.id",
            table = table.name()
        );
        let differs = format!("({expected}) is distinct from ({found})");
        let sql = format!(
            "select count(t.{key}), count(*) filter (where t.{key} is null),
                 count(*) filter (where e.id is null),
                 count(*) filter (where e.id is not null and t.{key} is not null and {differs})
             {joined}"
        );
        execute(&mut db, "set work_mem to '128MB'").await?;
        let counts = sqlx::query(&sql).fetch_one(&mut db).await?;
        let count = |index| counts.try_get::<i64, _>(index).map(i64::unsigned_abs);
        let mut difference = Difference {
            rows: count(0)?,
            missing: count(1)?,
            surplus: count(2)?,
            different: count(3)?,
            wrong_counts: 0,
            samples: Vec::new(),
        };
        if table == Table::UserView {
            let wrong: i64 = sqlx::query_scalar(WRONG_COUNTS).fetch_one(&mut db).await?;
            difference.wrong_counts = wrong.unsigned_abs();
        }
        if !difference.none() {
            let sql = format!(
                "select format('source %s; table %s',
                     case when e.id is null then 'none' else row(e.id, {expected})::text end,
                     case when t.{key} is null then 'none' else row(t.{key}, {found})::text end)
                 {joined} where e.id is null or t.{key} is null or {differs} limit {SAMPLES}"
            );
            difference.samples = sqlx::query_scalar(&sql).fetch_all(&mut db).await?;
        }
        Ok(difference)
    }

    /// Bytes the server has written to its log so far.
    pub(crate) async fn wal_bytes(&self) -> anyhow::Result<u64> {
        let mut db = self.db().await?;
        let sql = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint";
        let bytes: i64 = sqlx::query_scalar(sql).fetch_one(&mut db).await?;
        Ok(bytes.unsigned_abs())
    }
}

/// When, after the start, the table had its first rows, and when it had its last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) first_row: Duration,
    /// Of all changes, those that had led to the first rows.
    pub(crate) first_share: f64,
    pub(crate) last_row: Duration,
}

/// The address of the target for a role whose password is its name.
pub(crate) fn url(role: &str) -> String {
    format!("postgres://{role}:{role}@{HOST}:{POSTGRES_PORT}/{DATABASE}?sslmode=disable")
}

/// The source's final rows, byte for byte.
async fn copy(table: &str, to: &mut PgConnection) -> anyhow::Result<()> {
    let mut from = admin(source::DATABASE).await?;
    let out = format!("copy {table} to stdout (format binary)");
    let mut data = from.copy_out_raw(&out).await?;
    let mut writer = to.copy_in_raw("copy public.expected from stdin (format binary)").await?;
    while let Some(chunk) = data.try_next().await? {
        writer.send(chunk).await?;
    }
    writer.finish().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_wrong_with_a_table_is_a_difference() {
        assert!(Difference { rows: 7, ..Difference::default() }.none());
        for (wrong, text) in [
            (Difference { missing: 1, ..Difference::default() }, "1 missing"),
            (Difference { surplus: 2, ..Difference::default() }, "2 too many"),
            (Difference { different: 3, ..Difference::default() }, "3 different"),
            (Difference { wrong_counts: 4, ..Difference::default() }, "4 counts wrong"),
        ] {
            assert!(!wrong.none() && wrong.to_string().contains(text), "{wrong}");
        }
    }
}
