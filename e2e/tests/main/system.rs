//! The whole local system, for one test at a time.

use std::fs::File;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::Path;

use devstack::addresses::CONNECTORS;
use devstack::{CONSUMERS_MAX, Progress, Service, Stack, State};
use futures_util::FutureExt;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::http::Http;
use crate::report::Report;

/// Every e-mail address and title that tests write, except those of the original's own commands,
/// ends or begins so; rows like that are removed after each test.
pub(crate) const EMAIL_DOMAIN: &str = "e2e.example.com";
pub(crate) const TITLE_PREFIX: &str = "e2e ";

/// Addresses of the running system and a hand on its processes. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct System {
    pub(crate) stack: Stack,
    pub(crate) http: Http,
    /// The source of users, as superuser.
    pub(crate) user_db: PgPool,
    /// The source of posts and the views, as superuser.
    pub(crate) post_db: PgPool,
    pub(crate) report: Report,
}

/// Runs a test on the healthy system, alone, and mends what it broke, also when it fails.
pub(crate) async fn with_system<F: Future<Output = ()>>(test: impl FnOnce(System) -> F) {
    let system = System::new();
    let _turn = system.take_turn().await;
    system.mend().await;
    let outcome = AssertUnwindSafe(test(system.clone())).catch_unwind().await;
    system.report.print();
    system.mend().await;
    system.clean().await;
    outcome.unwrap_or_else(|panic| resume_unwind(panic));
}

impl System {
    fn new() -> Self {
        let stack = Stack::from_environment().unwrap();
        let address = |name| setting(name).trim_end_matches('/').to_owned();
        let http =
            Http::new(address("USER_API_URL"), address("POST_API_URL"), address("CONNECT_URL"));
        let pool =
            |name| PgPoolOptions::new().max_connections(3).connect_lazy(&setting(name)).unwrap();
        let (user_db, post_db) = (pool("USER_DATABASE_ADMIN_URL"), pool("POST_DATABASE_ADMIN_URL"));
        let target = stack.places().programs.parent().unwrap_or(Path::new(".")).to_path_buf();
        let report = Report::new(target.join("e2e-report.txt"));
        Self { stack, http, user_db, post_db, report }
    }

    /// Tests of one binary run as threads, and two test runs may meet: the lock serves both.
    async fn take_turn(&self) -> File {
        let path = self.stack.places().state.join("run/e2e.lock");
        let file = File::create(&path)
            .unwrap_or_else(|error| panic!("no local stack ({error}); say ./dev up first"));
        tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await.unwrap().unwrap()
    }

    /// Starts what is missing, lets go on what is paused, stops what is too much or not what is tested.
    async fn mend(&self) {
        let any = Service::STANDARD.into_iter().any(|each| self.stack.running(each).is_some());
        assert!(any, "the local stack is not up; say ./dev up first");
        for extra in (2..=CONSUMERS_MAX).map(Service::Consumer) {
            self.stack.stop(extra).await.unwrap();
        }
        for service in Service::STANDARD {
            if self.stack.status(service).await.state == State::Paused {
                self.stack.resume(service).unwrap();
            }
            if self.stack.outdated(service) {
                self.stack.stop(service).await.unwrap();
            }
            self.stack.start(service).await.unwrap();
        }
        if self.connectors().await.is_err() {
            self.stack.register(&Progress::silent()).await.unwrap();
        }
    }

    /// Removes the rows that tests wrote, so that the system stays small.
    async fn clean(&self) {
        let users = "delete from users where email like '%@' || $1";
        sqlx::query(users).bind(EMAIL_DOMAIN).execute(&self.user_db).await.unwrap();
        let posts = "delete from posts where title like $1 || '%'";
        sqlx::query(posts).bind(TITLE_PREFIX).execute(&self.post_db).await.unwrap();
    }

    /// Whether every connector and its task run; the error says what they do instead.
    pub(crate) async fn connectors(&self) -> Result<(), String> {
        for name in CONNECTORS {
            let url = format!("{}/connectors/{name}/status", self.http.connect);
            let status = self.http.get(&url).await?.body;
            let runs = |part: &serde_json::Value| part["state"] == "RUNNING";
            let tasks = status["tasks"].as_array().map_or(&[][..], |tasks| tasks);
            if !runs(&status["connector"]) || tasks.is_empty() || !tasks.iter().all(runs) {
                return Err(status.to_string());
            }
        }
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "tests take the addresses from outside")]
pub(crate) fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set; run ./dev test, or eval \"$(./dev env)\" first")
    })
}
