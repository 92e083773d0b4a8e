//! The whole stack up and down: what depends on what, and what may happen side by side.

use std::fs::{self, File};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::addresses::environment;
use crate::connectors;
use crate::fetch::{self, ignore_absent};
use crate::health;
use crate::launch::connect_secrets_file;
use crate::process::tail;
use crate::progress::Progress;
use crate::service::{CONSUMERS_MAX, Service};
use crate::stack::{POLL_INTERVAL, Stack, StackError, Started};
use crate::tools;

/// From nothing, on two cores.
const TOPIC_DEADLINE: Duration = Duration::from_mins(1);
const MIGRATE_DEADLINE: Duration = Duration::from_mins(2);
const REGISTER_DEADLINE: Duration = Duration::from_mins(3);

/// Lines of a failed step's output that its error shows.
const TAIL_LINES: usize = 40;

/// How much of the stack `up` brings up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// `PostgreSQL` with migrated databases, Kafka, registry and Connect.
    Servers,
    /// The servers, the connectors and the project's own programs.
    Everything,
}

impl Extent {
    fn services(self) -> impl Iterator<Item = Service> {
        let count = match self {
            Self::Servers => 4,
            Self::Everything => Service::STANDARD.len(),
        };
        Service::STANDARD.into_iter().take(count)
    }
}

impl Stack {
    /// Brings the stack up; what runs and is healthy stays as it is, unless it is a program of ours that is
    /// [`outdated`](Self::outdated). The programs must have been built: `./dev` does it first.
    pub async fn up(&self, extent: Extent, progress: &Progress) -> Result<(), StackError> {
        let _turn = self.take_turn("stack").await?;
        self.places.remember_java().map_err(StackError::file(&self.places.state))?;
        // Before minutes of fetching, not after them.
        for service in extent.services().filter(|&service| self.running(service).is_none()) {
            self.ports_free(service).await?;
        }
        fetch::fetch_all(&self.places, progress).await?;
        let storage = async {
            self.start_step(Service::Postgres, progress).await?;
            self.start_step(Service::Registry, progress).await
        };
        let streams = async {
            self.start_step(Service::Kafka, progress).await?;
            self.create_topics(progress).await?;
            self.start_step(Service::Connect, progress).await
        };
        tokio::try_join!(storage, streams)?;
        self.migrate(progress).await?;
        if extent == Extent::Everything {
            tokio::try_join!(
                self.register(progress),
                self.start_step(Service::UserApi, progress),
                self.start_step(Service::PostApi, progress),
                self.start_step(Service::Consumer(1), progress),
            )?;
            for further in (2..=CONSUMERS_MAX).map(Service::Consumer) {
                if self.outdated(further) {
                    self.start_step(further, progress).await?;
                }
            }
        }
        Ok(())
    }

    /// Stops everything, in the order that lets each finish its work.
    pub async fn down(&self, progress: &Progress) -> Result<(), StackError> {
        let _turn = self.take_turn("stack").await?;
        self.stop_all(progress).await
    }

    /// The same, and deletes all data, logs and settings; fetched artefacts stay.
    pub async fn wipe(&self, progress: &Progress) -> Result<(), StackError> {
        let _turn = self.take_turn("stack").await?;
        self.stop_all(progress).await?;
        self.delete_state()
    }

    async fn stop_all(&self, progress: &Progress) -> Result<(), StackError> {
        let own = Service::all().filter(|service| {
            !matches!(service, Service::Postgres | Service::Kafka | Service::Registry)
        });
        self.stop_together(own, progress).await?;
        self.stop_together([Service::Kafka, Service::Registry], progress).await?;
        self.stop_together([Service::Postgres], progress).await
    }

    fn delete_state(&self) -> Result<(), StackError> {
        // By name: the state directory may be one that somebody uses for other things, too.
        for name in ["postgres", "kafka", "registry", "connect", "secrets", "classes", "log", "run"]
        {
            let directory = self.places.state.join(name);
            fs::remove_dir_all(&directory)
                .or_else(ignore_absent)
                .map_err(StackError::file(&directory))?;
        }
        for name in ["java", "tools-log4j2.xml"] {
            let file = self.places.state.join(name);
            fs::remove_file(&file).or_else(ignore_absent).map_err(StackError::file(&file))?;
        }
        Ok(())
    }

    /// Registers the connectors and waits until they and their tasks run.
    pub async fn register(&self, progress: &Progress) -> Result<(), StackError> {
        // A connector waits for a lost slot half an hour before it has a task.
        health::slots(&self.places.root).await.map_err(StackError::Slots)?;
        let command = self.register_command();
        self.step("connectors", command, REGISTER_DEADLINE, "registered and running", progress)
            .await
    }

