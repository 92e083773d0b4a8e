//! The migrations, run against a real server on databases of their own.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::time::Duration;

use migrate::{
    Generation, MigrateError, Passwords, current_generation, drop_generation, generations, posts,
    publish, publish_after, users, views,
};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(30);

/// How many sessions of the database wait for a lock.
const WAITING: &str = "select count(*)::text from pg_locks where not granted
    and database = (select oid from pg_database where datname = current_database())";

/// A database that does not exist yet, on the server `POST_DATABASE_ADMIN_URL` names.
struct Fresh {
    server: String,
    name: String,
}

impl Fresh {
    #[expect(clippy::disallowed_methods, reason = "tests take the server's address from outside")]
    fn new() -> Self {
        let url = std::env::var("POST_DATABASE_ADMIN_URL")
            .expect("POST_DATABASE_ADMIN_URL names a superuser's database");
        let (server, _) = url.rsplit_once('/').expect("the url ends in a database");
        Self { server: server.to_owned(), name: format!("migrate_{}", Uuid::new_v4().simple()) }
    }

    fn url(&self) -> String {
        format!("{}/{}", self.server, self.name)
    }

    fn url_as(&self, role: &str) -> String {
        let host = self.server.rsplit('@').next().unwrap();
        format!("postgres://{role}:{role}@{host}/{}", self.name)
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.unwrap()
    }

    async fn drop(self) {
        let mut db = PgConnection::connect(&format!("{}/postgres", self.server)).await.unwrap();
        run(&mut db, &format!("drop database if exists {} with (force)", self.name)).await;
    }
}

