//! A steady load of writes over HTTP that remembers what was acknowledged: each row belongs to one
//! worker, so what it must look like is known, unless a write's outcome is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::http::Answer;
use crate::system::{EMAIL_DOMAIN, System, TITLE_PREFIX};
use crate::wait::until;

pub(crate) const WRITES_PER_SECOND: u32 = 200;

/// Writers at once. Enough that a slow answer of one does not lower the rate.
const WORKERS: u32 = 20;
/// Rows one worker keeps alive; beyond that it changes and deletes instead of creating.
const LIVE_ROWS_MAX: usize = 40;
const DEPARTMENTS: [&str; 5] = ["개발팀", "기획팀", "영업팀", "인사팀", "Q&A \"팀\""];
const STATUSES: [&str; 3] = ["ACTIVE", "INACTIVE", "SUSPENDED"];

/// A running load. Dropped without [`Load::stop`], it ends without a check.
pub(crate) struct Load {
    counts: Arc<Counts>,
    workers: JoinSet<Ledger>,
    started: Instant,
}

#[derive(Debug, Default)]
struct Counts {
    acknowledged: AtomicU64,
    /// Answered 503 or not at all: whether it took effect is not known.
    unknown: AtomicU64,
    stop: AtomicBool,
}

/// What must be in the source tables: id to version, or to none for a deleted row.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    users: BTreeMap<i64, Option<i64>>,
    posts: BTreeMap<i64, Option<i64>>,
    /// Answers a client did nothing to deserve.
    wrong: Vec<String>,
    pub(crate) acknowledged: u64,
    pub(crate) unknown: u64,
    pub(crate) lasted: Duration,
}

impl Load {
    /// Starts once the authors of its posts are in the view.
    pub(crate) async fn start(system: &System) -> Self {
        let run = rand::random::<u64>();
        let mut authors = Vec::new();
        for (number, department) in DEPARTMENTS.iter().enumerate() {
            let author = json!({
                "name": "글쓴이", "email": format!("author-{run:x}-{number}@{EMAIL_DOMAIN}"),
                "department": department, "status": "ACTIVE"
            });
            let url = system.http.users("");
            authors.push(system.http.expect(201, Method::POST, &url, Some(&author)).await.id());
        }
        for author in &authors {
            let url = system.http.posts(&format!("/users/{author}"));
            system.http.visible(&url, Duration::from_mins(1), |answer| answer.status == 200).await;
        }
        let counts = Arc::new(Counts::default());
        let started = Instant::now();
        let mut workers = JoinSet::new();
        for number in 0..WORKERS {
            let worker = Worker {
                system: system.clone(),
                name: format!("{run:x}-{number}"),
                authors: authors.clone(),
                random: rand::make_rng(),
                serial: 0,
                ledger: Ledger::default(),
                counts: Arc::clone(&counts),
            };
            let interval = Duration::from_secs(1) * WORKERS / WRITES_PER_SECOND;
            workers.spawn(worker.run(interval, started + interval * number / WORKERS));
        }
        Self { counts, workers, started }
    }

    /// Waits for this many more attempts, or for this many more with an unknown outcome: then an
    /// outage has been felt.
    pub(crate) async fn attempts(&self, attempt_count: u64, unknown_count: u64) {
        let now = || (self.counts.acknowledged.load(Relaxed), self.counts.unknown.load(Relaxed));
        let before = now();
        until("the load gets on", Duration::from_mins(1), async || {
            let (acknowledged, unknown) = now();
            let attempts = acknowledged + unknown - before.0 - before.1;
            let enough = attempts >= attempt_count || unknown - before.1 >= unknown_count;
            if enough { Ok(()) } else { Err(format!("{attempts} of {attempt_count} attempts")) }
        })
        .await;
    }

    /// Lets every writer finish its write and checks that what was acknowledged is there.
    pub(crate) async fn stop(self, system: &System) -> Ledger {
        self.counts.stop.store(true, Relaxed);
        let mut all = Ledger { lasted: self.started.elapsed(), ..Ledger::default() };
        for ledger in self.workers.join_all().await {
            all.users.extend(ledger.users);
            all.posts.extend(ledger.posts);
            all.wrong.extend(ledger.wrong);
        }
        all.acknowledged = self.counts.acknowledged.load(Relaxed);
        all.unknown = self.counts.unknown.load(Relaxed);
        all.check(system).await;
        let rate = all.acknowledged * 1000 / u64::try_from(all.lasted.as_millis()).unwrap().max(1);
        system.report.line(
            "writes",
            format!("{} acknowledged ({rate}/s), {} unknown", all.acknowledged, all.unknown),
        );
        all
    }
}

