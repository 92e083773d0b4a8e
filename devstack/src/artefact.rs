//! The servers' program files: fetched with Maven, checked against pinned digests, cached.
//!
//! `artefacts.lock` pins the SHA-256 of every single file, jars that Maven resolves included: a
//! file that is missing, changed or not listed stops the installation.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::addresses::{
    CONVERTER_VERSION, DEBEZIUM_VERSION, JDBC_SINK_VERSION, KAFKA_VERSION, LOG4J_VERSION,
    POSTGRES_VERSION, REGISTRY_VERSION,
};
use crate::settings::hex;

const READ_BYTES: usize = 256 * 1024;

const LOCK: &str = include_str!("../artefacts.lock");

#[derive(Debug, thiserror::Error)]
pub enum ArtefactError {
    #[error("no PostgreSQL build for {os} on {architecture} is known here")]
    Platform { os: &'static str, architecture: &'static str },
    #[error(
        "{artefact}: the fetched files differ from artefacts.lock: {difference}; nothing was installed"
    )]
    Digest { artefact: &'static str, difference: String },
    #[error("cannot run {program}; is it installed?")]
    Program { program: &'static str, source: io::Error },
    #[error("could not fetch {artefact} with Maven; the end of {}:\n{tail}", .log.display())]
    Fetch { artefact: &'static str, log: PathBuf, tail: String },
    #[error("fetching {artefact} took longer than {deadline_seconds} seconds; the end of {}:\n{tail}", .log.display())]
    Slow { artefact: &'static str, deadline_seconds: u64, log: PathBuf, tail: String },
    #[error("could not unpack {}: {stderr}", .archive.display())]
    Unpack { archive: PathBuf, stderr: String },
    #[error("cannot use {}", .path.display())]
    File { path: PathBuf, source: io::Error },
}

impl ArtefactError {
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        |source| Self::File { path, source }
    }
}

/// One thing to fetch.
#[derive(Debug, Clone)]
pub(crate) struct Artefact {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) source: Source,
    /// About how much is downloaded, for the progress bar.
    pub(crate) download_bytes: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// One file, taken as it is.
    File { coordinate: String },
    /// A jar whose contents are wanted.
    Contents { coordinate: String },
    /// Coordinates with all they need at run time, without the artefacts named in `exclude`.
    Tree { dependencies: Vec<String>, exclude: &'static str },
}

/// The build of `PostgreSQL` for this machine, as its publisher names it.
pub(crate) fn postgres_platform() -> Result<&'static str, ArtefactError> {
    let (os, architecture) = (std::env::consts::OS, std::env::consts::ARCH);
    match (os, architecture) {
        ("linux", "x86_64") => Ok("linux-amd64"),
        ("linux", "aarch64") => Ok("linux-arm64v8"),
        ("macos", "x86_64") => Ok("darwin-amd64"),
        ("macos", "aarch64") => Ok("darwin-arm64v8"),
        _ => Err(ArtefactError::Platform { os, architecture }),
    }
}

impl Artefact {
    pub(crate) fn postgres(platform: &str) -> Self {
        let name = match platform {
            "linux-arm64v8" => "postgres-linux-arm64v8",
            "darwin-amd64" => "postgres-darwin-amd64",
            "darwin-arm64v8" => "postgres-darwin-arm64v8",
            _ => "postgres-linux-amd64",
        };
        let id = format!("embedded-postgres-binaries-{platform}");
        Self {
            name,
            version: POSTGRES_VERSION,
            source: Source::Contents {
                coordinate: format!("io.zonky.test.postgres:{id}:{POSTGRES_VERSION}"),
            },
            download_bytes: 17_000_000,
        }
    }

    pub(crate) fn kafka() -> Self {
        let kafka = |id: &str| format!("org.apache.kafka:{id}:{KAFKA_VERSION}");
        let log4j = format!("org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J_VERSION}");
        Self {
            name: "kafka",
            version: KAFKA_VERSION,
            source: Source::Tree {
                dependencies: vec![
                    kafka("kafka_2.13"),
                    kafka("kafka-tools"),
                    kafka("connect-runtime"),
                    log4j,
                ],
                exclude: "",
            },
            download_bytes: 60_000_000,
        }
    }

    pub(crate) fn debezium() -> Self {
        Self {
            name: "debezium",
            version: DEBEZIUM_VERSION,
            source: Source::File {
                coordinate: format!(
                    "io.debezium:debezium-connector-postgres:{DEBEZIUM_VERSION}:tar.gz:plugin"
                ),
            },
            download_bytes: 5_100_000,
        }
    }

    /// Debezium's own consumer for databases. Only `./dev bench` fetches it.
    pub(crate) fn jdbc_sink() -> Self {
        Self {
            name: "jdbc-sink",
            version: JDBC_SINK_VERSION,
            source: Source::File {
                coordinate: format!(
                    "io.debezium:debezium-connector-jdbc:{JDBC_SINK_VERSION}:tar.gz:plugin"
                ),
            },
            download_bytes: 55_200_000,
        }
    }

    /// The excluded jars are Connect's own: a second copy inside a plugin would shadow them.
    pub(crate) fn converter() -> Self {
        Self {
            name: "converter",
            version: CONVERTER_VERSION,
            source: Source::Tree {
                dependencies: vec![format!(
                    "io.apicurio:apicurio-registry-utils-converter:{CONVERTER_VERSION}"
                )],
                exclude: "connect-api,connect-json,kafka-clients,slf4j-api,lz4-java,snappy-java,\
                          zstd-jni,jackson-core,jackson-databind,jackson-annotations",
            },
            download_bytes: 32_000_000,
        }
    }

    pub(crate) fn registry() -> Self {
        Self {
            name: "registry",
            version: REGISTRY_VERSION,
            source: Source::File {
                coordinate: format!(
                    "io.apicurio:apicurio-registry-app:{REGISTRY_VERSION}:tar.gz:all"
                ),
            },
            download_bytes: 158_000_000,
        }
    }

    /// Everything the stack of this machine needs, in the order in which it is needed.
    pub(crate) fn all() -> Result<Vec<Self>, ArtefactError> {
        Ok(vec![
            Self::postgres(postgres_platform()?),
            Self::kafka(),
            Self::registry(),
            Self::debezium(),
            Self::converter(),
        ])
    }

    /// Where the cache keeps it. The name changes with every pinned digest, so a cache can hold
    /// what two versions of the project need.
    pub(crate) fn installed(&self, cache: &Path) -> PathBuf {
        let pins = pins(self.name);
        let pins: Vec<String> = pins.iter().map(|(file, digest)| digest.clone() + file).collect();
        let text = pins.join("\n");
        let digest = hex(&Sha256::digest(text.as_bytes()));
        cache.join(format!("{}-{}-{}", self.name, self.version, &digest[..8]))
    }

    /// Compares what Maven delivered with the pins.
    pub(crate) fn verify(&self, directory: &Path) -> Result<(), ArtefactError> {
        let found = digests(directory)?;
        match difference(&pins(self.name), &found) {
            None => Ok(()),
            Some(difference) => Err(ArtefactError::Digest { artefact: self.name, difference }),
        }
    }

    /// The lines of `artefacts.lock` for what lies in `directory`.
    pub(crate) fn lock_lines(&self, directory: &Path) -> Result<Vec<String>, ArtefactError> {
        let found = digests(directory)?.into_iter();
        Ok(found.map(|(file, digest)| format!("{digest}  {}/{file}", self.name)).collect())
    }
}

/// File name to digest.
type Digests = BTreeMap<String, String>;

fn pins(artefact: &str) -> Digests {
    let lines = LOCK.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split_once("  "))
        .filter_map(|(digest, path)| {
            let (name, file) = path.split_once('/')?;
            (name == artefact).then(|| (file.to_owned(), digest.to_owned()))
        })
        .collect()
}

