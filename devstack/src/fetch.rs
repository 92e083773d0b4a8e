//! Brings artefacts into the cache: Maven delivers, the pins are checked, then it is unpacked.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::artefact::{Artefact, ArtefactError, Source, postgres_platform};
use crate::process::tail;
use crate::progress::{Progress, Step};
use crate::settings::Places;

/// Fixed, so that the same lines are resolved the same way everywhere.
const MAVEN_PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1";

const LOCK_HEADER: [&str; 2] = [
    "# SHA-256 of every file that is fetched: digest, two blanks, artefact/file.",
    "# After a change of a version: ./dev relock > devstack/artefacts.lock, and review the difference.",
];

/// For one artefact; the largest has 158 MB.
const FETCH_DEADLINE: Duration = Duration::from_mins(15);

/// Where the parts of the stack are after a fetch.
#[derive(Debug, Clone)]
pub(crate) struct Installed {
    /// Compressed; every state directory unpacks a copy its unprivileged user may read.
    pub postgres_archive: PathBuf,
    pub kafka: PathBuf,
    pub registry: PathBuf,
    /// Directories that each hold one directory a plugin, which is what Connect wants.
    pub plugins: Vec<PathBuf>,
}

impl Installed {
    pub(crate) fn locate(places: &Places) -> Result<Self, ArtefactError> {
        let postgres = Artefact::postgres(postgres_platform()?).installed(&places.cache);
        let cache = &places.cache;
        let mut plugins =
            vec![Artefact::debezium().installed(cache), Artefact::converter().installed(cache)];
        // There once it was fetched for a benchmark; an absent directory would be an error.
        plugins.extend(Some(Artefact::jdbc_sink().installed(cache)).filter(|path| path.exists()));
        Ok(Self {
            postgres_archive: postgres.join("postgres.txz"),
            kafka: Artefact::kafka().installed(cache),
            registry: Artefact::registry().installed(cache),
            plugins,
        })
    }
}

/// Fetches what the cache does not hold yet. Clones that fetch at the same time take turns.
pub async fn fetch_all(places: &Places, progress: &Progress) -> Result<(), ArtefactError> {
    fetch(&Artefact::all()?, places, progress).await
}

/// Fetches the Debezium JDBC sink, which only benchmarks need. A Connect worker that starts
/// afterwards offers it.
pub async fn fetch_jdbc_sink(places: &Places, progress: &Progress) -> Result<(), ArtefactError> {
    fetch(&[Artefact::jdbc_sink()], places, progress).await
}

async fn fetch(
    artefacts: &[Artefact],
    places: &Places,
    progress: &Progress,
) -> Result<(), ArtefactError> {
    let cache = &places.cache;
    if artefacts.iter().all(|artefact| artefact.installed(cache).exists()) {
        return Ok(());
    }
    fs::create_dir_all(cache).map_err(ArtefactError::file(cache))?;
    let _turn = take_turn(cache, progress).await?;
    fetch_absent(artefacts, places, progress).await
}

/// Another clone may have fetched everything meanwhile.
async fn fetch_absent(
    artefacts: &[Artefact],
    places: &Places,
    progress: &Progress,
) -> Result<(), ArtefactError> {
    for artefact in artefacts {
        if !artefact.installed(&places.cache).exists() {
            install(artefact, places, progress).await?;
        }
    }
    // Maven's own copies are needed no longer; the cache holds what was verified.
    let workshop = workshop(&places.cache);
    fs::remove_dir_all(&workshop).or_else(ignore_absent).map_err(ArtefactError::file(&workshop))
}

/// Fetches everything, for all platforms, and gives the text of `artefacts.lock` for it: the
/// digests of what is delivered today, to be reviewed by a person.
pub async fn relock(places: &Places, progress: &Progress) -> Result<String, ArtefactError> {
    let cache = &places.cache;
    fs::create_dir_all(cache).map_err(ArtefactError::file(cache))?;
    let _turn = take_turn(cache, progress).await?;
    let mut artefacts = Artefact::all()?;
    artefacts.remove(0);
    artefacts.push(Artefact::jdbc_sink());
    let platforms = ["linux-amd64", "linux-arm64v8", "darwin-amd64", "darwin-arm64v8"];
    let mut lines = LOCK_HEADER.map(str::to_owned).to_vec();
    for artefact in platforms.map(Artefact::postgres).iter().chain(&artefacts) {
        let step = progress.step(artefact.name, "fetching");
        let directory = deliver(artefact, cache, &step).await?;
        lines.extend(artefact.lock_lines(&directory)?);
        fs::remove_dir_all(&directory).map_err(ArtefactError::file(&directory))?;
        step.done("fetched");
    }
    Ok(lines.join("\n"))
}