async fn run(db: &mut PgConnection, sql: &str) {
    attempt(db, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn attempt(db: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(sql).execute(db).await.map(drop)
}

async fn text(db: &mut PgConnection, sql: &str) -> String {
    sqlx::query_scalar(sql).fetch_one(db).await.unwrap()
}

fn generation(number: i32) -> Generation {
    Generation::new(number).unwrap()
}

async fn post_database() -> Fresh {
    let fresh = Fresh::new();
    posts(&fresh.url(), &Passwords::development()).await.unwrap();
    views(&fresh.url(), Generation::FIRST).await.unwrap();
    fresh
}

#[tokio::test]
async fn several_migrations_at_once_and_again_end_in_the_same_database() {
    let fresh = Fresh::new();
    let all = || async {
        posts(&fresh.url(), &Passwords::development()).await?;
        views(&fresh.url(), Generation::FIRST).await
    };
    tokio::try_join!(all(), all(), all()).unwrap();
    all().await.unwrap();
    assert_eq!(current_generation(&fresh.url()).await.unwrap(), Some(Generation::FIRST));
    let mut db = fresh.connect().await;
    let owners = "select string_agg(distinct tableowner, ',') from pg_tables
        where schemaname in ('public', 'views_1')";
    assert_eq!(text(&mut db, owners).await, "migrator");
    fresh.drop().await;
}

#[tokio::test]
async fn a_row_written_in_the_generation_is_seen_and_deletable_through_the_thin_view() {
    let fresh = post_database().await;
    let mut consumer = PgConnection::connect(&fresh.url_as("cdc_consumer")).await.unwrap();
    let insert = "insert into views_1.user_view (user_id, name, department, status)
        values (1, '홍길동', '개발팀', 'ACTIVE'), (2, '장웅', '개발팀', 'INACTIVE')";
    run(&mut consumer, insert).await;
    run(&mut consumer, "create temporary table staging (id bigint)").await;

    let mut reader = PgConnection::connect(&fresh.url_as("post_api")).await.unwrap();
    let stats = "select department || user_count || '/' || active_count from department_stats";
    assert_eq!(text(&mut reader, stats).await, "개발팀2/1");
    assert_eq!(text(&mut reader, "select name from user_view where user_id = 1").await, "홍길동");

    let mut operator = fresh.connect().await;
    run(&mut operator, "delete from user_view where user_id = 1").await;
    assert_eq!(text(&mut reader, stats).await, "개발팀1/0");
    fresh.drop().await;
}

#[tokio::test]
async fn a_role_can_do_its_own_work_and_no_other() {
    let fresh = post_database().await;
    assert!(PgConnection::connect(&fresh.url_as("user_api")).await.is_err());
    for (role, statement) in [
        ("post_api", "insert into views_1.user_view (user_id) values (1)"),
        ("post_api", "select * from views_1.user_view"),
        ("post_api", "insert into user_view (user_id) values (1)"),
        ("post_api", "create table mine (id int)"),
        ("post_api", "update cdc_generation set current = 2"),
        ("cdc_consumer", "select * from posts"),
        ("cdc_consumer", "create table views_1.mine (id int)"),
        ("cdc_consumer", "select * from views_1._sqlx_migrations"),
        ("debezium", "delete from posts"),
        ("debezium", "update cdc_heartbeat set beaten_at = now()"),
        ("debezium", "select * from user_view"),
    ] {
        let mut db = PgConnection::connect(&fresh.url_as(role)).await.unwrap();
        let error = attempt(&mut db, statement).await.unwrap_err();
        let code = error.as_database_error().and_then(|error| error.code().map(String::from));
        assert_eq!(code.as_deref(), Some("42501"), "{role}: {statement}: {error}");
    }
    for (role, statement) in [
        ("post_api", "insert into posts (title, content, author_id) values ('t', 'c', 1)"),
        ("post_api", "select * from department_stats, post_view, cdc_generation"),
        ("cdc_consumer", "select * from cdc_generation"),
        ("debezium", "select * from posts"),
        ("debezium", "select * from cdc_heartbeat"),
        (
            "post_api",
            "insert into cdc_heartbeat values (1, now())
             on conflict (id) do update set beaten_at = excluded.beaten_at",
        ),
    ] {
        let mut db = PgConnection::connect(&fresh.url_as(role)).await.unwrap();
        attempt(&mut db, statement).await.unwrap_or_else(|e| panic!("{role}: {statement}: {e}"));
    }
    fresh.drop().await;
}

/// A running consumer's next batch may fire a trigger that writes it.
#[tokio::test]
async fn a_table_that_a_migration_makes_is_the_consumers_at_once() {
    let fresh = post_database().await;
    let mut db = fresh.connect().await;
    run(&mut db, "set role migrator; create table views_1.derived (id int primary key)").await;
    let mut consumer = PgConnection::connect(&fresh.url_as("cdc_consumer")).await.unwrap();
    run(&mut consumer, "insert into views_1.derived values (1); truncate views_1.derived").await;
    fresh.drop().await;
}

#[tokio::test]
async fn the_user_database_admits_only_the_user_service_and_debezium() {
    let fresh = Fresh::new();
    users(&fresh.url(), &Passwords::development()).await.unwrap();
    users(&fresh.url(), &Passwords::development()).await.unwrap();
    // The other service's roles may not exist yet on this server; either way there is no way in.
    for role in ["post_api", "cdc_consumer"] {
        assert!(PgConnection::connect(&fresh.url_as(role)).await.is_err(), "{role}");
    }
    let mut db = PgConnection::connect(&fresh.url_as("user_api")).await.unwrap();
    let insert = "insert into users (name, email, department) values ('n', 'e', 'd')";
    run(&mut db, insert).await;
    let status = "insert into users (name, email, department, status) values ('n','f','d','GONE')";
    for (statement, constraint) in [(insert, "users_email_key"), (status, "users_status_check")] {
        let error = attempt(&mut db, statement).await.unwrap_err();
        let named = error.as_database_error().and_then(|error| error.constraint());
        assert_eq!(named, Some(constraint));
    }
    let published = "select string_agg(tablename, ',' order by tablename)
        from pg_publication_tables where pubname = 'user_service'";
    assert_eq!(text(&mut db, published).await, "cdc_heartbeat,users");
    fresh.drop().await;
}

/// A compacted topic cannot take its record; see `migrations/users/0004_no_truncate.sql`.
#[tokio::test]
async fn source_tables_refuse_a_truncate_and_say_what_to_do() {
    let people = Fresh::new();
    users(&people.url(), &Passwords::development()).await.unwrap();
    for (fresh, table) in [(people, "users"), (post_database().await, "posts")] {
        let mut db = fresh.connect().await;
        let error = attempt(&mut db, &format!("truncate {table}")).await.unwrap_err();
        let text = format!("{error:?}");
        assert!(text.contains(&format!("TRUNCATE of {table} cannot be captured")), "{text}");
        assert!(text.contains("DELETE the rows instead"), "{text}");
        run(&mut db, &format!("delete from {table}")).await;
        drop(db);
        fresh.drop().await;
    }
}

#[tokio::test]
async fn a_second_generation_stays_invisible_until_it_is_published() {
    let fresh = post_database().await;
    let mut db = fresh.connect().await;
    let name = "select coalesce(max(name), 'empty') from user_view";
    run(&mut db, "insert into views_1.user_view (user_id, name) values (1, 'old')").await;
    views(&fresh.url(), generation(2)).await.unwrap();
    run(&mut db, "insert into views_2.user_view (user_id, name) values (1, 'new')").await;
    assert_eq!(text(&mut db, name).await, "old");
    assert_eq!(current_generation(&fresh.url()).await.unwrap(), Some(Generation::FIRST));

    publish(&fresh.url(), generation(2)).await.unwrap();
    assert_eq!(text(&mut db, name).await, "new");
    assert_eq!(current_generation(&fresh.url()).await.unwrap(), Some(generation(2)));
    // Updating the old generation must not take the readers back to it.
    views(&fresh.url(), Generation::FIRST).await.unwrap();
    assert_eq!(text(&mut db, name).await, "new");

    let error = publish(&fresh.url(), generation(7)).await.unwrap_err();
    assert!(matches!(error, MigrateError::NoGeneration { .. }), "{error}");
    fresh.drop().await;
}

#[tokio::test]
async fn nothing_is_published_when_what_comes_before_fails() {
    let fresh = post_database().await;
    views(&fresh.url(), generation(2)).await.unwrap();
    let refused = publish_after(&fresh.url(), generation(2), async |tx| {
        run(tx, "create table public.left_behind ()").await;
        Err(MigrateError::NoDatabase)
    })
    .await;
    assert!(matches!(refused, Err(MigrateError::NoDatabase)), "{refused:?}");
    assert_eq!(current_generation(&fresh.url()).await.unwrap(), Some(Generation::FIRST));
    let mut db = fresh.connect().await;
    assert_eq!(text(&mut db, "select (to_regclass('left_behind') is null)::text").await, "true");
    fresh.drop().await;
}

#[tokio::test]
async fn a_swap_that_a_reader_never_lets_through_names_his_session() {
    let fresh = post_database().await;
    views(&fresh.url(), generation(2)).await.unwrap();
    let mut reader = PgConnection::connect(&fresh.url_as("post_api")).await.unwrap();
    let session = text(&mut reader, "select pg_backend_pid()::text").await;
    run(&mut reader, "begin; select * from post_view").await;
    let refused = publish(&fresh.url(), generation(2)).await.unwrap_err().to_string();
    assert!(refused.contains("view \"post_view\"") && refused.contains(&session), "{refused}");
    assert_eq!(current_generation(&fresh.url()).await.unwrap(), Some(Generation::FIRST));
    run(&mut reader, "commit").await;
    publish(&fresh.url(), generation(2)).await.unwrap();
    fresh.drop().await;
}

#[tokio::test]
async fn a_migration_that_waits_for_a_transaction_lets_others_pass() {
    let fresh = post_database().await;
    let mut db = fresh.connect().await;
    let undo = "alter table views_1.cdc_snapshot drop column record_timestamp;
        delete from views_1._sqlx_migrations where version = 7";
    run(&mut db, undo).await;
    let mut slow = PgConnection::connect(&fresh.url_as("cdc_consumer")).await.unwrap();
    run(&mut slow, "begin; select from views_1.cdc_snapshot").await;
    let mut other = PgConnection::connect(&fresh.url_as("cdc_consumer")).await.unwrap();
    let goes_on = async {
        for _ in 0..3 {
            while text(&mut db, WAITING).await == "0" {}
            run(&mut other, "select from views_1.cdc_snapshot").await;
        }
        run(&mut slow, "commit").await;
    };
    let url = fresh.url();
    let both = async { tokio::join!(views(&url, Generation::FIRST), goes_on) };
    let (applied, ()) = tokio::time::timeout(SOON, both).await.expect("others wait behind it");
    applied.unwrap();
    run(&mut other, "select record_timestamp from views_1.cdc_snapshot").await;
    fresh.drop().await;
}

#[tokio::test]
async fn only_a_generation_that_nobody_sees_can_be_dropped() {
    let fresh = post_database().await;
    let (first, second) = (Generation::FIRST, generation(2));
    views(&fresh.url(), second).await.unwrap();
    assert_eq!(generations(&fresh.url()).await.unwrap(), [first, second]);
    publish(&fresh.url(), second).await.unwrap();
    let refused = drop_generation(&fresh.url(), second).await;
    assert!(matches!(refused, Err(MigrateError::InUse { .. })), "{refused:?}");
    drop_generation(&fresh.url(), first).await.unwrap();
    assert_eq!(generations(&fresh.url()).await.unwrap(), [second]);
    let gone = drop_generation(&fresh.url(), first).await;
    assert!(matches!(gone, Err(MigrateError::NoGeneration { .. })), "{gone:?}");
    let mut db = fresh.connect().await;
    assert_eq!(text(&mut db, "select count(*)::text from user_view").await, "0");
    fresh.drop().await;
}

/// `drop schema` locks what was made first first, and offsets are what a batch takes first: no deadlock.
#[tokio::test]
async fn a_batch_that_is_under_way_in_a_dropped_generation_is_waited_for() {
    let fresh = post_database().await;
    views(&fresh.url(), generation(2)).await.unwrap();
    publish(&fresh.url(), generation(2)).await.unwrap();
    let mut batch = PgConnection::connect(&fresh.url_as("cdc_consumer")).await.unwrap();
    run(&mut batch, "begin; update views_1.cdc_offset set next_offset = 1").await;
    let mut db = fresh.connect().await;
    let goes_on = async {
        while text(&mut db, WAITING).await == "0" {}
        for table in ["user_view", "post_view", "department_stats_slot", "cdc_floor"] {
            run(&mut batch, &format!("select * from views_1.{table} for update")).await;
        }
        run(&mut batch, "commit").await;
    };
    let url = fresh.url();
    let both = async { tokio::join!(drop_generation(&url, Generation::FIRST), goes_on) };
    let (dropped, ()) = tokio::time::timeout(SOON, both).await.expect("one waits for the other");
    dropped.unwrap();
    assert_eq!(generations(&fresh.url()).await.unwrap(), [generation(2)]);
    fresh.drop().await;
}

#[tokio::test]
async fn changed_columns_replace_the_thin_view_and_dependants_stop_that_whole() {
    let fresh = post_database().await;
    let mut db = fresh.connect().await;
    let columns = "select string_agg(column_name, ',' order by ordinal_position)
        from information_schema.columns
        where table_schema = 'public' and table_name = 'post_view'";
    let before = text(&mut db, columns).await;

    run(&mut db, "alter table views_1.post_view add column extra text").await;
    views(&fresh.url(), Generation::FIRST).await.unwrap();
    assert_eq!(text(&mut db, columns).await, format!("{before},extra"));

    // A new generation without the added column: the view must shrink.
    views(&fresh.url(), generation(2)).await.unwrap();
    run(&mut db, "create view public.mine as select post_id from public.post_view").await;
    let error = publish(&fresh.url(), generation(2)).await.unwrap_err();
    assert!(matches!(&error, MigrateError::Publish { view, .. } if view == "post_view"), "{error}");
    assert_eq!(current_generation(&fresh.url()).await.unwrap(), Some(Generation::FIRST));
    run(&mut db, "drop view public.mine").await;
    run(&mut db, "grant select on public.post_view to debezium with grant option").await;
    publish(&fresh.url(), generation(2)).await.unwrap();
    assert_eq!(text(&mut db, columns).await, before);
    let kept = "select has_table_privilege('debezium', 'public.post_view', 'select with grant option')::text";
    assert_eq!(text(&mut db, kept).await, "true", "who could read it still can");

    // A view the generation no longer publishes is withdrawn; others' views stay.
    run(&mut db, "create view public.mine as select 1 as one").await;
    run(&mut db, "comment on table views_2.post_view is null").await;
    views(&fresh.url(), generation(2)).await.unwrap();
    let left = "select string_agg(relname, ',' order by relname) from pg_class
        where relnamespace = 'public'::regnamespace and relkind = 'v'";
    assert_eq!(text(&mut db, left).await, "department_stats,mine,user_view");
    fresh.drop().await;
}

/// A migration (0011, which makes a procedure) is tried again and changes a column of a view that readers see.
#[tokio::test]
async fn a_migration_that_a_published_column_does_not_let_through_says_to_build_the_views_anew() {
    let fresh = post_database().await;
    let mut db = fresh.connect().await;
    run(&mut db, "delete from views_1._sqlx_migrations where version = 11").await;
    for change in ["alter column author_id type text", "drop column author_id"] {
        let also = format!(
            "create or replace function public.also() returns event_trigger language plpgsql
                 as 'begin alter table views_1.post_view {change}; end';
             drop event trigger if exists also;
             create event trigger also on ddl_command_start when tag in ('CREATE PROCEDURE')
                 execute function public.also()"
        );
        run(&mut db, &also).await;
        let error = views(&fresh.url(), Generation::FIRST).await.unwrap_err();
        assert!(matches!(error, MigrateError::Shown { .. }), "{error}");
        assert!(error.to_string().contains("`cdc-consumer rebuild`"), "{error}");
    }
    fresh.drop().await;
}

#[tokio::test]
async fn a_url_that_cannot_be_used_says_so_without_the_password() {
    let passwords = Passwords::development();
    for (url, message) in [
        ("mysql//nothing", "the database url could not be read"),
        ("postgres://u:secret@127.0.0.1:1", "the database url names no database"),
        ("postgres://u:secret@127.0.0.1:1/d", "could not connect to database \"postgres\""),
    ] {
        let error = users(url, &passwords).await.unwrap_err();
        let shown = service::telemetry::chain(&error).to_string();
        assert!(shown.contains(message), "{shown}");
        assert!(!shown.contains("secret"), "{shown}");
    }
}