    /// `connectors/register.sh` for this stack.
    pub fn register_command(&self) -> Command {
        let mut command = Command::new(self.places.root.join("connectors/register.sh"));
        command.env("CONNECT_SECRETS_FILE", connect_secrets_file(&self.places));
        command
    }

    /// Registers the connectors and starts again what fails of them, which Connect does not do by itself,
    /// until the returned process is dropped. What it says goes to the log `watch`.
    pub fn watch_connectors(&self) -> Result<Child, StackError> {
        let path = self.places.log("watch");
        let log = File::create(&path).map_err(StackError::file(&path))?;
        let mut command = self.register_command();
        command.arg("--watch").stdin(Stdio::null()).stdout(log).kill_on_drop(true);
        command.spawn().map_err(StackError::file(&self.places.root.join("connectors/register.sh")))
    }

    /// A topic that has a partition on the broker's disk needs no slow question.
    async fn create_topics(&self, progress: &Progress) -> Result<(), StackError> {
        for topic in connectors::topics(&self.places.root)? {
            if self.places.state.join(format!("kafka/data/{topic}-0")).exists() {
                continue;
            }
            let command = tools::create_topic(&self.places, &topic)?;
            self.step("topics", command, TOPIC_DEADLINE, &topic, progress).await?;
            tools::adopt_class_archive(&self.places);
        }
        Ok(())
    }

    async fn migrate(&self, progress: &Progress) -> Result<(), StackError> {
        let mut command = Command::new(self.places.programs.join("migrate"));
        command.arg("all");
        self.step("migrations", command, MIGRATE_DEADLINE, "databases up to date", progress).await
    }

    async fn start_step(&self, service: Service, progress: &Progress) -> Result<(), StackError> {
        let step = progress.step(service.to_string(), "starting");
        let outdated = self.outdated(service);
        if outdated {
            self.stop(service).await?;
        }
        let text = match self.start(service).await? {
            Started::Now if outdated => "ready (another build ran before)",
            Started::Now => "ready",
            Started::Before => "ready (ran already)",
        };
        step.done(text);
        Ok(())
    }

    async fn stop_together(
        &self,
        services: impl IntoIterator<Item = Service>,
        progress: &Progress,
    ) -> Result<(), StackError> {
        let mut stops = JoinSet::new();
        for service in services.into_iter().filter(|&service| self.running(service).is_some()) {
            let stack = self.clone();
            let step = progress.step(service.to_string(), "stopping");
            stops.spawn(async move {
                stack.stop(service).await?;
                step.done("stopped");
                Ok::<(), StackError>(())
            });
        }
        while let Some(stopped) = stops.join_next().await {
            stopped.expect("stopping a service does not panic")?;
        }
        Ok(())
    }

    /// Runs a command with the stack's environment to its end; its output goes to a log, its
    /// last line to the terminal.
    async fn step(
        &self,
        name: &'static str,
        mut command: Command,
        deadline: Duration,
        success: &str,
        progress: &Progress,
    ) -> Result<(), StackError> {
        self.create_directories()?;
        let step = progress.step(name, "starting");
        let log = self.places.log(name);
        let output = fs::File::create(&log).map_err(StackError::file(&log))?;
        let errors = output.try_clone().map_err(StackError::file(&log))?;
        let program = command.as_std().get_program().to_os_string();
        let spawned = command
            .envs(environment())
            .current_dir(&self.places.root)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .kill_on_drop(true)
            .spawn();
        let mut child = spawned.map_err(StackError::file(program.as_ref()))?;
        let end = Instant::now() + deadline;
        loop {
            let waited = tokio::time::timeout(POLL_INTERVAL, child.wait()).await;
            match waited {
                Ok(Ok(status)) if status.success() => break,
                Ok(Ok(_)) => {
                    return Err(StackError::Step { step: name, output: tail(&log, TAIL_LINES) });
                }
                Ok(Err(source)) => return Err(StackError::file(program.as_ref())(source)),
                Err(_) if Instant::now() >= end => {
                    let output = tail(&log, TAIL_LINES);
                    return Err(StackError::StepSlow {
                        step: name,
                        seconds: deadline.as_secs(),
                        output,
                    });
                }
                Err(_) => step.message(tail(&log, 1).trim().to_owned()),
            }
        }
        step.done(success);
        Ok(())
    }
}
