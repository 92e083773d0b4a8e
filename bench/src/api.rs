//! `./dev bench api`: requests a second through the services, and statements a second without them.
//!
//! The other side is what pgbench would do: as many connections, each with one prepared statement about
//! one row or page. The service may answer several requests with one of its statements. Both sides take
//! turns, each the first every second time; an answer that is no success ends the run.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use devstack::Step;
use devstack::addresses::{POST_API_PORT, POST_DATABASE, USER_API_PORT, USER_DATABASE};
use rand::RngExt;
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::cli::ApiOptions;
use crate::drain::in_turn;
use crate::figures::{Spread, float};
use crate::http_client::HttpClient;
use crate::interrupt::unless_interrupted;
use crate::report;
use crate::servers::{Conditions, Servers, admin, execute};
use crate::shipped;

/// Rows to read from: enough that a list is a page among many.
const ROWS: i64 = 20_000;
/// Of a page when nothing else is asked for, and one more to see whether another follows.
const PAGE_ROWS: i64 = 101;
const CLIENTS: [usize; 2] = [1, 64];
/// How long users may be created while the connectors are stopped: their slots keep the log meanwhile, and
/// the server gives up on a slot that keeps too much (`max_slot_wal_keep_size`).
const STOPPED_MAX: Duration = Duration::from_mins(2);
const READY_MAX: Duration = Duration::from_mins(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Operation {
    CreateUser,
    ReadUser,
    ListUsers,
    ReadPostWithAuthor,
}

const READS: [Operation; 3] =
    [Operation::ReadUser, Operation::ListUsers, Operation::ReadPostWithAuthor];

#[derive(Debug, Clone, Copy)]
enum Side {
    Service,
    Statement,
}

#[derive(Debug, Serialize)]
struct Figure {
    operation: Operation,
    clients: usize,
    /// Debezium and the consumer took new users to the view meanwhile, on the same processors.
    streamed: bool,
    requests_per_second: Spread,
    statements_per_second: Spread,
    /// Round by round.
    ratio: Spread,
}

#[derive(Debug, Serialize)]
struct Api {
    seconds_each: u64,
    figures: Vec<Figure>,
    conditions: Conditions,
}

/// Keys there are rows of.
#[derive(Clone)]
struct Keys {
    users: Arc<Vec<i64>>,
    posts: Arc<Vec<i64>>,
}

pub(crate) async fn run(options: &ApiOptions) -> anyhow::Result<ExitCode> {
    let wanted =
        |operation: &Operation| options.only.is_empty() || options.only.contains(operation);
    let creates = wanted(&Operation::CreateUser);
    // Two sides, each by one client and by many.
    let stopped = Duration::from_secs(options.seconds) * options.repeat * 4;
    ensure!(
        !creates || stopped <= STOPPED_MAX,
        "users would be created for {stopped:?} while the connectors are stopped, which is more than \
         their slots are kept for; --seconds times --repeat may be {} at most",
        STOPPED_MAX.as_secs() / 4
    );
    let servers = Servers::new()?;
    let conditions = servers.conditions().await?;
    let step = servers.progress.step("api", "preparing rows");
    let bench = Bench {
        duration: Duration::from_secs(options.seconds),
        repeat: options.repeat,
        keys: prepare().await?,
        step: &step,
    };
    // First what leaves nothing to be streamed beside the next.
    let reads: Vec<_> = READS.into_iter().filter(wanted).collect();
    let mut figures = bench.figures(&reads).await?;
    if creates {
        let [_, many] = CLIENTS;
        figures.push(bench.figure(Operation::CreateUser, many, true).await?);
        // What Debezium and the consumer spend on a new user is no part of the service or the statement.
        let creates = unless_interrupted(bench.figures(&[Operation::CreateUser]));
        figures.extend(shipped::stopped(&servers, creates).await?);
    }
    step.done("measured");
    let api = Api { seconds_each: options.seconds, figures, conditions };
    report::write(&servers, &options.output, "api", &api, &table(&api))?;
    Ok(ExitCode::SUCCESS)
}

fn table(api: &Api) -> String {
    let head = format!(
        "{:<22} {:>7} {:>12} {:>13} {:>6} {:>12}",
        "", "clients", "requests/s", "statements/s", "ratio", "low-high"
    );
    let rows = api.figures.iter().map(|figure| {
        let Spread { median, min, max } = figure.ratio;
        format!(
            "{:<22} {:>7} {:>12.0} {:>13.0} {median:>6.2} {:>12}",
            format!("{:?}{}", figure.operation, if figure.streamed { ", streamed" } else { "" }),
            figure.clients,
            figure.requests_per_second.median,
            figure.statements_per_second.median,
            format!("{min:.2}-{max:.2}"),
        )
    });
    std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n")
}

/// What figures have in common.
struct Bench<'a> {
    duration: Duration,
    repeat: u32,
    keys: Keys,
    step: &'a Step,
}

