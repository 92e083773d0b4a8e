//! Bad input gets a clear answer, and nothing else happens.

use std::process::Command;
use std::time::Duration;

use devstack::Stack;
use devstack::addresses::environment;
use reqwest::Method;
use serde_json::{Value, json};

use crate::system::{EMAIL_DOMAIN, System, TITLE_PREFIX, with_system};

const VISIBLE_DEADLINE: Duration = Duration::from_secs(30);
const JSON: &str = "application/json";
const PUT: Method = Method::PUT;
const POST: Method = Method::POST;

/// A request that must be refused: body, status, kind of problem.
type Case = (Method, String, Vec<u8>, u16, &'static str);

#[test]
fn a_log_filter_that_cannot_be_read_is_named_by_every_program() {
    let programs = Stack::from_environment().unwrap().places().programs.clone();
    for (program, argument) in [
        ("user-api", None),
        ("post-api", None),
        ("migrate", Some("all")),
        ("cdc-consumer", Some("status")),
    ] {
        let mut command = Command::new(programs.join(program));
        command.args(argument).args(["--log-filter", "info,sqlx=wurn"]).envs(environment());
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{program}: {text}");
        assert!(text.contains("info,sqlx=wurn"), "{program}: {text}");
    }
}

#[tokio::test]
async fn bad_users_are_refused_and_change_nothing() {
    with_system(async |system: System| {
        let url = system.http.users("");
        let good = user("good");
        let id = system.http.expect(201, POST, &url, Some(&good)).await.id();
        system.http.expect(201, POST, &url, Some(&user("other"))).await;
        let own = system.http.users(&format!("/{id}"));
        let with = |field: &str, value: Value| {
            let mut user = user("bad");
            user[field] = value;
            user.to_string().into_bytes()
        };
        let mut cases: Vec<Case> = Vec::new();
        for (method, url) in [(POST, &url), (PUT, &own)] {
            let mut case = |body: &[u8], status, kind| {
                cases.push((method.clone(), url.clone(), body.to_vec(), status, kind));
            };
            unreadable(&mut case);
            for field in ["name", "email", "department"] {
                for value in
                    [json!(null), json!(""), json!(" \t"), json!("가".repeat(300)), json!(7)]
                {
                    case(&with(field, value), 422, "invalid-fields");
                }
                case(&with(field, json!("a\0b")), 422, "invalid-fields");
            }
            for email in ["hong", "hong@", "@example.com", "a b@example.com", "a@b@example.com"] {
                case(&with("email", json!(email)), 422, "invalid-fields");
            }
            case(&with("status", json!("SLEEPING")), 422, "invalid-fields");
            case(&with("status", json!(true)), 422, "invalid-fields");
            case(&with("email", user("other")["email"].clone()), 409, "duplicate-email");
        }
        let good_body = user("bad").to_string().into_bytes();
        cases.push((PUT, own, with("id", json!(id + 1)), 422, "invalid-fields"));
        for (id, status, kind) in ADDRESSES {
            let url = system.http.users(&format!("/{id}"));
            cases.push((Method::GET, url.clone(), vec![], status, kind));
            cases.push((Method::DELETE, url.clone(), vec![], status, kind));
            cases.push((PUT, url, good_body.clone(), status, kind));
        }
        refuse_all(&system, cases).await;

        let view = system.http.posts(&format!("/users/{id}"));
        let same = |seen: &Value| {
            good.as_object().unwrap().iter().all(|(name, value)| &seen[name] == value)
        };
        system.http.visible(&view, VISIBLE_DEADLINE, |answer| same(&answer.body)).await;
    })
    .await;
}

#[tokio::test]
async fn bad_posts_are_refused_and_change_nothing() {
    with_system(async |system: System| {
        let author =
            system.http.expect(201, POST, &system.http.users(""), Some(&user("good"))).await.id();
        let url = system.http.posts("");
        let post = |author: i64| {
            json!({ "title": format!("{TITLE_PREFIX}x"), "content": "내용", "authorId": author })
        };
        let id = system.http.expect(201, POST, &url, Some(&post(author))).await.id();
        let own = system.http.posts(&format!("/{id}"));
        let with = |field: &str, value: Value| {
            let mut post = post(author);
            post[field] = value;
            post.to_string().into_bytes()
        };
        let mut cases: Vec<Case> = Vec::new();
        for (method, url) in [(POST, &url), (PUT, &own)] {
            let mut case = |body: &[u8], status, kind| {
                cases.push((method.clone(), url.clone(), body.to_vec(), status, kind));
            };
            unreadable(&mut case);
            for field in ["title", "content"] {
                for value in [json!(null), json!(" \t"), json!("a".repeat(20_001)), json!(7)] {
                    case(&with(field, value), 422, "invalid-fields");
                }
                case(&with(field, json!("a\0b")), 422, "invalid-fields");
            }
            for author in [json!("6"), json!(1.5), json!(i64::MAX)] {
                case(&with("authorId", author), 422, "invalid-fields");
            }
        }
        cases.push((POST, url, with("authorId", json!(null)), 422, "invalid-fields"));
        cases.push((PUT, own, with("id", json!(id + 1)), 422, "invalid-fields"));
        for (id, status, kind) in ADDRESSES {
            let url = system.http.posts(&format!("/{id}"));
            cases.push((Method::GET, url.clone(), vec![], status, kind));
            cases.push((Method::DELETE, url, vec![], status, kind));
        }
        cases.push((Method::GET, system.http.posts("?limit=0"), vec![], 400, "bad-request"));
        cases.push((Method::GET, system.http.posts("?after=x"), vec![], 400, "bad-request"));
        refuse_all(&system, cases).await;
    })
    .await;
}

/// Ids that lead nowhere.
const ADDRESSES: [(&str, u16, &str); 5] = [
    ("0", 404, "not-found"),
    ("9223372036854775807", 404, "not-found"),
    ("9223372036854775808", 400, "bad-request"),
    ("seven", 400, "bad-request"),
    ("%00", 400, "bad-request"),
];

fn user(name: &str) -> Value {
    json!({
        "name": name, "email": format!("refusal-{name}@{EMAIL_DOMAIN}"),
        "department": "개발팀", "status": "ACTIVE"
    })
}

/// Bodies that no service can read.
fn unreadable(case: &mut impl FnMut(&[u8], u16, &'static str)) {
    for body in [&b""[..], b"name=hong", b"{\"name\":", b"\xff\xfe", br#"{"name":"\ud800"}"#] {
        case(body, 400, "bad-request");
    }
    for body in [&b"[]"[..], b"7", b"null", b"{}"] {
        case(body, 422, "invalid-fields");
    }
    let large = json!({ "name": "a".repeat(64 << 10) }).to_string();
    case(large.as_bytes(), 413, "body-too-large");
}

async fn refuse_all(system: &System, cases: Vec<Case>) {
    let before = rows(system).await;
    let count = cases.len();
    for (method, url, body, status, kind) in cases {
        let sent: String = String::from_utf8_lossy(&body).chars().take(100).collect();
        let body = (method != Method::GET && method != Method::DELETE).then_some((JSON, body));
        let what = format!("{method} {url} {sent}");
        let answer = system.http.send_bytes(method, &url, body).await.unwrap();
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        assert_eq!(answer.content_type, "application/problem+json", "{what}: {answer:?}");
        assert_eq!(answer.body["type"], format!("urn:problem:{kind}"), "{what}: {answer:?}");
        assert!(answer.body["title"].is_string(), "{what}: {answer:?}");
    }
    let plain = Some(("text/plain", b"{}".to_vec()));
    for url in [system.http.users(""), system.http.posts("")] {
        let answer = system.http.send_bytes(POST, &url, plain.clone()).await.unwrap();
        assert_eq!(answer.status, 415, "{answer:?}");
    }
    assert_eq!(rows(system).await, before, "a refused request changed a row");
    system.report.line("requests refused as they should be", count.to_string());
}

/// All rows of both services, as one text each.
async fn rows(system: &System) -> [Option<String>; 2] {
    let users = "select string_agg(u::text, ',' order by id) from users as u";
    let posts = "select string_agg(p::text, ',' order by id) from posts as p";
    [
        sqlx::query_scalar(users).fetch_one(&system.user_db).await.unwrap(),
        sqlx::query_scalar(posts).fetch_one(&system.post_db).await.unwrap(),
    ]
}
