//! The original example's commands as its readme has them, run by `curl`: only the ids are those
//! that the services gave.

use std::time::Duration;

use serde_json::Value;
use sqlx::Row;
use tokio::process::Command;
use tokio::time::Instant;

use crate::http::{Answer, json};
use crate::system::{System, with_system};

const VISIBLE_DEADLINE: Duration = Duration::from_secs(30);

/// Addresses that the readme's commands use. Rows that somebody made with them before are removed.
const EMAILS: [&str; 5] = [
    "hong@example.com",
    "hong.updated@example.com",
    "changwng@example.com",
    "new_changwng@example.com",
    "last_changwng@example.com",
];

const CREATE_HONG: &str = r#"curl -X POST http://localhost:8081/api/users \
  -H "Content-Type: application/json" \
  -d '{
    "name": "홍길동",
    "email": "hong@example.com",
    "department": "개발팀",
    "status": "ACTIVE"
  }'"#;
const CREATE_JANG: &str = r#"curl -X POST http://localhost:8081/api/users \
  -H "Content-Type: application/json" \
  -d '{
    "name": "장웅",
    "email": "changwng@example.com",
    "department": "개발팀",
    "status": "ACTIVE"
  }'"#;
const CREATE_NEW: &str = r#"curl -X POST http://localhost:8081/api/users \
  -H "Content-Type: application/json" \
  -d '{
    "name": "new_장웅",
    "email": "new_changwng@example.com",
    "department": "개발팀",
    "status": "ACTIVE"
  }'"#;
const CREATE_LAST: &str = r#"curl -X POST http://localhost:8081/api/users \
  -H "Content-Type: application/json" \
  -d '{
    "name": "last_장웅",
    "email": "last_changwng@example.com",
    "department": "개발팀",
    "status": "ACTIVE"
  }'"#;
const READ: &str = r#"curl -X GET http://localhost:8081/api/users/7 \
  -H "Content-Type: application/json" "#;
const CHANGE: &str = r#"curl -X PUT http://localhost:8081/api/users/7 \
  -H "Content-Type: application/json" \
  -d  '{"id":7,"name":"modi_장웅","email":"last_changwng@example.com","department":"개발팀","status":"ACTIVE","createdAt":"2025-07-17T06:03:43.792924968","updatedAt":"2025-07-17T06:03:43.793003009"}'"#;
const DELETE: &str = r#"curl -X DELETE http://localhost:8081/api/users/7 \
  -H "Content-Type: application/json" "#;
const POST: &str = r#"curl -X POST http://localhost:8082/api/posts \
  -H "Content-Type: application/json" \
  -d '{
    "title": "안녕하세요",
    "content": "첫 번째 포스트입니다.",
    "authorId": 6
  }'"#;
const VIEW: &str = "curl http://localhost:8082/api/posts/users";
const BY_DEPARTMENT: &str = "curl http://localhost:8082/api/posts/by-department/개발팀";
const CHANGE_HONG: &str = r#"curl -X PUT http://localhost:8081/api/users/1 \
  -H "Content-Type: application/json" \
  -d '{
    "name": "홍길동 수정",
    "email": "hong.updated@example.com",
    "department": "기획팀",
    "status": "ACTIVE"
  }'"#;

#[tokio::test]
async fn the_four_scenarios_work_with_the_commands_of_the_original() {
    with_system(async |system: System| {
        remove_rows(&system).await;
        system.views_equal(VISIBLE_DEADLINE).await;
        let before = department(&system, "개발팀").await;

        let hong = create(&system, "1 create", CREATE_HONG).await;
        let jang = create(&system, "1 create", CREATE_JANG).await;
        let new = create(&system, "1 create", CREATE_NEW).await;
        let last = create(&system, "1 create", CREATE_LAST).await;
        let view = list_from(VIEW, hong).await;
        let names = ["홍길동", "장웅", "new_장웅", "last_장웅"];
        for (id, name) in [hong, jang, new, last].into_iter().zip(names) {
            assert!(holds(&view, |user| user["id"] == id && user["name"] == name), "{view:?}");
        }
        assert_eq!(department(&system, "개발팀").await, before + 4);
        assert_eq!(curl(CREATE_HONG).await.status, 409);

        let post = post(&system, new, "new_장웅").await;
        let old_post = self::post(&system, hong, "홍길동").await;
        update(&system, hong, old_post).await;
        delete(&system, last).await;
        assert_eq!(department(&system, "개발팀").await, before + 2);
        assert_tables_show(&system, hong).await;

        for id in [post, old_post] {
            let url = format!("curl -X DELETE http://localhost:8082/api/posts/{id}");
            assert_eq!(curl(&url).await.status, 204);
        }
        remove_rows(&system).await;
        system.views_equal(VISIBLE_DEADLINE).await;
    })
    .await;
}

async fn create(system: &System, scenario: &str, command: &str) -> i64 {
    let created = curl(command).await;
    assert_eq!(created.status, 201, "{created:?}");
    let id = created.id();
    let url = system.http.posts(&format!("/users/{id}"));
    let (seen, time) = system.http.visible(&url, VISIBLE_DEADLINE, |seen| seen.status == 200).await;
    assert_eq!(seen.body["email"], created.body["email"]);
    system.report.time(format!("{scenario}: 2xx to visible"), time);
    id
}

