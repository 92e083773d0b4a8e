//! Starts, stops, kills and pauses single services of one clone's stack.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::artefact::ArtefactError;
use crate::connectors::ConnectorError;
use crate::health::{self, Unhealthy};
use crate::launch;
use crate::port::{self, Owner};
use crate::process::{ProcessError, Running, tail};
use crate::service::Service;
use crate::settings::{Places, Settings};
use crate::tools::ToolError;

/// Between two looks at something that is awaited.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Between the polite signal and the last one.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// Time the system may take to free the ports of a process that was killed.
const PORT_GRACE: Duration = Duration::from_secs(2);

/// Lines of a log that an error shows.
const TAIL_LINES: usize = 25;

#[derive(Debug, thiserror::Error)]
pub enum StackError {
    #[error("cannot use {}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("root's PostgreSQL runs as another user, who cannot enter {}; set DEVSTACK_STATE to a directory everybody may enter", .directory.display())]
    Unreachable { directory: PathBuf },
    #[error("there is no account {name:?} to run PostgreSQL as")]
    NoAccount { name: &'static str },
    #[error("{} is not built", .program.display())]
    NotBuilt { program: PathBuf },
    #[error("{program} failed:\n{output}")]
    Prepare { program: String, output: String },
    #[error("{program} did not end in time")]
    PrepareSlow { program: String },
    #[error("{service} needs port {port}, which is in use by {}; if that is another clone's stack, say ./dev down there", owner_text(.owner.as_ref()))]
    PortInUse { service: Service, port: u16, owner: Option<Owner> },
    #[error("{service} ended before it was healthy; the end of {}:\n{tail}", .log.display())]
    Ended { service: Service, log: PathBuf, tail: String },
    #[error("{service} was not healthy within {seconds} s; the end of {}:\n{tail}", .log.display())]
    NotHealthy { service: Service, seconds: u64, log: PathBuf, tail: String, source: Unhealthy },
    #[error("{service} is not running")]
    NotRunning { service: Service },
    #[error("process {pid} of {service} does not end, not even by SIGKILL")]
    DoesNotEnd { service: Service, pid: u32 },
    #[error("{service} is paused; resume it first")]
    Paused { service: Service },
    #[error("could not prepare the registry's database")]
    RegistryDatabase(#[from] sqlx::Error),
    #[error(transparent)]
    Artefact(#[from] ArtefactError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("{step} failed:\n{output}")]
    Step { step: &'static str, output: String },
    #[error("{step} did not end within {seconds} s; its last output:\n{output}")]
    StepSlow { step: &'static str, seconds: u64, output: String },
    #[error(transparent)]
    Slots(Unhealthy),
    #[error(transparent)]
    Connectors(#[from] ConnectorError),
}

impl StackError {
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        |source| Self::File { path, source }
    }
}

fn owner_text(owner: Option<&Owner>) -> String {
    owner.map_or_else(|| "a process of another user".to_owned(), ToString::to_string)
}

/// What a start found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    Now,
    /// It ran already and is healthy.
    Before,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Stopped,
    Healthy,
    /// Runs and does not answer as it should (or not yet).
    Unhealthy,
    Paused,
}

/// One line of `status`.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceStatus {
    pub name: String,
    pub state: State,
    pub pid: Option<u32>,
    pub ports: Vec<u16>,
    pub memory_bytes: Option<u64>,
    /// Why it is not healthy.
    pub reason: Option<String>,
}

/// The stack of this clone. Cheap to clone; keeps nothing in memory that the state directory
/// does not hold, so several programs may use one stack at once.
#[derive(Debug, Clone)]
pub struct Stack {
    pub(crate) places: Places,
    /// Added to the environment of the project's own programs that this value starts.
    program_environment: Vec<(String, OsString)>,
}

impl Stack {
    pub fn new(settings: &Settings) -> Result<Self, StackError> {
        let places = Places::new(settings).map_err(StackError::file(Path::new(".")))?;
        Ok(Self { places, program_environment: Vec::new() })
    }

    /// The same stack, but the project's own programs that this value starts get these variables
    /// on top of the stack's addresses: a test puts itself between a program and a server.
    #[must_use]
    pub fn with_program_environment(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.program_environment.push((name.to_owned(), value.into()));
        self
    }

    /// The same stack, but the project's own programs that this value starts are those of another
    /// directory, such as that of cargo's release profile.
    #[must_use]
    pub fn with_programs(mut self, directory: impl Into<PathBuf>) -> Self {
        self.places.programs = directory.into();
        self
    }

    /// The stack that `./dev up` started, as seen from a test of this workspace.
    pub fn from_environment() -> Result<Self, StackError> {
        Self::new(&Settings::from_environment())
    }

    pub fn places(&self) -> &Places {
        &self.places
    }

    pub fn running(&self, service: Service) -> Option<Running> {
        Running::from_pid_file(&self.pid_file(service))
    }

    /// Starts the service if it does not run and waits until it is healthy.
    pub async fn start(&self, service: Service) -> Result<Started, StackError> {
        let _turn = self.take_turn(&service.to_string()).await?;
        let started = match self.running(service) {
            Some(running) if running.paused() => return Err(StackError::Paused { service }),
            Some(_) => Started::Before,
            None => {
                self.spawn(service).await?;
                Started::Now
            }
        };
        self.wait_healthy(service, service.start_deadline()).await?;
        Ok(started)
    }

    /// Starts the service without waiting: for tests in which what it needs is away.
    pub async fn launch(&self, service: Service) -> Result<(), StackError> {
        let _turn = self.take_turn(&service.to_string()).await?;
        if self.running(service).is_none() {
            self.spawn(service).await?;
        }
        Ok(())
    }

    async fn spawn(&self, service: Service) -> Result<(), StackError> {
        self.ports_free(service).await?;
        self.create_directories()?;
        let mut launch = launch::prepare(&self.places, service).await?;
        if !service.is_server() {
            launch.environment.extend(self.program_environment.iter().cloned());
        }
        let log = self.places.log(&service.to_string());
        Running::spawn(&launch, &log, &self.pid_file(service))?;
        Ok(())
    }

    /// A port without a visible owner may be that of a process that is just ending.
    pub(crate) async fn ports_free(&self, service: Service) -> Result<(), StackError> {
        let end = Instant::now() + PORT_GRACE;
        for port in service.ports() {
            while port::in_use(port).await {
                let owner = port::owner(port);
                if owner.is_some() || Instant::now() >= end {
                    return Err(StackError::PortInUse { service, port, owner });
                }
                sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Waits until the service is healthy; ends early when its process ends.
    pub async fn wait_healthy(
        &self,
        service: Service,
        deadline: Duration,
    ) -> Result<(), StackError> {
        let end = Instant::now() + deadline;
        let log = self.places.log(&service.to_string());
        loop {
            if self.running(service).is_none() {
                let tail = tail(&log, TAIL_LINES);
                return Err(StackError::Ended { service, log, tail });
            }
            match health::check(service).await {
                Ok(()) => return Ok(()),
                Err(source) if Instant::now() >= end => {
                    let tail = tail(&log, TAIL_LINES);
                    let seconds = deadline.as_secs();
                    return Err(StackError::NotHealthy { service, seconds, log, tail, source });
                }
                Err(_) => sleep(POLL_INTERVAL).await,
            }
        }
    }

    /// Stops the service politely, and after its deadline by force. No error if it is not there.
    pub async fn stop(&self, service: Service) -> Result<(), StackError> {
        let _turn = self.take_turn(&service.to_string()).await?;
        let Some(running) = self.running(service) else { return Ok(()) };
        let family = family(&running);
        if service == Service::Postgres {
            // The fast shutdown: ends sessions, writes a checkpoint.
            running.signal_leader(Signal::INT)?;
        } else {
            running.signal(Signal::TERM)?;
        }
        for member in &family {
            member.signal_leader(Signal::CONT)?;
        }
        if self.gone(&family, STOP_DEADLINE).await.is_err() {
            for member in &family {
                member.signal(Signal::KILL)?;
            }
        }
        self.ended(service, &family).await
    }

    /// `kill -9` of the service and everything it started.
    pub async fn kill(&self, service: Service) -> Result<(), StackError> {
        let _turn = self.take_turn(&service.to_string()).await?;
        let running = self.running(service).ok_or(StackError::NotRunning { service })?;
        let family = family(&running);
        for member in &family {
            member.signal_leader(Signal::KILL)?;
        }
        self.ended(service, &family).await
    }

    /// Freezes the service (SIGSTOP) with its connections open.
    pub fn pause(&self, service: Service) -> Result<(), StackError> {
        self.signal_family(service, Signal::STOP)
    }

    /// Lets a paused service go on.
    pub fn resume(&self, service: Service) -> Result<(), StackError> {
        self.signal_family(service, Signal::CONT)
    }

    /// Stops and starts the service.
    pub async fn restart(&self, service: Service) -> Result<(), StackError> {
        self.stop(service).await?;
        self.start(service).await?;
        Ok(())
    }

    pub async fn status(&self, service: Service) -> ServiceStatus {
        let running = self.running(service);
        let (state, reason) = match &running {
            None => (State::Stopped, None),
            Some(running) if running.paused() => (State::Paused, None),
            Some(_) => match health::check_thoroughly(service, &self.places.root).await {
                Ok(()) => (State::Healthy, None),
                Err(unhealthy) => (State::Unhealthy, Some(unhealthy.to_string())),
            },
        };
        ServiceStatus {
            name: service.to_string(),
            state,
            pid: running.as_ref().map(|running| running.pid),
            ports: service.ports(),
            memory_bytes: running.as_ref().and_then(Running::memory_bytes),
            reason,
        }
    }

    fn signal_family(&self, service: Service, signal: Signal) -> Result<(), StackError> {
        let running = self.running(service).ok_or(StackError::NotRunning { service })?;
        for member in family(&running) {
            member.signal_leader(signal)?;
        }
        Ok(())
    }

    async fn ended(&self, service: Service, family: &[Running]) -> Result<(), StackError> {
        let kill_deadline = Duration::from_secs(10);
        if let Err(pid) = self.gone(family, kill_deadline).await {
            return Err(StackError::DoesNotEnd { service, pid });
        }
        let pid_file = self.pid_file(service);
        fs::remove_file(&pid_file)
            .or_else(crate::fetch::ignore_absent)
            .map_err(StackError::file(&pid_file))
    }

    /// Waits until none of the processes lives; the error is one that still does.
    async fn gone(&self, family: &[Running], deadline: Duration) -> Result<(), u32> {
        let end = Instant::now() + deadline;
        while let Some(alive) = family.iter().find(|member| member.alive()) {
            if Instant::now() >= end {
                return Err(alive.pid);
            }
            sleep(POLL_INTERVAL / 4).await;
        }
        Ok(())
    }

    pub(crate) fn pid_file(&self, service: Service) -> PathBuf {
        self.places.state.join("run").join(format!("{service}.pid"))
    }
}

/// The process first, then its children.
fn family(running: &Running) -> Vec<Running> {
    let mut family = vec![running.clone()];
    family.extend(running.children());
    family
}