async fn take_turn(cache: &Path, progress: &Progress) -> Result<File, ArtefactError> {
    let path = cache.join("lock");
    let file = File::create(&path).map_err(ArtefactError::file(&path))?;
    let step = progress.step("artefacts", "another ./dev is fetching; waiting for it");
    let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
    drop(step);
    locked.expect("locking a file does not panic").map_err(ArtefactError::file(&path))
}

async fn install(
    artefact: &Artefact,
    places: &Places,
    progress: &Progress,
) -> Result<(), ArtefactError> {
    let step = progress.step(artefact.name, "fetching");
    let delivered = deliver(artefact, &places.cache, &step).await?;
    step.message("checking");
    artefact.verify(&delivered)?;
    step.message("unpacking");
    arrange(artefact.name, &delivered, places).await?;
    let installed = artefact.installed(&places.cache);
    fs::rename(&delivered, &installed).map_err(ArtefactError::file(&installed))?;
    step.done(&format!("{} fetched and verified", artefact.version));
    Ok(())
}

/// Has Maven put the artefact's files into a fresh directory of the cache.
async fn deliver(artefact: &Artefact, cache: &Path, step: &Step) -> Result<PathBuf, ArtefactError> {
    let output = cache.join(format!("incoming-{}", artefact.name));
    fs::remove_dir_all(&output).or_else(ignore_absent).map_err(ArtefactError::file(&output))?;
    let repository = repository(cache);
    for directory in [&output, &repository] {
        fs::create_dir_all(directory).map_err(ArtefactError::file(directory))?;
    }
    let log = workshop(cache).join("maven.log");
    let log_file = File::create(&log).map_err(ArtefactError::file(&log))?;
    let errors = log_file.try_clone().map_err(ArtefactError::file(&log))?;
    let mut maven = Command::new("mvn");
    maven
        .args(maven_arguments(artefact, cache, &output)?)
        .current_dir(workshop(cache))
        .stdin(Stdio::null())
        .stdout(log_file)
        .stderr(errors)
        .kill_on_drop(true);
    let mut child =
        maven.spawn().map_err(|source| ArtefactError::Program { program: "mvn", source })?;
    let before_bytes = tree_bytes(&repository);
    let watch = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(400));
        loop {
            ticks.tick().await;
            let fetched = tree_bytes(&repository).saturating_sub(before_bytes);
            step.bytes(fetched, artefact.download_bytes);
        }
    };
    let status = tokio::select! {
        status = tokio::time::timeout(FETCH_DEADLINE, child.wait()) => status,
        () = watch => unreachable!("the watch never ends"),
    };
    match status {
        Ok(Ok(status)) if status.success() => Ok(output),
        Ok(Ok(_)) => {
            Err(ArtefactError::Fetch { artefact: artefact.name, tail: tail(&log, 12), log })
        }
        Ok(Err(source)) => Err(ArtefactError::Program { program: "mvn", source }),
        Err(_) => Err(ArtefactError::Slow {
            artefact: artefact.name,
            deadline_seconds: FETCH_DEADLINE.as_secs(),
            tail: tail(&log, 12),
            log,
        }),
    }
}

fn maven_arguments(
    artefact: &Artefact,
    cache: &Path,
    output: &Path,
) -> Result<Vec<String>, ArtefactError> {
    let mut arguments = vec![
        "--batch-mode".to_owned(),
        format!("-Dmaven.repo.local={}", repository(cache).display()),
        format!("-DoutputDirectory={}", output.display()),
    ];
    match &artefact.source {
        Source::File { coordinate } => {
            arguments.push(format!("-Dartifact={coordinate}"));
            arguments.push(format!("{MAVEN_PLUGIN}:copy"));
        }
        Source::Contents { coordinate } => {
            arguments.push(format!("-Dartifact={coordinate}"));
            arguments.push(format!("{MAVEN_PLUGIN}:unpack"));
        }
        Source::Tree { dependencies, exclude } => {
            let project = workshop(cache).join(format!("{}.pom.xml", artefact.name));
            let text = project_text(artefact.name, dependencies);
            fs::write(&project, text).map_err(ArtefactError::file(&project))?;
            arguments.push(format!("--file={}", project.display()));
            arguments.push("-DincludeScope=runtime".to_owned());
            arguments.push(format!("-DexcludeArtifactIds={exclude}"));
            arguments.push(format!("{MAVEN_PLUGIN}:copy-dependencies"));
        }
    }
    Ok(arguments)
}

