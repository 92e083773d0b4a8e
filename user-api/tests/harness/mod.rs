//! One database per test, made by the migrations, and a service on top of it. Shared with the tests
//! of the post service, which are the same kind of test.

use std::str::FromStr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use serde_json::Value;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Executor, PgConnection, PgPool};
use tokio::task::JoinSet;
use tower::ServiceExt;
use uuid::Uuid;

/// The service under test.
#[derive(Clone)]
pub(crate) struct Api {
    router: Router,
    /// The service's own pool.
    pub(crate) pool: PgPool,
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

/// Creates a database by `migrate`, runs `test` on it, and drops it whatever happened. The server
/// is the one that the environment variable `url_name` names.
pub(crate) async fn with_database<F>(
    url_name: &str,
    role: &str,
    migrate: impl AsyncFnOnce(&str),
    test: impl FnOnce(PgPool) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let admin = admin_options(url_name);
    let name = format!("{role}_{}", Uuid::new_v4().simple());
    let admin_url = admin.clone().database(&name).to_url_lossy().to_string();
    migrate(&admin_url).await;

    let options = admin.clone().database(&name).username(role).password(role);
    let url = options.to_url_lossy().to_string();
    let pool = service::database::pool("test", &url.into(), 4).unwrap();
    let outcome = tokio::spawn(test(pool)).await;

    let mut server = admin.database("postgres").connect().await.unwrap();
    let drop = format!("drop database {name} with (force)");
    sqlx::raw_sql(&drop).execute(&mut server).await.unwrap();
    outcome.unwrap();
}

#[expect(clippy::disallowed_methods, reason = "tests take the server's address from outside")]
fn admin_options(url_name: &str) -> PgConnectOptions {
    let url = std::env::var(url_name)
        .unwrap_or_else(|_| panic!("{url_name} must name a superuser's database"));
    PgConnectOptions::from_str(&url).unwrap()
}

impl Api {
    pub(crate) fn new(router: Router, pool: PgPool) -> Self {
        Self { router, pool }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.raw("GET", path, &[], vec![]).await
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.send_with(method, path, &[], body).await
    }

    pub(crate) async fn send_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Answer {
        let json = [("content-type", "application/json")];
        let body = if body.is_null() { vec![] } else { body.to_string().into_bytes() };
        self.raw(method, path, &[headers, &json].concat(), body).await
    }

    pub(crate) async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body)).unwrap();
        let (parts, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let body =
            if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// Ids on a page and those it links to, and how many each page has.
    pub(crate) async fn walk(&self, first: &str) -> (Vec<i64>, Vec<usize>) {
        let (mut ids, mut sizes, mut path) = (vec![], vec![], first.to_owned());
        loop {
            let page = self.get(&path).await;
            let rows = page.body.as_array().unwrap();
            ids.extend(rows.iter().map(|row| row["id"].as_i64().unwrap()));
            sizes.push(rows.len());
            let Some(link) = page.headers.get("link") else { return (ids, sizes) };
            let link = link.to_str().unwrap();
            link.strip_prefix('<').unwrap().split('>').next().unwrap().clone_into(&mut path);
        }
    }

    /// Answers to requests that meet, and how many statements read `table` for them: no statement gets
    /// on before all were sent. As many others are sent and given up meanwhile.
    pub(crate) async fn meet(
        &self,
        admin_url_name: &str,
        table: &str,
        paths: &[String],
    ) -> (Vec<Answer>, i64) {
        let mut db = self.admin(admin_url_name).await;
        let lock = format!(
            "alter table {table} rename to read;
             create sequence statements;
             grant usage on sequence statements to public;
             create view {table} as
                 with counted as materialized (select nextval('statements'))
                 select read.* from read, counted;
             grant select on {table} to public;
             begin;
             lock table read in access exclusive mode;"
        );
        db.execute(lock.as_str()).await.unwrap();
        let (mut sent, mut given_up) = (JoinSet::new(), JoinSet::new());
        for (number, path) in paths.iter().cloned().enumerate() {
            let (api, other) = (self.clone(), (self.clone(), path.clone()));
            sent.spawn(async move { (number, api.get(&path).await) });
            given_up.spawn(async move { other.0.get(&other.1).await });
        }
        wait_for_waiting(&mut db).await;
        given_up.shutdown().await;
        db.execute("commit").await.unwrap();
        let mut answers = sent.join_all().await;
        answers.sort_by_key(|(number, _)| *number);
        let count = sqlx::query_scalar("select last_value from statements");
        let count = count.fetch_one(&mut db).await.unwrap();
        (answers.into_iter().map(|(_, answer)| answer).collect(), count)
    }

    /// A superuser's connection to the test's database.
    pub(crate) async fn admin(&self, admin_url_name: &str) -> PgConnection {
        let database = self.pool.connect_options().get_database().unwrap().to_owned();
        admin_options(admin_url_name).database(&database).connect().await.unwrap()
    }

    /// Makes the database unreachable for the service, for good.
    pub(crate) async fn cut_database(&self) {
        self.pool.close().await;
    }
}

/// Waits until a statement of the service waits for a lock.
pub(crate) async fn wait_for_waiting(db: &mut PgConnection) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let sql = "select count(*)
               from pg_stat_activity
               where datname = current_database() and wait_event_type = 'Lock'";
    loop {
        let waiting: i64 = sqlx::query_scalar(sql).fetch_one(&mut *db).await.unwrap();
        if waiting > 0 {
            return;
        }
        assert!(Instant::now() < deadline, "no statement waits for the lock");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, code: &str) {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.body["type"], format!("urn:problem:{code}"));
        assert_eq!(self.body["status"], status);
    }
}
