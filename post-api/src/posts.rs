//! `/api/posts` and `/api/posts/{id}`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json as JsonAnswer, Router};
use service::page::{PAGE_BYTES_MAX, Page, PageQuery};
use service::precondition::{IfMatch, etag};
use service::problem::FieldError;
use service::timestamp::Timestamp;
use service::together::Together;
use service::{Json, Path, Problem, Query, database, together};
use sqlx::PgPool;

use crate::Service;
use crate::post::{ChangedPost, NewPost, Post, PostBody, PostRow};
use crate::waiting::until;

const LIST_LIMIT_DEFAULT: i64 = 100;
const LIST_LIMIT_MAX: i64 = 1000;
/// Most posts of one statement that reads for several requests: a post may have 60 kB.
const READ_ROWS_MAX: usize = 50;

/// The routes of posts.
pub(crate) fn router() -> Router<Service> {
    Router::new()
        .route("/api/posts", get(list).post(create))
        .route("/api/posts/{id}", get(read).put(update).delete(delete))
        .route("/api/posts/by-department/{department}", get(by_department))
}

async fn list(
    State(service): State<Service>,
    uri: Uri,
    Query(query): Query<PageQuery>,
) -> Result<Response, Problem> {
    let page = query.page(LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX)?;
    let rows = sqlx::query_as!(
        PostRow,
        r#"select id as "id!", title as "title!", content as "content!",
             author_id as "author_id!", created_at as "created_at!: Timestamp",
             updated_at as "updated_at!: Timestamp", version as "version!",
             user_id as "user_id?", name as "name?", email as "email?",
             department as "department?", status as "status?"
         from (
             select *, coalesce(sum(text_bytes) over (
                 order by id rows between unbounded preceding and 1 preceding), 0) as bytes_before
             from (
                 select p.*, u.user_id, u.name, u.email, u.department, u.status,
                     octet_length(p.title) + octet_length(p.content)
                     + coalesce(octet_length(u.name), 0) + coalesce(octet_length(u.email), 0)
                     + coalesce(octet_length(u.department), 0) + coalesce(octet_length(u.status), 0)
                     as text_bytes
                 from (select * from posts where id > $1 order by id limit $2) as p
                 left join user_view as u on u.user_id = p.author_id
             ) as p
         ) as p
         where bytes_before <= $3
         order by id"#,
        page.after(),
        page.fetch_limit(),
        PAGE_BYTES_MAX,
    )
    .fetch_all(&service.pool)
    .await
    .map_err(database::problem)?;
    Ok(answer(page, &uri, rows))
}

/// The page ends before the post that is one too many or makes it too long. That one was fetched, and shows
/// that there is more.
fn answer(page: Page, uri: &Uri, rows: Vec<PostRow>) -> Response {
    let posts: Vec<_> = rows.into_iter().map(Post::from).collect();
    page.answer(uri, posts, |post| post.id, Post::text_bytes)
}

async fn by_department(
    State(service): State<Service>,
    uri: Uri,
    Path(department): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Response, Problem> {
    let page = query.page(LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX)?;
    let rows = find_by_department(&service.pool, &department, page).await;
    Ok(answer(page, &uri, rows.map_err(database::problem)?))
}

/// PostgreSQL cannot know where among all posts those of a department are, and walking along until a page of
/// them is found may mean reading every post. So the walk is short: enough where they are frequent, and else
/// the first posts of each user of the department are looked up, which is slower but bounded by these users.
/// The array hides how many posts there are; the plan would otherwise be made for all of them.
async fn find_by_department(
    pool: &PgPool,
    department: &str,
    page: Page,
) -> Result<Vec<PostRow>, sqlx::Error> {
    sqlx::query_as!(
        PostRow,
        r#"with walked as materialized (
             select p.id
             from (select id, author_id from posts where id > $2 order by id limit 10000) as p
             join user_view as u on u.user_id = p.author_id
             where u.department = $1
             order by p.id
             limit $3
         ), looked_up as (
             select p.id
             from user_view as u
             cross join lateral (
                 select id
                 from posts
                 where author_id = u.user_id and id > $2
                 order by id
                 limit $3
             ) as p
             where u.department = $1 and (select count(*) from walked) < $3
             order by p.id
             limit $3
         ), found as (
             select id from walked where (select count(*) from walked) = $3
             union all
             select id from looked_up
         ), page as (
             select *, coalesce(sum(text_bytes) over (
                 order by id rows between unbounded preceding and 1 preceding), 0) as bytes_before
             from (
                 select p.*, u.user_id, u.name, u.email, u.department, u.status,
                     octet_length(p.title) + octet_length(p.content)
                     + coalesce(octet_length(u.name), 0) + coalesce(octet_length(u.email), 0)
                     + coalesce(octet_length(u.department), 0) + coalesce(octet_length(u.status), 0)
                     as text_bytes
                 from posts as p
                 join user_view as u on u.user_id = p.author_id
                 where p.id = any (array(select id from found))
             ) as p
         )
         select id as "id!", title as "title!", content as "content!",
             author_id as "author_id!", created_at as "created_at!: Timestamp",
             updated_at as "updated_at!: Timestamp", version as "version!",
             user_id as "user_id?", name as "name?", email as "email?",
             department as "department?", status as "status?"
         from page
         where bytes_before <= $4
         order by id"#,
        department,
        page.after(),
        page.fetch_limit(),
        PAGE_BYTES_MAX,
    )
    .fetch_all(pool)
    .await
}

