//! Kafka's own command line tools, run from the fetched jars.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::addresses::{HOST, KAFKA_PORT};
use crate::artefact::ArtefactError;
use crate::configuration;
use crate::fetch::Installed;
use crate::java::{tool_archive, tool_archive_options, tool_options};
use crate::settings::Places;

#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("there is no Kafka tool {name:?}; there are {}", kafka_tools().join(", "))]
    Unknown { name: String },
    #[error("Kafka is not fetched yet; say ./dev up first")]
    NotFetched,
    #[error("cannot write {}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Artefact(#[from] ArtefactError),
}

const ARCHIVE_DEADLINE: Duration = Duration::from_secs(30);

/// How a tool is told where the cluster is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cluster {
    /// By `--bootstrap-server` in front of its other arguments.
    Option,
    /// Nothing is added: it reads files, or takes the option after a subcommand only.
    Given,
}

/// Tool, class, and whether the broker's address is added.
const TOOLS: [(&str, &str, Cluster); 20] = [
    ("acls", "org.apache.kafka.tools.AclCommand", Cluster::Option),
    ("broker-api-versions", "org.apache.kafka.tools.BrokerApiVersionsCommand", Cluster::Option),
    ("cluster", "org.apache.kafka.tools.ClusterTool", Cluster::Given),
    ("configs", "kafka.admin.ConfigCommand", Cluster::Option),
    ("console-consumer", "org.apache.kafka.tools.consumer.ConsoleConsumer", Cluster::Option),
    ("console-producer", "org.apache.kafka.tools.ConsoleProducer", Cluster::Option),
    (
        "consumer-groups",
        "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
        Cluster::Option,
    ),
    ("consumer-perf-test", "org.apache.kafka.tools.ConsumerPerformance", Cluster::Option),
    ("delete-records", "org.apache.kafka.tools.DeleteRecordsCommand", Cluster::Option),
    ("dump-log", "org.apache.kafka.tools.DumpLogSegments", Cluster::Given),
    ("features", "org.apache.kafka.tools.FeatureCommand", Cluster::Option),
    ("get-offsets", "org.apache.kafka.tools.GetOffsetShell", Cluster::Option),
    ("groups", "org.apache.kafka.tools.GroupsCommand", Cluster::Option),
    ("leader-election", "org.apache.kafka.tools.LeaderElectionCommand", Cluster::Option),
    ("log-dirs", "org.apache.kafka.tools.LogDirsCommand", Cluster::Option),
    ("metadata-quorum", "org.apache.kafka.tools.MetadataQuorumCommand", Cluster::Option),
    ("producer-perf-test", "org.apache.kafka.tools.ProducerPerformance", Cluster::Given),
    (
        "reassign-partitions",
        "org.apache.kafka.tools.reassign.ReassignPartitionsCommand",
        Cluster::Option,
    ),
    ("topics", "org.apache.kafka.tools.TopicCommand", Cluster::Option),
    ("transactions", "org.apache.kafka.tools.TransactionsCommand", Cluster::Option),
];

/// Names of the tools, without the `kafka-` in front.
pub fn kafka_tools() -> Vec<&'static str> {
    TOOLS.iter().map(|(name, ..)| *name).collect()
}

/// The command that runs a tool. `name` may be written `topics`, `kafka-topics` or
/// `kafka-topics.sh`; `--bootstrap-server` is added when it is not among the arguments.
pub fn kafka_tool(places: &Places, name: &str, args: &[String]) -> Result<Command, ToolError> {
    let (class, cluster) =
        find(name).ok_or_else(|| ToolError::Unknown { name: name.to_owned() })?;
    let kafka = Installed::locate(places)?.kafka;
    if !kafka.exists() {
        return Err(ToolError::NotFetched);
    }
    let log4j = places.state.join("tools-log4j2.xml");
    fs::write(&log4j, configuration::log4j("WARN", "SYSTEM_ERR"))
        .map_err(|source| ToolError::File { path: log4j.clone(), source })?;
    let mut command = Command::new(&places.java);
    command
        .args(tool_options(places))
        .arg(format!("-Dlog4j2.configurationFile={}", log4j.display()))
        .arg("-cp")
        .arg(kafka.join("*"))
        .arg(class)
        .args(arguments(cluster, args));
    Ok(command)
}

/// Runs a tool once against the running broker to keep the classes it loaded: later runs start in
/// half the time. Nothing depends on it, so a failure is no error.
pub(crate) async fn archive_classes(places: &Places) {
    let archive = tool_archive(places);
    let incoming = archive.with_extension("incoming");
    let Ok(installed) = Installed::locate(places) else { return };
    let run = tokio::process::Command::new(&places.java)
        .args(tool_archive_options(&incoming))
        .arg("-cp")
        .arg(installed.kafka.join("*"))
        .args(["org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", "--list"])
        .arg("--bootstrap-server")
        .arg(format!("{HOST}:{KAFKA_PORT}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status();
    let status = tokio::time::timeout(ARCHIVE_DEADLINE, run).await;
    if status.is_ok_and(|status| status.is_ok_and(|status| status.success())) {
        // Under its final name it is complete: tools that start meanwhile do without.
        fs::rename(incoming, archive).ok();
    }
}

fn find(name: &str) -> Option<(&'static str, Cluster)> {
    let name = name.strip_prefix("kafka-").unwrap_or(name);
    let name = name.strip_suffix(".sh").unwrap_or(name);
    TOOLS.iter().find(|(tool, ..)| *tool == name).map(|&(_, class, cluster)| (class, cluster))
}

fn arguments(cluster: Cluster, given: &[String]) -> Vec<String> {
    let said = |arg: &String| {
        ["--bootstrap-server", "--bootstrap-controller", "--help", "--version"]
            .iter()
            .any(|option| arg == option || arg.starts_with(&format!("{option}=")))
    };
    let mut arguments = Vec::new();
    if cluster == Cluster::Option && !given.is_empty() && !given.iter().any(said) {
        // In front: some tools take it before their subcommand only, the others anywhere.
        arguments.extend(["--bootstrap-server".to_owned(), format!("{HOST}:{KAFKA_PORT}")]);
    }
    arguments.extend_from_slice(given);
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, args: &[&str], expected: &[&str]) {
        let (_, cluster) = find(name).unwrap();
        let given: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        assert_eq!(arguments(cluster, &given), expected, "{name}");
    }

    #[test]
    fn the_broker_is_added_unless_it_is_given() {
        check("topics", &["--list"], &["--bootstrap-server", "127.0.0.1:9092", "--list"]);
        check("kafka-topics.sh", &["--bootstrap-server", "b:1"], &["--bootstrap-server", "b:1"]);
        check("kafka-topics", &["--bootstrap-server=b:1"], &["--bootstrap-server=b:1"]);
        check("topics", &["--help"], &["--help"]);
        check("topics", &[], &[]);
        check("dump-log", &["--files", "x"], &["--files", "x"]);
    }

    #[test]
    fn an_unknown_tool_is_refused() {
        assert!(find("topic").is_none());
        assert!(find("").is_none());
    }
}
