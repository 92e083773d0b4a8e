//! Kafka's own command line tools, run from the fetched jars.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use tokio::process::Command as TokioCommand;

use crate::addresses::{HOST, KAFKA_PORT, TOPIC_PARTITIONS, TOPIC_SETTINGS};
use crate::artefact::ArtefactError;
use crate::configuration;
use crate::fetch::Installed;
use crate::java::{tool_archive, tool_archive_options, tool_options, with_path};
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

const LOG4J_OPTION: &str = "-Dlog4j2.configurationFile=";

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
    let log4j = write_log4j(places)?;
    let mut command = Command::new(&places.java);
    command
        .args(tool_options(places))
        .arg(with_path(LOG4J_OPTION, &log4j))
        .arg("-cp")
        .arg(kafka.join("*"))
        .arg(class)
        .args(arguments(cluster, args));
    Ok(command)
}

/// The command that creates a topic of the system as the connectors would, at their first change:
/// a consumer is ready only when its topics exist. The first run keeps the classes it loads.
pub(crate) fn create_topic(places: &Places, topic: &str) -> Result<TokioCommand, ToolError> {
    let log4j = write_log4j(places)?;
    let options = if tool_archive(places).exists() {
        tool_options(places)
    } else {
        tool_archive_options(&incoming_archive(places))
    };
    let mut command = TokioCommand::new(&places.java);
    command
        .args(options)
        .arg(with_path(LOG4J_OPTION, &log4j))
        .arg("-cp")
        .arg(Installed::locate(places)?.kafka.join("*"))
        .args(["org.apache.kafka.tools.TopicCommand", "--create", "--if-not-exists"])
        .args(["--topic", topic, "--partitions", &TOPIC_PARTITIONS.to_string()])
        .args(
            TOPIC_SETTINGS
                .iter()
                .flat_map(|(name, value)| ["--config".to_owned(), format!("{name}={value}")]),
        )
        .args(["--bootstrap-server", &format!("{HOST}:{KAFKA_PORT}")]);
    Ok(command)
}

/// Puts the archive of a finished [`create_topic`] in its place. Under its final name it is
/// complete; nothing depends on it, so a failure only costs time later.
pub(crate) fn adopt_class_archive(places: &Places) {
    fs::rename(incoming_archive(places), tool_archive(places)).ok();
}

fn incoming_archive(places: &Places) -> PathBuf {
    tool_archive(places).with_extension("incoming")
}

fn write_log4j(places: &Places) -> Result<PathBuf, ToolError> {
    let log4j = places.state.join("tools-log4j2.xml");
    fs::write(&log4j, configuration::log4j("WARN", "SYSTEM_ERR"))
        .map_err(|source| ToolError::File { path: log4j.clone(), source })?;
    Ok(log4j)
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
