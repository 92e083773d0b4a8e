//! `docker-compose.yml` describes the system that devstack runs. No container engine is needed to
//! find out where the two have drifted apart: the file is read and compared with devstack's constants.

mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use devstack::addresses;

use crate::files::{
    Compose, connector, connector_path, connectors, env_example, environment, local_properties,
    root, settings_of, strings, with_default_passwords,
};

#[test]
fn images_have_the_versions_of_the_local_stack() {
    let compose = Compose::read();
    let check = |service: &str, repository: &str, local: &str| {
        let image = compose.text(service, "image");
        let tag = image.strip_prefix(&format!("{repository}:"));
        // A tag may be shorter (`18`, `3.6`): those are the series the publisher keeps patched.
        let same = tag.is_some_and(|tag| local == tag || local.starts_with(&format!("{tag}.")));
        assert!(same, "{service} runs {image}, the local stack {local}");
    };
    check("postgres", "postgres", addresses::POSTGRES_VERSION);
    check("kafka", "apache/kafka", addresses::KAFKA_VERSION);
    check("registry", "quay.io/apicurio/apicurio-registry", addresses::REGISTRY_VERSION);
    check("connect", "quay.io/debezium/connect", addresses::DEBEZIUM_VERSION);
}

#[test]
fn services_are_published_on_the_ports_of_the_local_stack_and_on_loopback_only() {
    let compose = Compose::read();
    let published: BTreeMap<String, Vec<String>> = compose
        .services()
        .map(|(name, service)| (name.clone(), strings(&service["ports"])))
        .filter(|(_, ports)| !ports.is_empty())
        .collect();
    let port = |host: u16, container: u16| vec![format!("127.0.0.1:{host}:{container}")];
    let expected = [
        ("postgres", port(addresses::POSTGRES_PORT, 5432)),
        ("kafka", port(addresses::KAFKA_PORT, 9092)),
        ("registry", port(addresses::REGISTRY_PORT, 8080)),
        ("connect", port(addresses::CONNECT_PORT, 8083)),
        ("user-api", port(addresses::USER_API_PORT, 8081)),
        ("post-api", port(addresses::POST_API_PORT, 8082)),
        ("post-service-kafka", port(addresses::CONSUMER_PORT, 8084)),
        // Only here; the ports of the original example.
        ("kafka-ui", port(8080, 8080)),
        ("ksqldb-server", port(8088, 8088)),
    ];
    assert_eq!(published, expected.map(|(name, ports)| (name.to_owned(), ports)).into());
}

#[test]
fn example_settings_are_what_dev_env_prints_and_compose_knows_each() {
    let example = env_example();
    let printed: BTreeMap<String, String> = addresses::environment()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    assert_eq!(example.set, printed);

    let compose = Compose::read();
    let known: BTreeSet<String> =
        compose.services().flat_map(|(_, service)| environment(service).into_keys()).collect();
    let missing: Vec<&String> =
        example.names.iter().filter(|name| !known.contains(*name)).collect();
    assert!(missing.is_empty(), "settings of .env.example that no service has: {missing:?}");
}

#[test]
fn each_program_has_its_settings_wherever_it_runs() {
    let (compose, example) = (Compose::read(), env_example());
    for (program, services) in [
        ("user-api", &["user-api"][..]),
        ("post-api", &["post-api"]),
        ("cdc-consumer", &["post-service-kafka", "shell"]),
        ("migrate", &["migrate", "shell"]),
    ] {
        for setting in settings_of(program).intersection(&example.names) {
            // A rebuild's, which is said in the shell.
            let by_hand = program == "cdc-consumer" && setting == "POST_DATABASE_ADMIN_URL";
            for service in services.iter().filter(|service| !by_hand || **service == "shell") {
                let has = compose.environment(service).contains_key(setting);
                assert!(has, "{service} runs {program}, and has no {setting}");
            }
        }
    }
    let shell = compose.environment("shell");
    for (setting, value) in compose.environment("post-service-kafka") {
        assert_eq!(shell[&setting], value, "a rebuild has another {setting} than the consumer");
    }
}

#[test]
fn programs_use_the_databases_the_group_and_the_roles_of_the_local_stack() {
    let compose = Compose::read();
    // What differs inside the network is the host; everything else must be the same address.
    let check = |service: &str, setting: &str| {
        let inside = compose.environment(service)[setting].clone();
        let local = &env_example().set[setting];
        assert_eq!(
            with_default_passwords(&inside).replace("@postgres:5432/", "@127.0.0.1:5432/"),
            *local,
            "{service} {setting}"
        );
    };
    check("user-api", "USER_DATABASE_URL");
    check("post-api", "POST_DATABASE_URL");
    check("post-service-kafka", "CONSUMER_DATABASE_URL");
    check("migrate", "USER_DATABASE_ADMIN_URL");
    check("migrate", "POST_DATABASE_ADMIN_URL");
    let consumer = compose.environment("post-service-kafka");
    assert_eq!(consumer["CONSUMER_GROUP"], addresses::CONSUMER_GROUP);
    assert_eq!(consumer["SCHEMA_REGISTRY_URL"], "http://registry:8080/apis/ccompat/v7");
    let registry = compose.environment("registry");
    assert!(
        registry["APICURIO_DATASOURCE_URL"]
            .ends_with(&format!("/{}", addresses::REGISTRY_DATABASE))
    );
}