impl Bench<'_> {
    /// Each operation by one client and by many.
    async fn figures(&self, operations: &[Operation]) -> anyhow::Result<Vec<Figure>> {
        let mut figures = Vec::new();
        for &operation in operations {
            for clients in CLIENTS {
                figures.push(self.figure(operation, clients, false).await?);
            }
        }
        Ok(figures)
    }

    async fn figure(
        &self,
        operation: Operation,
        clients: usize,
        streamed: bool,
    ) -> anyhow::Result<Figure> {
        self.step.message(format!("{operation:?}, {clients} at once"));
        let (mut requests, mut statements) = (Vec::new(), Vec::new());
        for round in 0..self.repeat {
            for side in in_turn(&[Side::Service, Side::Statement], round) {
                let rate = drive(side, operation, clients, self.duration, &self.keys).await?;
                match side {
                    Side::Service => requests.push(rate),
                    Side::Statement => statements.push(rate),
                }
            }
        }
        Ok(Figure {
            operation,
            clients,
            streamed,
            ratio: Spread::of_ratios(&requests, &statements)?,
            requests_per_second: Spread::of_rounds(requests)?,
            statements_per_second: Spread::of_rounds(statements)?,
        })
    }
}

/// How often a second, by so many clients side by side. The clock starts when each of them is connected and
/// was answered once: a session of the database takes longer to begin than a connection to a service.
async fn drive(
    side: Side,
    operation: Operation,
    clients: usize,
    duration: Duration,
    keys: &Keys,
) -> anyhow::Result<f64> {
    let mut tasks = JoinSet::new();
    let run: u64 = rand::random();
    let ready = Arc::new(Barrier::new(clients + 1));
    for client in 0..clients {
        let (keys, ready) = (keys.clone(), Arc::clone(&ready));
        let prefix = format!("api-{run:016x}-{client}");
        tasks.spawn(async move {
            let mut caller = Caller::connect(side, operation, keys, prefix).await?;
            caller.call(0).await?;
            ready.wait().await;
            let begun = Instant::now();
            let mut count = 0;
            while begun.elapsed() < duration {
                count += 1;
                caller.call(count).await?;
            }
            anyhow::Ok((begun, count))
        });
    }
    tokio::select! {
        biased;
        _ = ready.wait() => {}
        // Only by an error, and the others would wait for it.
        Some(done) = tasks.join_next() => {
            done??;
            bail!("a client ended before all were connected");
        }
    }
    // The clients may go on before this does.
    let mut started = Instant::now();
    let mut count = 0;
    while let Some(done) = tasks.join_next().await {
        let (begun, calls) = done??;
        started = started.min(begun);
        count += calls;
    }
    Ok(float(count) / started.elapsed().as_secs_f64())
}

/// One client, over a connection of its own.
struct Caller {
    connection: Connection,
    operation: Operation,
    keys: Keys,
    /// Of what it writes.
    prefix: String,
}

enum Connection {
    Service(HttpClient),
    /// And the service's statement.
    Database(Box<PgConnection>, Arc<str>),
}

impl Caller {
    async fn connect(
        side: Side,
        operation: Operation,
        keys: Keys,
        prefix: String,
    ) -> anyhow::Result<Self> {
        let (port, database) = match operation {
            Operation::CreateUser | Operation::ReadUser | Operation::ListUsers => {
                (USER_API_PORT, USER_DATABASE)
            }
            Operation::ReadPostWithAuthor => (POST_API_PORT, POST_DATABASE),
        };
        let connection = match side {
            Side::Service => Connection::Service(HttpClient::connect(port).await?),
            Side::Statement => {
                Connection::Database(Box::new(admin(database).await?), statement(operation).into())
            }
        };
        Ok(Self { connection, operation, keys, prefix })
    }

