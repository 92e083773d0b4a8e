//! `/api/users`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json as JsonAnswer, Router};
use serde::Serialize;
use service::page::PageQuery;
use service::precondition::{IfMatch, etag};
use service::problem::FieldError;
use service::timestamp::Timestamp;
use service::together::Together;
use service::{Json, Path, Problem, Query, database, together};
use sqlx::PgPool;

use crate::inserts::Inserts;
use crate::user_body::{User, UserBody};

const LIST_LIMIT_DEFAULT: i64 = 100;
const LIST_LIMIT_MAX: i64 = 1000;

/// Most rows of one statement that reads for several requests.
const READ_ROWS_MAX: usize = 200;

/// The routes of users.
pub(crate) fn router(pool: PgPool) -> Router {
    let service = Service { inserts: Inserts::start(&pool), reads: reads(&pool), pool };
    Router::new()
        .route("/api/users", get(list).post(create))
        .route("/api/users/{id}", get(read).put(update).delete(delete))
        .with_state(service)
}

/// What handlers work with.
#[derive(Clone)]
struct Service {
    pool: PgPool,
    inserts: Inserts,
    reads: Reads,
}

/// A user as every answer shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UserRow {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) email: String,
    pub(crate) department: String,
    pub(crate) status: String,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    pub(crate) version: i64,
}

impl UserRow {
    /// The size of its text, as PostgreSQL counts it.
    fn text_bytes(&self) -> usize {
        let Self { name, email, department, status, .. } = self;
        [name, email, department, status].into_iter().map(String::len).sum()
    }
}

async fn list(
    State(service): State<Service>,
    uri: Uri,
    Query(query): Query<PageQuery>,
) -> Result<Response, Problem> {
    let page = query.page(LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX)?;
    let users = sqlx::query_as!(
        UserRow,
        r#"select id, name, email, department, status, created_at as "created_at: Timestamp",
             updated_at as "updated_at: Timestamp", version
         from users
         where id > $1
         order by id
         limit $2"#,
        page.after(),
        page.fetch_limit(),
    )
    .fetch(&service.pool);
    let users = page.take(users, UserRow::text_bytes).await.map_err(database::problem)?;
    Ok(page.answer(&uri, users, |user| user.id, UserRow::text_bytes))
}

async fn create(
    State(service): State<Service>,
    Json(body): Json<UserBody>,
) -> Result<impl IntoResponse, Problem> {
    let user = service.inserts.insert(body.create()?).await?;
    let location = [(LOCATION, format!("/api/users/{}", user.id))];
    Ok((StatusCode::CREATED, location, etag(user.version), JsonAnswer(user)))
}

async fn read(State(service): State<Service>, Path(id): Path<i64>) -> Result<Response, Problem> {
    let user = service.reads.ask(id).await?.ok_or_else(|| unknown(id))?;
    Ok((etag(user.version), JsonAnswer(&*user)).into_response())
}

/// Users by id.
type Reads = Together<i64, Option<Arc<UserRow>>>;

fn reads(pool: &PgPool) -> Reads {
    let pool = pool.clone();
    Together::start(READ_ROWS_MAX, move |ids| {
        let pool = pool.clone();
        async move { together::rows_by_key(&ids, find(&pool, &ids).await, |user| user.id) }
    })
}

/// The sub-select hides how many ids there are. The server would make a plan for each list otherwise,
/// which takes longer than reading one row.
async fn find(pool: &PgPool, ids: &[i64]) -> Result<Vec<UserRow>, sqlx::Error> {
    sqlx::query_as!(
        UserRow,
        r#"select id, name, email, department, status, created_at as "created_at: Timestamp",
             updated_at as "updated_at: Timestamp", version
         from users
         where id = any (array(select unnest($1::bigint[])))"#,
        ids,
    )
    .fetch_all(pool)
    .await
}

async fn update(
    State(service): State<Service>,
    Path(id): Path<i64>,
    if_match: IfMatch,
    Json(body): Json<UserBody>,
) -> Result<impl IntoResponse, Problem> {
    let user = body.update(id)?;
    let attempt = || change(&service.pool, id, &if_match, &user);
    let mut changed = attempt().await;
    // Two users who exchange their addresses wait for each other. One of them is ended and the other goes on.
    if changed.as_ref().is_err_and(database::is_deadlock) {
        changed = attempt().await;
    }
    match changed.map_err(refused)? {
        Some(user) => Ok((etag(user.version), JsonAnswer(user))),
        None => Err(missed(&service.pool, id).await),
    }
}

async fn change(
    pool: &PgPool,
    id: i64,
    if_match: &IfMatch,
    User { name, email, department, status }: &User,
) -> Result<Option<UserRow>, sqlx::Error> {
    // clock_timestamp, not now: of two updates that met at the row lock, the later one must not
    // carry the earlier time.
    sqlx::query_as!(
        UserRow,
        r#"update users
         set name = $3, email = $4, department = $5, status = coalesce($6, status),
             updated_at = clock_timestamp(), version = version + 1
         where id = $1 and ($2::bigint[] is null or version = any ($2))
         returning id, name, email, department, status, created_at as "created_at: Timestamp",
             updated_at as "updated_at: Timestamp", version"#,
        id,
        if_match.versions() as Option<&[i64]>,
        name.as_str(),
        email.as_str(),
        department.as_str(),
        status.as_deref(),
    )
    .fetch_optional(pool)
    .await
}

async fn delete(
    State(service): State<Service>,
    Path(id): Path<i64>,
    if_match: IfMatch,
) -> Result<StatusCode, Problem> {
    let deleted = sqlx::query!(
        "delete from users
         where id = $1 and ($2::bigint[] is null or version = any ($2))",
        id,
        if_match.versions() as Option<&[i64]>,
    )
    .execute(&service.pool)
    .await
    .map_err(database::problem)?;
    if deleted.rows_affected() == 0 {
        return Err(missed(&service.pool, id).await);
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Why a conditional change found no row: it is not there, or has another version.
async fn missed(pool: &PgPool, id: i64) -> Problem {
    match sqlx::query_scalar!("select version from users where id = $1", id)
        .fetch_optional(pool)
        .await
    {
        Ok(Some(_)) => IfMatch::failed(),
        Ok(None) => unknown(id),
        Err(error) => database::problem(error),
    }
}

fn unknown(id: i64) -> Problem {
    Problem::not_found(format!("there is no user {id}"))
}

/// Uniqueness is not looked up first: two requests could both find nothing. The constraint knows.
pub(crate) fn refused(error: sqlx::Error) -> Problem {
    match database::violated(&error) {
        Some("users_email_key") => taken().cause(error),
        Some("users_status_check") => {
            Problem::invalid(vec![FieldError::new("status", "is not a status that users have")])
                .cause(error)
        }
        Some(_) | None => database::problem(error),
    }
}

/// 409: another user has this address.
pub(crate) fn taken() -> Problem {
    Problem::new(StatusCode::CONFLICT, "duplicate-email", "E-mail address is taken")
        .detail("another user has this e-mail address")
}
