//! How Java is started, quickly and small.
//!
//! Most of a Java server's start is the loading of classes. Each keeps an archive of its loaded
//! classes (Java's class data sharing) in the state directory: written when the process first
//! ends in order, checked by Java at every start, and made anew when Java or a jar has changed.
//! It halves the start of Kafka's tools.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::settings::Places;

/// Collector and output, common to servers and tools.
const COMMON: [&str; 4] = [
    // The other collectors keep threads and memory that a machine of two cores needs.
    "-XX:+UseSerialGC",
    "-Djava.awt.headless=true",
    // Java's remarks would stand among a tool's results: errors only, and aside.
    "-Xlog:disable",
    "-Xlog:all=error:stderr",
];

/// Such a server makes much garbage and keeps little of it: each collection stops all its records, and costs
/// by what survives. So there are few, and what has survived two of them is not copied any more.
const STREAMING_HEAP_MIB: u32 = 512;
const STREAMING_YOUNG_MIB: u32 = 320;

/// Options for a server with a heap limit in MiB, whose class archive has the server's name.
pub(crate) fn server_options(places: &Places, name: &str, heap_mib: u32) -> Vec<OsString> {
    let mut options = common(heap_mib);
    options.push(with_path("-Djava.io.tmpdir=", &scratch(places, name)));
    options.push("-XX:+AutoCreateSharedArchive".into());
    options.push(with_path("-XX:SharedArchiveFile=", &archive(places, name)));
    options
}

/// Options for a server through which all records pass.
pub(crate) fn streaming_options(places: &Places, name: &str) -> Vec<OsString> {
    let mut options = server_options(places, name, STREAMING_HEAP_MIB);
    options.push(format!("-Xmn{STREAMING_YOUNG_MIB}m").into());
    options.push("-XX:MaxTenuringThreshold=2".into());
    options
}

/// Where a server unpacks its native libraries.
pub(crate) fn scratch(places: &Places, name: &str) -> PathBuf {
    places.state.join(name).join("tmp")
}

/// Options for one of Kafka's tools. Several may run at once, so they only read the archive.
pub(crate) fn tool_options(places: &Places) -> Vec<OsString> {
    let mut options = common(256);
    options.push("-XX:TieredStopAtLevel=1".into());
    let archive = tool_archive(places);
    if archive.exists() {
        options.push(with_path("-XX:SharedArchiveFile=", &archive));
    }
    options
}

/// Options for the one run of a tool that writes the tools' archive to `target`.
pub(crate) fn tool_archive_options(target: &Path) -> Vec<OsString> {
    let mut options = common(256);
    options.push("-XX:TieredStopAtLevel=1".into());
    options.push(with_path("-XX:ArchiveClassesAtExit=", target));
    options
}

/// Where the tools' class archive is, for the Kafka version in use.
pub(crate) fn tool_archive(places: &Places) -> PathBuf {
    archive(places, &format!("kafka-tools-{}", crate::addresses::KAFKA_VERSION))
}

pub(crate) fn with_path(prefix: &str, path: &Path) -> OsString {
    let mut option = OsString::from(prefix);
    option.push(path);
    option
}

fn common(heap_mib: u32) -> Vec<OsString> {
    let mut options = vec![OsString::from(format!("-Xmx{heap_mib}m"))];
    options.extend(COMMON.map(OsString::from));
    options
}

fn archive(places: &Places, name: &str) -> PathBuf {
    places.state.join("classes").join(format!("{name}.jsa"))
}
