//! A short run on the local stack (`./dev up`): long enough for a few faults, and for every part
//! of the judgement.
//!
//! It takes turns with the end-to-end tests, which break the same servers.

use std::fs::File;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use devstack::Stack;
use devstack::addresses::{POST_DATABASE, USER_DATABASE, admin_url};
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

const PLANT_DEADLINE: Duration = Duration::from_mins(2);

/// By `./dev chaos --plan` its first faults are a kill of a consumer and a rebuild: see
/// [`the_seed_is_the_whole_schedule`].
const SEED: &str = "28";
/// Runs take turns.
static TURN: Mutex<()> = Mutex::const_new(());
const DOMAIN: &str = "chaos.example.com";
/// A department without users.
const NOBODYS: &str = "chaos nobody's";
/// What only the watcher reads.
const HIDE: &str = "alter view public.post_view rename column source_lsn to hidden";
const SHOW: &str = "alter view public.post_view rename column hidden to source_lsn";
const CHAOS: &str = env!("CARGO_BIN_EXE_chaos");

#[test]
fn the_seed_is_the_whole_schedule() {
    let plan = |seed: &str| {
        let output = chaos(&["--plan", "--minutes", "30", "--seed", seed]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let first = plan(SEED);
    assert_eq!(first.lines().count(), 120);
    assert_eq!(first, plan(SEED));
    assert_ne!(first, plan("5"));
}

#[test]
fn wrong_usage_exits_with_2_and_says_why() {
    let output = chaos(&["--only", "kill-everything"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("kill-consumer"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn a_short_run_ends_without_an_anomaly() {
    let _turn = TURN.lock().await;
    wait_for_turn();
    let output = chaos(&["--minutes", "0.5", "--seed", SEED, "--json"]);
    let errors = text(&output.stderr);
    let report: Value = serde_json::from_str(&text(&output.stdout))
        .unwrap_or_else(|error| panic!("{error}: {errors}"));
    assert_eq!(report["anomalies"], Value::Array(Vec::new()), "{report:#}");
    assert_eq!(output.status.code(), Some(0), "{report:#}\n{errors}");
    assert_eq!(report["seed"].to_string(), SEED);
    assert!(report["writes"]["acknowledged"].as_u64() > Some(100), "{report:#}");
    assert!(report["looks"].as_u64() > Some(10), "{report:#}");
    let faults = report["faults"].as_array().expect("a list");
    assert!(faults.iter().any(|fault| fault["fault"] == "rebuild"), "{report:#}");
    assert!(faults.iter().all(|fault| fault["injected"].as_u64() > Some(0)), "{report:#}");
    let history = report["history"].as_str().expect("a path");
    let history = std::fs::read_to_string(history).expect("the history is kept");
    for event in ["start", "planned", "inject", "heal", "recovered", "end"] {
        let wanted = format!("\"event\":\"{event}\"");
        assert!(history.contains(&wanted), "{event} is missing:\n{history}");
    }
}

/// The judges must not be blind: what somebody does to a view behind the consumer's back is found,
/// by the watcher while it lasts, after the fault, and by the checker in the end.
#[tokio::test]
async fn rows_changed_by_hand_are_found() {
    let _turn = TURN.lock().await;
    wait_for_turn();
    let arguments = ["--minutes", "0.2", "--seed", SEED, "--only", "restart-registry", "--json"];
    let child = Command::new(CHAOS)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program was built for this test");
    let losing = tokio::spawn(lose());
    let planted = timeout(PLANT_DEADLINE, plant()).await;
    let output = spawn_blocking(|| child.wait_with_output()).await.expect("a thread");
    let output = output.expect("the program can be waited for");
    losing.abort();
    clean().await.expect("rows can be removed by hand");
    planted.expect("no row of the run became visible").expect("rows can be changed by hand");
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)));
    assert_eq!(output.status.code(), Some(1), "{report:#}");
    let anomalies = report["anomalies"].as_array().expect("a list");
    let kinds: Vec<&Value> = anomalies.iter().map(|anomaly| &anomaly["kind"]).collect();
    for wanted in ["unreadable", "backward", "lost", "wrong-count", "unequal"] {
        assert!(kinds.iter().any(|kind| *kind == wanted), "{wanted} is missing: {report:#}");
    }
    assert_eq!(report["equal_after_seconds"], Value::Null, "{report:#}");
}

/// A view that cannot be read until rows of the run have been there for a moment; then older versions of
/// them, one row that no source has, and a count that nobody counted.
async fn plant() -> Result<(), sqlx::Error> {
    let mut db = PgConnection::connect(&admin_url(POST_DATABASE)).await?;
    let view = user_view(&mut db).await?;
    // Rows of a run before this one may not be gone yet.
    let last = format!("select coalesce(max(user_id), 0) from {view}");
    let last: i64 = sqlx::query_scalar(&last).fetch_one(&mut db).await?;
    let looked_at = format!(
        "email like '%@' || $1 and name <> 'mark' and version > 1 and user_id > {last}
         and user_id % 2 = 1
         and last_processed_at < now() - interval '1 second'"
    );
    let look = format!("select from {view} where {looked_at}");
    let older = format!("update {view} set version = version - 1 where {looked_at}");
    sqlx::query(HIDE).execute(&mut db).await?;
    until_five_rows(&mut db, &look).await?;
    sqlx::query(SHOW).execute(&mut db).await?;
    until_five_rows(&mut db, &older).await?;
    let extra = format!("insert into {view} (user_id, name) values (-1, 'nobody')");
    sqlx::query(&extra).execute(&mut db).await?;
    let counted = format!(
        "insert into {} (department, slot, user_count, active_count, updated_at)
         values ($1, -1, 1, 1, now())",
        slots(&mut db).await?
    );
    sqlx::query(&counted).bind(NOBODYS).execute(&mut db).await.map(drop)
}

async fn until_five_rows(db: &mut PgConnection, statement: &str) -> Result<(), sqlx::Error> {
    while sqlx::query(statement).bind(DOMAIN).execute(&mut *db).await?.rows_affected() < 5 {
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Every second row of the run is gone soon after it came, for as long as the run lasts.
async fn lose() -> Result<(), sqlx::Error> {
    let mut db = PgConnection::connect(&admin_url(POST_DATABASE)).await?;
    let view = user_view(&mut db).await?;
    let rows = format!(
        "delete from {view} where email like '%@' || $1 and name <> 'mark' and user_id % 2 = 0"
    );
    loop {
        // An error is a deadlock with the consumer, which locks rows in another order.
        sqlx::query(&rows).bind(DOMAIN).execute(&mut db).await.ok();
        sleep(Duration::from_millis(20)).await;
    }
}

/// Rows of a run with anomalies are left as evidence; here they are none.
async fn clean() -> Result<(), sqlx::Error> {
    let mut posts = PgConnection::connect(&admin_url(POST_DATABASE)).await?;
    // Unless it was shown again.
    sqlx::query(SHOW).execute(&mut posts).await.ok();
    let view = user_view(&mut posts).await?;
    let extra = format!("delete from {view} where user_id = -1");
    sqlx::query(&extra).execute(&mut posts).await?;
    let counted = format!("delete from {} where department = $1", slots(&mut posts).await?);
    sqlx::query(&counted).bind(NOBODYS).execute(&mut posts).await?;
    sqlx::query("delete from posts where title like 'chaos %'").execute(&mut posts).await?;
    let mut users = PgConnection::connect(&admin_url(USER_DATABASE)).await?;
    let rows = "delete from users where email like '%@' || $1";
    sqlx::query(rows).bind(DOMAIN).execute(&mut users).await.map(drop)
}

async fn user_view(db: &mut PgConnection) -> Result<String, sqlx::Error> {
    table(db, "user_view").await
}

/// Where counts are kept.
async fn slots(db: &mut PgConnection) -> Result<String, sqlx::Error> {
    table(db, "department_stats_slot").await
}

async fn table(db: &mut PgConnection, name: &str) -> Result<String, sqlx::Error> {
    let generation: i32 =
        sqlx::query_scalar("select current from public.cdc_generation").fetch_one(db).await?;
    Ok(format!("views_{generation}.{name}"))
}

fn wait_for_turn() {
    let stack = Stack::from_environment().expect("the stack's places are known");
    let turn = stack.places().state.join("run/e2e.lock");
    let turn = File::create(turn).expect("no local stack; say ./dev up first");
    turn.lock().expect("the lock can be waited for");
}

fn chaos(args: &[&str]) -> Output {
    Command::new(CHAOS).args(args).output().expect("the program was built for this test")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
