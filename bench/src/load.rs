//! `./dev load`: the original's run. Users are posted one by one through REST, while the view that the
//! original's author saw fall behind is counted beside it.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use devstack::addresses::{POST_DATABASE, USER_API_PORT, USER_DATABASE};
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;
use tokio::task::JoinSet;

use crate::cli::LoadOptions;
use crate::figures::{Percentiles, float};
use crate::http_client::HttpClient;
use crate::report;
use crate::servers::{Conditions, Servers, admin};

/// What the original's readme reports of the same run.
pub(crate) const ORIGINAL_SECONDS: f64 = 1446.47;
pub(crate) const ORIGINAL_USERS: u64 = 452_000;
/// Rows of its view, at a time that it does not tell.
const ORIGINAL_IN_VIEW: u64 = 184_793;

/// Between two counts of the view for people.
const SHOW_EVERY: Duration = Duration::from_secs(1);
/// Between two looks for the end.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A view that stands still for this long will not be complete.
const STILL_MAX: Duration = Duration::from_mins(1);

#[derive(Debug, Serialize)]
struct Load {
    users: u64,
    clients: usize,
    seconds: f64,
    per_second: f64,
    to_original: f64,
    /// From a request to its 201, in milliseconds.
    response_millis: Percentiles,
    /// Rows of the view when the last response came, of [`Self::users`].
    in_view_at_last_response: u64,
    /// From the last response to the view's last row.
    view_complete_after_seconds: f64,
    /// Once a second from the first request: seconds, users answered, rows in the view.
    progress: Vec<(f64, u64, u64)>,
    /// Every user created has its row, with the same content.
    equal: bool,
    conditions: Conditions,
}