#[test]
fn broker_and_connect_have_the_settings_of_the_local_stack() {
    let compose = Compose::read();
    let local = local_properties();
    // Where a container listens, keeps its data and finds its neighbours is its own business.
    let own =
        ["LISTENER", "VOTERS", "LOG_DIRS", "HEAP", "CLUSTER_ID", "BOOTSTRAP", "ALLOWED_PATHS"];
    let converters = "ENABLE_APICURIO_CONVERTERS";
    for service in ["kafka", "connect"] {
        for (variable, value) in compose.environment(service) {
            if variable == converters || own.iter().any(|part| variable.contains(part)) {
                continue;
            }
            let property = match variable.as_str() {
                "SHUTDOWN_TIMEOUT" => "task.shutdown.graceful.timeout.ms".to_owned(),
                _ => variable
                    .trim_start_matches("KAFKA_")
                    .trim_start_matches("CONNECT_")
                    .to_lowercase()
                    .replace('_', "."),
            };
            assert_eq!(local.get(&property), Some(&value), "{service} {variable} ({property})");
        }
    }
    assert_eq!(compose.environment("connect")[converters], "true");
}

#[test]
fn texts_are_sorted_as_in_the_local_stack_and_programs_may_finish_their_work() {
    let compose = Compose::read();
    let initdb = &compose.environment("postgres")["POSTGRES_INITDB_ARGS"];
    assert_eq!(initdb, addresses::POSTGRES_LOCALE);
    // Compose's own is 10 s, as long as a service waits for its requests and before it closes its pool.
    for (program, period) in
        [("user-api", "15s"), ("post-api", "15s"), ("post-service-kafka", "30s")]
    {
        assert_eq!(compose.text(program, "stop_grace_period"), period, "{program}");
    }
}

#[test]
fn disks_stay_bounded_when_a_reader_stays_away() {
    let compose = Compose::read();
    let postgres = strings(&compose.service("postgres")["command"]);
    let wal_kept = format!("max_slot_wal_keep_size={}", addresses::MAX_SLOT_WAL_KEEP_SIZE);
    assert!(postgres.contains(&"wal_level=logical".to_owned()), "{postgres:?}");
    assert!(postgres.contains(&wal_kept), "{postgres:?}");
    let kafka = compose.environment("kafka");
    for setting in ["KAFKA_LOG_RETENTION_BYTES", "KAFKA_LOG_SEGMENT_BYTES"] {
        assert!(kafka[setting].parse::<u64>().is_ok(), "{setting} is not a size");
    }
    for name in connectors() {
        for (setting, value) in addresses::TOPIC_SETTINGS {
            let given = &connector(&name)[format!("topic.creation.default.{setting}")];
            assert_eq!(given, value, "{name}: {setting}");
        }
    }
}

#[test]
fn the_examples_connectors_feed_the_topics_of_the_local_stack_from_its_databases() {
    let topics = addresses::CONNECTORS.map(|name| {
        connector(name)["transforms.route.replacement"].as_str().expect("a text").to_owned()
    });
    assert_eq!(topics, addresses::TOPICS.map(str::to_owned));
    let databases = addresses::CONNECTORS.map(|name| connector(name)["database.dbname"].clone());
    assert_eq!(databases, [addresses::USER_DATABASE, addresses::POST_DATABASE]);
}

/// Whoever adds a connector copies another one.
#[test]
fn no_two_connectors_share_a_slot_a_prefix_or_a_topic() {
    for setting in ["slot.name", "topic.prefix", "transforms.route.replacement"] {
        let mut owners = BTreeMap::new();
        for name in connectors() {
            let value = connector(&name)[setting].to_string();
            if let Some(other) = owners.insert(value, name.clone()) {
                panic!("{other} and {name} have the same {setting}");
            }
        }
    }
}

