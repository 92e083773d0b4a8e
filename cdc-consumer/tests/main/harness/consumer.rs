//! Consumers under test: in this process, or as a process of their own that can be stopped and killed.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cdc_consumer::apply::Outcome;
use cdc_consumer::board::Board;
use cdc_consumer::cli::{self, Cli};
use cdc_consumer::config::RunSettings;
use cdc_consumer::pipeline::{self, SessionError};
use clap::Parser;
use rustix::process::{Pid, Signal};
use service::health::Readiness;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{SOON, World, wait_until};

/// A consumer in this process.
pub(crate) struct Consumer {
    pub(crate) board: Board,
    shutdown: CancellationToken,
    error: Arc<OnceLock<String>>,
    task: Option<JoinHandle<Result<(), SessionError>>>,
}

impl Consumer {
    /// Starts a consumer of the declared views. `options` are flags, as `--name=value`.
    pub(crate) fn start(world: &World, views: &str, options: &[&str]) -> Self {
        let settings = settings(world, options);
        let specs = cdc_consumer::view::parse(views).expect("a valid declaration");
        let board = Board::new(specs.iter().map(|spec| spec.table.clone()), Readiness::new());
        board.readiness.block("session", "joining the consumer group");
        let shutdown = CancellationToken::new();
        let (ours, token) = (board.clone(), shutdown.clone());
        let error = Arc::new(OnceLock::new());
        let said = Arc::clone(&error);
        let task = tokio::spawn(async move {
            let ended = pipeline::run(&settings, &specs, None, &ours, &token).await;
            if let Err(error) = &ended {
                said.get_or_init(|| service::telemetry::chain(error).to_string());
            }
            ended
        });
        Self { board, shutdown, error, task: Some(task) }
    }

    /// Ends it in order. Returns what its records of the first view became.
    pub(crate) async fn stop(mut self) -> Outcome {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(SOON, self.task.take().expect("ends once")).await;
        ended.expect("stops in time").expect("no panic").expect("a clean end");
        self.outcome()
    }

    /// Waits until it gives up by itself. Returns the whole error.
    pub(crate) async fn failure(mut self) -> String {
        let ended = tokio::time::timeout(SOON, self.task.take().expect("ends once")).await;
        let ended = ended.unwrap_or_else(|_| panic!("still running: {:?}", self.board.status()));
        let error = ended.expect("no panic").expect_err("an error");
        service::telemetry::chain(&error).to_string()
    }

    /// What it says of itself; fails when it has ended.
    pub(crate) fn state(&self) -> String {
        let status = self.board.status();
        if let Some(error) = self.error.get() {
            panic!("it ended: {error}");
        }
        format!("{status:?}")
    }

    /// What the records of the first view became so far.
    pub(crate) fn outcome(&self) -> Outcome {
        self.board.status().views.first().map(|view| view.records).unwrap_or_default()
    }

    /// Waits until it has counted this many records. Offsets stored before a reset say nothing.
    pub(crate) async fn counted(&self, records: u64) {
        wait_until(&format!("{records} records"), SOON * 2, || async {
            let outcome = self.outcome();
            if total(&outcome) >= records { Ok(()) } else { Err(format!("{outcome:?}")) }
        })
        .await;
    }

    /// Waits until it has at least one partition.
    pub(crate) async fn joined(&self) {
        wait_until("partitions", SOON, || async {
            let status = self.board.status();
            if status.partitions.is_empty() { Err(format!("{status:?}")) } else { Ok(()) }
        })
        .await;
    }

    /// Waits for a reason not to be ready that contains `text`.
    pub(crate) async fn complains(&self, text: &str) {
        wait_until(text, SOON, || async {
            let reasons = self.board.readiness.reasons().join("; ");
            if reasons.contains(text) { Ok(()) } else { Err(reasons) }
        })
        .await;
    }

