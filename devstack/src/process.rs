//! Detached processes and their pid files.
//!
//! A pid file holds the process's start time beside its id: an id that the system has given to
//! somebody else is never signalled.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::proc_table;

/// A log that has grown beyond this is put aside at the next start; one old log is kept.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The first line of every run in a log that several runs share.
const START_MARK: &str = "==== started by devstack ====";

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("cannot start {program}")]
    Spawn { program: String, source: io::Error },
    #[error("cannot use {path}")]
    File { path: PathBuf, source: io::Error },
    #[error("cannot signal process {pid}")]
    Signal { pid: u32, source: io::Error },
}

impl ProcessError {
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        |source| Self::File { path, source }
    }
}

/// What to run, and as whom.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub environment: Vec<(String, OsString)>,
    pub directory: PathBuf,
    pub user: Option<User>,
}

/// An unprivileged user for a server that refuses to run as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User {
    pub uid: u32,
    pub gid: u32,
}

impl Launch {
    /// The command with its process group of its own: Ctrl-C at the terminal and the end of the
    /// starting shell do not reach it.
    pub(crate) fn command(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.program);
        command
            .args(&self.args)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory)
            .process_group(0)
            .stdin(Stdio::null());
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }
}

/// One started process, as its pid file records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    pub pid: u32,
    /// Opaque; equal for the same process only, also across a reboot.
    started: String,
}

impl Running {
    /// Starts the process detached, its output appended to `log`, and writes the pid file.
    pub(crate) fn spawn(
        launch: &Launch,
        log: &Path,
        pid_file: &Path,
    ) -> Result<Self, ProcessError> {
        let output = open_log(log).map_err(ProcessError::file(log))?;
        let errors = output.try_clone().map_err(ProcessError::file(log))?;
        let spawned = launch.command().stdout(output).stderr(errors).spawn();
        let child = spawned.map_err(|source| ProcessError::Spawn {
            program: launch.program.display().to_string(),
            source,
        })?;
        let pid = child.id().expect("a child that was not waited for has an id");
        // A process that is gone already has no start time; the empty one matches no process.
        let running = Self { pid, started: proc_table::start_time(pid).unwrap_or_default() };
        let text = serde_json::to_string(&running).expect("two plain fields always serialize");
        fs::write(pid_file, text).map_err(ProcessError::file(pid_file))?;
        Ok(running)
    }

    /// The process of a pid file, if it is still the same one and alive.
    pub(crate) fn from_pid_file(pid_file: &Path) -> Option<Self> {
        let text = fs::read_to_string(pid_file).ok()?;
        let running: Self = serde_json::from_str(&text).ok()?;
        running.alive().then_some(running)
    }

    pub fn alive(&self) -> bool {
        proc_table::start_time(self.pid).is_some_and(|started| started == self.started)
    }

    /// True while the process is stopped by a signal.
    pub fn paused(&self) -> bool {
        proc_table::paused(self.pid)
    }

    /// Signals the process and everything in its group. A group that is gone is no error.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        if !self.alive() {
            return Ok(());
        }
        signal_outcome(self.pid, rustix::process::kill_process_group(as_pid(self.pid), signal))
    }

    /// Signals the process alone: `PostgreSQL`'s shutdown signals are for its first process only.
    pub(crate) fn signal_leader(&self, signal: Signal) -> Result<(), ProcessError> {
        if !self.alive() {
            return Ok(());
        }
        signal_outcome(self.pid, rustix::process::kill_process(as_pid(self.pid), signal))
    }

    /// This process's children, with their own identity; `PostgreSQL`'s leave the process group.
    pub(crate) fn children(&self) -> Vec<Self> {
        let children = proc_table::children(self.pid).into_iter();
        children
            .filter_map(|pid| Some(Self { pid, started: proc_table::start_time(pid)? }))
            .collect()
    }

    /// Memory of the process and its children in bytes, shared pages counted once where the
    /// system tells; `None` where it does not.
    pub fn memory_bytes(&self) -> Option<u64> {
        let own = proc_table::memory_bytes(self.pid)?;
        let children = proc_table::children(self.pid).into_iter();
        Some(own + children.filter_map(proc_table::memory_bytes).sum::<u64>())
    }
}

fn as_pid(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a live process has a positive id")
}

fn signal_outcome(pid: u32, result: rustix::io::Result<()>) -> Result<(), ProcessError> {
    match result {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(ProcessError::Signal { pid, source: errno.into() }),
    }
}

fn open_log(log: &Path) -> io::Result<File> {
    if fs::metadata(log).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        fs::rename(log, log.with_extension("log.old"))?;
    }
    let mut file = File::options().create(true).append(true).open(log)?;
    writeln!(file, "{START_MARK}")?;
    Ok(file)
}

/// The last `lines` lines that the latest run left in its log, for an error message.
pub(crate) fn tail(log: &Path, lines: usize) -> String {
    const TAIL_BYTES: u64 = 64 * 1024;
    let read = || -> io::Result<String> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let latest = text.rsplit_once(START_MARK).map_or(&*text, |(_, latest)| latest.trim_start());
    let all: Vec<&str> = latest.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Launch {
        Launch {
            program: "sleep".into(),
            args: vec!["60".into()],
            environment: Vec::new(),
            directory: "/".into(),
            user: None,
        }
    }

    #[tokio::test]
    async fn a_pid_file_finds_its_process_until_it_is_killed() {
        let scratch = tempfile::tempdir().unwrap();
        let pid_file = scratch.path().join("sleep.pid");
        let log = pid_file.with_extension("log");
        let running = Running::spawn(&sleeper(), &log, &pid_file).unwrap();
        assert_eq!(Running::from_pid_file(&pid_file).as_ref(), Some(&running));
        running.signal(Signal::STOP).unwrap();
        running.signal(Signal::KILL).unwrap();
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
        while running.alive() {
            assert!(tokio::time::Instant::now() < deadline, "still alive: {running:?}");
            tokio::task::yield_now().await;
        }
        assert_eq!(Running::from_pid_file(&pid_file), None);
    }

    #[test]
    fn a_recycled_pid_is_nobody_of_ours() {
        let scratch = tempfile::tempdir().unwrap();
        let pid_file = scratch.path().join("recycled.pid");
        let text = format!(r#"{{"pid":{},"started":"another boot"}}"#, std::process::id());
        fs::write(&pid_file, text).unwrap();
        assert_eq!(Running::from_pid_file(&pid_file), None);
    }

    #[test]
    fn a_damaged_pid_file_is_no_process() {
        let scratch = tempfile::tempdir().unwrap();
        let pid_file = scratch.path().join("damaged.pid");
        fs::write(&pid_file, "12").unwrap();
        assert_eq!(Running::from_pid_file(&pid_file), None);
    }

    #[test]
    fn tail_gives_the_last_lines() {
        let scratch = tempfile::tempdir().unwrap();
        let log = scratch.path().join("some.log");
        fs::write(&log, "one\ntwo\nthree\n").unwrap();
        assert_eq!(tail(&log, 2), "two\nthree");
        assert_eq!(tail(&log, 9), "one\ntwo\nthree");
        fs::write(&log, format!("old\n{START_MARK}\nnew\n")).unwrap();
        assert_eq!(tail(&log, 9), "new");
        assert_eq!(tail(Path::new("/nonexistent"), 9), "");
    }
}
