//! Changes that reach no topic, because the replication slot went past them or was lost.

use std::time::Duration;

use devstack::{Progress, Service, State};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::system::{EMAIL_DOMAIN, System, setting, with_system};
use crate::wait::until;

const DEADLINE: Duration = Duration::from_secs(90);
/// How long it is looked whether something does not happen.
const OBSERVED: Duration = Duration::from_secs(5);
const LOOKS_MAX: u32 = 60;
const SLOT: &str = "user_service";

#[tokio::test]
async fn what_a_slot_went_past_is_found_and_a_new_snapshot_mends_it() {
    with_system(async |system: System| {
        let (changed, deleted, missed) = pass_changes_by(&system).await;
        connector(&system, Method::PUT, "resume").await;
        // Nothing tells: the connector runs, and later changes come through.
        let later = create(&system).await;
        let seen = system.http.posts(&format!("/users/{later}"));
        system.http.visible(&seen, DEADLINE, |answer| answer.status == 200).await;

        let (equal, report) = verify(&system).await;
        let mut expected = [(changed, "unequal"), (deleted, "unexpected"), (missed, "missing")];
        // As text, as verify orders them.
        expected.sort_by_key(|(id, _)| id.to_string());
        let expected: Vec<_> = expected
            .iter()
            .map(|(id, difference)| json!({"key": [id.to_string()], "difference": difference}))
            .collect();
        assert!(!equal, "{report}");
        assert_eq!(report["differing"], json!(expected), "{report}");

        take_a_new_snapshot(&system).await;
        let equal = system.views_equal(DEADLINE).await;
        system.report.time("new slot active to views equal", equal);
        let (equal, report) = verify(&system).await;
        assert!(equal, "{report}");
    })
    .await;
}

/// Stops the connector; changes one row, deletes one and adds one, and moves the slot past that. Returns their
/// ids.
///
/// PostgreSQL notes the running transactions in the log every 15 s. With a note among the changes, the slot
/// begins behind them and Debezium refuses it; that is mended, and tried again.
async fn pass_changes_by(system: &System) -> (i64, i64, i64) {
    const TRIES: u32 = 5;
    for _ in 0..TRIES {
        let changed = create(system).await;
        let deleted = create(system).await;
        system.views_equal(DEADLINE).await;

        connector(system, Method::PUT, "stop").await;
        slot_is(system, "f").await;
        let user = |id: i64| system.http.users(&format!("/{id}"));
        let body = json!({"name": "새 이름", "department": "기획팀",
            "email": format!("changed-{:x}@{EMAIL_DOMAIN}", rand::random::<u64>())});
        system.http.expect(200, Method::PUT, &user(changed), Some(&body)).await;
        system.http.expect(204, Method::DELETE, &user(deleted), None).await;
        let missed = create(system).await;
        let advance = "select pg_replication_slot_advance($1, pg_current_wal_lsn())::text";
        sqlx::query(advance).bind(SLOT).execute(&system.user_db).await.unwrap();

        let begins = "select (restart_lsn - '0/0')::bigint from pg_replication_slots
            where slot_name = $1";
        let begins: i64 =
            sqlx::query_scalar(begins).bind(SLOT).fetch_one(&system.user_db).await.unwrap();
        let url = format!("{}/connectors/users/offsets", system.http.connect);
        let offsets = system.http.expect(200, Method::GET, &url, None).await.body;
        let known = offsets["offsets"][0]["offset"]["lsn"].as_i64().expect("a stored offset");
        if begins <= known {
            return (changed, deleted, missed);
        }
        take_a_new_snapshot(system).await;
    }
    panic!("running transactions were noted among the changes {TRIES} times in a row");
}

/// Connect says RUNNING, and Debezium waits for the slot for ever.
#[tokio::test]
async fn a_lost_slot_is_told_of_by_status_and_register() {
    with_system(async |system: System| {
        connector(&system, Method::PUT, "stop").await;
        slot_is(&system, "f").await;
        lose_the_slot(&system).await;
        connector(&system, Method::PUT, "resume").await;
        let written = create(&system).await;

        let refused = system.stack.register(&Progress::silent()).await.unwrap_err().to_string();
        assert!(refused.contains(SLOT) && refused.contains("\"A slot was lost\""), "{refused}");
        let connect = system.stack.status(Service::Connect).await;
        assert_eq!(connect.state, State::Unhealthy);
        assert!(connect.reason.as_ref().is_some_and(|reason| reason.contains(SLOT)), "{connect:?}");

        take_a_new_snapshot(&system).await;
        system.stack.register(&Progress::silent()).await.unwrap();
        assert_eq!(system.stack.status(Service::Connect).await.state, State::Healthy);
        let seen = system.http.posts(&format!("/users/{written}"));
        system.http.visible(&seen, DEADLINE, |answer| answer.status == 200).await;
        system.views_equal(DEADLINE).await;
    })
    .await;
}