    /// Waits until nothing keeps it from being ready.
    pub(crate) async fn ready(&self) {
        wait_until("to be ready", SOON, || async {
            let reasons = self.board.readiness.reasons();
            if reasons.is_empty() { Ok(()) } else { Err(reasons.join("; ")) }
        })
        .await;
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// An address where nobody listens yet, for `--consumer-listen`.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.expect("a free port")
}

/// What the consumer that listens there says of itself.
pub(crate) async fn metrics(address: SocketAddr) -> Result<String, String> {
    let asked = reqwest::get(format!("http://{address}/metrics")).await;
    let answer = asked.map_err(|error| error.to_string())?;
    answer.text().await.map_err(|error| error.to_string())
}

/// All records counted, by where they ended.
pub(crate) fn total(outcome: &Outcome) -> u64 {
    let Outcome { applied, folded, stale, ignored, quarantined } = *outcome;
    applied + folded + stale + ignored + quarantined
}

/// Settings of `run` in this world.
pub(crate) fn settings(world: &World, options: &[&str]) -> RunSettings {
    let mut arguments = vec!["cdc-consumer".to_owned(), "run".to_owned()];
    arguments.extend(flags(world, options));
    let cli = Cli::try_parse_from(arguments).unwrap_or_else(|error| panic!("{error}"));
    match cli.command {
        cli::Command::Run(settings) => *settings,
        other => panic!("not a run: {other:?}"),
    }
}

/// Runs the program's function for a command with the flags that lead to this world, a file that declares
/// `views`, and `arguments`.
pub(crate) async fn command<T>(
    world: &World,
    views: &str,
    arguments: &[&str],
    run: impl AsyncFnOnce(cli::Command) -> T,
) -> T {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let file = directory.join(format!("{}.toml", uuid::Uuid::new_v4().simple()));
    std::fs::write(&file, views).expect("a views file");
    let (name, more) = arguments.split_first().expect("a command");
    let addresses = addresses(world).map(|(flag, value)| format!("--{flag}={value}"));
    let declared = format!("--views-file={}", file.display());
    let first = ["cdc-consumer", name, &declared].into_iter();
    let all = first.chain(addresses.iter().map(String::as_str)).chain(more.iter().copied());
    let cli = Cli::try_parse_from(all).unwrap_or_else(|error| panic!("{error}"));
    let outcome = run(cli.command).await;
    std::fs::remove_file(&file).expect("the views file is there");
    outcome
}

/// Where the servers of this world are.
fn addresses(world: &World) -> [(&'static str, String); 4] {
    [
        ("kafka-brokers", world.brokers.clone()),
        ("consumer-group", world.name.clone()),
        ("schema-registry-url", world.registry.clone()),
        ("consumer-database-url", world.consumer_url(&world.database_address())),
    ]
}

/// The flags that lead to this world, unless an option sets them otherwise, and the options.
fn flags(world: &World, options: &[&str]) -> Vec<String> {
    // Few rows make a batch here, and some are to be written by COPY, some not.
    let small = [("consumer-listen", "127.0.0.1:0".to_owned()), ("copy-rows-min", "10".to_owned())];
    let flags = addresses(world).into_iter().chain(small);
    let flags = flags.map(|(name, value)| (format!("--{name}="), value));
    let ours = flags.filter(|(flag, _)| !options.iter().any(|option| option.starts_with(flag)));
    let ours = ours.map(|(flag, value)| flag + &value);
    ours.chain(options.iter().map(|&option| option.to_owned())).collect()
}

/// A consumer as a process of its own, killed when dropped.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn start(world: &World, views: &str, number: usize, options: &[&str]) -> Self {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let file = directory.join(format!("{}_{number}.toml", world.name));
        std::fs::write(&file, views).expect("a views file");
        let log = file.with_extension("log");
        let out = File::create(&log).expect("a log file");
        let child = Command::new(env!("CARGO_BIN_EXE_cdc-consumer"))
            .arg("run")
            .args(flags(world, options))
            .arg(format!("--views-file={}", file.display()))
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a second handle"))
            .stderr(out)
            .spawn()
            .expect("the consumer starts");
        Self { child, log }
    }

    /// Stops it with SIGSTOP, and returns when it stands still: on busy processors it runs on until a thread
    /// has come to take the signal.
    pub(crate) async fn freeze(&self) {
        self.signal(Signal::STOP);
        wait_until("the process to stand still", SOON, || async {
            if devstack::paused(self.id()) { Ok(()) } else { Err("it runs".to_owned()) }
        })
        .await;
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("a process of ours takes signals");
    }

    /// Waits for a line in its log: perhaps until it has waited in vain itself.
    pub(crate) async fn says(&self, text: &str) {
        wait_until(text, SOON * 2, || async {
            let log = std::fs::read_to_string(&self.log).expect("its log");
            if log.contains(text) { Ok(()) } else { Err(log) }
        })
        .await;
    }

    /// Ends it at once, wherever it is.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_file(self.log.with_extension("toml")));
        if !std::thread::panicking() {
            drop(std::fs::remove_file(&self.log));
        }
    }
}

/// How long a takeover may take: a dead member's session, then the server's patience with its transaction.
pub(crate) const TAKEOVER: Duration = Duration::from_secs(30);
