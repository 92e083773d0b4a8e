//! The view database of a world, seen with the superuser's eyes.

use serde_json::Value as Json;
use sqlx::{Connection, PgConnection};

use super::{SOON, World, wait_until};

/// Columns that say when and from where a row came, not what it shows.
const ABOUT_ROWS: &str = "- 'source_epoch' - 'source_lsn' - 'last_processed_at'";

impl World {
    /// A superuser's connection that finds the first generation's tables.
    pub(crate) async fn db(&self) -> PgConnection {
        let mut db = PgConnection::connect(&self.admin_url()).await.expect("the test's database");
        let sql = "set search_path to views_1, public; set timezone to 'UTC'";
        sqlx::raw_sql(sql).execute(&mut db).await.expect("settings");
        db
    }

    pub(crate) async fn sql(&self, sql: &str) {
        let done = sqlx::raw_sql(sql).execute(&mut self.db().await).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// A connection that holds in a transaction what this locks or writes.
    pub(crate) async fn holding(&self, sql: &str) -> PgConnection {
        let mut db = self.db().await;
        let held = sqlx::raw_sql(&format!("begin; {sql}")).execute(&mut db).await;
        held.unwrap_or_else(|error| panic!("{sql}: {error}"));
        db
    }

    /// One value as text.
    pub(crate) async fn text(&self, sql: &str) -> String {
        let sql = format!("select coalesce(({sql})::text, 'null')");
        let mut db = self.db().await;
        let read = sqlx::query_scalar(&sql).fetch_one(&mut db);
        read.await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// One column of text.
    pub(crate) async fn lines(&self, sql: &str) -> Vec<String> {
        let mut db = self.db().await;
        let read = sqlx::query_scalar(sql).fetch_all(&mut db);
        read.await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Ends the consumers' connections.
    pub(crate) async fn end_sessions(&self) {
        self.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and usename = 'cdc_consumer'",
        )
        .await;
    }

    /// Waits until a session of the consumer's role does something that `condition` (on `pg_stat_activity`)
    /// describes.
    pub(crate) async fn session_shows(&self, condition: &str) {
        wait_until(condition, SOON, || async {
            let sessions = self
                .lines(&format!(
                    "select format('%s/%s %s', state, wait_event, left(query, 60))
                     from pg_stat_activity
                     where datname = current_database() and usename = 'cdc_consumer' and {condition}"
                ))
                .await;
            if sessions.is_empty() { Err("no such session".to_owned()) } else { Ok(()) }
        })
        .await;
    }

    /// A table for changes, as a migration of views would make it. Ends with the rights of the consumer.
    pub(crate) async fn view(&self, create: &str, table: &str) {
        let mut db = self.db().await;
        let quoted = format!("'{}'::regclass", table.replace('\'', "''"));
        let sql = format!(
            "{create}; call cdc_view({quoted});
             grant select, insert, update, delete on all tables in schema views_1 to cdc_consumer;
             grant usage on all sequences in schema views_1 to cdc_consumer"
        );
        for statement in sql.split("; ").map(str::trim) {
            let done = sqlx::raw_sql(statement).execute(&mut db).await;
            done.unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
    }

    /// How the table differs from these rows; PostgreSQL compares, after reading the expected rows as
    /// rows of the table.
    pub(crate) async fn difference(&self, table: &str, rows: &[Json]) -> Result<(), String> {
        let sql = format!(
            "with expected as (
                 select to_jsonb(r) {ABOUT_ROWS} as shown
                 from jsonb_array_elements($1::jsonb) e, jsonb_populate_record(null::{table}, e) r
             ), actual as (select to_jsonb(t) {ABOUT_ROWS} as shown from {table} t)
             (select 'missing: ' || m.shown::text
              from (select * from expected except all select * from actual) m limit 3)
             union all
             (select 'unexpected: ' || u.shown::text
              from (select * from actual except all select * from expected) u limit 3)"
        );
        let expected = Json::Array(rows.to_vec()).to_string();
        let mut db = self.db().await;
        let read = sqlx::query_scalar(&sql).bind(expected).fetch_all(&mut db);
        let lines: Vec<String> = read.await.unwrap_or_else(|error| panic!("{table}: {error}"));
        if lines.is_empty() { Ok(()) } else { Err(lines.join("\n")) }
    }

    /// Waits until the table shows exactly these rows.
    pub(crate) async fn shows(&self, table: &str, rows: &[Json]) {
        let what = format!("{table} to equal its source");
        wait_until(&what, SOON * 2, || self.difference(table, rows)).await;
    }

    /// Waits until everything in these partitions is applied: the stored offsets stand at the log's end.
    pub(crate) async fn drained(&self, topic: &str, partitions: i32) {
        for partition in 0..partitions {
            let (_, end) = self.watermarks(topic, partition).await;
            let what = format!("{topic}-{partition} to be applied up to {end}");
            wait_until(&what, SOON * 2, || async move {
                let stored = self.next_offset(topic, partition).await;
                if stored == end.to_string() { Ok(()) } else { Err(stored) }
            })
            .await;
        }
    }

    pub(crate) async fn next_offset(&self, topic: &str, partition: i32) -> String {
        self.text(&format!(
            "select next_offset from cdc_offset where topic = '{topic}' and partition = {partition}"
        ))
        .await
    }

    /// Dead letters as `reason key: error`, oldest first.
    pub(crate) async fn dead_letters(&self) -> Vec<String> {
        self.lines(
            "select reason || ' ' || coalesce(key_text, '?') || ': ' || error
             from cdc_dead_letter order by topic, partition, record_offset",
        )
        .await
    }

    /// The derived view equals the query that defines it, whatever the path to here.
    pub(crate) async fn counts_are_right(&self) {
        let wrong = self
            .lines(
                "select format('%s: %s/%s, by definition %s/%s', department, s.user_count,
                     s.active_count, d.user_count, d.active_count)
                 from department_stats s full join department_stats_definition d using (department)
                 where (s.user_count, s.active_count) is distinct from (d.user_count, d.active_count)",
            )
            .await;
        assert!(wrong.is_empty(), "department_stats: {wrong:?}");
    }

    /// Records every change of a row of `user_view` from now on; see [`Self::never_went_back`].
    pub(crate) async fn audit(&self) {
        self.sql(
            "create table audit (id bigint generated always as identity, op text, user_id bigint,
                 old_epoch int, old_lsn bigint, new_epoch int, new_lsn bigint);
             create function audit() returns trigger language plpgsql security definer
             set search_path from current as $$ begin
                 -- What a delete forbids to come back is remembered before its row goes. A row removed by
                 -- hand has only its own position.
                 insert into audit (op, user_id, old_epoch, old_lsn, new_epoch, new_lsn)
                 select tg_op, coalesce(new.user_id, old.user_id),
                     coalesce(d.source_epoch, old.source_epoch), coalesce(d.source_lsn, old.source_lsn),
                     new.source_epoch, new.source_lsn
                 from (select) as change left join user_view_deleted d on tg_op = 'DELETE'
                     and d.user_id = old.user_id
                     and (d.source_epoch, d.source_lsn) > (old.source_epoch, old.source_lsn);
                 return null;
             end $$;
             create trigger audit after insert or update or delete on user_view
             for each row execute function audit()",
        )
        .await;
    }

    /// No row went to an older state since [`Self::audit`], and no deleted row came back with one.
    pub(crate) async fn never_went_back(&self) {
        let wrong = self.went_back().await;
        assert!(wrong.is_empty(), "rows went back: {wrong:?}");
    }

    /// What [`Self::never_went_back`] is to find.
    pub(crate) async fn went_back(&self) -> Vec<String> {
        self.lines(
            "select a::text from (
                     select *, max((coalesce(new_epoch, old_epoch)::text || '/'
                         || lpad(coalesce(new_lsn, old_lsn)::text, 20, '0')))
                         over (partition by user_id order by id
                               rows between unbounded preceding and 1 preceding) as before
                     from audit) a
                 where new_epoch::text || '/' || lpad(new_lsn::text, 20, '0') < before
                     or (new_epoch, new_lsn) < (old_epoch, old_lsn) limit 5",
        )
        .await
    }
}
