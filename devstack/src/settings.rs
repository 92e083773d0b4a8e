//! Where things are: the clone, its state, the shared cache, Java and the built programs.

use std::path::{Path, PathBuf};

use clap::{Args, Parser};
use sha2::{Digest, Sha256};

/// What the environment may say about places. Everything has a default.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Directory for data, logs and pid files [default: .dev in the clone; for root a directory
    /// under /var/lib, because the database must run as another user and be able to enter it]
    #[arg(long, env = "DEVSTACK_STATE", global = true, value_name = "DIR")]
    pub state: Option<PathBuf>,

    /// Where the caller stands: relative names, also of tools' files, are meant from there
    #[arg(
        long,
        env = "DEVSTACK_CALLER_DIRECTORY",
        global = true,
        hide = true,
        default_value = "."
    )]
    pub caller_directory: PathBuf,

    /// Java 21 or newer that runs the servers; ./dev finds one
    #[arg(long, env = "DEVSTACK_JAVA_HOME", global = true, hide = true)]
    java_home: Option<PathBuf>,

    #[arg(long, env = "XDG_CACHE_HOME", global = true, hide = true)]
    xdg_cache_home: Option<PathBuf>,

    #[arg(long, env = "HOME", global = true, hide = true)]
    home: Option<PathBuf>,
}

#[derive(Parser)]
struct EnvironmentOnly {
    #[command(flatten)]
    settings: Settings,
}

impl Settings {
    /// Reads the environment alone; for tests, which have no command line of their own.
    pub fn from_environment() -> Self {
        EnvironmentOnly::parse_from(["devstack"]).settings
    }
}

/// The resolved places. All paths are absolute.
#[derive(Clone, Debug)]
pub struct Places {
    /// The clone: where `Cargo.toml`, `connectors/` and `views.toml` are.
    pub root: PathBuf,
    /// Data, logs, pid files and secrets of this clone's stack.
    pub state: PathBuf,
    /// Fetched artefacts, shared by all clones of this user.
    pub cache: PathBuf,
    /// `bin/java` of the Java that was found; plain `java` when nothing said where it is.
    pub java: PathBuf,
    /// Where cargo put the programs of this workspace.
    pub programs: PathBuf,
}

impl Places {
    pub fn new(settings: &Settings) -> std::io::Result<Self> {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).canonicalize()?;
        let state = match &settings.state {
            Some(state) => std::path::absolute(settings.caller_directory.join(state))?,
            None if running_as_root() => root_state(&root),
            None => root.join(".dev"),
        };
        Ok(Self {
            java: java(settings, &state),
            cache: cache(settings),
            programs: programs()?,
            root,
            state,
        })
    }

    pub fn logs(&self) -> PathBuf {
        self.state.join("log")
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// Remembers the Java of this run for callers that know of none.
    pub(crate) fn remember_java(&self) -> std::io::Result<()> {
        let link = self.state.join("java");
        let home = self.java.parent().and_then(Path::parent);
        let Some(home) = home.filter(|home| home.is_absolute() && *home != link) else {
            return Ok(());
        };
        if std::fs::read_link(&link).is_ok_and(|target| target == home) {
            return Ok(());
        }
        std::fs::remove_file(&link).or_else(crate::fetch::ignore_absent)?;
        std::os::unix::fs::symlink(home, &link)
    }
}

pub(crate) fn running_as_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// One directory a clone, outside any home directory, named so that people recognise it.
fn root_state(root: &Path) -> PathBuf {
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    let digest = hex(&Sha256::digest(root.as_os_str().as_encoded_bytes()));
    Path::new("/var/lib/cdc-devstack").join(format!("{name}-{}", &digest[..8]))
}

fn cache(settings: &Settings) -> PathBuf {
    let home = settings.home.clone().unwrap_or_else(std::env::temp_dir);
    let base = settings.xdg_cache_home.clone().filter(|path| path.is_absolute());
    base.unwrap_or_else(|| home.join(".cache")).join("cdc-devstack")
}

/// What `./dev` found; else what it found at the last `up`, so that a test started by hand can
/// restart a server.
fn java(settings: &Settings, state: &Path) -> PathBuf {
    let remembered = state.join("java/bin/java");
    match &settings.java_home {
        Some(home) => home.join("bin/java"),
        None if remembered.exists() => remembered,
        None => PathBuf::from("java"),
    }
}

/// Test executables sit in `deps/`, one below the programs.
fn programs() -> std::io::Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let directory = executable.parent().unwrap_or(Path::new("/"));
    let deps = directory.file_name().is_some_and(|name| name == "deps");
    let directory = if deps { directory.parent().unwrap_or(directory) } else { directory };
    Ok(directory.to_path_buf())
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(state: &str, expected: &str) {
        let mut settings = Settings::from_environment();
        settings.state = Some(state.into());
        settings.caller_directory = "/caller".into();
        assert_eq!(Places::new(&settings).unwrap().state, Path::new(expected));
    }

    #[test]
    fn a_state_directory_is_meant_from_where_the_caller_stands() {
        check("state", "/caller/state");
        check("/elsewhere", "/elsewhere");
    }
}
