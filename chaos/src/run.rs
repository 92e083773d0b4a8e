//! One run from its first to its last minute.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use devstack::addresses::environment;
use devstack::{Extent, Progress, Stack};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use sqlx::PgPool;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::checker;
use crate::cli::Cli;
use crate::fault::{Injection, rounded};
use crate::field::Field;
use crate::history::{Anomaly, History};
use crate::interrupt::Interrupt;
use crate::marker::Marker;
use crate::nemesis::{self, Outcome};
use crate::recovery::visible_in;
use crate::report::{AnomalyLine, FaultLine, Report, Writes};
use crate::watcher::{Watched, Watcher, dead_letters};
use crate::writer::{self, Ledgers, Shared, Writers};

/// From the end of the writes until a change made after them is visible.
const LAST_DEADLINE: Duration = Duration::from_mins(3);
/// After that every change before it has been applied, and a difference is there to stay.
const EQUAL_DEADLINE: Duration = Duration::from_secs(10);
/// From the start until the first mark must be visible.
const READY_DEADLINE: Duration = Duration::from_mins(2);

pub(crate) async fn run(cli: &Cli, seed: u64, schedule: &[Injection]) -> anyhow::Result<Report> {
    let stack = Stack::new(&cli.settings)?;
    stack.up(Extent::Everything, &Progress::to_terminal()).await?;
    let _alone = be_alone(&stack)?;
    let history = History::create(&stack.places().state.join("chaos"), seed)?;
    say(&format!("seed {seed}, history {}", history.path().display()));
    let minutes = cli.minutes.as_secs_f64() / 60.0;
    history.write("start", &json!({ "seed": seed, "minutes": minutes, "rate": cli.rate }));
    for injection in schedule {
        history.write("planned", &serde_json::to_value(injection)?);
    }
    let field = Arc::new(Field::new(stack, history.clone()).await?);
    nothing_is_wrong_before(&field).await?;
    field.take_over_consumers().await?;
    let played = play(cli, seed, schedule, &field).await;
    // Whatever happened: the system is left as it was found.
    field.heal().await?;
    let report = match played {
        Ok((played, mut interrupt)) => tokio::select! {
            report = judge(cli, seed, schedule, &field, played) => report,
            () = interrupt.told() => Err(anyhow!("told to stop before the views were compared")),
        },
        Err(error) => Err(error),
    };
    field.give_back_consumers().await?;
    let report = report?;
    let whole = serde_json::to_value(&report)?;
    history.write("end", &whole);
    Ok(report)
}

/// What is left of the run when its time is over.
struct Played {
    run: String,
    marker: Arc<Marker>,
    watcher: Watcher,
    ledgers: Ledgers,
    outcomes: Vec<Outcome>,
    interrupted: bool,
    sources: Sources,
}

/// The source databases with the rights of the services that own them.
#[derive(Clone)]
struct Sources {
    users: PgPool,
    posts: PgPool,
}

async fn play(
    cli: &Cli,
    seed: u64,
    schedule: &[Injection],
    field: &Arc<Field>,
) -> anyhow::Result<(Played, Interrupt)> {
    let url = |wanted: &str| {
        let found = environment().into_iter().find(|(name, _)| *name == wanted);
        found.map(|(_, url)| url).with_context(|| format!("the stack has no {wanted}"))
    };
    let sources = Sources {
        users: writer::pool(&url("USER_DATABASE_URL")?)?,
        posts: writer::pool(&url("POST_DATABASE_URL")?)?,
    };
    let run = format!("{:08x}", rand::random::<u32>());
    let (users, posts) = (sources.users.clone(), sources.posts.clone());
    let marker = Marker::create(users, posts, field.post_db.clone(), &run).await?;
    let marker = Arc::new(marker);
    let first = tokio::time::timeout(READY_DEADLINE, visible_in(&marker)).await;
    let first = first.context("a first change did not become visible; ./dev status says more")?;
    field.history.write("ready", &json!({ "first_change_seconds": rounded(first) }));

    // A part of the system, not of the faults: see docs/operations.md.
    let _watch = field.stack.watch_connectors()?;
    let watcher = Watcher::start(Arc::clone(field), marker.first_ids());
    let shared = Shared::new(run.clone(), marker.users.clone());
    let writers = Writers::start(&sources.users, &sources.posts, shared, seed, cli.rate)?;
    let supervisor = tokio::spawn(nemesis::supervise(Arc::clone(field)));
    let bar = bar(cli.minutes);
    let announce = |text: String| {
        if bar.is_hidden() {
            say(&format!("{:>7.1} s  {text}", bar.elapsed().as_secs_f64()));
        }
        bar.set_message(text);
    };
    let mut outcomes = Vec::new();
    let mut interrupt = Interrupt::listen()?;
    let nemesis = nemesis::run(field, &marker, schedule, cli.minutes, announce, &mut outcomes);
    let end = tokio::select! {
        end = until_over(nemesis, cli.minutes) => Some(end),
        () = interrupt.told() => None,
        () = tick(&bar, &writers) => None,
    };
    bar.finish_and_clear();
    supervisor.abort();
    // Writers wait for servers that are paused.
    field.heal().await?;
    let interrupted = end.is_none();
    let ledgers = writers.stop().await;
    end.transpose()?;
    let played = Played { run, marker, watcher, ledgers, outcomes, interrupted, sources };
    Ok((played, interrupt))
}

