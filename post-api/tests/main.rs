//! The post service over a real database: requests in, answers out. Users are put into the view as
//! the consumer puts them there, under its role.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

#[path = "../../user-api/tests/harness/mod.rs"]
mod harness;
mod pages;

use std::time::Duration;

use axum::http::StatusCode;
use migrate::{Generation, Passwords};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use sqlx::{ConnectOptions, PgConnection};

use crate::harness::{Answer, Api, with_database};

/// Short, because several tests wait for what never comes.
const VIEW_WAIT: Duration = Duration::from_millis(300);
/// For what comes, however slow the machine is.
const PATIENCE: Duration = Duration::from_secs(30);

async fn with_api<F>(test: impl FnOnce(Api) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let migrate = async |url: &str| {
        migrate::posts(url, &Passwords::development()).await.unwrap();
        migrate::views(url, Generation::FIRST).await.unwrap();
    };
    with_database("POST_DATABASE_ADMIN_URL", "post_api", migrate, |pool| {
        test(Api::new(post_api::app(pool.clone(), VIEW_WAIT), pool))
    })
    .await;
}

/// A connection with the consumer's role.
async fn consumer(api: &Api) -> PgConnection {
    let options = api.pool.connect_options().as_ref().clone();
    options.username("cdc_consumer").password("cdc_consumer").connect().await.unwrap()
}

/// The same service, which waits for as long as it takes.
fn patient(api: &Api) -> Api {
    Api::new(post_api::app(api.pool.clone(), PATIENCE), api.pool.clone())
}

/// Returns after a statement of the service with these words has ended that began after the call.
async fn asked(api: &Api, words: &str) {
    // As the service's role, whose sessions it may see.
    let mut db = api.pool.connect_options().as_ref().clone().connect().await.unwrap();
    let now = "select clock_timestamp()::text";
    let now: String = sqlx::query_scalar(now).fetch_one(&mut db).await.unwrap();
    let asked = "select exists (
             select from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid()
                 and query_start > $1::text::timestamptz and state = 'idle'
                 and strpos(query, $2) > 0
         )";
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let seen = sqlx::query_scalar(asked).bind(&now).bind(words).fetch_one(&mut db);
        if seen.await.unwrap() {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "nobody asked: {words}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn show_user(db: &mut PgConnection, id: i64, name: &str, department: &str, version: i64) {
    sqlx::query(
        "insert into views_1.user_view
             (user_id, name, email, department, status, created_at, updated_at, version)
         values ($1, $2, 'hong@example.com', $3, 'ACTIVE', now(), now(), $4)
         on conflict (user_id) do update set
             name = excluded.name, department = excluded.department, version = excluded.version",
    )
    .bind(id)
    .bind(name)
    .bind(department)
    .bind(version)
    .execute(db)
    .await
    .unwrap();
}

async fn forget_user(db: &mut PgConnection, id: i64) {
    let delete = "delete from views_1.user_view where user_id = $1";
    sqlx::query(delete).bind(id).execute(db).await.unwrap();
}

fn hello(author_id: i64) -> Value {
    json!({ "title": "안녕하세요", "content": "첫 번째 포스트입니다.", "authorId": author_id })
}

async fn created(api: &Api, author_id: i64) -> Answer {
    let answer = api.send("POST", "/api/posts", &hello(author_id)).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
    answer
}

#[tokio::test]
async fn a_post_shows_its_author_as_he_is_now() {
    with_api(async |api| {
        let mut view = consumer(&api).await;
        show_user(&mut view, 6, "홍길동", "개발팀", 1).await;
        let post = created(&api, 6).await;
        let id = post.body["id"].as_i64().unwrap();
        let path = format!("/api/posts/{id}");
        assert_eq!(post.header("location"), path);
        assert_eq!(post.header("etag"), "\"1\"");
        assert_eq!(post.body["title"], "안녕하세요");
        assert_eq!(post.body["authorId"], 6);
        let author = json!({
            "id": 6, "name": "홍길동", "email": "hong@example.com",
            "department": "개발팀", "status": "ACTIVE"
        });
        assert_eq!(post.body["author"], author);
        assert_eq!(api.get(&path).await.body, post.body);

        show_user(&mut view, 6, "홍길동 수정", "기획팀", 2).await;
        assert_eq!(api.get(&path).await.body["author"]["name"], "홍길동 수정");
        assert_eq!(api.get("/api/posts").await.body[0]["author"]["department"], "기획팀");

        forget_user(&mut view, 6).await;
        for body in [api.get(&path).await.body, api.get("/api/posts").await.body[0].clone()] {
            assert_eq!((&body["author"], &body["authorId"]), (&Value::Null, &json!(6)));
        }
    })
    .await;
}

