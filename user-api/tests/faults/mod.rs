//! What becomes of requests when connections vanish, and of a request's neighbours when it has to wait
//! for a lock.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use service::{database, heartbeat};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::harness::{Answer, Api, wait_for_waiting};
use crate::{created, hong, with_api};

/// A connection that does not answer is given up after five seconds; the others are for a slow machine.
const RECOVERED_AFTER: Duration = Duration::from_secs(15);
const CONNECTIONS: u32 = 4;

/// A way to the database on which established connections vanish when told: nothing passes any more, and
/// neither side hears of it.
struct Proxy {
    address: SocketAddr,
    lost: watch::Sender<()>,
}

impl Proxy {
    async fn start(direct: &PgPool) -> Self {
        let options = direct.connect_options();
        let target = (options.get_host().to_owned(), options.get_port());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, lost) = (listener.local_addr().unwrap(), watch::Sender::new(()));
        let losses = lost.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (target, mut lost) = (target.clone(), losses.subscribe());
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(target).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = lost.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Self { address, lost }
    }

    /// A service's pool that goes this way, all of its connections used a moment ago.
    async fn pool(&self, direct: &PgPool) -> PgPool {
        let options = direct.connect_options().as_ref().clone();
        let options = options.host("127.0.0.1").port(self.address.port());
        let url = sqlx::ConnectOptions::to_url_lossy(&options).to_string();
        let pool = database::pool("test", &url.into(), CONNECTIONS).unwrap();
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            held.push(pool.acquire().await.unwrap());
        }
        drop(held);
        wait_until("all connections are idle", || async {
            pool.num_idle() == usize::try_from(CONNECTIONS).unwrap()
        })
        .await;
        pool
    }

    fn lose_connections(&self) {
        self.lost.send_replace(());
    }
}

async fn wait_until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let deadline = Instant::now() + RECOVERED_AFTER;
    while !holds().await {
        assert!(Instant::now() < deadline, "not seen in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn connections_that_vanish_are_replaced() {
    with_api(async |direct| {
        let proxy = Proxy::start(&direct.pool).await;
        let pool = proxy.pool(&direct.pool).await;
        let api = Api::new(user_api::app(pool.clone()), pool.clone());
        proxy.lose_connections();
        let mut requests = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let api = api.clone();
            requests.spawn(async move { api.get("/api/users").await });
        }
        wait_until("each connection has a statement", || async { pool.num_idle() == 0 }).await;
        requests.shutdown().await;
        wait_until("a request is answered", || async { api.get("/api/users").await.status == 200 })
            .await;
    })
    .await;
}

/// As a standby does after a failover, while the address still leads to it.
#[tokio::test]
async fn a_database_that_only_reads_is_503_to_who_writes_and_not_ready() {
    with_api(async |writing| {
        let id = created(&writing, &hong()).await.body["id"].clone();
        let options = writing.pool.connect_options().as_ref().clone();
        let mut url = sqlx::ConnectOptions::to_url_lossy(&options);
        url.query_pairs_mut().append_pair("options", "-c default_transaction_read_only=on");
        let pool = database::pool("test", &url.to_string().into(), CONNECTIONS).unwrap();
        let api = Api::new(user_api::app(pool.clone()), pool.clone());
        let path = format!("/api/users/{id}");
        assert_eq!(api.get(&path).await.status, 200);
        for answer in [
            api.send("POST", "/api/users", &hong()).await,
            api.send("PUT", &path, &hong()).await,
            api.send("DELETE", &path, &Value::Null).await,
        ] {
            answer.is_problem(503, "unavailable");
            assert!(answer.headers.contains_key("retry-after"));
        }
        let ready = api.get("/health/ready").await;
        assert_eq!(
            (ready.status.as_u16(), &ready.body["reasons"]),
            (503, &json!(["database: only reads"]))
        );

        let refused = sqlx::query("delete from users").execute(&pool).await.unwrap_err();
        assert!(!database::is_one_requests_fault(&refused), "{refused}");
    })
    .await;
}

#[tokio::test]
async fn a_pool_is_closed_in_time_though_a_connection_never_comes_back() {
    with_api(async |api| {
        let held = api.pool.acquire().await.unwrap();
        timeout(RECOVERED_AFTER, database::close(&api.pool)).await.unwrap();
        drop(held);
    })
    .await;
}