/// The nemesis, and the rest of the time that its last fault left.
async fn until_over<T>(nemesis: impl Future<Output = T>, length: Duration) -> T {
    let end = Instant::now() + length;
    let outcome = nemesis.await;
    tokio::time::sleep_until(end).await;
    outcome
}

/// Quiet now: are the views what the source tables are, and those what was written?
async fn judge(
    cli: &Cli,
    seed: u64,
    schedule: &[Injection],
    field: &Field,
    played: Played,
) -> anyhow::Result<Report> {
    let Played { run, marker, watcher, mut ledgers, outcomes, interrupted, sources } = played;
    let history = &field.history;
    say("all faults are healed; comparing the views with their sources");
    let silent = Instant::now();
    if tokio::time::timeout(LAST_DEADLINE, visible_in(&marker)).await.is_err() {
        let seconds = LAST_DEADLINE.as_secs();
        let statements = field.statements().await;
        history.write("stuck", &json!({ "after": "the end", "statements": statements }));
        history.keep(&field.stack.places().log("connect"));
        let details = format!("a change made at the end was not visible {seconds} s later");
        history.anomaly(Anomaly::Stuck, details);
    }
    let equal = checker::wait_equal(field, EQUAL_DEADLINE).await.map(|_| silent.elapsed());
    for difference in equal.as_ref().err().into_iter().flatten() {
        history.anomaly(Anomaly::Unequal, difference.clone());
    }
    let Watched { looks, dead_letters: told } = watcher.stop().await?;
    let letters = dead_letters(&mut *field.post_db.acquire().await?).await?;
    for letter in letters.difference(&told) {
        history.anomaly(Anomaly::DeadLetter, letter.clone());
    }
    marker.forget(&mut ledgers.users, &mut ledgers.posts);
    let users = checker::written_users(field, &run).await?;
    let posts = checker::written_posts(field, &run).await?;
    for (table, ledger, found) in
        [("users", &ledgers.users, users), ("posts", &ledgers.posts, posts)]
    {
        for text in ledger.differences(&found).iter().chain(&ledger.wrong) {
            history.anomaly(Anomaly::LostWrite, format!("{table}: {text}"));
        }
    }
    let anomalies = history.anomalies();
    if anomalies.is_empty() {
        clean(&sources).await?;
    }
    let to_line = |(kind, count, details)| AnomalyLine { kind, count, details };
    Ok(Report {
        seed,
        minutes: cli.minutes.as_secs_f64() / 60.0,
        planned: schedule.iter().filter(|injection| injection.at < cli.minutes).count(),
        faults: FaultLine::all(&outcomes),
        writes: Writes {
            acknowledged: ledgers.users.acknowledged + ledgers.posts.acknowledged,
            unknown: ledgers.users.unknown + ledgers.posts.unknown,
        },
        looks,
        equal_after_seconds: equal.ok().map(rounded),
        interrupted,
        anomalies: anomalies.into_iter().map(to_line).collect(),
        history: history.path().to_path_buf(),
    })
}

/// Removes the rows of this run, and of runs before it whose evidence was left.
async fn clean(sources: &Sources) -> anyhow::Result<()> {
    let users = "delete from users where email like '%@' || $1";
    sqlx::query(users).bind(writer::USER_DOMAIN).execute(&sources.users).await?;
    let posts = "delete from posts where title like $1 || '%'";
    sqlx::query(posts).bind(writer::POST_TITLE).execute(&sources.posts).await?;
    Ok(())
}

/// A fault found at the end must be of this run.
async fn nothing_is_wrong_before(field: &Field) -> anyhow::Result<()> {
    if let Err(found) = checker::wait_equal(field, READY_DEADLINE).await {
        bail!("the views differ from their sources before anything was broken: {found:?}");
    }
    let letters = dead_letters(&mut *field.post_db.acquire().await?).await?;
    if !letters.is_empty() {
        let count = letters.len();
        bail!("there are {count} dead letters already; see cdc-consumer dead-letters list");
    }
    Ok(())
}

/// The same lock as the end-to-end tests have: they kill servers, too.
fn be_alone(stack: &Stack) -> anyhow::Result<File> {
    let path = stack.places().state.join("run/e2e.lock");
    let file = File::create(&path).with_context(|| format!("cannot use {}", path.display()))?;
    file.try_lock().with_context(|| {
        "end-to-end tests or another chaos run use this stack; wait until they are done".to_owned()
    })?;
    Ok(file)
}

fn bar(length: Duration) -> ProgressBar {
    let style = "{elapsed_precise} {bar:30} {prefix} row changes  {wide_msg}";
    let style = ProgressStyle::with_template(style).expect("the template is well formed");
    ProgressBar::new(length.as_secs()).with_style(style)
}

/// Moves the bar for ever.
async fn tick(bar: &ProgressBar, writers: &Writers) {
    let mut ticks = interval(Duration::from_millis(250));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        bar.set_position(bar.elapsed().as_secs().min(bar.length().unwrap_or(0)));
        bar.set_prefix(writers.acknowledged().to_string());
    }
}

/// To standard error, so that standard output holds the report alone.
fn say(text: &str) {
    writeln!(std::io::stderr(), "{text}").ok();
}
