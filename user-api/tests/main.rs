//! The user service over a real database: requests in, answers out.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod faults;
mod harness;

use axum::http::StatusCode;
use migrate::Passwords;
use serde_json::{Value, json};

use crate::harness::{Answer, Api, with_database};

async fn with_api<F>(test: impl FnOnce(Api) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let migrate = async |url: &str| migrate::users(url, &Passwords::development()).await.unwrap();
    with_database("USER_DATABASE_ADMIN_URL", "user_api", migrate, |pool| {
        test(Api::new(user_api::app(pool.clone()), pool))
    })
    .await;
}

fn hong() -> Value {
    json!({ "name": "홍길동", "email": "hong@example.com", "department": "개발팀", "status": "ACTIVE" })
}

async fn created(api: &Api, user: &Value) -> Answer {
    let answer = api.send("POST", "/api/users", user).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
    answer
}

/// Written past the service, which takes none so long.
#[tokio::test]
async fn a_page_of_users_with_long_names_ends_early_and_links_to_the_rest() {
    with_api(async |api| {
        sqlx::query(
            "insert into users (name, email, department)
             select repeat('가', 10000), number || repeat('e', 29000), repeat('d', 1000)
             from generate_series(1, 40) as number",
        )
        .execute(&api.pool)
        .await
        .unwrap();
        let (ids, sizes) = api.walk("/api/users?limit=30").await;
        // 17 times 60,000 bytes and a few stay below a mebibyte.
        assert_eq!(sizes, [17, 17, 6]);
        assert_eq!(ids, (1..=40).collect::<Vec<i64>>());
        let longer = "update users set name = repeat('n', 2000000) where id in (1, 3)";
        sqlx::query(longer).execute(&api.pool).await.unwrap();
        let (ids, sizes) = api.walk("/api/users?limit=9").await;
        assert_eq!((ids.len(), &sizes[..4]), (40, &[1, 1, 1, 9][..]));
    })
    .await;
}