fn digests(directory: &Path) -> Result<Digests, ArtefactError> {
    let mut found = Digests::new();
    for entry in fs::read_dir(directory).map_err(ArtefactError::file(directory))? {
        let path = entry.map_err(ArtefactError::file(directory))?.path();
        // Maven unpacks a jar's manifest beside its contents; nobody reads it.
        if path.is_dir() {
            continue;
        }
        let file = File::open(&path).map_err(ArtefactError::file(&path))?;
        let digest = digest(BufReader::with_capacity(READ_BYTES, file));
        let digest = digest.map_err(ArtefactError::file(&path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.insert(name, digest);
    }
    Ok(found)
}

fn digest(mut file: impl BufRead) -> io::Result<String> {
    let mut hasher = Sha256::new();
    loop {
        let read = file.fill_buf()?;
        if read.is_empty() {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(read);
        let count = read.len();
        file.consume(count);
    }
}

fn difference(pinned: &Digests, found: &Digests) -> Option<String> {
    let missing = pinned.keys().filter(|file| !found.contains_key(*file));
    let missing = missing.map(|file| format!("{file} is missing"));
    let wrong = found.iter().filter_map(|(file, digest)| match pinned.get(file) {
        None => Some(format!("{file} is not listed")),
        Some(pin) if pin != digest => Some(format!("{file} has digest {digest}, not {pin}")),
        Some(_) => None,
    });
    let all: Vec<String> = missing.chain(wrong).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(found: &[(&str, &str)], expected: Option<&str>) {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(file, digest)| ((*file).into(), (*digest).into())).collect()
        };
        let pinned = map(&[("a.jar", "11"), ("b.jar", "22")]);
        assert_eq!(difference(&pinned, &map(found)).as_deref(), expected);
    }

    #[test]
    fn every_file_must_be_listed_present_and_unchanged() {
        check(&[("a.jar", "11"), ("b.jar", "22")], None);
        check(&[("a.jar", "11")], Some("b.jar is missing"));
        check(&[("a.jar", "11"), ("b.jar", "23")], Some("b.jar has digest 23, not 22"));
        check(&[("a.jar", "11"), ("b.jar", "22"), ("c.jar", "33")], Some("c.jar is not listed"));
    }

    #[test]
    fn every_artefact_of_every_platform_is_pinned() {
        for platform in ["linux-amd64", "linux-arm64v8", "darwin-amd64", "darwin-arm64v8"] {
            assert_eq!(pins(Artefact::postgres(platform).name).len(), 1, "{platform}");
        }
        for artefact in Artefact::all().unwrap().into_iter().chain([Artefact::jdbc_sink()]) {
            let pins = pins(artefact.name);
            assert!(!pins.is_empty(), "{}", artefact.name);
            assert!(pins.values().all(|digest| digest.len() == 64), "{}", artefact.name);
        }
    }
}
