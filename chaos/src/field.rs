//! The running system as a chaos run holds it: its processes, its databases, the consumers with a
//! network of their own.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use devstack::addresses::{
    self, CONNECT_PORT, CONNECTORS, HOST, POST_DATABASE, POSTGRES_PORT, USER_DATABASE,
};
use devstack::{CONSUMERS_MAX, Service, Stack};
use serde_json::{Value, json};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool};
use tokio::time::{Instant, sleep, timeout};

use crate::fault::{CONSUMERS, EXTRA_CONSUMER};
use crate::history::History;
use crate::proxy::{Mode, Proxy};

/// For one question to a server that may be frozen.
const QUESTION_DEADLINE: Duration = Duration::from_secs(3);
/// For Connect, which answers some orders only after it has waited for a task to end.
const ORDER_DEADLINE: Duration = Duration::from_secs(25);
/// For what must succeed once the servers are back.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) stack: Stack,
    /// As superuser, to look and to end sessions; nothing is written through these.
    pub(crate) user_db: PgPool,
    pub(crate) post_db: PgPool,
    pub(crate) history: History,
    members: Vec<Member>,
    http: reqwest::Client,
    /// What is down by our own will.
    down: Mutex<BTreeSet<Service>>,
}

/// A consumer whose connections to `PostgreSQL` go through a network we hold.
#[derive(Debug)]
struct Member {
    service: Service,
    proxy: Proxy,
    stack: Stack,
}

impl Field {
    pub(crate) async fn new(stack: Stack, history: History) -> anyhow::Result<Self> {
        let pool = |database| {
            PgPoolOptions::new()
                .max_connections(4)
                .acquire_timeout(QUESTION_DEADLINE)
                .connect_lazy(&addresses::admin_url(database))
                .context("the address of a database is wrong")
        };
        let (user_db, post_db) = (pool(USER_DATABASE)?, pool(POST_DATABASE)?);
        let mut members = Vec::new();
        for number in 1..=EXTRA_CONSUMER {
            members.push(Member::new(&stack, number).await?);
        }
        let http = reqwest::Client::builder().timeout(QUESTION_DEADLINE).build()?;
        let down = Mutex::default();
        Ok(Self { stack, user_db, post_db, history, members, http, down })
    }

    /// Starts the consumers anew, each behind its own network.
    pub(crate) async fn take_over_consumers(&self) -> anyhow::Result<()> {
        for number in 1..=CONSUMERS_MAX {
            self.stack.stop(Service::Consumer(number)).await?;
        }
        for member in &self.members[..CONSUMERS.into()] {
            member.stack.start(member.service).await?;
        }
        Ok(())
    }

    /// One consumer without a network of ours, as `./dev up` leaves it.
    pub(crate) async fn give_back_consumers(&self) -> anyhow::Result<()> {
        for member in &self.members {
            self.stack.stop(member.service).await?;
        }
        self.stack.start(Service::Consumer(1)).await?;
        Ok(())
    }

    /// Undoes every fault, whatever was going on.
    pub(crate) async fn heal(&self) -> anyhow::Result<()> {
        for member in &self.members {
            member.proxy.set(Mode::Forward);
        }
        for service in Service::all() {
            if self.stack.running(service).is_some_and(|running| running.paused()) {
                self.stack.resume(service)?;
            }
        }
        self.stack.stop(Service::Consumer(EXTRA_CONSUMER)).await?;
        let second = (2..=CONSUMERS).map(Service::Consumer);
        for service in Service::STANDARD.into_iter().chain(second) {
            // Servers wait for servers: the first may need the second to have been started.
            self.launch(service).await?;
        }
        self.down().clear();
        Ok(())
    }

    pub(crate) fn proxy(&self, service: Service) -> Option<&Proxy> {
        self.members.iter().find(|member| member.service == service).map(|member| &member.proxy)
    }

    /// Starts a process without waiting until it is healthy. What it needs may be away for a while.
    pub(crate) async fn launch(&self, service: Service) -> anyhow::Result<()> {
        let member = self.members.iter().find(|member| member.service == service);
        let stack = member.map_or(&self.stack, |member| &member.stack);
        let end = Instant::now() + PATIENCE;
        loop {
            match stack.launch(service).await {
                Ok(()) => break,
                Err(error) if Instant::now() >= end => return Err(error.into()),
                Err(_) => sleep(RETRY_INTERVAL).await,
            }
        }
        self.expect_up(service);
        Ok(())
    }

    /// From here on the process is missing, or frozen, by our own will.
    pub(crate) fn expect_down(&self, service: Service) {
        self.down().insert(service);
    }