    async fn call(&mut self, count: u64) -> anyhow::Result<()> {
        match &mut self.connection {
            Connection::Service(client) => {
                request(client, self.operation, &self.keys, &self.prefix, count).await
            }
            Connection::Database(db, sql) => {
                let query = sqlx::query(sql);
                let query = match self.operation {
                    Operation::CreateUser => {
                        query.bind(format!("{}-{count}@example.org", self.prefix))
                    }
                    Operation::ReadUser | Operation::ListUsers => query.bind(any(&self.keys.users)),
                    Operation::ReadPostWithAuthor => query.bind(any(&self.keys.posts)),
                };
                query.fetch_all(&mut **db).await?;
                Ok(())
            }
        }
    }
}

async fn request(
    client: &mut HttpClient,
    operation: Operation,
    keys: &Keys,
    prefix: &str,
    count: u64,
) -> anyhow::Result<()> {
    match operation {
        Operation::CreateUser => {
            let user = json!({
                "name": "홍길동", "email": format!("{prefix}-{count}@example.com"),
                "department": "개발팀", "status": "ACTIVE",
            });
            client.post("/api/users", &user).await?
        }
        Operation::ReadUser => client.get(&format!("/api/users/{}", any(&keys.users))).await?,
        Operation::ListUsers => {
            client.get(&format!("/api/users?after={}", any(&keys.users))).await?
        }
        Operation::ReadPostWithAuthor => {
            client.get(&format!("/api/posts/{}", any(&keys.posts))).await?
        }
    };
    Ok(())
}

/// What the service runs.
fn statement(operation: Operation) -> String {
    const USER: &str = "id, name, email, department, status, created_at, updated_at, version";
    match operation {
        Operation::CreateUser => format!(
            "insert into users (name, email, department, status)
             values ('홍길동', $1, '개발팀', 'ACTIVE') returning {USER}"
        ),
        Operation::ReadUser => format!("select {USER} from users where id = $1"),
        Operation::ListUsers => {
            format!("select {USER} from users where id > $1 order by id limit {PAGE_ROWS}")
        }
        Operation::ReadPostWithAuthor => {
            "select p.id, p.title, p.content, p.author_id, p.created_at, p.updated_at, p.version,
                 u.user_id, u.name, u.email, u.department, u.status
             from posts p left join user_view u on u.user_id = p.author_id where p.id = $1"
                .to_owned()
        }
    }
}

fn any(keys: &[i64]) -> i64 {
    keys.get(rand::rng().random_range(0..keys.len())).copied().unwrap_or_default()
}

/// Rows to read, and a view that knows the authors.
async fn prepare() -> anyhow::Result<Keys> {
    let (mut users, mut posts) = (admin(USER_DATABASE).await?, admin(POST_DATABASE).await?);
    let run: u32 = rand::random();
    let missing = ROWS - count(&mut users, "select count(*) from users").await?;
    let sql = format!(
        "insert into users (name, email, department)
         select '홍길동', 'api-{run:08x}-' || n || '@example.net', '개발팀'
         from generate_series(1, {missing}) n"
    );
    execute(&mut users, &sql).await?;
    let last = count(&mut users, "select max(id) from users").await?;
    let deadline = Instant::now() + READY_MAX;
    let shown = format!("select count(*) from user_view where user_id = {last}");
    while count(&mut posts, &shown).await? == 0 {
        ensure!(Instant::now() < deadline, "the view does not show user {last}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let missing = ROWS - count(&mut posts, "select count(*) from posts").await?;
    let sql = format!(
        "insert into posts (title, content, author_id)
         select '안녕하세요', '첫 번째 포스트입니다.', user_id from user_view limit {}",
        missing.max(0)
    );
    execute(&mut posts, &sql).await?;
    let keys = async |db: &mut PgConnection, table: &str| {
        let sql = format!("select id from {table} order by random() limit {ROWS}");
        anyhow::Ok(Arc::new(sqlx::query_scalar(&sql).fetch_all(db).await?))
    };
    let (users, posts) = (keys(&mut users, "users").await?, keys(&mut posts, "posts").await?);
    Ok(Keys { users, posts })
}

async fn count(db: &mut PgConnection, sql: &str) -> anyhow::Result<i64> {
    sqlx::query_scalar(sql).fetch_one(db).await.with_context(|| sql.to_owned())
}
