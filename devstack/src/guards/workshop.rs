//! A copy of the clone to take guards out of, with a target directory of its own that is kept, so that
//! each removal builds little.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::Context;
use devstack::{Places, addresses};
use serde::Deserialize;
use tokio::process::Command;

use super::list::{Guard, Program};

/// Lines of the compiler's output that a failed build shows.
const TAIL_LINES: usize = 30;

/// The copy. Everything lies below one directory beside the clone's own build.
pub(crate) struct Workshop {
    directory: PathBuf,
    /// Where the clone itself is built.
    target_of_clone: PathBuf,
}

/// The test programs that a build made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Programs {
    unit: Option<PathBuf>,
    integration: Option<PathBuf>,
}

impl Programs {
    pub(crate) fn get(&self, program: Program) -> Option<&Path> {
        match program {
            Program::Unit => self.unit.as_deref(),
            Program::Integration => self.integration.as_deref(),
        }
    }
}

/// One line of what cargo says in JSON, as far as it matters here.
#[derive(Deserialize)]
struct Artefact {
    executable: Option<PathBuf>,
    target: Option<ArtefactTarget>,
    profile: Option<ArtefactProfile>,
}

#[derive(Deserialize)]
struct ArtefactTarget {
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct ArtefactProfile {
    test: bool,
}

impl Workshop {
    /// Copies the clone, as it is now, to where an earlier run left it. What did not change keeps its
    /// time, so cargo builds only what did. Later changes of the clone are not followed.
    pub(crate) fn open(places: &Places) -> anyhow::Result<Self> {
        let beside = places.programs.parent().unwrap_or(&places.programs);
        let workshop =
            Self { directory: beside.join("guards"), target_of_clone: beside.to_owned() };
        let tree = workshop.tree();
        fs::create_dir_all(workshop.directory.join("log")).context("cannot make a directory")?;
        synchronise(&places.root, &tree)
            .with_context(|| format!("cannot copy the clone to {}", tree.display()))?;
        Ok(workshop)
    }

    pub(crate) fn tree(&self) -> PathBuf {
        self.directory.join("tree")
    }

    /// Where a test's output goes.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.directory.join("log").join(format!("{}.log", name.replace("::", "-")))
    }

    /// Builds the test programs without a guard, and puts the guard back. The inner error is the
    /// compiler's.
    pub(crate) async fn build_without(
        &self,
        guard: &Guard,
    ) -> anyhow::Result<Result<Programs, String>> {
        let removal = guard.removal(&self.tree())?;
        write(&removal.path, &removal.without)?;
        let programs = guard.tests().iter().map(|test| test.program).collect();
        let built = self.build(&programs).await;
        write(&removal.path, &removal.whole)?;
        match built? {
            Ok(programs) => Ok(Ok(self.keep(&programs, &guard.name)?)),
            Err(output) => Ok(Err(output)),
        }
    }

    /// Builds the consumer's test programs of these kinds in the copy. The inner error is the
    /// compiler's.
    pub(crate) async fn build(
        &self,
        programs: &BTreeSet<Program>,
    ) -> anyhow::Result<Result<Programs, String>> {
        let mut command = self.cargo("test");
        command.args([
            "-p",
            "cdc-consumer",
            "--no-run",
            "--message-format=json-render-diagnostics",
        ]);
        // The consumer is built anew for each guard; what it stands on, once, and as elsewhere.
        command.args(["--config", "profile.dev.package.cdc-consumer.opt-level=0"]);
        command.args(["--config", "profile.dev.package.cdc-consumer.debug=false"]);
        command.env("CARGO_TARGET_DIR", self.directory.join("target"));
        for program in programs {
            command.args(match program {
                Program::Unit => ["--lib"].as_slice(),
                Program::Integration => &["--test", "main"],
            });
        }
        let output = completed(command).await?;
        Ok(output.map(|output| built(&String::from_utf8_lossy(&output.stdout))))
    }

    /// Whether the consumer and its tests compile with these texts of files instead of the copy's own,
    /// which are put back. The inner error is the compiler's.
    pub(crate) async fn check(
        &self,
        texts: &BTreeMap<PathBuf, String>,
    ) -> anyhow::Result<Result<(), String>> {
        let mut whole = Vec::new();
        for (path, text) in texts {
            whole.push((path, read(path)?));
            write(path, text)?;
        }
        let mut command = self.cargo("check");
        // All packages at once, and where the clone's own checks left what they stand on: that is not
        // compiled again.
        command.args(["--workspace", "--all-targets", "--quiet"]);
        command.env("CARGO_TARGET_DIR", &self.target_of_clone);
        let checked = completed(command).await;
        for (path, text) in whole {
            write(path, &text)?;
        }
        Ok(checked?.map(drop))
    }

