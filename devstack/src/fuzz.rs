//! `./dev fuzz`: runs every fuzz target of `fuzz/` for a while, and installs what that needs.
//!
//! A crash is written beside the seeds of its target, where the ordinary tests find it: once found it
//! stays found.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use devstack::{Places, Progress};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::cli::print;

/// The release that is known to work with the pinned compiler.
const CARGO_FUZZ: &str = "0.13.2";
/// Longest input; records are small, and long inputs find nothing that short ones do not.
const INPUT_BYTES_MAX: u32 = 8192;
/// An input that takes longer hangs.
const INPUT_SECONDS_MAX: u32 = 20;
/// An input that needs more memory is an attack.
const MEMORY_MIB_MAX: u32 = 2048;
/// Lines of a crash that are shown.
const TAIL_LINES: usize = 40;

/// What `./dev fuzz` was asked for.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// How long each target is tried
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u32,
    /// Only this target; may be repeated
    #[arg(long, value_name = "TARGET")]
    only: Vec<String>,
    /// The result as JSON
    #[arg(long)]
    json: bool,
}

/// What came of a target.
#[derive(Debug, Serialize)]
struct Outcome {
    target: String,
    survived: bool,
    seconds: u32,
    /// Inputs tried.
    inputs: u64,
    /// Branches reached, as libFuzzer counts them.
    coverage: u64,
}

pub(crate) async fn run(
    places: &Places,
    progress: &Progress,
    options: &Options,
) -> anyhow::Result<ExitCode> {
    let fuzz = Fuzz::new(places)?;
    let targets = fuzz.targets(&options.only)?;
    fuzz.install(progress).await?;
    let step = progress.step("fuzz targets", "building; the first time takes minutes");
    let built = fuzz.cargo(&["build"], &[]).status().await.context("cannot run cargo")?;
    if !built.success() {
        bail!("the fuzz targets do not build");
    }
    step.done("built");
    let mut outcomes = Vec::new();
    for target in targets {
        outcomes.push(fuzz.try_target(&target, options.seconds, progress).await?);
    }
    if options.json {
        print(&serde_json::to_string_pretty(&outcomes).context("cannot write JSON")?);
    } else {
        print(&table(&outcomes));
    }
    let survived = outcomes.iter().all(|outcome| outcome.survived);
    Ok(if survived { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Deserialize)]
struct ToolchainFile {
    toolchain: Toolchain,
}

#[derive(Deserialize)]
struct Toolchain {
    channel: String,
}

/// Where things are.
struct Fuzz {
    root: PathBuf,
    /// Build products, tools, and what the fuzzer learned: kept between runs.
    work: PathBuf,
    channel: String,
}

impl Fuzz {
    fn new(places: &Places) -> anyhow::Result<Self> {
        let file = places.root.join("fuzz/rust-toolchain.toml");
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let file: ToolchainFile =
            toml::from_str(&text).with_context(|| file.display().to_string())?;
        Ok(Self {
            root: places.root.clone(),
            work: places.programs.parent().unwrap_or(&places.programs).join("fuzz"),
            channel: file.toolchain.channel,
        })
    }

    fn targets(&self, only: &[String]) -> anyhow::Result<Vec<String>> {
        let directory = self.root.join("fuzz/targets");
        let entries = fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
        let mut targets = Vec::new();
        for entry in entries {
            let path = entry.context("cannot read the list of targets")?.path();
            targets.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
        targets.sort();
        if let Some(unknown) = only.iter().find(|name| !targets.contains(name)) {
            bail!("there is no fuzz target {unknown:?}; there are {}", targets.join(", "));
        }
        targets.retain(|target| only.is_empty() || only.contains(target));
        Ok(targets)
    }

    /// The pinned nightly compiler and cargo-fuzz, unless they are there.
    async fn install(&self, progress: &Progress) -> anyhow::Result<()> {
        let listed = Command::new("rustup").args(["toolchain", "list"]).output().await;
        let listed = listed.context("fuzzing needs rustup, to install a nightly compiler")?;
        if !String::from_utf8_lossy(&listed.stdout).contains(&self.channel) {
            let step = progress.step("compiler", "installing the pinned nightly compiler");
            let mut rustup = Command::new("rustup");
            rustup.args(["toolchain", "install", &self.channel, "--profile", "minimal"]);
            finish(&mut rustup, &format!("rustup toolchain install {}", self.channel)).await?;
            step.done(&format!("{} installed", self.channel));
        }
        let known = self.cargo(&["--version"], &[]).stderr(Stdio::null()).output().await;
        let known = known.context("cannot run cargo")?;
        if !known.status.success() {
            let step = progress.step("cargo-fuzz", "building cargo-fuzz");
            let mut cargo = Command::new("cargo");
            cargo.args(["install", "cargo-fuzz", "--locked", "--version", CARGO_FUZZ, "--root"]);
            cargo.arg(self.tools()).current_dir(&self.root);
            finish(&mut cargo, "cargo install cargo-fuzz").await?;
            step.done("installed");
        }
        Ok(())
    }

    fn tools(&self) -> PathBuf {
        self.work.join("tools")
    }

    /// `cargo fuzz` of the pinned compiler. Without a sanitizer: none of our code is unsafe, and
    /// overflows are checked anyway.
    fn cargo(&self, verb: &[&str], arguments: &[&str]) -> Command {
        let mut path = self.tools().join("bin").into_os_string();
        #[expect(clippy::disallowed_methods, reason = "a tool of ours is added to what is there")]
        if let Ok(before) = std::env::var("PATH") {
            path.push(":");
            path.push(before);
        }
        let mut command = Command::new("cargo");
        command.arg(format!("+{}", self.channel)).arg("fuzz").args(verb);
        if verb != ["--version"] {
            command
                .args(["--dev", "--sanitizer", "none", "--target-dir"])
                .arg(self.work.join("target"));
        }
        command
            .args(arguments)
            .current_dir(&self.root)
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn try_target(
        &self,
        target: &str,
        seconds: u32,
        progress: &Progress,
    ) -> anyhow::Result<Outcome> {
        let step = progress.step(target.to_owned(), "trying inputs");
        let learned = self.work.join("corpus").join(target);
        fs::create_dir_all(&learned).with_context(|| learned.display().to_string())?;
        let seeds = self.root.join("fuzz/seeds").join(target);
        let log = self.work.join(format!("{target}.log"));
        let out = fs::File::create(&log).with_context(|| log.display().to_string())?;
        let arguments = [
            target.to_owned(),
            learned.display().to_string(),
            seeds.display().to_string(),
            "--".to_owned(),
            format!("-max_total_time={seconds}"),
            format!("-max_len={INPUT_BYTES_MAX}"),
            format!("-timeout={INPUT_SECONDS_MAX}"),
            format!("-rss_limit_mb={MEMORY_MIB_MAX}"),
            // A finding lands where the tests look.
            format!("-artifact_prefix={}/", seeds.display()),
            "-print_final_stats=1".to_owned(),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = self.cargo(&["run"], &arguments);
        let mut child = command.stderr(out).spawn().context("cannot run cargo")?;
        let mut elapsed = 0;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status.context("cannot wait for the fuzzer")?,
                () = tokio::time::sleep(Duration::from_secs(1)) => {
                    elapsed += 1;
                    step.count(elapsed.min(u64::from(seconds)), u64::from(seconds));
                }
            }
        };
        let text = fs::read(&log).with_context(|| log.display().to_string())?;
        let text = String::from_utf8_lossy(&text);
        let outcome = outcome(target, status.success(), seconds, &text);
        if outcome.survived && outcome.inputs == 0 {
            bail!("{target} was not tried; see {}", log.display());
        }
        if !outcome.survived {
            progress.line(&crash(&text, &seeds));
        }
        step.done(if outcome.survived { "survived" } else { "CRASHED" });
        Ok(outcome)
    }
}

async fn finish(command: &mut Command, what: &str) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().await;
    let status = status.with_context(|| format!("cannot run {what}"))?;
    if !status.success() {
        bail!("{what} failed; without a network, install it beforehand");
    }
    Ok(())
}

fn outcome(target: &str, survived: bool, seconds: u32, output: &str) -> Outcome {
    let inputs = output
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok());
    let coverage = output
        .lines()
        .rev()
        .find_map(|line| line.split_once(" cov: ")?.1.split(' ').next()?.parse().ok());
    Outcome {
        target: target.to_owned(),
        survived,
        seconds,
        inputs: inputs.unwrap_or(0),
        coverage: coverage.unwrap_or(0),
    }
}