/// Fails with 1 when the view ends unequal to the table.
pub(crate) async fn run(options: &LoadOptions) -> anyhow::Result<ExitCode> {
    let servers = Servers::new()?;
    let conditions = servers.conditions().await?;
    let mut users = admin(USER_DATABASE).await?;
    let mut views = admin(POST_DATABASE).await?;
    let before = number(&mut users, "select coalesce(max(id), 0) from users").await?;
    let step = servers.progress.step("load", "posting users");
    let created = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let mut posting = post_all(options, &created);
    let (mut millis, mut watch) = (Vec::new(), tokio::time::interval(SHOW_EVERY));
    let mut progress = Vec::new();
    while !posting.is_empty() {
        tokio::select! {
            Some(posted) = posting.join_next() => millis.extend(posted??),
            _ = watch.tick() => {
                let created = created.load(Ordering::Relaxed);
                step.count(created, options.users);
                let rows = rows_after(&mut views, before).await?;
                let elapsed = started.elapsed().as_secs_f64();
                progress.push((elapsed, created, rows));
                let rate = float(created) / elapsed;
                step.message(format!("{rate:.0} a second, {rows} in the view"));
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let ended = Instant::now();
    let last = number(&mut users, "select max(id) from users").await?;
    let at_last_response = rows_after(&mut views, before).await?;
    let complete = wait_until_complete(&mut views, before, options.users, ended).await?;
    let equal = content(&mut users, "users", "id", before, last).await?
        == content(&mut views, "user_view", "user_id", before, last).await?;
    let per_second = float(options.users) / seconds;
    let load = Load {
        users: options.users,
        clients: options.clients.get(),
        seconds,
        per_second,
        to_original: per_second * ORIGINAL_SECONDS / float(ORIGINAL_USERS),
        response_millis: Percentiles::of(millis).context("no user was created")?,
        in_view_at_last_response: at_last_response,
        view_complete_after_seconds: complete.as_secs_f64(),
        progress,
        equal,
        conditions,
    };
    step.done(&format!("{} users, {per_second:.0} a second", options.users));
    report::write(&servers, &options.output, "load", &load, &table(&load))?;
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Clients that post side by side. Each gives how long its responses took, in milliseconds.
fn post_all(options: &LoadOptions, created: &Arc<AtomicU64>) -> JoinSet<anyhow::Result<Vec<f64>>> {
    let (run, next) = (rand::random(), Arc::new(AtomicU64::new(0)));
    let mut posting = JoinSet::new();
    for _ in 0..options.clients.get() {
        let (next, created) = (Arc::clone(&next), Arc::clone(created));
        let users = options.users;
        posting.spawn(async move { post(run, &next, users, &created).await });
    }
    posting
}

/// One client: posts until all users are taken, the next when the last was answered.
async fn post(
    run: u32,
    next: &AtomicU64,
    users: u64,
    created: &AtomicU64,
) -> anyhow::Result<Vec<f64>> {
    const DEPARTMENTS: [&str; 5] = ["개발팀", "기획팀", "영업팀", "인사팀", "디자인팀"];
    let mut client = HttpClient::connect(USER_API_PORT).await?;
    let mut millis = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= users {
            return Ok(millis);
        }
        let department = DEPARTMENTS[usize::try_from(number % 5)?];
        let user = json!({ "name": format!("사용자 {number}"), "department": department,
            "email": format!("load-{run:08x}-{number}@example.com"), "status": "ACTIVE" });
        let sent = Instant::now();
        let posted = client.post("/api/users", &user).await;
        posted.with_context(|| format!("user {number} was not created"))?;
        millis.push(sent.elapsed().as_secs_f64() * 1000.0);
        created.fetch_add(1, Ordering::Relaxed);
    }
}

async fn wait_until_complete(
    views: &mut PgConnection,
    before: i64,
    users: u64,
    ended: Instant,
) -> anyhow::Result<Duration> {
    let (mut rows, mut moved) = (0, Instant::now());
    loop {
        let now = rows_after(views, before).await?;
        if now == users {
            return Ok(ended.elapsed());
        }
        if now != rows {
            (rows, moved) = (now, Instant::now());
        }
        ensure!(moved.elapsed() < STILL_MAX, "the view stands still at {rows} of {users} rows");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn rows_after(views: &mut PgConnection, before: i64) -> anyhow::Result<u64> {
    let sql = format!("select count(*) from user_view where user_id > {before}");
    Ok(number(views, &sql).await?.unsigned_abs())
}

/// Rows in a range of keys, and a sum over what they hold: equal for equal rows.
async fn content(
    db: &mut PgConnection,
    table: &str,
    key: &str,
    after: i64,
    last: i64,
) -> anyhow::Result<String> {
    let sql = format!(
        "select count(*) || ' ' || coalesce(sum(hashtextextended(concat_ws('|', {key}, name, email,
             department, status, extract(epoch from created_at), version), 0)::numeric), 0)
         from {table} where {key} > {after} and {key} <= {last}"
    );
    sqlx::query_scalar(&sql).fetch_one(db).await.context(table.to_owned())
}

async fn number(db: &mut PgConnection, sql: &str) -> anyhow::Result<i64> {
    sqlx::query_scalar(sql).fetch_one(db).await.with_context(|| sql.to_owned())
}

fn table(load: &Load) -> String {
    let Percentiles { p50, p99, max, .. } = load.response_millis;
    let original = float(ORIGINAL_USERS) / ORIGINAL_SECONDS;
    [
        format!("{:<34} {:>14} {:>14}", "", "this run", "the original"),
        format!("{:<34} {:>14} {:>14}", "users created", load.users, ORIGINAL_USERS),
        format!("{:<34} {:>14.1} {:>14.1}", "seconds", load.seconds, ORIGINAL_SECONDS),
        format!("{:<34} {:>14.0} {:>14.0}", "users a second", load.per_second, original),
        format!(
            "{:<34} {:>12.1} % {:>14}, when its author looked",
            "in the view at the last response",
            100.0 * float(load.in_view_at_last_response) / float(load.users),
            ORIGINAL_IN_VIEW,
        ),
        format!(
            "{:<34} {:>12.2} s {:>14}",
            "view complete after", load.view_complete_after_seconds, "not measured"
        ),
        format!("{:.1} times the original's rate, {} clients", load.to_original, load.clients),
        format!("a response took {p50:.1} ms (p50), {p99:.1} ms (p99), {max:.1} ms (most)"),
        if load.equal {
            "every user is in the view, with the same content"
        } else {
            "THE VIEW DIFFERS"
        }
        .to_owned(),
    ]
    .join("\n")
}