    /// Cargo in the copy.
    fn cargo(&self, verb: &str) -> Command {
        let mut command = Command::new("cargo");
        command
            .args([verb, "--locked"])
            .current_dir(self.tree())
            .env("SQLX_OFFLINE", "true")
            .kill_on_drop(true)
            .stdin(Stdio::null());
        command
    }

    /// Puts test programs aside, under a name: the next build makes others in their place.
    fn keep(&self, programs: &Programs, name: &str) -> anyhow::Result<Programs> {
        let directory = self.directory.join("kept").join(name);
        fs::create_dir_all(&directory).context("cannot make a directory")?;
        let keep = |program: &Option<PathBuf>, name| {
            let Some(program) = program else { return anyhow::Ok(None) };
            let kept = directory.join(name);
            fs::copy(program, &kept).context("cannot copy a test program")?;
            Ok(Some(kept))
        };
        Ok(Programs {
            unit: keep(&programs.unit, "unit")?,
            integration: keep(&programs.integration, "integration")?,
        })
    }

    /// Removes what [`Self::keep`] put aside.
    pub(crate) fn forget(&self, name: &str) {
        // Left-overs cost room, nothing else, and the next run writes over them.
        fs::remove_dir_all(self.directory.join("kept").join(name)).ok();
    }

    /// A command that runs one test as cargo would.
    pub(crate) fn command(&self, program: &Path, test: &str) -> Command {
        let mut command = Command::new(program);
        command
            .args(["--exact", test, "--test-threads=1", "--nocapture"])
            .current_dir(self.tree().join("cdc-consumer"))
            .envs(addresses::environment())
            .env("RUST_BACKTRACE", "0");
        command
    }
}

/// What cargo says when it has ended; the inner error is the end of the compiler's complaint.
async fn completed(mut cargo: Command) -> anyhow::Result<Result<Output, String>> {
    let output = cargo.output().await.context("cannot run cargo")?;
    if output.status.success() {
        return Ok(Ok(output));
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default();
    Ok(Err(tail.join("\n")))
}

pub(super) fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn built(output: &str) -> Programs {
    let mut programs = Programs::default();
    for line in output.lines() {
        let Ok(artefact) = serde_json::from_str::<Artefact>(line) else { continue };
        let (Some(target), Some(profile)) = (artefact.target, artefact.profile) else { continue };
        if !profile.test {
            continue;
        }
        match target.kind.first().map(String::as_str) {
            Some("lib") => programs.unit = artefact.executable,
            Some("test") => programs.integration = artefact.executable,
            _ => {}
        }
    }
    programs
}

/// Makes `to` hold what `from` holds, except for build products and what git and the stack keep.
fn synchronise(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    let mut wanted = BTreeSet::new();
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if ["target", ".git", ".dev"].iter().any(|skipped| name == *skipped) {
            continue;
        }
        let (source, copy) = (entry.path(), to.join(&name));
        if entry.file_type()?.is_dir() {
            synchronise(&source, &copy)?;
        } else {
            let text = fs::read(&source)?;
            if fs::read(&copy).ok().as_ref() != Some(&text) {
                fs::write(&copy, text)?;
            }
        }
        wanted.insert(name);
    }
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        if !wanted.contains(&entry.file_name()) {
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_follows_the_clone_and_leaves_equal_files_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        for name in ["src/a.rs", "src/b.rs", "target/debug/x", ".git/config"] {
            fs::create_dir_all(from.join(name).parent().unwrap()).unwrap();
            fs::write(from.join(name), name).unwrap();
        }
        synchronise(&from, &to).unwrap();
        let time = |name: &str| fs::metadata(to.join(name)).unwrap().modified().unwrap();
        let before = time("src/a.rs");
        fs::write(to.join("src/b.rs"), "without its guard").unwrap();
        fs::write(to.join("src/new.rs"), "").unwrap();
        synchronise(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("src/b.rs")).unwrap(), "src/b.rs");
        assert_eq!(time("src/a.rs"), before);
        assert!(!to.join("src/new.rs").exists());
        assert!(!to.join("target").exists() && !to.join(".git").exists());
    }

    #[test]
    fn the_test_programs_are_told_from_other_artefacts() {
        let lines = [
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"]},"profile":{"test":false},"executable":null}"#,
            r#"{"reason":"compiler-artifact","target":{"kind":["bin"]},"profile":{"test":false},"executable":"/t/cdc-consumer"}"#,
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"]},"profile":{"test":true},"executable":"/t/unit"}"#,
            r#"{"reason":"compiler-artifact","target":{"kind":["test"]},"profile":{"test":true},"executable":"/t/main"}"#,
            r#"{"reason":"build-finished","success":true}"#,
        ];
        let programs = built(&lines.join("\n"));
        assert_eq!(programs.get(Program::Unit), Some(Path::new("/t/unit")));
        assert_eq!(programs.get(Program::Integration), Some(Path::new("/t/main")));
    }
}
