//! A source database with a Debezium connector of its own: what hand-written records cannot show.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Map, Value as Json};
use sqlx::{Connection, Executor, PgConnection};

use super::consumer::Consumer;
use super::kafka::delete_topics;
use super::{World, clean_up, setting, wait_until};

/// How long Connect may take for anything: it rebalances for each connector that comes or goes, and
/// several tests make theirs at once.
pub(crate) const CONNECT_SOON: Duration = Duration::from_secs(90);

/// The settings that the project itself runs with; a test changes the addresses and what it is about.
const SETTINGS: &str = include_str!("../../../../connectors/users.json");

/// A database to capture. Dropping it removes its connector, slot, topics and schemas with it.
pub(crate) struct Source {
    /// Unique; database, connector, slot, publication and the prefix of the topics.
    pub(crate) name: String,
    server: String,
    connect: String,
    registry: String,
    brokers: String,
}

impl Source {
    pub(crate) async fn new(world: &World) -> Self {
        let url = setting("POST_DATABASE_ADMIN_URL");
        let (server, _) = url.rsplit_once('/').expect("the url ends in a database");
        let name = format!("src_{}", uuid::Uuid::new_v4().simple());
        let mut db = PgConnection::connect(&url).await.expect("PostgreSQL answers");
        let create = format!("create database {name} template template0");
        sqlx::raw_sql(&create).execute(&mut db).await.expect("a database");
        Self {
            name,
            server: server.to_owned(),
            connect: setting("CONNECT_URL"),
            registry: world.registry.clone(),
            brokers: world.brokers.clone(),
        }
    }

    /// A superuser's connection.
    pub(crate) async fn db(&self) -> PgConnection {
        let url = format!("{}/{}", self.server, self.name);
        let mut db = PgConnection::connect(&url).await.expect("the source database");
        sqlx::raw_sql("set timezone to 'UTC'").execute(&mut db).await.expect("settings");
        db
    }

    /// Runs statements, in one transaction.
    pub(crate) async fn sql(&self, sql: &str) {
        let done = sqlx::raw_sql(sql).execute(&mut self.db().await).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// The topic of a table of the schema `public`. Debezium replaces what a topic's name may not hold.
    pub(crate) fn topic(&self, table: &str) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let table: String = table.chars().map(|c| if plain(c) { c } else { '_' }).collect();
        format!("{}.public.{table}", self.name)
    }

    /// Captures all tables with a new connector; returns when it runs.
    pub(crate) async fn capture(&self, options: &[(&str, &str)]) {
        self.sql(&format!("create publication {} for all tables", self.name)).await;
        self.configure(options).await;
    }