async fn post(system: &System, author: i64, name: &str) -> i64 {
    let started = Instant::now();
    let created = curl(&POST.replace(": 6", &format!(": {author}"))).await;
    assert_eq!(created.status, 201, "{created:?}");
    assert_eq!(created.body["author"]["name"], name, "{created:?}");
    system.report.time("2 post: request to enriched answer", started.elapsed());
    let list = list_from(BY_DEPARTMENT, created.id()).await;
    assert!(holds(&list, |post| post["id"] == created.id()), "{list:?}");
    created.id()
}

async fn update(system: &System, hong: i64, old_post: i64) {
    let changed = curl(&CHANGE_HONG.replace("users/1", &format!("users/{hong}"))).await;
    assert_eq!(changed.status, 200, "{changed:?}");
    let url = system.http.posts(&format!("/{old_post}"));
    let shows = |post: &Answer| post.body["author"]["name"] == "홍길동 수정";
    let (seen, time) = system.http.visible(&url, VISIBLE_DEADLINE, shows).await;
    assert_eq!(seen.body["author"]["department"], "기획팀");
    system.report.time("3 update: 2xx to visible in an old post", time);
    let list = list_from(BY_DEPARTMENT, old_post).await;
    assert!(!holds(&list, |post| post["id"] == old_post), "{list:?}");
}

/// The user whom the readme calls 7: read, changed with everything that was read, deleted.
async fn delete(system: &System, id: i64) {
    let numbered = |command: &str| {
        command
            .replace("users/7", &format!("users/{id}"))
            .replace("\"id\":7", &format!("\"id\":{id}"))
    };
    assert_eq!(curl(&numbered(READ)).await.body["name"], "last_장웅");
    let changed = curl(&numbered(CHANGE)).await;
    assert_eq!((changed.status, changed.version()), (200, 2), "{changed:?}");
    let url = system.http.posts(&format!("/users/{id}"));
    let started = Instant::now();
    let seen = system.http.get(&format!("{url}?minVersion=2")).await.unwrap();
    assert_eq!((seen.status, &seen.body["name"]), (200, &Value::from("modi_장웅")), "{seen:?}");
    system.report.time("3 update: 2xx to read by a reader who waits for it", started.elapsed());

    let deleted = curl(&numbered(DELETE)).await;
    assert_eq!((deleted.status, &deleted.body), (204, &Value::Null));
    let (_, time) = system.http.visible(&url, VISIBLE_DEADLINE, |seen| seen.status == 404).await;
    system.report.time("4 delete: 2xx to gone", time);
    assert_eq!(curl(&numbered(READ)).await.status, 404);
    assert_eq!(curl(&numbered(DELETE)).await.status, 404);
}

/// The readme's two queries, and the columns it promises.
async fn assert_tables_show(system: &System, hong: i64) {
    let users = sqlx::query("SELECT * FROM user_view").fetch_all(&system.post_db).await.unwrap();
    let row = users.iter().find(|row| row.get::<i64, _>("user_id") == hong).unwrap();
    assert_eq!(row.get::<&str, _>("name"), "홍길동 수정");
    for column in ["email", "department", "status", "created_at", "updated_at", "last_processed_at"]
    {
        assert!(row.try_get_raw(column).is_ok(), "user_view has no column {column}");
    }
    let departments =
        sqlx::query("SELECT * FROM department_stats").fetch_all(&system.post_db).await.unwrap();
    let planning = departments.iter().find(|row| row.get::<&str, _>("department") == "기획팀");
    assert!(planning.unwrap().get::<i64, _>("active_count") >= 1);
}

async fn department(system: &System, name: &str) -> i64 {
    let url = system.http.posts("/stats/departments");
    let answer = system.http.get(&url).await.unwrap();
    let all = answer.body.as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|stats| stats["department"] == name);
    found.and_then(|stats| stats["userCount"].as_i64()).unwrap_or(0)
}

/// What a command lists, from the page that begins with this id: what was there before may fill the first one.
async fn list_from(command: &str, id: i64) -> Answer {
    let first = curl(command).await;
    assert_eq!(first.status, 200, "{first:?}");
    let list = curl(&format!("{command}?after={}", id - 1)).await;
    assert_eq!(list.status, 200, "{list:?}");
    list
}

fn holds(list: &Answer, wanted: impl Fn(&Value) -> bool) -> bool {
    list.body.as_array().is_some_and(|rows| rows.iter().any(wanted))
}

async fn remove_rows(system: &System) {
    let users = "delete from users where email = any ($1)";
    sqlx::query(users).bind(&EMAILS[..]).execute(&system.user_db).await.unwrap();
}

/// Runs the command in a shell, as somebody who pastes it does.
async fn curl(command: &str) -> Answer {
    let command = format!("{command} -sS -w '\\n%{{http_code}} %{{content_type}}'");
    let output = Command::new("bash").args(["-c", &command]).output().await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, line) = text.rsplit_once('\n').unwrap();
    let (status, content_type) = line.split_once(' ').unwrap();
    let (status, content_type) = (status.parse().unwrap(), content_type.to_owned());
    Answer { status, content_type, body: json(body) }
}
