//! Every fixed name of the local system: ports, databases, roles, topics, versions, environment.
//!
//! `docker-compose.yml` and `.env.example` describe the same system; a test compares them with
//! what stands here.

/// Host every local process listens on. Nothing of the local stack is reachable from outside.
pub const HOST: &str = "127.0.0.1";

pub const POSTGRES_PORT: u16 = 5432;
pub const USER_API_PORT: u16 = 8081;
pub const POST_API_PORT: u16 = 8082;
pub const CONNECT_PORT: u16 = 8083;
pub const CONSUMER_PORT: u16 = 8084;
/// Second and further consumers listen from here on: `cdc-consumer-2` on 8094, and so on.
pub const CONSUMER_EXTRA_PORT: u16 = 8094;
pub const REGISTRY_PORT: u16 = 8085;
pub const REGISTRY_MANAGEMENT_PORT: u16 = 9001;
pub const KAFKA_PORT: u16 = 9092;
pub const KAFKA_CONTROLLER_PORT: u16 = 9093;

pub const USER_DATABASE: &str = "user_db";
pub const POST_DATABASE: &str = "materialized_view_db";
pub const REGISTRY_DATABASE: &str = "apicurio";

pub const TOPICS: [&str; 2] = ["user-events", "post-events"];
/// Partitions of each of [`TOPICS`]; as many consumers share the work at most.
pub const TOPIC_PARTITIONS: u16 = 4;

/// Settings of the topics: what the connectors' `topic.creation.default.*` give one they make.
pub const TOPIC_SETTINGS: [(&str, &str); 4] = [
    ("cleanup.policy", "compact"),
    ("segment.bytes", "67108864"),
    ("min.compaction.lag.ms", "259200000"),
    ("delete.retention.ms", "604800000"),
];
/// The example's own. What else is in `connectors/` is registered and looked after as well.
pub const CONNECTORS: [&str; 2] = ["users", "posts"];
pub const CONSUMER_GROUP: &str = "post-service-streams";

pub const POSTGRES_VERSION: &str = "18.3.0";
pub const KAFKA_VERSION: &str = "4.3.1";
pub const REGISTRY_VERSION: &str = "3.3.3";
pub const DEBEZIUM_VERSION: &str = "3.6.3.Final";
/// The connector that `./dev bench` compares with; 3.6 is not on Maven Central.
pub const JDBC_SINK_VERSION: &str = "3.5.0.Final";
pub const CONVERTER_VERSION: &str = "2.6.13.Final";
pub const LOG4J_VERSION: &str = "2.25.3";

/// How texts are sorted and what a letter is, the same on every machine: arguments of `initdb`.
pub const POSTGRES_LOCALE: &str =
    "--encoding=UTF8 --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8";

/// WAL a replication slot may hold back before `PostgreSQL` gives the slot up: a connector that
/// stays away must not fill the disk.
pub const MAX_SLOT_WAL_KEEP_SIZE: &str = "2GB";

/// Password of the superuser `postgres` of the local server; the other roles' passwords equal
/// their names, in development only.
pub const ADMIN_PASSWORD: &str = "postgres";

/// Addresses and logins of the local system, under the names every program and test reads.
pub fn environment() -> Vec<(&'static str, String)> {
    let database =
        |role: &str, name: &str| format!("postgres://{role}:{role}@{HOST}:{POSTGRES_PORT}/{name}");
    let http = |port: u16| format!("http://{HOST}:{port}");
    vec![
        ("KAFKA_BROKERS", format!("{HOST}:{KAFKA_PORT}")),
        ("SCHEMA_REGISTRY_URL", format!("{}/apis/ccompat/v7", http(REGISTRY_PORT))),
        ("CONNECT_URL", http(CONNECT_PORT)),
        ("USER_API_URL", http(USER_API_PORT)),
        ("POST_API_URL", http(POST_API_PORT)),
        ("CONSUMER_URL", http(CONSUMER_PORT)),
        ("USER_DATABASE_URL", database("user_api", USER_DATABASE)),
        ("POST_DATABASE_URL", database("post_api", POST_DATABASE)),
        ("CONSUMER_DATABASE_URL", database("cdc_consumer", POST_DATABASE)),
        ("USER_DATABASE_ADMIN_URL", database(ADMIN_PASSWORD, USER_DATABASE)),
        ("POST_DATABASE_ADMIN_URL", database(ADMIN_PASSWORD, POST_DATABASE)),
    ]
}

/// Superuser's address of one database of the local server.
pub fn admin_url(database: &str) -> String {
    format!("postgres://postgres:{ADMIN_PASSWORD}@{HOST}:{POSTGRES_PORT}/{database}")
}