    /// Makes the connector or changes its settings; returns when it runs.
    pub(crate) async fn configure(&self, options: &[(&str, &str)]) {
        let settings = self.settings(options);
        let url = format!("{}/connectors/{}/config", self.connect, self.name);
        wait_until("Connect to take the connector", CONNECT_SOON, || async {
            let asked = reqwest::Client::new().put(&url).json(&settings).send().await;
            let answer = asked.expect("Connect answers at CONNECT_URL");
            match answer.status() {
                StatusCode::CREATED | StatusCode::OK => Ok(()),
                // Rebalancing: ask again.
                StatusCode::CONFLICT => Err("rebalancing".to_owned()),
                status => panic!("{status}: {}", answer.text().await.unwrap_or_default()),
            }
        })
        .await;
        wait_until("the connector to run", CONNECT_SOON, || async {
            let status = self.status().await;
            let running = status["tasks"][0]["state"] == "RUNNING";
            if running { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    }

    fn settings(&self, options: &[(&str, &str)]) -> Json {
        let mut settings: Map<String, Json> =
            serde_json::from_str(SETTINGS).expect("the connector's settings are JSON");
        settings.retain(|name, _| {
            !name.starts_with("transforms") && !name.starts_with("snapshot.include")
        });
        let (user, address) = self.server.split_once('@').expect("a url with credentials");
        let (_, user) = user.split_once("//").expect("a url");
        let (user, password) = user.split_once(':').expect("user and password");
        let (host, port) = address.split_once(':').expect("host and port");
        let registry = self.registry.replace("/ccompat/v7", "/registry/v2");
        let name = self.name.as_str();
        let ours = [
            ("database.hostname", host),
            ("database.port", port),
            ("database.user", user),
            ("database.password", password),
            ("database.dbname", name),
            ("slot.name", name),
            ("publication.name", name),
            ("topic.prefix", name),
            ("table.include.list", ".*"),
            ("key.converter.apicurio.registry.url", &registry),
            ("value.converter.apicurio.registry.url", &registry),
        ];
        for (name, value) in ours.iter().chain(options) {
            settings.insert((*name).to_owned(), Json::from(*value));
        }
        Json::Object(settings)
    }

    /// Stops the connector until [`Self::resume`]; its offsets stay.
    pub(crate) async fn stop(&self) {
        self.order("stop").await;
        let active = format!(
            "select count(*) from pg_replication_slots where slot_name = '{}' and active",
            self.name
        );
        wait_until("the slot to be left", CONNECT_SOON, || async {
            let mut db = self.db().await;
            let count: i64 = sqlx::query_scalar(&active).fetch_one(&mut db).await.expect("a count");
            if count == 0 { Ok(()) } else { Err("active".to_owned()) }
        })
        .await;
    }

    pub(crate) async fn resume(&self) {
        self.order("resume").await;
    }

    async fn order(&self, verb: &str) {
        let url = format!("{}/connectors/{}/{verb}", self.connect, self.name);
        let answer = reqwest::Client::new().put(&url).send().await.expect("Connect answers");
        assert!(answer.status().is_success(), "{verb}: {}", answer.status());
    }

    /// As an operator would who needs the space that the slot holds.
    pub(crate) async fn drop_slot(&self) {
        self.sql(&format!("select pg_drop_replication_slot('{}')", self.name)).await;
    }

    /// What Connect says of the connector.
    pub(crate) async fn status(&self) -> Json {
        let url = format!("{}/connectors/{}/status", self.connect, self.name);
        let answer = reqwest::get(&url).await.expect("Connect answers");
        answer.json().await.unwrap_or_default()
    }

    /// Where a table differs from the view of the same name, a line for each value. `columns` are SQL
    /// expressions with what to call them; the first one tells rows apart.
    pub(crate) async fn differences(
        &self,
        world: &World,
        table: &str,
        columns: &[(String, &str)],
    ) -> Vec<String> {
        let cells: Vec<_> = columns.iter().map(|(column, _)| format!("({column})::text")).collect();
        let sql = format!("select array[{}] from {table} order by 1", cells.join(", "));
        let wanted = rows(self.db().await, &sql).await;
        let shown = rows(world.db().await, &sql).await;
        let mut lines = vec![];
        for row in &shown {
            if !wanted.iter().any(|other| other[0] == row[0]) {
                lines.push(format!("{table} has a row {:?} too many", row[0]));
            }
        }
        for row in &wanted {
            let Some(found) = shown.iter().find(|found| found[0] == row[0]) else {
                lines.push(format!("{table} has no row {:?}", row[0]));
                continue;
            };
            for (index, (_, label)) in columns.iter().enumerate() {
                if row[index] != found[index] {
                    let (wanted, found) =
                        (shortened(row[index].as_deref()), shortened(found[index].as_deref()));
                    lines.push(format!("{table} {:?} {label}: {wanted}, shown {found}", row[0]));
                }
            }
        }
        lines
    }

    /// Waits until the view of the same name equals the table in these columns.
    pub(crate) async fn is_shown(
        &self,
        world: &World,
        consumer: &Consumer,
        table: &str,
        columns: &[&str],
    ) {
        let columns: Vec<_> = columns.iter().map(|&name| (name.to_owned(), name)).collect();
        wait_until(&format!("{table} to equal its view"), CONNECT_SOON, || async {
            let mut lines = self.differences(world, table, &columns).await;
            if lines.is_empty() {
                return Ok(());
            }
            lines.push(consumer.state());
            lines.extend(world.dead_letters().await);
            lines.push(self.status().await["tasks"][0].to_string());
            Err(lines.join("\n"))
        })
        .await;
    }

    /// The newest schema of a table's values, as the registry has it.
    pub(crate) async fn schema(&self, table: &str) -> String {
        let url = format!("{}/subjects/{}-value/versions/latest", self.registry, self.topic(table));
        wait_until("the schema to be registered", CONNECT_SOON, || async {
            let answer = reqwest::get(&url).await.expect("the registry answers");
            let status = answer.status();
            let task = self.status().await["tasks"][0].to_string();
            if status.is_success() { Ok(()) } else { Err(format!("{status}, {task}")) }
        })
        .await;
        let answer: Json = reqwest::get(&url).await.expect("an answer").json().await.expect("JSON");
        answer["schema"].as_str().expect("a schema").to_owned()
    }

    /// Waits until Debezium has given up; returns its reason.
    pub(crate) async fn failure(&self) -> String {
        wait_until("the connector to fail", CONNECT_SOON, || async {
            let status = self.status().await;
            let failed = status["tasks"][0]["state"] == "FAILED";
            if failed { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
        self.status().await["tasks"][0]["trace"].as_str().unwrap_or_default().to_owned()
    }
}

type Row = Vec<Option<String>>;

async fn rows(mut db: PgConnection, sql: &str) -> Vec<Row> {
    let rows = sqlx::query_scalar(sql).fetch_all(&mut db).await;
    rows.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn shortened(value: Option<&str>) -> String {
    let text = value.unwrap_or("null");
    let short: String = text.chars().take(80).collect();
    if short.len() < text.len() { format!("{short}... ({} bytes)", text.len()) } else { short }
}

impl Drop for Source {
    fn drop(&mut self) {
        let (name, connect, brokers) =
            (self.name.clone(), self.connect.clone(), self.brokers.clone());
        let (server, registry) = (self.server.clone(), self.registry.clone());
        clean_up(async move {
            let client = reqwest::Client::new();
            drop(client.delete(format!("{connect}/connectors/{name}")).send().await);
            remove_database(&server, &name).await;
            let subjects = client.get(format!("{registry}/subjects")).send().await;
            let Ok(subjects) = subjects else { return };
            let subjects: Vec<String> = subjects.json().await.unwrap_or_default();
            let ours = subjects.iter().filter(|subject| subject.starts_with(&name));
            let mut topics = vec![];
            for subject in ours {
                drop(client.delete(format!("{registry}/subjects/{subject}")).send().await);
                topics.extend(subject.strip_suffix("-value").map(str::to_owned));
            }
            delete_topics(&brokers, &topics).await;
        });
    }
}

/// A slot goes only when its connector has left, and the database only after its slot.
async fn remove_database(server: &str, name: &str) {
    let Ok(mut db) = PgConnection::connect(&format!("{server}/postgres")).await else { return };
    let deadline = std::time::Instant::now() + CONNECT_SOON;
    let slot = format!(
        "select pg_terminate_backend(active_pid) from pg_replication_slots
         where slot_name = '{name}' and active;
         select pg_drop_replication_slot(slot_name) from pg_replication_slots
         where slot_name = '{name}';
         drop database if exists {name} with (force)"
    );
    for statement in slot.split(';') {
        while let Err(error) = db.execute(statement).await {
            if error.as_database_error().is_none() || std::time::Instant::now() > deadline {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