    pub(crate) fn expect_up(&self, service: Service) {
        self.down().remove(&service);
    }

    pub(crate) fn is_expected_down(&self, service: Service) -> bool {
        self.down().contains(&service)
    }

    fn down(&self) -> std::sync::MutexGuard<'_, BTreeSet<Service>> {
        self.down.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries until it works: what it needs may be away by another fault.
    pub(crate) async fn insist<F: Future<Output = anyhow::Result<()>> + Send>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> F + Send,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let outcome = match timeout(QUESTION_DEADLINE * 10, attempt()).await {
                Ok(outcome) => outcome,
                Err(_) => Err(anyhow!("no answer")),
            };
            match outcome {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() >= end => {
                    let seconds = PATIENCE.as_secs();
                    return Err(error.context(format!("{what} did not work for {seconds} s")));
                }
                Err(_) => sleep(RETRY_INTERVAL).await,
            }
        }
    }

    /// See [`generation`].
    pub(crate) async fn generation(&self) -> Result<String, sqlx::Error> {
        generation(&mut *self.post_db.acquire().await?).await
    }

    /// Records this consumer's process has brought to an end, by its status page.
    pub(crate) async fn records_done(&self, service: Service) -> Option<u64> {
        let url = format!("http://{HOST}:{}/status.json", service.ports()[0]);
        let status = self.get(&url).await.ok()?;
        let outcomes = ["applied", "folded", "stale", "ignored", "quarantined"];
        let views = status["views"].as_array()?;
        let counts = views.iter().flat_map(|view| outcomes.map(|name| view[name].as_u64()));
        Some(counts.flatten().sum())
    }

    pub(crate) async fn get(&self, url: &str) -> anyhow::Result<Value> {
        let text = self.http.get(url).send().await?.text().await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Connect answers 204 or 202 to what it is told; everything else is an error.
    pub(crate) async fn tell_connect(&self, path: &str) -> anyhow::Result<()> {
        let url = format!("http://{HOST}:{CONNECT_PORT}{path}");
        self.http.post(url).timeout(ORDER_DEADLINE).send().await?.error_for_status()?;
        Ok(())
    }

    /// What everybody says of himself, for the history when something is stuck.
    pub(crate) async fn statements(&self) -> Value {
        let mut all = json!({});
        for name in CONNECTORS {
            all[name] = said(self.connector(name).await);
        }
        for member in &self.members {
            let url = format!("http://{HOST}:{}/status.json", member.service.ports()[0]);
            all[member.service.to_string()] = said(self.get(&url).await);
        }
        let slots = sqlx::query_scalar(
            "select coalesce(jsonb_agg(to_jsonb(s)), '[]')
             from pg_replication_slots as s",
        );
        let slots = timeout(QUESTION_DEADLINE, slots.fetch_one(&self.post_db)).await;
        all["slots"] =
            said(slots.map_err(Into::into).and_then(|answer| answer.map_err(Into::into)));
        all
    }

    /// Whether a connector's task has FAILED. What does not answer has not.
    pub(crate) async fn failed_task(&self) -> bool {
        for name in CONNECTORS {
            let status = self.connector(name).await.unwrap_or_default();
            let tasks = status["tasks"].as_array().map_or(&[][..], Vec::as_slice);
            if tasks.iter().any(|task| task["state"] == "FAILED") {
                return true;
            }
        }
        false
    }

    async fn connector(&self, name: &str) -> anyhow::Result<Value> {
        self.get(&format!("http://{HOST}:{CONNECT_PORT}/connectors/{name}/status")).await
    }
}

/// The number of the views that readers see now, as text.
pub(crate) async fn generation(db: &mut PgConnection) -> Result<String, sqlx::Error> {
    let current = "select current::text from public.cdc_generation";
    sqlx::query_scalar(current).fetch_one(db).await
}

fn said(answer: anyhow::Result<Value>) -> Value {
    answer.unwrap_or_else(|error| json!({ "error": format!("{error:#}") }))
}

impl Member {
    async fn new(stack: &Stack, number: u8) -> anyhow::Result<Self> {
        let proxy = Proxy::to(format!("{HOST}:{POSTGRES_PORT}")).await?;
        let (name, url) = addresses::environment()
            .into_iter()
            .find(|(name, _)| *name == "CONSUMER_DATABASE_URL")
            .context("the stack has no address for the consumer's database")?;
        let url = url.replace(&format!("{HOST}:{POSTGRES_PORT}"), &proxy.address.to_string());
        let stack = stack.clone().with_program_environment(name, url);
        Ok(Self { service: Service::Consumer(number), proxy, stack })
    }
}
