//! A writer that uses the services as their clients do.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use devstack::addresses::environment;
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use crate::ledger::{Ledger, State};
use crate::sql::{Content, Table};
use crate::writer::Shared;

/// Longer than the services themselves take before they give up.
const REQUEST_DEADLINE: Duration = Duration::from_secs(20);
const LIVE_ROWS_MAX: usize = 30;

pub(crate) struct HttpWriter {
    client: Client,
    users_url: String,
    posts_url: String,
    name: String,
    random: Xoshiro256PlusPlus,
    serial: u64,
    users: Ledger,
    posts: Ledger,
    shared: Arc<Shared>,
}

impl HttpWriter {
    pub(crate) fn new(
        number: u32,
        random: Xoshiro256PlusPlus,
        shared: Arc<Shared>,
    ) -> anyhow::Result<Self> {
        let address = |wanted: &str| {
            let all = environment().into_iter();
            let found = all.filter(|(name, _)| *name == wanted).map(|(_, url)| url).next();
            found.with_context(|| format!("the stack has no {wanted}"))
        };
        Ok(Self {
            client: Client::builder().timeout(REQUEST_DEADLINE).build()?,
            users_url: format!("{}/api/users", address("USER_API_URL")?),
            posts_url: format!("{}/api/posts", address("POST_API_URL")?),
            name: format!("{}-{number}", shared.run),
            random,
            serial: 0,
            users: Ledger::default(),
            posts: Ledger::default(),
            shared,
        })
    }

    pub(crate) async fn run(mut self, every: Duration) -> (Ledger, Ledger) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.shared.stopped() {
            ticks.tick().await;
            self.write().await;
        }
        (self.users, self.posts)
    }

    async fn write(&mut self) {
        // Users twice as often as posts; then create, change or delete.
        let table = if self.random.random_ratio(2, 3) { Table::Users } else { Table::Posts };
        let live = self.ledger(table).live();
        let choice = self.random.random_range(0..10);
        let chosen = match choice {
            _ if live.is_empty() => None,
            0..4 if live.len() < LIVE_ROWS_MAX => None,
            _ => Some(live[self.random.random_range(0..live.len())]),
        };
        self.serial += 1;
        let mark = format!("{}-{}", self.name, self.serial);
        let content = Content::random(&mut self.random, mark);
        let (method, after) = match chosen {
            None => (Method::POST, Some(1)),
            Some((_, version)) if choice < 8 => (Method::PUT, Some(version + 1)),
            Some(_) => (Method::DELETE, None),
        };
        let body = (method != Method::DELETE).then(|| self.body(table, &content, chosen.is_none()));
        let url = match table {
            Table::Users => &self.users_url,
            Table::Posts => &self.posts_url,
        };
        let url = chosen.map_or_else(|| url.clone(), |(id, _)| format!("{url}/{id}"));
        let answer = self.send(method, &url, body.as_ref()).await;
        let mark = match table {
            Table::Users => content.email(),
            Table::Posts => content.title(),
        };
        self.note(table, chosen.map(|(id, _)| id), after, mark, answer);
    }

    fn body(&mut self, table: Table, content: &Content, new: bool) -> Value {
        match table {
            Table::Users => json!({
                "name": content.mark, "email": content.email(),
                "department": content.department, "status": content.status,
            }),
            Table::Posts => {
                // A post keeps its author.
                let authors = &self.shared.authors;
                let author = new.then(|| authors[self.random.random_range(0..authors.len())]);
                json!({ "title": content.title(), "content": "내용", "authorId": author })
            }
        }
    }

    /// Status and body; none when no answer came.
    async fn send(
        &self,
        method: Method,
        url: &str,
        body: Option<&Value>,
    ) -> Option<(StatusCode, Value)> {
        let mut request = self.client.request(method, url);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.ok()?;
        let status = response.status();
        let text = response.text().await.ok()?;
        Some((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// Keeps what is now known of the row `id`, none for a new one, that should become `after`.
    fn note(
        &mut self,
        table: Table,
        id: Option<i64>,
        after: State,
        mark: String,
        answer: Option<(StatusCode, Value)>,
    ) {
        let ledger = self.ledger(table);
        match (answer, id) {
            (Some((StatusCode::NO_CONTENT, _)), Some(id)) => ledger.acknowledge(&[(id, None)]),
            (Some((StatusCode::OK | StatusCode::CREATED, body)), _) => {
                match (body["id"].as_i64(), body["version"].as_i64()) {
                    (Some(id), version @ Some(_)) => ledger.acknowledge(&[(id, version)]),
                    _ => return ledger.wrong.push(format!("row {id:?}: {body}")),
                }
            }
            // The one way in which a service says that what it needs is away.
            (Some((StatusCode::SERVICE_UNAVAILABLE, _)) | None, Some(id)) => {
                return ledger.doubt(&[(id, after)]);
            }
            (Some((StatusCode::SERVICE_UNAVAILABLE, _)) | None, None) => {
                return ledger.doubt_insert(mark);
            }
            (Some((status, body)), _) => {
                return ledger.wrong.push(format!("row {id:?}: {status} {body}"));
            }
        }
        self.shared.count(1);
    }

    fn ledger(&mut self, table: Table) -> &mut Ledger {
        match table {
            Table::Users => &mut self.users,
            Table::Posts => &mut self.posts,
        }
    }
}