/// Written past the service, which gives no such times.
#[tokio::test]
async fn a_row_whose_times_no_calendar_has_is_shown_among_the_others() {
    with_api(async |api| {
        for number in 1..=4 {
            let email = format!("user-{number}@example.com");
            let mut user = hong();
            user["email"] = json!(email);
            created(&api, &user).await;
        }
        let times = [
            (1, "infinity", "infinity"),
            (2, "-infinity", "-infinity"),
            (3, "294276-12-31 23:59:59.999999+00", "+294276-12-31T23:59:59.999999Z"),
            (4, "4713-11-24 00:00:00+00 BC", "-004712-11-24T00:00:00.000000Z"),
        ];
        for (id, stored, _) in times {
            let update = "update users set created_at = $2::text::timestamptz where id = $1";
            sqlx::query(update).bind(id).bind(stored).execute(&api.pool).await.unwrap();
        }
        let list = api.get("/api/users").await;
        assert_eq!(list.status, StatusCode::OK, "{}", list.body);
        for (id, _, shown) in times {
            let one = api.get(&format!("/api/users/{id}")).await;
            let listed = list.body.as_array().unwrap().iter().find(|user| user["id"] == id);
            for user in [&one.body, listed.unwrap()] {
                assert_eq!(user["createdAt"], shown, "{user}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_user_is_created_read_changed_and_deleted_as_in_the_original_readme() {
    with_api(async |api| {
        let answer = created(&api, &hong()).await;
        let id = answer.body["id"].as_i64().unwrap();
        assert_eq!(answer.header("location"), format!("/api/users/{id}"));
        assert_eq!(answer.header("etag"), "\"1\"");
        for (field, value) in hong().as_object().unwrap() {
            assert_eq!(&answer.body[field], value);
        }
        assert_eq!(answer.body["version"], 1);
        let created_at = answer.body["createdAt"].as_str().unwrap().to_owned();
        assert!(created_at.len() == 27 && created_at.ends_with('Z'), "{created_at}");

        let path = format!("/api/users/{id}");
        let read = api.get(&path).await;
        assert_eq!((read.status, &read.body), (StatusCode::OK, &answer.body));

        let change = json!({
            "id": id, "name": "modi_장웅", "email": "last_changwng@example.com",
            "department": "개발팀", "status": "ACTIVE",
            "createdAt": "2025-07-17T06:03:43.792924968",
            "updatedAt": "2025-07-17T06:03:43.793003009"
        });
        let changed = api.send("PUT", &path, &change).await;
        assert_eq!(changed.status, StatusCode::OK, "{}", changed.body);
        assert_eq!(changed.header("etag"), "\"2\"");
        assert_eq!(changed.body["name"], "modi_장웅");
        assert_eq!(changed.body["version"], 2);
        assert_eq!(changed.body["createdAt"], created_at);
        assert!(changed.body["updatedAt"].as_str().unwrap() > created_at.as_str());

        let deleted = api.send("DELETE", &path, &Value::Null).await;
        assert_eq!((deleted.status, &deleted.body), (StatusCode::NO_CONTENT, &Value::Null));
        for method in ["GET", "DELETE"] {
            let gone = api.send(method, &path, &Value::Null).await;
            gone.is_problem(404, "not-found");
        }
        api.send("PUT", &path, &change).await.is_problem(404, "not-found");
    })
    .await;
}

#[tokio::test]
async fn a_status_left_out_is_active_at_first_and_kept_later() {
    with_api(async |api| {
        let mut user = json!({ "name": " 장웅 ", "email": "a@example.com", "department": "팀" });
        let answer = created(&api, &user).await;
        assert_eq!(answer.body["status"], "ACTIVE");
        assert_eq!(answer.body["name"], "장웅");
        let path = answer.header("location").to_owned();
        user["status"] = json!("SUSPENDED");
        assert_eq!(api.send("PUT", &path, &user).await.body["status"], "SUSPENDED");
        user["status"] = Value::Null;
        assert_eq!(api.send("PUT", &path, &user).await.body["status"], "SUSPENDED");
    })
    .await;
}

#[tokio::test]
async fn an_email_belongs_to_one_user() {
    with_api(async |api| {
        created(&api, &hong()).await;
        api.send("POST", "/api/users", &hong()).await.is_problem(409, "duplicate-email");
        let mut other = hong();
        other["email"] = json!("other@example.com");
        let path = created(&api, &other).await.header("location").to_owned();
        let conflict = api.send("PUT", &path, &hong()).await;
        conflict.is_problem(409, "duplicate-email");
        assert!(!conflict.body.to_string().contains("users_email_key"));
    })
    .await;
}

/// Twenty addresses, three requests each, all at once.
#[tokio::test]
async fn requests_that_meet_share_commits_and_each_gets_its_own_answer() {
    with_api(async |api| {
        let mut requests = tokio::task::JoinSet::new();
        for number in 0..60 {
            let api = api.clone();
            let user = json!({ "name": format!("user {number}"),
                "email": format!("user{}@example.com", number % 20), "department": "개발팀" });
            requests.spawn(async move { (number, api.send("POST", "/api/users", &user).await) });
        }
        let mut created = 0;
        while let Some(done) = requests.join_next().await {
            let (number, answer) = done.unwrap();
            if answer.status == StatusCode::CREATED {
                created += 1;
                assert_eq!(answer.body["name"], format!("user {number}"));
                assert_eq!(answer.body["email"], format!("user{}@example.com", number % 20));
                let read = api.get(answer.header("location")).await;
                assert_eq!(read.body, answer.body);
            } else {
                answer.is_problem(409, "duplicate-email");
            }
        }
        assert_eq!(created, 20);
        let sql = "select count(*), count(distinct xmin::text) from users";
        let (rows, commits): (i64, i64) = sqlx::query_as(sql).fetch_one(&api.pool).await.unwrap();
        assert_eq!(rows, 20);
        assert!(commits < rows, "{commits} commits for {rows} rows");
    })
    .await;
}

/// Ten users, three requests each, and one for nobody beside each user.
#[tokio::test]
async fn reads_that_meet_share_statements_and_each_gets_its_own_answer() {
    with_api(async |api| {
        let mut paths = Vec::new();
        for number in 0..10 {
            let mut user = hong();
            user["email"] = json!(format!("hong{number}@example.com"));
            let path = created(&api, &user).await.header("location").to_owned();
            paths.extend([
                path.clone(),
                format!("/api/users/{}", 1000 + number),
                path.clone(),
                path,
            ]);
        }
        let (answers, statements) = api.meet("USER_DATABASE_ADMIN_URL", "users", &paths).await;
        for (number, (path, answer)) in paths.iter().zip(&answers).enumerate() {
            if number % 4 == 1 {
                answer.is_problem(404, "not-found");
                continue;
            }
            assert_eq!(answer.header("etag"), "\"1\"");
            assert_eq!(*path, format!("/api/users/{}", answer.body["id"]));
            assert_eq!(answer.body["email"], format!("hong{}@example.com", number / 4));
        }
        assert!(statements < 10, "{statements} statements for {} requests", paths.len());
    })
    .await;
}

#[tokio::test]
async fn a_change_of_an_outdated_version_is_refused() {
    with_api(async |api| {
        let path = created(&api, &hong()).await.header("location").to_owned();
        let put = async |tag| api.send_with("PUT", &path, &[("if-match", tag)], &hong()).await;
        assert_eq!(put("\"1\"").await.status, StatusCode::OK);
        put("\"1\"").await.is_problem(412, "version-changed");
        assert_eq!(put("*").await.status, StatusCode::OK);
        assert_eq!(put("\"2\", \"3\"").await.body["version"], 4);
        let delete =
            async |tag| api.send_with("DELETE", &path, &[("if-match", tag)], &Value::Null).await;
        delete("\"3\"").await.is_problem(412, "version-changed");
        assert_eq!(delete("\"4\"").await.status, StatusCode::NO_CONTENT);
    })
    .await;
}

#[tokio::test]
async fn a_list_is_read_page_by_page() {
    with_api(async |api| {
        assert_eq!(api.get("/api/users").await.body, json!([]));
        for n in 0..5 {
            let mut user = hong();
            user["email"] = json!(format!("hong{n}@example.com"));
            created(&api, &user).await;
        }
        let mut path = "/api/users?limit=2".to_owned();
        let mut sizes = vec![];
        let mut ids = vec![];
        loop {
            let page = api.get(&path).await;
            let users = page.body.as_array().unwrap();
            sizes.push(users.len());
            ids.extend(users.iter().map(|user| user["id"].as_i64().unwrap()));
            let Some(link) = page.headers.get("link") else { break };
            let link = link.to_str().unwrap();
            path = link.strip_prefix('<').unwrap().split('>').next().unwrap().to_owned();
        }
        assert_eq!(sizes, [2, 2, 1]);
        assert!(ids.is_sorted() && ids.len() == 5, "{ids:?}");
        for query in ["limit=0", "limit=1001", "limit=x", "after=x"] {
            api.get(&format!("/api/users?{query}")).await.is_problem(400, "bad-request");
        }
    })
    .await;
}

#[tokio::test]
async fn a_field_that_cannot_be_stored_is_named() {
    with_api(async |api| {
        let path = created(&api, &hong()).await.header("location").to_owned();
        let long = |length: usize| "가".repeat(length);
        let email = format!("a@{}.com", "b".repeat(254));
        for (field, value) in [
            ("name", json!(null)),
            ("name", json!("")),
            ("name", json!(" \t")),
            ("name", json!(long(201))),
            ("name", json!("a\u{0}b")),
            ("name", json!(7)),
            ("name", json!(["홍"])),
            ("email", json!(null)),
            ("email", json!("")),
            ("email", json!("hong")),
            ("email", json!("hong@")),
            ("email", json!(email)),
            ("department", json!(null)),
            ("department", json!("")),
            ("department", json!(long(101))),
            ("status", json!("active")),
            ("status", json!("GONE")),
            ("status", json!("")),
            ("status", json!(true)),
            ("id", json!("seven")),
        ] {
            let mut user = hong();
            user[field] = value.clone();
            for (method, path) in [("POST", "/api/users"), ("PUT", path.as_str())] {
                let answer = api.send(method, path, &user).await;
                answer.is_problem(422, "invalid-fields");
                assert_eq!(answer.body["errors"][0]["field"], field, "{value}");
            }
        }
        let mut longest = hong();
        longest["name"] = json!(long(200));
        longest["department"] = json!(long(100));
        assert_eq!(api.send("PUT", &path, &longest).await.status, StatusCode::OK);

        let mut other_id = hong();
        other_id["id"] = json!(999_999);
        let answer = api.send("PUT", &path, &other_id).await;
        answer.is_problem(422, "invalid-fields");
        assert_eq!(answer.body["errors"][0]["field"], "id");

        let all = api.send("POST", "/api/users", &json!({})).await;
        assert_eq!(all.body["errors"].as_array().unwrap().len(), 3, "{}", all.body);
    })
    .await;
}

#[tokio::test]
async fn a_body_or_address_that_cannot_be_read_is_refused() {
    with_api(async |api| {
        let post = async |body: &[u8], kind: &'static str| {
            api.raw("POST", "/api/users", &[("content-type", kind)], body.to_vec()).await
        };
        let json = "application/json";
        for body in [
            b"".as_slice(),
            b"not json",
            b"{\"name\":",
            b"{\"name\":\"\xff\"}",
            br#"{"name":"\ud800"}"#,
            br#"{"name":"\udc00\ud800"}"#,
        ] {
            post(body, json).await.is_problem(400, "bad-request");
        }
        let in_order = r#"[null, "홍길동", "hong@example.com", "개발팀", "ACTIVE"]"#;
        for body in ["[]", "7", "\"text\"", "null", in_order] {
            post(body.as_bytes(), json).await.is_problem(422, "invalid-fields");
        }
        let large = json!({ "name": "a".repeat(64 * 1024) }).to_string();
        post(large.as_bytes(), json).await.is_problem(413, "body-too-large");
        post(b"{}", "text/plain").await.is_problem(415, "unsupported-media-type");
        let bare = api.raw("POST", "/api/users", &[], b"{}".to_vec()).await;
        bare.is_problem(415, "unsupported-media-type");

        for id in ["0", "-1", "999999", "9223372036854775807"] {
            api.get(&format!("/api/users/{id}")).await.is_problem(404, "not-found");
        }
        for id in ["abc", "9223372036854775808", "1.5", "%00", "%ff"] {
            api.get(&format!("/api/users/{id}")).await.is_problem(400, "bad-request");
        }
        api.get("/nowhere").await.is_problem(404, "not-found");
        api.send("PATCH", "/api/users", &hong()).await.is_problem(405, "method-not-allowed");
    })
    .await;
}

#[tokio::test]
async fn without_its_database_the_service_lives_but_is_not_ready() {
    with_api(async |api| {
        for path in ["/health/live", "/health/ready"] {
            assert_eq!(api.get(path).await.status, StatusCode::OK);
        }
        api.cut_database().await;
        assert_eq!(api.get("/health/live").await.status, StatusCode::OK);
        let ready = api.get("/health/ready").await;
        assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(ready.body["reasons"][0].as_str().unwrap().starts_with("database: "));
        let answer = api.send("POST", "/api/users", &hong()).await;
        answer.is_problem(503, "unavailable");
        assert!(answer.headers.contains_key("retry-after"));
        let (one, other) = tokio::join!(api.get("/api/users/1"), api.get("/api/users/2"));
        one.is_problem(503, "unavailable");
        other.is_problem(503, "unavailable");
    })
    .await;
}