async fn create(
    State(service): State<Service>,
    Json(body): Json<PostBody>,
) -> Result<impl IntoResponse, Problem> {
    let new = body.create()?;
    let post = until(service.view_wait, Option::is_some, || insert(&service.pool, &new))
        .await
        .map_err(database::problem)?
        .ok_or_else(|| {
            let message = format!("is {}, a user that is not known here", new.author_id);
            Problem::invalid(vec![FieldError::new("authorId", message)])
        })?;
    let location = [(LOCATION, format!("/api/posts/{}", post.id))];
    Ok((StatusCode::CREATED, location, etag(post.version), JsonAnswer(post)))
}

/// Inserts the post if its author is in the view: one statement, so that no author can leave
/// between the question and the insert, and none is inserted twice by asking again.
async fn insert(pool: &PgPool, new: &NewPost) -> Result<Option<Post>, sqlx::Error> {
    let row = sqlx::query_as!(
        PostRow,
        r#"with author as (
             select user_id, name, email, department, status
             from user_view
             where user_id = $3
         ), created as (
             insert into posts (title, content, author_id)
             select $1, $2, user_id
             from author
             returning id, title, content, author_id, created_at, updated_at, version
         )
         select id, title, content, author_id, created_at as "created_at: Timestamp",
             updated_at as "updated_at: Timestamp", version,
             user_id as "user_id?", name as "name?", email as "email?",
             department as "department?", status as "status?"
         from created
         cross join author"#,
        new.title,
        new.content,
        new.author_id,
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(Post::from))
}

async fn read(State(service): State<Service>, Path(id): Path<i64>) -> Result<Response, Problem> {
    let post = service.posts.ask(id).await?.ok_or_else(|| unknown(id))?;
    Ok((etag(post.version), JsonAnswer(&*post)).into_response())
}

/// Posts by id, with their authors.
pub(crate) type Reads = Together<i64, Option<Arc<Post>>>;

pub(crate) fn reads(pool: &PgPool) -> Reads {
    let pool = pool.clone();
    Together::start(READ_ROWS_MAX, move |ids| {
        let pool = pool.clone();
        async move { together::rows_by_key(&ids, find(&pool, &ids).await, |post| post.id) }
    })
}

/// The sub-select hides how many ids there are. The server would make a plan for each list otherwise,
/// which takes longer than reading one row. It also hides from sqlx, which reads the plan, that the columns of
/// `posts` are never null.
async fn find(pool: &PgPool, ids: &[i64]) -> Result<Vec<Post>, sqlx::Error> {
    let rows = sqlx::query_as!(
        PostRow,
        r#"select p.id as "id!", p.title as "title!", p.content as "content!",
             p.author_id as "author_id!", p.created_at as "created_at!: Timestamp",
             p.updated_at as "updated_at!: Timestamp", p.version as "version!",
             u.user_id as "user_id?", u.name as "name?", u.email as "email?",
             u.department as "department?", u.status as "status?"
         from posts as p
         left join user_view as u on u.user_id = p.author_id
         where p.id = any (array(select unnest($1::bigint[])))"#,
        ids,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(Post::from).collect())
}

async fn update(
    State(service): State<Service>,
    Path(id): Path<i64>,
    if_match: IfMatch,
    Json(body): Json<PostBody>,
) -> Result<impl IntoResponse, Problem> {
    let ChangedPost { title, content, author_id } = body.update(id)?;
    // clock_timestamp, not now: of two updates that met at the row lock, the later one must not
    // carry the earlier time.
    let row = sqlx::query_as!(
        PostRow,
        r#"with changed as (
             update posts
             set title = $3, content = $4,
                 updated_at = clock_timestamp(), version = version + 1
             where id = $1
                 and ($2::bigint[] is null or version = any ($2))
                 and author_id = coalesce($5, author_id)
             returning id, title, content, author_id, created_at, updated_at, version
         )
         select p.id, p.title, p.content, p.author_id, p.created_at as "created_at: Timestamp",
             p.updated_at as "updated_at: Timestamp", p.version,
             u.user_id as "user_id?", u.name as "name?", u.email as "email?",
             u.department as "department?", u.status as "status?"
         from changed as p
         left join user_view as u on u.user_id = p.author_id"#,
        id,
        if_match.versions() as Option<&[i64]>,
        title,
        content,
        author_id,
    )
    .fetch_optional(&service.pool)
    .await
    .map_err(database::problem)?;
    match row.map(Post::from) {
        Some(post) => Ok((etag(post.version), JsonAnswer(post))),
        None => Err(missed(&service.pool, id, author_id).await),
    }
}

async fn delete(
    State(service): State<Service>,
    Path(id): Path<i64>,
    if_match: IfMatch,
) -> Result<StatusCode, Problem> {
    let deleted = sqlx::query!(
        "delete from posts
         where id = $1 and ($2::bigint[] is null or version = any ($2))",
        id,
        if_match.versions() as Option<&[i64]>,
    )
    .execute(&service.pool)
    .await
    .map_err(database::problem)?;
    if deleted.rows_affected() == 0 {
        return Err(missed(&service.pool, id, None).await);
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Why a conditional change found no row: it is not there, has another author, or another version.
async fn missed(pool: &PgPool, id: i64, author_id: Option<i64>) -> Problem {
    let found = sqlx::query_scalar!("select author_id from posts where id = $1", id)
        .fetch_optional(pool)
        .await;
    match found {
        Ok(Some(kept)) if author_id.is_some_and(|author_id| author_id != kept) => {
            let message = format!("must be {kept} or left out: a post keeps its author");
            Problem::invalid(vec![FieldError::new("authorId", message)])
        }
        Ok(Some(_)) => IfMatch::failed(),
        Ok(None) => unknown(id),
        Err(error) => database::problem(error),
    }
}

fn unknown(id: i64) -> Problem {
    Problem::not_found(format!("there is no post {id}"))
}