/// Posts of a known and of a forgotten author, and none, three requests each.
#[tokio::test]
async fn reads_that_meet_share_statements_and_each_gets_its_own_answer() {
    with_api(async |api| {
        let mut view = consumer(&api).await;
        let mut paths = Vec::new();
        for author_id in [6, 7] {
            show_user(&mut view, author_id, "홍길동", "개발팀", 1).await;
            paths.push(created(&api, author_id).await.header("location").to_owned());
        }
        forget_user(&mut view, 7).await;
        paths.push("/api/posts/1000".to_owned());
        let paths = [paths.clone(), paths.clone(), paths].concat();
        let (answers, statements) = api.meet("POST_DATABASE_ADMIN_URL", "posts", &paths).await;
        for three in answers.chunks(3) {
            assert_eq!(three[0].header("etag"), "\"1\"");
            assert_eq!(three[0].body["author"]["id"], 6);
            let forgotten = &three[1].body;
            assert_eq!((&forgotten["author"], &forgotten["authorId"]), (&Value::Null, &json!(7)));
            three[2].is_problem(404, "not-found");
        }
        assert!(statements < 6, "{statements} statements for {} requests", paths.len());
    })
    .await;
}

#[tokio::test]
async fn a_post_of_a_user_who_is_just_arriving_waits_for_him() {
    with_api(async |api| {
        let mut view = consumer(&api).await;
        let patient = patient(&api);
        let arrive = async {
            asked(&api, "insert into posts").await;
            show_user(&mut view, 6, "홍길동", "개발팀", 1).await;
        };
        let (post, ()) = tokio::join!(created(&patient, 6), arrive);
        assert_eq!(post.body["author"]["name"], "홍길동");

        for author_id in [7, 0, -1, i64::MAX] {
            let refused = api.send("POST", "/api/posts", &hello(author_id)).await;
            refused.is_problem(422, "invalid-fields");
            assert_eq!(refused.body["errors"][0]["field"], "authorId");
        }
        assert_eq!(api.get("/api/posts").await.body.as_array().unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_post_is_changed_and_deleted_and_keeps_its_author() {
    with_api(async |api| {
        let mut view = consumer(&api).await;
        show_user(&mut view, 6, "홍길동", "개발팀", 1).await;
        let mut post = created(&api, 6).await.body;
        let path = format!("/api/posts/{}", post["id"]);

        // What was read may be sent back whole.
        post["title"] = json!("고친 제목");
        let tag = [("if-match", "\"1\"")];
        let changed = api.send_with("PUT", &path, &tag, &post).await;
        assert_eq!(changed.status, StatusCode::OK, "{}", changed.body);
        assert_eq!((changed.header("etag"), &changed.body["version"]), ("\"2\"", &json!(2)));
        assert_eq!(changed.body["title"], "고친 제목");
        assert_eq!(changed.body["author"]["name"], "홍길동");
        let outdated = api.send_with("PUT", &path, &tag, &post).await;
        outdated.is_problem(412, "version-changed");
        api.send_with("DELETE", &path, &tag, &Value::Null).await.is_problem(412, "version-changed");

        for (field, value) in [("authorId", json!(7)), ("id", json!(999))] {
            let mut other = post.clone();
            other[field] = value;
            let refused = api.send("PUT", &path, &other).await;
            refused.is_problem(422, "invalid-fields");
            assert_eq!(refused.body["errors"][0]["field"], field);
        }

        let deleted = api.send("DELETE", &path, &Value::Null).await;
        assert_eq!(deleted.status, StatusCode::NO_CONTENT);
        api.get(&path).await.is_problem(404, "not-found");
        api.send("PUT", &path, &hello(6)).await.is_problem(404, "not-found");
        api.send("DELETE", &path, &Value::Null).await.is_problem(404, "not-found");
    })
    .await;
}

#[tokio::test]
async fn posts_are_found_by_the_department_of_their_authors() {
    with_api(async |api| {
        let mut view = consumer(&api).await;
        show_user(&mut view, 1, "홍길동", "개발팀", 1).await;
        show_user(&mut view, 2, "장웅", "기획팀", 1).await;
        for author_id in [1, 2, 1, 1] {
            created(&api, author_id).await;
        }
        let encoded = utf8_percent_encode("개발팀", NON_ALPHANUMERIC).to_string();
        // curl sends the name as it is typed; browsers encode it.
        for name in ["개발팀", encoded.as_str()] {
            let posts = api.get(&format!("/api/posts/by-department/{name}")).await;
            assert_eq!(posts.body.as_array().unwrap().len(), 3);
            assert_eq!(posts.body[0]["author"]["department"], "개발팀");
        }
        let page = api.get(&format!("/api/posts/by-department/{encoded}?limit=2")).await;
        let last = &page.body[1]["id"];
        let next = format!("/api/posts/by-department/{encoded}?after={last}&limit=2");
        assert_eq!(page.header("link"), format!("<{next}>; rel=\"next\""));
        assert_eq!(api.get(&next).await.body.as_array().unwrap().len(), 1);
        assert_eq!(api.get("/api/posts/by-department/none").await.body, json!([]));
        for name in ["%00", "%ff"] {
            let path = format!("/api/posts/by-department/{name}");
            api.get(&path).await.is_problem(400, "bad-request");
        }
    })
    .await;
}

#[tokio::test]
async fn users_and_counts_are_read_from_the_views() {
    with_api(async |api| {
        assert_eq!(api.get("/api/posts/users").await.body, json!([]));
        assert_eq!(api.get("/api/posts/stats/departments").await.body, json!([]));
        let mut view = consumer(&api).await;
        for id in 1..=3 {
            show_user(&mut view, id, "홍길동", "개발팀", 1).await;
        }
        let users = api.get("/api/posts/users").await;
        assert_eq!(users.body.as_array().unwrap().len(), 3);
        let user = &users.body[0];
        assert_eq!(
            (&user["id"], &user["name"], &user["version"]),
            (&json!(1), &json!("홍길동"), &json!(1))
        );
        for time in ["createdAt", "updatedAt", "lastProcessedAt"] {
            assert!(user[time].as_str().unwrap().ends_with('Z'), "{user}");
        }
        let page = api.get("/api/posts/users?after=1&limit=1").await;
        assert_eq!(page.body[0]["id"], 2);
        assert_eq!(page.header("link"), "</api/posts/users?after=2&limit=1>; rel=\"next\"");
        api.get("/api/posts/users?limit=10001").await.is_problem(400, "bad-request");

        let stats = api.get("/api/posts/stats/departments").await.body;
        assert_eq!(stats.as_array().unwrap().len(), 1);
        assert_eq!(stats[0]["department"], "개발팀");
        assert_eq!((&stats[0]["userCount"], &stats[0]["activeCount"]), (&json!(3), &json!(3)));
    })
    .await;
}

/// A source may have such times.
#[tokio::test]
async fn rows_whose_times_no_calendar_has_are_shown() {
    with_api(async |api| {
        let mut view = consumer(&api).await;
        show_user(&mut view, 6, "홍길동", "개발팀", 1).await;
        let post = created(&api, 6).await.header("location").to_owned();
        let endless = "update views_1.user_view
            set created_at = 'infinity', last_processed_at = '10000-01-01 00:00:00+00'";
        sqlx::query(endless).execute(&mut view).await.unwrap();
        let endless = "update posts set created_at = 'infinity', updated_at = '-infinity'";
        sqlx::query(endless).execute(&api.pool).await.unwrap();
        let users = api.get("/api/posts/users").await.body;
        for user in [&users[0], &api.get("/api/posts/users/6").await.body] {
            assert_eq!(user["createdAt"], "infinity", "{user}");
            assert_eq!(user["lastProcessedAt"], "+010000-01-01T00:00:00.000000Z", "{user}");
        }
        let posts = api.get("/api/posts").await.body;
        for post in [&posts[0], &api.get(&post).await.body] {
            assert_eq!(
                (&post["createdAt"], &post["updatedAt"]),
                (&json!("infinity"), &json!("-infinity"))
            );
        }
    })
    .await;
}

#[tokio::test]
async fn a_reader_can_wait_for_the_version_he_wrote() {
    with_api(async |api| {
        api.get("/api/posts/users/1").await.is_problem(404, "not-found");
        // He may just not have arrived.
        api.get("/api/posts/users/1?minVersion=1").await.is_problem(504, "view-behind");
        let mut view = consumer(&api).await;
        show_user(&mut view, 1, "홍길동", "개발팀", 1).await;
        let user = api.get("/api/posts/users/1?minVersion=1").await;
        assert_eq!((user.status, user.header("etag")), (StatusCode::OK, "\"1\""));
        api.get("/api/posts/users/1?minVersion=2").await.is_problem(504, "view-behind");

        let patient = patient(&api);
        let catch_up = async {
            asked(&api, "from user_view").await;
            show_user(&mut view, 1, "홍길동 수정", "개발팀", 2).await;
        };
        let path = "/api/posts/users/1?minVersion=2";
        let (user, ()) = tokio::join!(patient.get(path), catch_up);
        assert_eq!((&user.body["name"], &user.body["version"]), (&json!("홍길동 수정"), &json!(2)));
        api.get("/api/posts/users/1?minVersion=x").await.is_problem(400, "bad-request");
        api.get("/api/posts/users/abc").await.is_problem(400, "bad-request");
    })
    .await;
}

#[tokio::test]
async fn a_field_or_body_that_cannot_be_used_is_refused() {
    with_api(async |api| {
        let mut view = consumer(&api).await;
        show_user(&mut view, 6, "홍길동", "개발팀", 1).await;
        let path = created(&api, 6).await.header("location").to_owned();
        let long = |length: usize| json!("가".repeat(length));
        for (field, value) in [
            ("title", json!(null)),
            ("title", json!(" ")),
            ("title", long(201)),
            ("title", json!("a\u{0}")),
            ("title", json!(1)),
            ("content", json!(null)),
            ("content", json!("\n")),
            ("content", long(20_001)),
            ("authorId", json!("6")),
            ("authorId", json!(6.5)),
        ] {
            let mut post = hello(6);
            post[field] = value;
            for (method, path) in [("POST", "/api/posts"), ("PUT", path.as_str())] {
                let refused = api.send(method, path, &post).await;
                refused.is_problem(422, "invalid-fields");
                assert_eq!(refused.body["errors"][0]["field"], field);
            }
        }
        let all = api.send("POST", "/api/posts", &json!({})).await;
        assert_eq!(all.body["errors"].as_array().unwrap().len(), 3, "{}", all.body);
        let mut longest = hello(6);
        longest["content"] = long(20_000);
        assert_eq!(api.send("PUT", &path, &longest).await.status, StatusCode::OK);

        let json = [("content-type", "application/json")];
        let post = async |body: &str| api.raw("POST", "/api/posts", &json, body.into()).await;
        post("not json").await.is_problem(400, "bad-request");
        post(r#"[null, "제목", "내용", 6]"#).await.is_problem(422, "invalid-fields");
        post(r#"{"title":"\ud800"}"#).await.is_problem(400, "bad-request");
        let large = json!({ "content": "a".repeat(64 * 1024) }).to_string();
        post(&large).await.is_problem(413, "body-too-large");
        api.get("/api/posts/999999").await.is_problem(404, "not-found");
        api.get("/api/posts/abc").await.is_problem(400, "bad-request");
    })
    .await;
}

#[tokio::test]
async fn without_its_database_the_service_lives_but_is_not_ready() {
    with_api(async |api| {
        assert_eq!(api.get("/health/ready").await.status, StatusCode::OK);
        api.cut_database().await;
        assert_eq!(api.get("/health/live").await.status, StatusCode::OK);
        assert_eq!(api.get("/health/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
        for path in ["/api/posts", "/api/posts/1"] {
            api.get(path).await.is_problem(503, "unavailable");
        }
    })
    .await;
}