/// Lets PostgreSQL give up slots that nobody uses, which it does at a checkpoint, until this one is lost. The
/// other connector uses its own.
async fn lose_the_slot(system: &System) {
    let db = &system.user_db;
    let reload = "select pg_reload_conf()";
    let limit = "alter system set idle_replication_slot_timeout = '1s'";
    sqlx::query(limit).execute(db).await.unwrap();
    sqlx::query(reload).execute(db).await.unwrap();
    let lost = async || {
        sqlx::query("checkpoint").execute(db).await?;
        let lost = "select wal_status = 'lost' from pg_replication_slots where slot_name = $1";
        sqlx::query_scalar::<_, bool>(lost).bind(SLOT).fetch_one(db).await
    };
    let mut looks = 0;
    let outcome = loop {
        looks += 1;
        match lost().await {
            Ok(false) if looks < LOOKS_MAX => sleep(OBSERVED / 10).await,
            other => break other,
        }
    };
    // Before anything else: no other slot shall be lost by it.
    sqlx::query("alter system reset idle_replication_slot_timeout").execute(db).await.unwrap();
    sqlx::query(reload).execute(db).await.unwrap();
    assert!(outcome.unwrap(), "PostgreSQL kept the slot");
}

/// As docs/operations.md says.
async fn take_a_new_snapshot(system: &System) {
    connector(system, Method::PUT, "stop").await;
    slot_is(system, "f").await;
    connector(system, Method::DELETE, "offsets").await;
    let drop = "select pg_drop_replication_slot($1)::text";
    sqlx::query(drop).bind(SLOT).execute(&system.user_db).await.unwrap();
    connector(system, Method::PUT, "resume").await;
    slot_is(system, "t").await;
}

#[tokio::test]
async fn a_transaction_that_spans_a_restart_of_its_connector_arrives_whole() {
    with_system(async |system: System| {
        let deleted = create(&system).await;
        let updated = create(&system).await;
        system.views_equal(DEADLINE).await;

        // In the log: a change, another transaction whole, a change.
        let mut long = system.user_db.begin().await.unwrap();
        let delete = "delete from users where id = $1";
        sqlx::query(delete).bind(deleted).execute(&mut *long).await.unwrap();
        let position = "select (pg_current_wal_insert_lsn() - '0/0')::bigint";
        let position = sqlx::query_scalar(position).fetch_one(&system.user_db).await.unwrap();
        let insert = "insert into users (name, email, department) values ('사이', $1, '개발팀')
            returning id";
        let email = format!("between-{:x}@{EMAIL_DOMAIN}", rand::random::<u64>());
        let between: i64 =
            sqlx::query_scalar(insert).bind(email).fetch_one(&system.user_db).await.unwrap();
        let update = "update users set name = '새 이름', version = version + 1 where id = $1";
        sqlx::query(update).bind(updated).execute(&mut *long).await.unwrap();

        // The commit between the changes must not become what Connect knows last: Debezium would take it
        // for the change that begins where it ends, and skip those before.
        let seen = system.http.posts(&format!("/users/{between}"));
        system.http.visible(&seen, DEADLINE, |answer| answer.status == 200).await;
        stored_offset_stays_that_of_a_row(&system, position).await;

        connector(&system, Method::PUT, "stop").await;
        slot_is(&system, "f").await;
        long.commit().await.unwrap();
        connector(&system, Method::PUT, "resume").await;
        slot_is(&system, "t").await;
        system.views_equal(DEADLINE).await;
    })
    .await;
}

/// Waits until Connect has stored an offset from after a position of the log, and looks at it for longer
/// than a heartbeat of Debezium's would take.
async fn stored_offset_stays_that_of_a_row(system: &System, position: i64) {
    let url = format!("{}/connectors/users/offsets", system.http.connect);
    let look = async || {
        let offset = system.http.get(&url).await?.body["offsets"][0]["offset"].clone();
        let after = offset["lsn"].as_i64().is_some_and(|lsn| lsn >= position);
        if after { Ok(offset) } else { Err(offset.to_string()) }
    };
    let what = format!("Connect stored an offset from after {position}");
    until(&what, DEADLINE, look).await;
    let end = Instant::now() + OBSERVED;
    while Instant::now() < end {
        let offset = until(&what, DEADLINE, look).await;
        assert_ne!(offset["messageType"], "COMMIT", "{offset}");
        sleep(OBSERVED / 30).await;
    }
}

async fn create(system: &System) -> i64 {
    let user = json!({"name": "홍길동", "department": "개발팀",
        "email": format!("slot-{:x}@{EMAIL_DOMAIN}", rand::random::<u64>())});
    system.http.expect(201, Method::POST, &system.http.users(""), Some(&user)).await.id()
}

/// Asks Connect; a worker that is just rebalancing is asked again.
async fn connector(system: &System, method: Method, what: &str) {
    let url = format!("{}/connectors/users/{what}", system.http.connect);
    until(&format!("{method} {what}"), DEADLINE, async || {
        let answer = system.http.send(method.clone(), &url, None).await?;
        if answer.status < 300 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

async fn slot_is(system: &System, active: &str) {
    until(&format!("the slot's activity to be {active}"), DEADLINE, async || {
        let query = "select active::text from pg_replication_slots where slot_name = $1";
        let found: Option<String> = sqlx::query_scalar(query)
            .bind(SLOT)
            .fetch_optional(&system.user_db)
            .await
            .map_err(|error| error.to_string())?;
        let is = found.as_ref().is_some_and(|found| found.starts_with(active));
        if is { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

/// Whether it exits with 0, and what it prints.
async fn verify(system: &System) -> (bool, Value) {
    let views = system.stack.places().root.join("views.toml");
    let (views, source) = (views.to_string_lossy(), setting("USER_DATABASE_ADMIN_URL"));
    let arguments = [
        "verify",
        "--json",
        "--wait=3s",
        "--view=user_view",
        "--source-table=public.users",
        "--source-database-url",
        &source,
        "--views-file",
        &views,
    ];
    let output = system.command(&arguments).await;
    let text = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&text);
    let report =
        report.unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.success(), report)
}