impl Ledger {
    async fn check(&self, system: &System) {
        assert!(self.wrong.is_empty(), "answers that make no sense: {:?}", self.wrong);
        assert!(self.acknowledged > 0, "nothing was acknowledged: {self:?}");
        for (db, table, expected) in
            [(&system.user_db, "users", &self.users), (&system.post_db, "posts", &self.posts)]
        {
            let ids: Vec<i64> = expected.keys().copied().collect();
            let query = format!("select id, version from {table} where id = any ($1)");
            let found: Vec<(i64, i64)> =
                sqlx::query_as(&query).bind(ids).fetch_all(db).await.unwrap();
            let found: BTreeMap<i64, i64> = found.into_iter().collect();
            let lost: Vec<_> = expected
                .iter()
                .filter(|(id, version)| found.get(id) != version.as_ref())
                .map(|(id, version)| (id, version, found.get(id)))
                .collect();
            assert!(lost.is_empty(), "{table} lost acknowledged writes: {lost:?}");
        }
    }
}

struct Worker {
    system: System,
    name: String,
    authors: Vec<i64>,
    random: SmallRng,
    serial: u64,
    ledger: Ledger,
    counts: Arc<Counts>,
}

impl Worker {
    async fn run(mut self, every: Duration, first: Instant) -> Ledger {
        let mut ticks = interval_at(first, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        while !self.counts.stop.load(Relaxed) {
            ticks.tick().await;
            self.write().await;
        }
        self.ledger
    }

    async fn write(&mut self) {
        let users = random_live(&self.ledger.users, &mut self.random);
        let posts = random_live(&self.ledger.posts, &mut self.random);
        // Users twice as often as posts; then create, change or delete.
        let user_turn = self.random.random_ratio(2, 3);
        let (live_count, chosen) = if user_turn { users } else { posts };
        let choice = match (chosen, self.random.random_range(0..10)) {
            (None, _) => None,
            (Some(_), 0..5) if live_count < LIVE_ROWS_MAX => None,
            (Some(id), 0..8) => Some((Method::PUT, id)),
            (Some(id), _) => Some((Method::DELETE, id)),
        };
        self.serial += 1;
        let mut body = if user_turn { self.user() } else { self.post() };
        if choice.is_some() {
            // A post keeps its author.
            body["authorId"] = Value::Null;
        }
        let url = |path: &str| {
            if user_turn { self.system.http.users(path) } else { self.system.http.posts(path) }
        };
        let (method, url, id) = match choice {
            None => (Method::POST, url(""), None),
            Some((method, id)) => (method, url(&format!("/{id}")), Some(id)),
        };
        let body = (method != Method::DELETE).then_some(&body);
        let answer = self.system.http.send(method, &url, body).await;
        self.note(user_turn, id, answer);
    }

    /// Keeps what is now known of the row.
    fn note(&mut self, user_turn: bool, id: Option<i64>, answer: Result<Answer, String>) {
        let rows = if user_turn { &mut self.ledger.users } else { &mut self.ledger.posts };
        let acknowledged = match answer {
            Ok(answer) if matches!(answer.status, 200 | 201) => {
                rows.insert(answer.id(), Some(answer.version()));
                true
            }
            Ok(answer) if answer.status == 204 => {
                rows.extend(id.map(|id| (id, None)));
                true
            }
            Ok(answer) if !is_outage(&answer) => {
                self.ledger.wrong.push(format!("{id:?}: {answer:?}"));
                false
            }
            Ok(_) | Err(_) => {
                id.and_then(|id| rows.remove(&id));
                false
            }
        };
        let count = if acknowledged { &self.counts.acknowledged } else { &self.counts.unknown };
        count.fetch_add(1, Relaxed);
    }

    fn user(&mut self) -> Value {
        json!({
            "name": format!("사용자 {}", self.serial),
            "email": format!("{}-{}@{EMAIL_DOMAIN}", self.name, self.serial),
            "department": DEPARTMENTS[self.random.random_range(0..DEPARTMENTS.len())],
            "status": STATUSES[self.random.random_range(0..STATUSES.len())],
        })
    }

    fn post(&mut self) -> Value {
        json!({
            "title": format!("{TITLE_PREFIX}{} {}", self.name, self.serial),
            "content": "내용",
            "authorId": self.authors[self.random.random_range(0..self.authors.len())],
        })
    }
}

/// The one way in which a service may say that what it needs is away.
fn is_outage(answer: &Answer) -> bool {
    answer.status == 503 && answer.content_type == "application/problem+json"
}

/// How many rows are alive, and one of them.
fn random_live(rows: &BTreeMap<i64, Option<i64>>, random: &mut SmallRng) -> (usize, Option<i64>) {
    let live: Vec<i64> =
        rows.iter().filter(|(_, version)| version.is_some()).map(|(id, _)| *id).collect();
    let chosen = (!live.is_empty()).then(|| live[random.random_range(0..live.len())]);
    (live.len(), chosen)
}
