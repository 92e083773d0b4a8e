//! How much a page of posts reads, and holds.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use sqlx::PgConnection;

use crate::harness::Api;
use crate::{consumer, show_user, with_api};

/// Most posts are of other departments, and those of this one are the last.
#[tokio::test]
async fn posts_of_a_department_are_found_without_reading_those_of_others() {
    with_api(async |api| {
        let mut view = consumer(&api).await;
        for (first, department) in [(1, "개발팀"), (1001, "기획팀")] {
            sqlx::query(
                "insert into views_1.user_view (user_id, department)
                 select generate_series($1::bigint, $1::bigint + 999), $2",
            )
            .bind(first)
            .bind(department)
            .execute(&mut view)
            .await
            .unwrap();
        }
        let mut admin = api.admin("POST_DATABASE_ADMIN_URL").await;
        let fill = "insert into posts (title, content, author_id)
            select 'title', 'content', 1 + number % 1000 from generate_series(1, 100000) as number
            union all
            select 'title', 'content', 1001 + number from generate_series(1, 20) as number;
            vacuum analyze posts;
            vacuum analyze views_1.user_view";
        for statement in fill.split(';') {
            sqlx::query(statement).execute(&mut admin).await.unwrap();
        }
        let pages = ["개발팀", "기획팀"].map(|department| {
            let department = utf8_percent_encode(department, NON_ALPHANUMERIC);
            format!("/api/posts/by-department/{department}")
        });
        for (page, count) in pages.iter().zip([100, 20]) {
            let before = posts_read(&api, &mut admin).await;
            let posts = api.get(page).await;
            assert_eq!(posts.body.as_array().unwrap().len(), count, "{}", posts.body);
            let read = posts_read(&api, &mut admin).await - before;
            assert!(read < 20_000, "{read} posts read for a page of {count}");
        }
        let last = api.get(&format!("{}?after=100010&limit=10", pages[1])).await;
        let ids: Vec<_> = last.body.as_array().unwrap().iter().map(|post| &post["id"]).collect();
        assert_eq!(ids, (100_011..=100_020).collect::<Vec<i64>>());
        assert_eq!(api.get(&format!("{}?after=100020", pages[1])).await.body, json!([]));
    })
    .await;
}

/// How many rows or index entries of posts were read so far, by the service's connections.
async fn posts_read(api: &Api, admin: &mut PgConnection) -> i64 {
    let mut held = Vec::new();
    for _ in 0..api.pool.options().get_max_connections() {
        let mut connection = api.pool.acquire().await.unwrap();
        let flush = "select pg_stat_force_next_flush()";
        sqlx::query(flush).execute(&mut *connection).await.unwrap();
        held.push(connection);
    }
    let sql = "select (seq_tup_read + (select sum(idx_tup_read) from pg_stat_user_indexes
                   where relname = 'posts'))::bigint
               from pg_stat_user_tables where relname = 'posts'";
    sqlx::query_scalar(sql).fetch_one(admin).await.unwrap()
}

/// As long as a post can be, more of them than a page may hold.
#[tokio::test]
async fn a_page_of_long_posts_ends_early_and_links_to_the_rest() {
    with_api(async |api| {
        let mut view = consumer(&api).await;
        show_user(&mut view, 6, "홍길동", "team", 1).await;
        sqlx::query(
            "insert into posts (title, content, author_id)
             select 'title', repeat('가', 20000), 6 from generate_series(1, 40)",
        )
        .execute(&api.pool)
        .await
        .unwrap();
        for first in ["/api/posts?limit=30", "/api/posts/by-department/team?limit=30"] {
            let (ids, sizes) = api.walk(first).await;
            // 17 times 60,000 bytes stay below a mebibyte.
            assert_eq!(sizes, [17, 17, 6]);
            assert_eq!(ids, (1..=40).collect::<Vec<i64>>());
        }
    })
    .await;
}

/// The view says nothing of how long an author's name is.
#[tokio::test]
async fn a_page_of_posts_with_long_titles_and_authors_ends_early_and_links_to_the_rest() {
    with_api(async |api| {
        let mut view = consumer(&api).await;
        show_user(&mut view, 6, &"가".repeat(10_000), "team", 1).await;
        let fill = "insert into posts (title, content, author_id)
             select repeat('t', 30000), 'content', 6 from generate_series(1, 40)";
        sqlx::query(fill).execute(&api.pool).await.unwrap();
        for first in ["/api/posts", "/api/posts/by-department/team"] {
            let (ids, sizes) = api.walk(first).await;
            // 17 times 60,000 bytes and a few stay below a mebibyte.
            assert_eq!(sizes, [17, 17, 6]);
            assert_eq!(ids, (1..=40).collect::<Vec<i64>>());
        }
    })
    .await;
}

#[tokio::test]
async fn departments_come_in_pages_by_name() {
    with_api(async |api| {
        let mut view = consumer(&api).await;
        show_user(&mut view, 1, "홍길동", "개발팀", 1).await;
        show_user(&mut view, 2, "장웅", "R&D", 1).await;
        let path = "/api/posts/stats/departments";
        let all = api.get(path).await;
        assert!(!all.headers.contains_key("link"));
        let next = format!("{path}?after=R%26D&limit=1");
        for (path, department, link) in [
            (format!("{path}?limit=1"), &all.body[0], Some(format!("<{next}>; rel=\"next\""))),
            (next, &all.body[1], None),
        ] {
            let page = api.get(&path).await;
            assert_eq!(page.body, json!([department]));
            let seen = page.headers.get("link").map(|link| link.to_str().unwrap().to_owned());
            assert_eq!(seen, link);
        }
        api.get(&format!("{path}?limit=10001")).await.is_problem(400, "bad-request");
    })
    .await;
}

/// Departments are whatever text a source has.
#[tokio::test]
async fn a_page_of_long_departments_ends_early_and_links_to_the_rest() {
    with_api(async |api| {
        let mut view = consumer(&api).await;
        let fill = "insert into views_1.user_view (user_id, department)
             select number, number + 10 || repeat('d', 1998) from generate_series(1, 600) as number";
        sqlx::query(fill).execute(&mut view).await.unwrap();
        let first = api.get("/api/posts/stats/departments").await;
        let shown = first.body.as_array().unwrap().len();
        assert!((500..600).contains(&shown), "{shown}");
        let next = first.header("link").split(['<', '>']).nth(1).unwrap().to_owned();
        let rest = api.get(&next).await;
        assert_eq!(rest.body.as_array().unwrap().len(), 600 - shown);
        assert!(!rest.headers.contains_key("link"));
    })
    .await;
}

/// The view says nothing of how long a name is.
#[tokio::test]
async fn a_page_of_users_with_long_names_ends_early_and_links_to_the_rest() {
    with_api(async |api| {
        let mut view = consumer(&api).await;
        sqlx::query(
            "insert into views_1.user_view (user_id, name, email)
             select number, repeat('가', 10000), repeat('e', 30000)
             from generate_series(1, 40) as number",
        )
        .execute(&mut view)
        .await
        .unwrap();
        let (ids, sizes) = api.walk("/api/posts/users").await;
        assert_eq!(sizes, [17, 17, 6]);
        assert_eq!(ids, (1..=40).collect::<Vec<i64>>());
    })
    .await;
}
