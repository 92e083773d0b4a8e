//! Changes that reach no topic, because the replication slot went past them or was lost.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::system::{EMAIL_DOMAIN, System, setting, with_system};
use crate::wait::until;

const DEADLINE: Duration = Duration::from_secs(90);
const SLOT: &str = "user_service";

#[tokio::test]
async fn what_a_slot_went_past_is_found_and_a_new_snapshot_mends_it() {
    with_system(async |system: System| {
        let changed = create(&system).await;
        let deleted = create(&system).await;
        system.views_equal(DEADLINE).await;

        connector(&system, Method::PUT, "stop").await;
        slot_is(&system, "f").await;
        let user = |id: i64| system.http.users(&format!("/{id}"));
        let body = json!({"name": "새 이름", "department": "기획팀",
            "email": format!("changed-{:x}@{EMAIL_DOMAIN}", rand::random::<u64>())});
        system.http.expect(200, Method::PUT, &user(changed), Some(&body)).await;
        system.http.expect(204, Method::DELETE, &user(deleted), None).await;
        let missed = create(&system).await;
        let advance = "select pg_replication_slot_advance($1, pg_current_wal_lsn())::text";
        let advanced: String =
            sqlx::query_scalar(advance).bind(SLOT).fetch_one(&system.user_db).await.unwrap();
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
        assert!(!equal, "{advanced}: {report}");
        assert_eq!(report["differing"], json!(expected), "{advanced}: {report}");

        // As docs/operations.md says.
        connector(&system, Method::PUT, "stop").await;
        slot_is(&system, "f").await;
        connector(&system, Method::DELETE, "offsets").await;
        let drop = "select pg_drop_replication_slot($1)::text";
        sqlx::query(drop).bind(SLOT).execute(&system.user_db).await.unwrap();
        connector(&system, Method::PUT, "resume").await;
        slot_is(&system, "t").await;
        let equal = system.views_equal(DEADLINE).await;
        system.report.time("new slot active to views equal", equal);
        let (equal, report) = verify(&system).await;
        assert!(equal, "{report}");
    })
    .await;
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
