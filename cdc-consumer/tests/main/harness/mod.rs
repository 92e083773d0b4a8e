//! What every test stands on: a world of its own, and waiting for conditions.

pub(crate) mod avro;
pub(crate) mod connector;
pub(crate) mod consumer;
pub(crate) mod database;
pub(crate) mod feed;
pub(crate) mod kafka;
pub(crate) mod proxy;
pub(crate) mod source;

use std::future::Future;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use migrate::{Generation, Passwords};
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::FutureProducer;
use sqlx::{Connection, Executor, PgConnection};

/// How long anything may take that is not the point of the test.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A setting of the environment; `./dev env` prints them all.
#[expect(clippy::disallowed_methods, reason = "tests take the servers' addresses from outside")]
pub(crate) fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `./dev test`, or `./dev up --servers-only` and `eval \"$(./dev env)\"`")
    })
}

/// A setting that only narrows what a test does.
#[expect(clippy::disallowed_methods, reason = "a seed to replay comes from outside")]
pub(crate) fn optional_setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A database, topics, a group and schemas that belong to one test. Dropping it removes them.
pub(crate) struct World {
    /// Unique; database, group and topics carry it.
    pub(crate) name: String,
    pub(crate) brokers: String,
    pub(crate) registry: String,
    server: String,
    pub(crate) producer: FutureProducer,
    pub(crate) admin: AdminClient<DefaultClientContext>,
    topics: Mutex<Vec<String>>,
    subjects: Mutex<Vec<String>>,
    /// What our database was copied from; the last world takes it away.
    _template: Arc<Template>,
}

impl World {
    pub(crate) async fn new() -> Self {
        let url = setting("POST_DATABASE_ADMIN_URL");
        let (server, _) = url.rsplit_once('/').expect("the url ends in a database");
        let server = server.to_owned();
        let name = format!("cdc_{}", uuid::Uuid::new_v4().simple());
        let template = create_database(&server, &name).await;
        let brokers = setting("KAFKA_BROKERS");
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &brokers);
        let producer = config
            .clone()
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "1")
            .create()
            .expect("valid producer settings");
        Self {
            name,
            registry: setting("SCHEMA_REGISTRY_URL"),
            server,
            producer,
            admin: config.create().expect("valid admin settings"),
            brokers,
            topics: Mutex::default(),
            subjects: Mutex::default(),
            _template: template,
        }
    }

    /// URL of the test's database for the superuser.
    pub(crate) fn admin_url(&self) -> String {
        format!("{}/{}", self.server, self.name)
    }

    /// `host:port` of the database server.
    pub(crate) fn database_address(&self) -> String {
        self.server.rsplit('@').next().expect("a url with credentials").to_owned()
    }

    /// URL of the test's database for the consumer's role, at another address if one is given.
    pub(crate) fn consumer_url(&self, address: &str) -> String {
        format!("postgres://cdc_consumer:cdc_consumer@{address}/{}?sslmode=disable", self.name)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let topics = std::mem::take(&mut *self.topics.lock().expect("not poisoned"));
        let subjects = std::mem::take(&mut *self.subjects.lock().expect("not poisoned"));
        let (brokers, registry) = (self.brokers.clone(), self.registry.clone());
        drop_database(&self.server, &self.name);
        clean_up(async move {
            kafka::delete_topics(&brokers, &topics).await;
            for subject in subjects {
                let url = format!("{registry}/subjects/{subject}");
                drop(reqwest::Client::new().delete(url).send().await);
            }
        });
    }
}

/// A migrated database to copy. Dropping it removes it.
struct Template {
    server: String,
    name: String,
}

impl Drop for Template {
    fn drop(&mut self) {
        drop_database(&self.server, &self.name);
    }
}

/// Runs to its end, also while a test unwinds. Left-overs have random names and hurt nobody; a second
/// panic would hide the first.
fn clean_up(work: impl Future<Output = ()> + Send + 'static) {
    let cleaned = std::thread::spawn(|| {
        tokio::runtime::Runtime::new().expect("a runtime").block_on(work);
    });
    drop(cleaned.join());
}

fn drop_database(server: &str, name: &str) {
    let (server, sql) = (server.to_owned(), format!("drop database if exists {name} with (force)"));
    clean_up(async move {
        if let Ok(mut db) = PgConnection::connect(&format!("{server}/postgres")).await {
            drop(db.execute(sql.as_str()).await);
        }
    });
}

/// A database with the first generation of views: a copy of one that the real migrations made, since
/// they take a lock of the whole server and the tests run beside each other.
async fn create_database(server: &str, name: &str) -> Arc<Template> {
    static SHARED: tokio::sync::Mutex<Weak<Template>> = tokio::sync::Mutex::const_new(Weak::new());
    let mut shared = SHARED.lock().await;
    let template = match shared.upgrade() {
        Some(template) => template,
        None => Arc::new(migrated(server).await),
    };
    *shared = Arc::downgrade(&template);
    drop(shared);
    let sql = format!("create database {name} template {}", template.name);
    wait_until("a copy of the migrated database", SOON, || async {
        let mut db = admin(server).await;
        let made = sqlx::raw_sql(&sql).execute(&mut db).await;
        made.map(drop).map_err(|error| error.to_string())
    })
    .await;
    // Rights on a database are not copied; who makes generations needs this one.
    let sql = format!("grant create on database {name} to migrator");
    let granted = sqlx::raw_sql(&sql).execute(&mut admin(server).await).await;
    granted.expect("a right granted");
    template
}

async fn migrated(server: &str) -> Template {
    let name = format!("cdc_template_{}", uuid::Uuid::new_v4().simple());
    let template = Template { server: server.to_owned(), name };
    let url = format!("{server}/{}", template.name);
    let first = Generation::new(1).expect("1 is a generation");
    migrate::posts(&url, &Passwords::development()).await.expect("migrations of posts");
    migrate::views(&url, first).await.expect("migrations of views");
    template
}

async fn admin(server: &str) -> PgConnection {
    PgConnection::connect(&format!("{server}/postgres"))
        .await
        .expect("PostgreSQL answers at POST_DATABASE_ADMIN_URL")
}

/// Asks again and again until `condition` holds; after `limit` fails with the last thing it said.
pub(crate) async fn wait_until<F>(what: &str, limit: Duration, mut condition: impl FnMut() -> F)
where
    F: Future<Output = Result<(), String>>,
{
    let deadline = Instant::now() + limit;
    loop {
        let Err(state) = condition().await else { return };
        assert!(Instant::now() < deadline, "waited {limit:?} for: {what}; last seen: {state}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