/// A Maven project that does nothing but depend on the coordinates.
fn project_text(name: &str, dependencies: &[String]) -> String {
    let dependency = |coordinate: &String| {
        let mut parts = coordinate.split(':');
        let mut part = || parts.next().unwrap_or_default();
        format!(
            "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>",
            part(),
            part(),
            part()
        )
    };
    let dependencies: String = dependencies.iter().map(dependency).collect();
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>devstack</groupId><artifactId>{name}</artifactId><version>1</version>\
         <packaging>pom</packaging><dependencies>{dependencies}</dependencies></project>\n"
    )
}

/// Turns the verified files into what the servers expect.
async fn arrange(name: &str, directory: &Path, places: &Places) -> Result<(), ArtefactError> {
    let archive = || -> Result<PathBuf, ArtefactError> {
        let entries = fs::read_dir(directory).map_err(ArtefactError::file(directory))?;
        let mut files = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file());
        Ok(files.next().expect("verification found the pinned file"))
    };
    match name {
        "kafka" => Ok(()),
        "converter" => {
            let plugin = directory.join("apicurio-converter");
            fs::create_dir(&plugin).map_err(ArtefactError::file(&plugin))?;
            for entry in fs::read_dir(directory).map_err(ArtefactError::file(directory))? {
                let path = entry.map_err(ArtefactError::file(directory))?.path();
                if path.is_file() {
                    let target = plugin.join(path.file_name().unwrap_or_default());
                    fs::rename(&path, &target).map_err(ArtefactError::file(&path))?;
                }
            }
            write_manifests(&plugin, places).await
        }
        "registry" | "debezium" | "jdbc-sink" => {
            let archive = archive()?;
            let file = File::open(&archive).map_err(ArtefactError::file(&archive))?;
            let mut tar = Command::new("tar");
            tar.args(["-x", "-z", "-C"]).arg(directory).arg("-f").arg("-").stdin(file);
            unpack(tar, &archive).await?;
            fs::remove_file(&archive).map_err(ArtefactError::file(&archive))
        }
        _ => {
            let archive = archive()?;
            let target = directory.join("postgres.txz");
            fs::rename(&archive, &target).map_err(ArtefactError::file(&archive))
        }
    }
}

pub(crate) async fn unpack(mut tar: Command, archive: &Path) -> Result<(), ArtefactError> {
    let output = tar.output().await;
    let output = output.map_err(|source| ArtefactError::Program { program: "tar", source })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ArtefactError::Unpack { archive: archive.to_path_buf(), stderr })
}

/// Writes the service manifests the converter lacks: with them Connect need not scan every class
/// of every jar, which took a minute and a half.
async fn write_manifests(plugin: &Path, places: &Places) -> Result<(), ArtefactError> {
    let kafka = Artefact::kafka().installed(&places.cache);
    let output = Command::new(&places.java)
        .arg("-cp")
        .arg(kafka.join("*"))
        .args(["-Xmx256m", "-XX:+UseSerialGC"])
        .args(["org.apache.kafka.tools.ConnectPluginPath", "sync-manifests"])
        .arg("--plugin-location")
        .arg(plugin)
        .output()
        .await
        .map_err(|source| ArtefactError::Program { program: "java", source })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ArtefactError::Unpack { archive: plugin.to_path_buf(), stderr })
}

/// What is needed only until everything is installed.
fn workshop(cache: &Path) -> PathBuf {
    cache.join("maven")
}

/// A repository of our own: its growth is the progress, and it can go in the end.
fn repository(cache: &Path) -> PathBuf {
    workshop(cache).join("repository")
}

fn tree_bytes(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => tree_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

pub(crate) fn ignore_absent(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use crate::settings::Settings;

    use super::*;

    #[tokio::test]
    async fn a_clone_that_waited_finds_what_another_one_fetched() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings::from_environment();
        let places =
            Places { cache: directory.path().to_path_buf(), ..Places::new(&settings).unwrap() };
        let artefact = Artefact::kafka();
        fs::create_dir_all(artefact.installed(&places.cache)).unwrap();
        fetch_absent(&[artefact], &places, &Progress::silent()).await.unwrap();
    }

    #[test]
    fn a_project_lists_its_dependencies() {
        let text = project_text("converter", &["g.h:a-b:1.2".to_owned()]);
        let dependency = "<dependency><groupId>g.h</groupId><artifactId>a-b</artifactId>\
                          <version>1.2</version></dependency>";
        assert!(text.contains(dependency), "{text}");
    }
}