fn crash(output: &str, seeds: &Path) -> String {
    let lines: Vec<&str> = output.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default();
    format!(
        "{}\nthe input is in {}; mend the cause and commit it: the tests replay it from now on",
        tail.join("\n"),
        seeds.display()
    )
}

fn table(outcomes: &[Outcome]) -> String {
    let mut lines = vec![format!(
        "{:<10} {:<9} {:>8} {:>12} {:>9}",
        "TARGET", "RESULT", "SECONDS", "INPUTS", "COVERAGE"
    )];
    lines.extend(outcomes.iter().map(|outcome| {
        format!(
            "{:<10} {:<9} {:>8} {:>12} {:>9}",
            outcome.target,
            if outcome.survived { "survived" } else { "CRASHED" },
            outcome.seconds,
            outcome.inputs,
            outcome.coverage
        )
    }));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuzzers_own_figures_are_read() {
        let output = "INFO: Seed: 1\n#2\tINITED cov: 12 ft: 13 corp: 1/1b\n\
            #4096\tNEW    cov: 640 ft: 900 corp: 20/1kb\nDone 5000 runs in 2 second(s)\n\
            stat::number_of_executed_units: 5000\nstat::new_units_added: 19\n";
        let read = outcome("wire", true, 2, output);
        assert_eq!((read.inputs, read.coverage), (5000, 640));
        assert_eq!(outcome("wire", true, 2, "nothing ran").inputs, 0);
    }

    #[test]
    fn every_target_has_a_program_and_seeds() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let manifest = fs::read_to_string(root.join("fuzz/Cargo.toml")).unwrap();
        let fuzz = Fuzz { root: root.to_owned(), work: PathBuf::new(), channel: String::new() };
        let targets = fuzz.targets(&[]).unwrap();
        assert!(!targets.is_empty());
        for target in &targets {
            assert!(manifest.contains(&format!("path = \"targets/{target}.rs\"")), "{target}");
            assert!(root.join("fuzz/seeds").join(target).is_dir(), "{target} has no seeds");
        }
        let error = fuzz.targets(&["no-such".to_owned()]).unwrap_err().to_string();
        assert!(error.contains(&targets[0]), "{error}");
    }
}