#[tokio::test]
async fn the_heartbeat_goes_on_when_its_connection_vanishes() {
    with_api(async |direct| {
        let proxy = Proxy::start(&direct.pool).await;
        let pool = proxy.pool(&direct.pool).await;
        let shutdown = CancellationToken::new();
        let beats = heartbeat::start(pool, shutdown.clone());
        wait_until("a first beat", || async { beaten_at(&direct.pool).await > 0 }).await;
        // A beat is under way when its connection vanishes. It is committed all the same.
        let mut other =
            transaction(&direct, "update cdc_heartbeat set beaten_at = beaten_at").await;
        wait_for_waiting(&mut direct.pool.acquire().await.unwrap()).await;
        proxy.lose_connections();
        let mut last = beaten_at(&direct.pool).await;
        sqlx::query("rollback").execute(&mut other).await.unwrap();
        for what in ["the beat that nobody heard of", "a beat by another connection"] {
            wait_until(what, || async { beaten_at(&direct.pool).await > last }).await;
            last = beaten_at(&direct.pool).await;
        }
        shutdown.cancel();
        beats.await.unwrap();
    })
    .await;
}

/// When the heartbeat row was last written, in microseconds; zero before.
async fn beaten_at(pool: &PgPool) -> i64 {
    let sql = "select coalesce(max(extract(epoch from beaten_at) * 1000000)::bigint, 0)
               from cdc_heartbeat";
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

/// A transaction of somebody else, who has changed one row.
async fn transaction(api: &Api, sql: &str) -> PgConnection {
    let mut db = PgConnection::connect_with(&api.pool.connect_options()).await.unwrap();
    begin(&mut db, sql).await;
    db
}

async fn begin(db: &mut PgConnection, sql: &str) {
    sqlx::query("begin").execute(&mut *db).await.unwrap();
    assert_eq!(sqlx::query(sql).execute(&mut *db).await.unwrap().rows_affected(), 1);
}

#[tokio::test]
async fn a_user_whose_address_is_locked_holds_up_nobody_who_arrived_with_him() {
    with_api(async |api| {
        created(&api, &hong()).await;
        let remove = "delete from users where email = 'hong@example.com'";
        let mut other = transaction(&api, remove).await;
        let (mut neighbours, mut locked) = (JoinSet::new(), JoinSet::new());
        for number in 0..60 {
            let api = api.clone();
            let mut user = hong();
            if number % 20 == 10 {
                locked.spawn(async move { api.send("POST", "/api/users", &user).await });
            } else {
                user["email"] = json!(format!("user{number}@example.com"));
                neighbours.spawn(async move { api.send("POST", "/api/users", &user).await });
            }
        }
        while let Some(answer) = neighbours.join_next().await {
            let answer = answer.unwrap();
            assert_eq!(answer.status, 201, "{}", answer.body);
        }
        assert!(locked.try_join_next().is_none(), "the address is still held");
        sqlx::query("commit").execute(&mut other).await.unwrap();
        let answers = locked.join_all().await;
        let mut statuses: Vec<_> = answers.iter().map(|answer| answer.status.as_u16()).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409, 409]);
    })
    .await;
}

/// The other transaction gives up the address that the change wants, and then wants the changed user.
#[tokio::test]
async fn a_change_that_loses_a_deadlock_is_made_after_all() {
    with_api(async |api| {
        let path = created(&api, &hong()).await.header("location").to_owned();
        let mut second = hong();
        second["email"] = json!("second@example.com");
        created(&api, &second).await;
        // The change finds out that it is in a deadlock, and late enough for the other to be in it, too.
        let mut other = api.admin("USER_DATABASE_ADMIN_URL").await;
        for sql in [
            "do $$ begin
                 execute format('alter database %I set deadlock_timeout = 3000', current_database());
             end $$",
            "set deadlock_timeout = '1min'",
        ] {
            sqlx::query(sql).execute(&mut other).await.unwrap();
        }
        begin(&mut other, "delete from users where email = 'second@example.com'").await;
        let url = sqlx::ConnectOptions::to_url_lossy(&*api.pool.connect_options()).to_string();
        let pool = database::pool("test", &url.into(), CONNECTIONS).unwrap();
        let api = Api::new(user_api::app(pool.clone()), pool);

        let (sender, change) = (api.clone(), second.clone());
        let target = path.clone();
        let changed = tokio::spawn(async move { sender.send("PUT", &target, &change).await });
        wait_for_waiting(&mut api.pool.acquire().await.unwrap()).await;
        let sql = "update users set name = 'by another' where email = 'hong@example.com'";
        sqlx::query(sql).execute(&mut other).await.unwrap();
        sqlx::query("commit").execute(&mut other).await.unwrap();

        let changed: Answer = changed.await.unwrap();
        assert_eq!(changed.status, 200, "{}", changed.body);
        assert_eq!(changed.body["email"], "second@example.com");
        let read = api.send("GET", &path, &Value::Null).await;
        assert_eq!(read.body, changed.body);
    })
    .await;
}
