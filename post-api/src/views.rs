//! Questions about the views: `/api/posts/users`, `/api/posts/stats/departments`.

use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json as JsonAnswer, Router};
use serde::{Deserialize, Serialize};
use service::page::{PAGE_BYTES_MAX, PageQuery};
use service::precondition::etag;
use service::timestamp::Timestamp;
use service::{Path, Problem, Query, database};
use sqlx::PgPool;

use crate::Service;
use crate::waiting::until;

/// Most users or departments in one answer, and how many a request gets that does not say. More follow under
/// the address in the `Link` header.
const LIMIT_MAX: i64 = 10_000;

/// The routes of views.
pub(crate) fn router() -> Router<Service> {
    Router::new()
        .route("/api/posts/users", get(users))
        .route("/api/posts/users/{id}", get(user))
        .route("/api/posts/stats/departments", get(departments))
}

/// A user as the view has him.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct UserRow {
    id: i64,
    name: Option<String>,
    email: Option<String>,
    department: Option<String>,
    status: Option<String>,
    created_at: Option<Timestamp>,
    updated_at: Option<Timestamp>,
    version: Option<i64>,
    last_processed_at: Option<Timestamp>,
}

impl UserRow {
    /// The size of its text, as PostgreSQL counts it.
    fn text_bytes(&self) -> usize {
        let Self { name, email, department, status, .. } = self;
        [name, email, department, status].into_iter().flatten().map(String::len).sum()
    }
}

/// Users of one department.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DepartmentRow {
    department: String,
    user_count: i64,
    active_count: i64,
    updated_at: Timestamp,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UserQuery {
    min_version: Option<i64>,
}

async fn users(
    State(service): State<Service>,
    uri: Uri,
    Query(query): Query<PageQuery>,
) -> Result<Response, Problem> {
    let page = query.page(LIMIT_MAX, LIMIT_MAX)?;
    let users = sqlx::query_as!(
        UserRow,
        r#"select user_id as "id!", name, email, department, status,
             created_at as "created_at: Timestamp", updated_at as "updated_at: Timestamp",
             version, last_processed_at as "last_processed_at: Timestamp"
         from (
             select *, coalesce(sum(text_bytes) over (
                 order by user_id rows between unbounded preceding and 1 preceding), 0) as bytes_before
             from (
                 select *, coalesce(octet_length(name), 0) + coalesce(octet_length(email), 0)
                     + coalesce(octet_length(department), 0) + coalesce(octet_length(status), 0)
                     as text_bytes
                 from user_view
                 where user_id > $1
                 order by user_id
                 limit $2
             ) as u
         ) as u
         where bytes_before <= $3
         order by user_id"#,
        page.after(),
        page.fetch_limit(),
        PAGE_BYTES_MAX,
    )
    .fetch_all(&service.pool)
    .await
    .map_err(database::problem)?;
    Ok(page.answer(&uri, users, |user| user.id, UserRow::text_bytes))
}

/// With `minVersion` the answer is at least as new as that version, or 504 if the view does not
/// get there in time. That is how a client reads its own write. Whether a user who is not there is on his way,
/// the view cannot say.
async fn user(
    State(service): State<Service>,
    Path(id): Path<i64>,
    Query(query): Query<UserQuery>,
) -> Result<Response, Problem> {
    let version_min = query.min_version.unwrap_or(i64::MIN);
    let wait = query.min_version.map_or(Duration::ZERO, |_| service.view_wait);
    let new_enough = |user: &Option<UserRow>| {
        user.as_ref().is_some_and(|user| user.version.unwrap_or(i64::MIN) >= version_min)
    };
    let user =
        until(wait, new_enough, || find(&service.pool, id)).await.map_err(database::problem)?;
    if let Some(version_min) = query.min_version.filter(|_| !new_enough(&user)) {
        return Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "view-behind", "View is behind")
            .detail(format!("the view does not show version {version_min} of user {id} yet")));
    }
    let user = user.ok_or_else(|| Problem::not_found(format!("there is no user {id} here")))?;
    let tag = user.version.map(etag);
    Ok((tag, JsonAnswer(user)).into_response())
}

async fn find(pool: &PgPool, id: i64) -> Result<Option<UserRow>, sqlx::Error> {
    sqlx::query_as!(
        UserRow,
        r#"select user_id as "id!", name, email, department, status,
             created_at as "created_at: Timestamp", updated_at as "updated_at: Timestamp",
             version, last_processed_at as "last_processed_at: Timestamp"
         from user_view
         where user_id = $1"#,
        id,
    )
    .fetch_optional(pool)
    .await
}

/// By name: there may be as many as users.
async fn departments(
    State(service): State<Service>,
    uri: Uri,
    Query(query): Query<PageQuery<String>>,
) -> Result<Response, Problem> {
    let page = query.page(LIMIT_MAX, LIMIT_MAX)?;
    let departments = sqlx::query_as!(
        DepartmentRow,
        r#"select department as "department!", user_count as "user_count!",
             active_count as "active_count!", updated_at as "updated_at!: Timestamp"
         from (
             select *, coalesce(sum(octet_length(department)) over (
                 order by department rows between unbounded preceding and 1 preceding), 0) as bytes_before
             from (
                 select *
                 from department_stats
                 where $1::text is null or department > $1
                 order by department
                 limit $2
             ) as d
         ) as d
         where bytes_before <= $3
         order by department"#,
        page.after_name(),
        page.fetch_limit(),
        PAGE_BYTES_MAX,
    )
    .fetch_all(&service.pool)
    .await
    .map_err(database::problem)?;
    let (name, bytes) =
        (|row: &DepartmentRow| row.department.clone(), |row: &DepartmentRow| row.department.len());
    Ok(page.answer(&uri, departments, name, bytes))
}
