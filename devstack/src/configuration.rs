//! The text of the servers' configuration files. Pure: values in, text out.

use std::path::Path;

use crate::addresses::{
    ADMIN_PASSWORD, CONNECT_PORT, HOST, KAFKA_CONTROLLER_PORT, KAFKA_PORT, MAX_SLOT_WAL_KEEP_SIZE,
    POSTGRES_PORT, REGISTRY_PORT,
};

/// Settings of the `PostgreSQL` server, given on its command line so that one list holds them all.
pub(crate) fn postgres_settings() -> Vec<String> {
    let settings = [
        ("listen_addresses", HOST),
        ("port", &POSTGRES_PORT.to_string()),
        // TCP only: a socket in a deep directory exceeds the length the system allows.
        ("unix_socket_directories", ""),
        ("wal_level", "logical"),
        ("max_slot_wal_keep_size", MAX_SLOT_WAL_KEEP_SIZE),
        ("max_wal_size", "1GB"),
        ("max_connections", "150"),
        ("shared_buffers", "128MB"),
        // Compiling a plan costs more than any query of this system takes.
        ("jit", "off"),
        ("timezone", "UTC"),
        ("log_timezone", "UTC"),
        ("log_line_prefix", "%m [%p] %q%a %u@%d "),
    ];
    settings.iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]).collect()
}

/// `server.properties` of the single Kafka node, broker and controller in one.
pub(crate) fn kafka_properties(data: &Path) -> String {
    let listeners =
        format!("PLAINTEXT://{HOST}:{KAFKA_PORT},CONTROLLER://{HOST}:{KAFKA_CONTROLLER_PORT}");
    let data = data.display();
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers={HOST}:{KAFKA_CONTROLLER_PORT}
listeners={listeners}
advertised.listeners={listeners}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
# One node: every internal topic has one replica and needs one.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
# A misspelt topic must be an error, not an empty topic.
auto.create.topics.enable=false
# Small segments and a limit for each partition: a forgotten stack must not fill the disk.
log.segment.bytes=67108864
log.retention.bytes=1073741824
log.retention.hours=168
# Memory: the cleaner alone would take 128 MB of the heap.
log.cleaner.dedupe.buffer.size=33554432
log.cleaner.io.buffer.size=262144
num.network.threads=2
num.io.threads=4
background.threads=4
"
    )
}

/// `connect.properties` of the single Connect worker.
pub(crate) fn connect_properties(plugins: &[&Path], secrets: &Path) -> String {
    let plugins: Vec<String> = plugins.iter().map(|path| path.display().to_string()).collect();
    let plugins = plugins.join(",");
    let secrets = secrets.display();
    format!(
        "bootstrap.servers={HOST}:{KAFKA_PORT}
group.id=connect
listeners=http://{HOST}:{CONNECT_PORT}
rest.advertised.host.name={HOST}
plugin.path={plugins}
# Every plugin has its service manifest; scanning all classes takes a minute and a half.
plugin.discovery=service_load
# Each connector names its own converters.
key.converter=org.apache.kafka.connect.json.JsonConverter
value.converter=org.apache.kafka.connect.json.JsonConverter
config.storage.topic=connect-configs
config.storage.replication.factor=1
offset.storage.topic=connect-offsets
offset.storage.replication.factor=1
offset.storage.partitions=1
status.storage.topic=connect-status
status.storage.replication.factor=1
status.storage.partitions=1
offset.flush.interval.ms=2000
task.shutdown.graceful.timeout.ms=5000
# The only worker: no other one is worth waiting for. With the default, a worker that lost the broker
# for a minute comes back to a group that keeps its connectors unassigned for five more.
scheduled.rebalance.max.delay.ms=0
# Lets a connector set its producer's linger and compression.
connector.client.config.override.policy=All
config.providers=file
config.providers.file.class=org.apache.kafka.common.config.provider.FileConfigProvider
config.providers.file.param.allowed.paths={secrets}
"
    )
}

/// What the connectors may know, read by Connect itself: their REST description shows references.
pub(crate) fn connect_secrets() -> String {
    format!(
        "database.hostname={HOST}
database.port={POSTGRES_PORT}
user.database.password=debezium
post.database.password=debezium
registry.url=http://{HOST}:{REGISTRY_PORT}/apis/registry/v2
"
    )
}

/// Password file for the creation of the `PostgreSQL` cluster.
pub(crate) fn admin_password_file() -> String {
    format!("{ADMIN_PASSWORD}\n")
}

/// Log settings shared by Kafka, Connect and Kafka's tools: one line an event, on standard
/// output for the servers and on standard error for the tools.
pub(crate) fn log4j(level: &str, target: &str) -> String {
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN">
  <Appenders>
    <Console name="console" target="{target}">
      <PatternLayout pattern="%d{{yyyy-MM-dd HH:mm:ss.SSS}} %-5p %c{{2}} %m%n"/>
    </Console>
  </Appenders>
  <Loggers>
    <Root level="{level}">
      <AppenderRef ref="console"/>
    </Root>
  </Loggers>
</Configuration>
"#
    )
}

/// An id for a new Kafka cluster: base64url of 16 random bytes, as the storage tool wants it.
/// Hexadecimal digits are valid base64url; the final `A` leaves no stray bits.
pub(crate) fn cluster_id(random: uuid::Uuid) -> String {
    format!("{}A", &random.simple().to_string()[..21])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, line: &str) {
        assert!(text.lines().any(|found| found == line), "no line {line:?} in\n{text}");
    }

    #[test]
    fn the_broker_listens_on_the_loopback_address_only() {
        let text = kafka_properties(Path::new("/state/kafka data"));
        check(&text, "listeners=PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093");
        check(&text, "log.dirs=/state/kafka data");
    }

    #[test]
    fn connect_reads_secrets_from_one_directory() {
        let plugins = [Path::new("/cache/a"), Path::new("/cache/b")];
        let text = connect_properties(&plugins, Path::new("/state/secrets"));
        check(&text, "plugin.path=/cache/a,/cache/b");
        check(&text, "config.providers.file.param.allowed.paths=/state/secrets");
        check(&connect_secrets(), "registry.url=http://127.0.0.1:8085/apis/registry/v2");
    }

    #[test]
    fn a_cluster_id_has_22_characters() {
        let id = cluster_id(uuid::Uuid::new_v4());
        assert_eq!(id.len(), 22);
        assert_ne!(id, cluster_id(uuid::Uuid::new_v4()));
    }
}