#[test]
fn the_secrets_file_holds_every_key_that_connectors_refer_to() {
    let compose = Compose::read();
    let content = compose.file["configs"]["connect-secrets"]["content"].as_str().expect("a text");
    let keys: BTreeSet<&str> =
        content.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    let mut referred = BTreeSet::new();
    for name in connectors() {
        let settings =
            fs::read_to_string(connector_path(&name)).expect("the connector can be read");
        for reference in settings.split("${file:@SECRETS_FILE@:").skip(1) {
            referred.insert(reference.split_once('}').expect("a closed reference").0.to_owned());
        }
    }
    assert_eq!(keys, referred.iter().map(String::as_str).collect());
    let step = compose.environment("register-connectors");
    let target = compose.service("connect")["configs"][0]["target"].as_str().expect("a path");
    assert_eq!(step["CONNECT_SECRETS_FILE"], target);
}

#[test]
fn the_topics_are_made_as_in_the_local_stack() {
    let compose = Compose::read();
    let command = compose.service("create-topics")["command"][2].as_str().expect("a script");
    for topic in addresses::TOPICS {
        assert!(command.contains(topic), "create-topics does not make {topic}");
    }
    assert!(command.contains(&format!("--partitions {}", addresses::TOPIC_PARTITIONS)));
    for (setting, value) in addresses::TOPIC_SETTINGS {
        assert!(command.contains(&format!("--config {setting}={value}")), "{setting} differs");
    }
}

#[test]
fn every_service_is_limited_watched_and_pinned() {
    let compose = Compose::read();
    let steps = ["migrate", "create-topics", "shell"];
    for (name, service) in compose.services() {
        assert!(service["mem_limit"].is_string(), "{name} has no memory limit");
        assert!(service["logging"]["options"]["max-size"].is_string(), "{name} logs without end");
        let image = compose.text(name, "image");
        assert!(
            image.contains(':') && !image.ends_with(":latest"),
            "{name}: {image} is not pinned"
        );
        if !steps.contains(&name.as_str()) {
            assert!(service["healthcheck"]["test"].is_array(), "{name} has no health check");
            assert_eq!(service["restart"], "unless-stopped", "{name}");
        }
        for other in service["depends_on"].as_object().into_iter().flatten() {
            assert!(compose.has(other.0), "{name} depends on an unknown service {}", other.0);
        }
    }
    let dockerfile = fs::read_to_string(root().join("Dockerfile")).expect("Dockerfile can be read");
    assert!(dockerfile.lines().any(|line| line == "USER cdc"), "the image runs as root");
}

#[test]
fn one_service_builds_the_image_and_all_that_run_it_wait_for_that_one() {
    let compose = Compose::read();
    let builders: Vec<&String> = compose
        .services()
        .filter(|(_, service)| !service["build"].is_null())
        .map(|(name, _)| name)
        .collect();
    assert_eq!(builders, ["migrate"]);
    let image = compose.text("migrate", "image");
    for (name, service) in compose.services().filter(|(_, service)| service["image"] == image) {
        assert_eq!(service["pull_policy"], "never", "{name} looks for the image elsewhere");
        if name != "migrate" {
            let condition = &service["depends_on"]["migrate"]["condition"];
            assert_eq!(condition, "service_completed_successfully", "{name}");
        }
    }
}

#[test]
fn whatever_others_wait_for_may_be_slow_in_its_first_start() {
    let compose = Compose::read();
    for (name, service) in compose.services() {
        for (other, wait) in service["depends_on"].as_object().into_iter().flatten() {
            if wait["condition"] == "service_healthy" {
                let period = &compose.service(other)["healthcheck"]["start_period"];
                assert_eq!(period, "300s", "{other}, for which {name} waits");
            }
        }
    }
}

#[test]
fn the_image_has_the_compiler_of_the_local_stack() {
    let read = |name: &str| fs::read_to_string(root().join(name)).expect("the file can be read");
    let toolchain = read("rust-toolchain.toml");
    let version = toolchain.split('"').nth(1).expect("a channel in quotes").to_owned();
    let dockerfile = read("Dockerfile");
    for use_of_it in [format!("FROM rust:{version}-slim"), format!("RUSTUP_TOOLCHAIN={version}\n")]
    {
        assert!(dockerfile.contains(&use_of_it), "Dockerfile lacks {use_of_it}");
    }
}

#[test]
fn names_the_original_example_used_still_work() {
    let compose = Compose::read();
    assert!(compose.has("post-service-kafka"), "docker-compose logs -f post-service-kafka");
    for name in ["kafka", "postgres"] {
        assert_eq!(compose.text(name, "container_name"), name, "docker exec -it {name}");
    }
    let tools = strings(&compose.service("kafka")["volumes"]);
    for tool in ["kafka-topics", "kafka-consumer-groups", "kafka-console-consumer"] {
        let mount = format!("./scripts/kafka-tool.sh:/usr/local/bin/{tool}:ro");
        assert!(tools.contains(&mount), "docker exec -it kafka {tool}");
    }
}
