//! `/api/users`.

use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json as JsonAnswer, Router};
use serde::Serialize;
use service::page::PageQuery;
use service::precondition::{IfMatch, etag};
use service::problem::FieldError;
use service::{Json, Path, Problem, Query, database, timestamp};
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::inserts::{self, Inserts};
use crate::user_body::{User, UserBody};

const LIST_LIMIT_DEFAULT: i64 = 100;
const LIST_LIMIT_MAX: i64 = 1000;

/// The routes of users.
pub(crate) fn router(pool: PgPool) -> Router {
    let creating =
        Router::new().route("/api/users", post(create)).with_state(inserts::start(&pool));
    Router::new()
        .route("/api/users", get(list))
        .route("/api/users/{id}", get(read).put(update).delete(delete))
        .with_state(pool)
        .merge(creating)
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
    #[serde(serialize_with = "timestamp::serialize")]
    pub(crate) created_at: OffsetDateTime,
    #[serde(serialize_with = "timestamp::serialize")]
    pub(crate) updated_at: OffsetDateTime,
    pub(crate) version: i64,
}

async fn list(
    State(pool): State<PgPool>,
    uri: Uri,
    Query(query): Query<PageQuery>,
) -> Result<Response, Problem> {
    let page = query.page(LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX)?;
    let users = sqlx::query_as!(
        UserRow,
        "select id, name, email, department, status, created_at, updated_at, version
         from users
         where id > $1
         order by id
         limit $2",
        page.after(),
        page.fetch_limit(),
    )
    .fetch_all(&pool)
    .await
    .map_err(database::problem)?;
    Ok(page.answer(&uri, users, |user| user.id))
}

async fn create(
    State(inserts): State<Inserts>,
    Json(body): Json<UserBody>,
) -> Result<impl IntoResponse, Problem> {
    let user = inserts.ask(body.create()?).await?;
    let location = [(LOCATION, format!("/api/users/{}", user.id))];
    Ok((StatusCode::CREATED, location, etag(user.version), JsonAnswer(user)))
}

async fn read(
    State(pool): State<PgPool>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, Problem> {
    let user = sqlx::query_as!(
        UserRow,
        "select id, name, email, department, status, created_at, updated_at, version
         from users
         where id = $1",
        id,
    )
    .fetch_optional(&pool)
    .await
    .map_err(database::problem)?
    .ok_or_else(|| unknown(id))?;
    Ok((etag(user.version), JsonAnswer(user)))
}

async fn update(
    State(pool): State<PgPool>,
    Path(id): Path<i64>,
    if_match: IfMatch,
    Json(body): Json<UserBody>,
) -> Result<impl IntoResponse, Problem> {
    let User { name, email, department, status } = body.update(id)?;
    // clock_timestamp, not now: of two updates that met at the row lock, the later one must not
    // carry the earlier time.
    let user = sqlx::query_as!(
        UserRow,
        "update users
         set name = $3, email = $4, department = $5, status = coalesce($6, status),
             updated_at = clock_timestamp(), version = version + 1
         where id = $1 and ($2::bigint[] is null or version = any ($2))
         returning id, name, email, department, status, created_at, updated_at, version",
        id,
        if_match.versions() as Option<&[i64]>,
        name,
        email,
        department,
        status,
    )
    .fetch_optional(&pool)
    .await
    .map_err(refused)?;
    match user {
        Some(user) => Ok((etag(user.version), JsonAnswer(user))),
        None => Err(missed(&pool, id).await),
    }
}

async fn delete(
    State(pool): State<PgPool>,
    Path(id): Path<i64>,
    if_match: IfMatch,
) -> Result<StatusCode, Problem> {
    let deleted = sqlx::query!(
        "delete from users
         where id = $1 and ($2::bigint[] is null or version = any ($2))",
        id,
        if_match.versions() as Option<&[i64]>,
    )
    .execute(&pool)
    .await
    .map_err(database::problem)?;
    if deleted.rows_affected() == 0 {
        return Err(missed(&pool, id).await);
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
