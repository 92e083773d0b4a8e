//! How each process is prepared and started.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::addresses::{
    HOST, POSTGRES_LOCALE, POSTGRES_VERSION, REGISTRY_DATABASE, REGISTRY_MANAGEMENT_PORT,
    REGISTRY_PORT, environment,
};
use crate::configuration;
use crate::fetch::{Installed, ignore_absent, unpack};
use crate::java::{self, server_options, streaming_options, tool_options, with_path};
use crate::proc_table::command_line;
use crate::process::{Launch, User};
use crate::registry_database;
use crate::service::Service;
use crate::settings::{Places, running_as_root};
use crate::stack::StackError;

/// For commands that run once before a server: `initdb`, Kafka's storage tool.
const PREPARE_DEADLINE: Duration = Duration::from_mins(1);

/// Writes what the service needs on disk and says how to start it.
pub(crate) async fn prepare(places: &Places, service: Service) -> Result<Launch, StackError> {
    match service {
        Service::Postgres => postgres(places).await,
        Service::Kafka => kafka(places).await,
        Service::Registry => registry(places).await,
        Service::Connect => connect(places),
        Service::UserApi | Service::PostApi | Service::Consumer(_) => program(places, service),
    }
}

async fn postgres(places: &Places) -> Result<Launch, StackError> {
    let home = places.state.join("postgres");
    let user = postgres_user(places)?;
    create_directory(&home, 0o755)?;
    if let Some(user) = user {
        chown(&home, Some(user.uid), Some(user.gid)).map_err(StackError::file(&home))?;
    }
    let distribution = home.join(format!("server-{POSTGRES_VERSION}"));
    let run = |program: &str, args: Vec<OsString>| Launch {
        program: distribution.join("bin").join(program),
        args,
        environment: Vec::new(),
        directory: home.clone(),
        user,
    };
    if !distribution.exists() {
        unpack_postgres(places, &home, &distribution, user).await?;
    }
    let data = home.join("data");
    if !data.join("PG_VERSION").exists() {
        let incoming = home.join("data-incoming");
        fs::remove_dir_all(&incoming)
            .or_else(ignore_absent)
            .map_err(StackError::file(&incoming))?;
        let password = home.join("password");
        fs::write(&password, configuration::admin_password_file())
            .map_err(StackError::file(&password))?;
        let mut args: Vec<OsString> =
            ["--username=postgres", "--auth=scram-sha-256"].map(Into::into).into();
        args.extend(POSTGRES_LOCALE.split(' ').map(Into::into));
        args.extend(["--pwfile=password", "--pgdata=data-incoming"].map(Into::into));
        run_once(run("initdb", args)).await?;
        fs::remove_file(&password).map_err(StackError::file(&password))?;
        fs::rename(&incoming, &data).map_err(StackError::file(&data))?;
    }
    remove_stale_lock(&data)?;
    let mut args: Vec<OsString> = vec!["-D".into(), data.into()];
    args.extend(configuration::postgres_settings().into_iter().map(OsString::from));
    Ok(run("postgres", args))
}

/// After a kill the server's own lock file names a process that may linger as a zombie, or whose
/// id somebody else has by now; the server would refuse to start. It is only asked to start when
/// no process of ours runs, so a lock whose process does not serve this directory is stale.
fn remove_stale_lock(data: &Path) -> Result<(), StackError> {
    let lock = data.join("postmaster.pid");
    let Ok(text) = fs::read_to_string(&lock) else { return Ok(()) };
    let pid = text.lines().next().and_then(|line| line.trim().parse().ok());
    let serves = |pid| command_line(pid).contains(&*data.to_string_lossy());
    if pid.is_some_and(serves) {
        return Ok(());
    }
    fs::remove_file(&lock).map_err(StackError::file(&lock))
}

/// `PostgreSQL` refuses to run as root; then it runs as `nobody`, who must be able to reach its
/// directory.
fn postgres_user(places: &Places) -> Result<Option<User>, StackError> {
    if !running_as_root() {
        return Ok(None);
    }
    for directory in places.state.ancestors() {
        let Ok(metadata) = fs::metadata(directory) else { continue };
        if metadata.permissions().mode() & 0o001 == 0 {
            return Err(StackError::Unreachable { directory: directory.to_path_buf() });
        }
    }
    let accounts = Path::new("/etc/passwd");
    let text = fs::read_to_string(accounts).map_err(StackError::file(accounts))?;
    account(&text, "nobody").map(Some).ok_or(StackError::NoAccount { name: "nobody" })
}

fn account(accounts: &str, name: &str) -> Option<User> {
    let line = accounts.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some(User { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

/// The archive goes in by standard input: the unprivileged user cannot enter root's cache.
async fn unpack_postgres(
    places: &Places,
    home: &Path,
    distribution: &Path,
    user: Option<User>,
) -> Result<(), StackError> {
    let archive = Installed::locate(places)?.postgres_archive;
    let incoming = home.join("server-incoming");
    fs::remove_dir_all(&incoming).or_else(ignore_absent).map_err(StackError::file(&incoming))?;
    create_directory(&incoming, 0o755)?;
    if let Some(user) = user {
        chown(&incoming, Some(user.uid), Some(user.gid)).map_err(StackError::file(&incoming))?;
    }
    let file = File::open(&archive).map_err(StackError::file(&archive))?;
    let mut tar = Command::new("tar");
    tar.args(["-x", "-J", "-f", "-"]).current_dir(&incoming).stdin(file);
    if let Some(user) = user {
        tar.uid(user.uid).gid(user.gid);
    }
    unpack(tar, &archive).await?;
    fs::rename(&incoming, distribution).map_err(StackError::file(distribution))
}

async fn kafka(places: &Places) -> Result<Launch, StackError> {
    let home = server_home(places, "kafka")?;
    let properties = home.join("server.properties");
    let data = home.join("data");
    write(&properties, &configuration::kafka_properties(&data))?;
    if !data.join("meta.properties").exists() {
        let mut format = kafka_java(places, &home, tool_options(places))?;
        let id = configuration::cluster_id(uuid::Uuid::new_v4());
        let tool = ["kafka.tools.StorageTool", "format", "--standalone", "--ignore-formatted"];
        format.args.extend(tool.map(OsString::from));
        format.args.extend(["-t".into(), id.into(), "-c".into(), properties.clone().into()]);
        run_once(format).await?;
    }
    let mut launch = kafka_java(places, &home, streaming_options(places, "kafka"))?;
    launch.args.extend(["kafka.Kafka".into(), properties.into()]);
    Ok(launch)
}

fn connect(places: &Places) -> Result<Launch, StackError> {
    let home = server_home(places, "connect")?;
    let secrets = connect_secrets_file(places);
    let directory = secrets.parent().expect("the file is inside the state directory");
    create_directory(directory, 0o700)?;
    write_secret(&secrets, &configuration::connect_secrets())?;
    let installed = Installed::locate(places)?;
    let plugins: Vec<&Path> = installed.plugins.iter().map(PathBuf::as_path).collect();
    let properties = home.join("connect.properties");
    write(&properties, &configuration::connect_properties(&plugins, directory))?;
    let mut launch = kafka_java(places, &home, streaming_options(places, "connect"))?;
    launch.args.push("org.apache.kafka.connect.cli.ConnectDistributed".into());
    launch.args.push(properties.into());
    Ok(launch)
}

/// Where Connect reads the connectors' secrets from.
pub(crate) fn connect_secrets_file(places: &Places) -> PathBuf {
    places.state.join("secrets/connect.properties")
}

/// Java with Kafka's class path and the log settings for a server.
fn kafka_java(places: &Places, home: &Path, mut args: Vec<OsString>) -> Result<Launch, StackError> {
    let log4j = home.join("log4j2.xml");
    write(&log4j, &configuration::log4j("INFO", "SYSTEM_OUT"))?;
    args.push(with_path("-Dlog4j2.configurationFile=", &log4j));
    // The wildcard is Java's own and must reach it unexpanded.
    args.extend(["-cp".into(), Installed::locate(places)?.kafka.join("*").into()]);
    Ok(Launch {
        program: places.java.clone(),
        args,
        environment: Vec::new(),
        directory: home.to_path_buf(),
        user: None,
    })
}

async fn registry(places: &Places) -> Result<Launch, StackError> {
    registry_database::ensure().await?;
    let home = server_home(places, "registry")?;
    let mut args = server_options(places, "registry", 256);
    args.extend([
        format!("-Dquarkus.http.host={HOST}").into(),
        format!("-Dquarkus.http.port={REGISTRY_PORT}").into(),
        format!("-Dquarkus.management.host={HOST}").into(),
        format!("-Dquarkus.management.port={REGISTRY_MANAGEMENT_PORT}").into(),
        // Our own questions for its health would fill its log.
        "-Dquarkus.http.access-log.enabled=false".into(),
        // Its default pool alone would use up PostgreSQL's connections.
        "-Dapicurio.datasource.jdbc.initial-size=1".into(),
        "-Dapicurio.datasource.jdbc.min-size=1".into(),
        "-Dapicurio.datasource.jdbc.max-size=8".into(),
        "-jar".into(),
        Installed::locate(places)?.registry.join("quarkus-run.jar").into(),
    ]);
    // Without storage of its own a restart would hand out the ids again that topics still carry.
    let environment = [
        ("APICURIO_STORAGE_KIND", "sql".to_owned()),
        ("APICURIO_STORAGE_SQL_KIND", "postgresql".to_owned()),
        ("APICURIO_DATASOURCE_URL", registry_database::jdbc_url()),
        ("APICURIO_DATASOURCE_USERNAME", REGISTRY_DATABASE.to_owned()),
        ("APICURIO_DATASOURCE_PASSWORD", REGISTRY_DATABASE.to_owned()),
    ];
    Ok(Launch {
        program: places.java.clone(),
        args,
        environment: environment.map(|(name, value)| (name.to_owned(), value.into())).into(),
        directory: home,
        user: None,
    })
}

fn program(places: &Places, service: Service) -> Result<Launch, StackError> {
    let listen = match service {
        Service::UserApi => "USER_API_LISTEN",
        Service::PostApi => "POST_API_LISTEN",
        _ => "CONSUMER_LISTEN",
    };
    let file = service.program().expect("a server is started in another way");
    let program = places.programs.join(file);
    if !program.exists() {
        return Err(StackError::NotBuilt { program });
    }
    let mut variables: Vec<(String, OsString)> =
        environment().into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    variables.push((listen.to_owned(), format!("{HOST}:{}", service.ports()[0]).into()));
    variables.push(("VIEWS_FILE".to_owned(), places.root.join("views.toml").into()));
    let mut args = Vec::new();
    if let Service::Consumer(_) = service {
        args.push("run".into());
        // A consumer that comes back takes its partitions at once, also after a crash. Without a
        // name it would be a new member, and its old self would hold them for six seconds more.
        variables.push(("CONSUMER_INSTANCE".to_owned(), service.to_string().into()));
    }
    Ok(Launch { program, args, environment: variables, directory: places.root.clone(), user: None })
}

async fn run_once(launch: Launch) -> Result<(), StackError> {
    let program = launch.program.display().to_string();
    let output = tokio::time::timeout(PREPARE_DEADLINE, launch.command().output()).await;
    let Ok(output) = output else { return Err(StackError::PrepareSlow { program }) };
    let output = output.map_err(StackError::file(&launch.program))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(StackError::Prepare { program, output: String::from_utf8_lossy(&text).trim().to_owned() })
}

/// The directory of a Java server, with an empty one for what it unpacks while it runs: a server that was
/// killed leaves megabytes behind.
fn server_home(places: &Places, name: &str) -> Result<PathBuf, StackError> {
    let home = places.state.join(name);
    create_directory(&home, 0o755)?;
    let scratch = java::scratch(places, name);
    fs::remove_dir_all(&scratch).or_else(ignore_absent).map_err(StackError::file(&scratch))?;
    create_directory(&scratch, 0o755)?;
    Ok(home)
}

fn create_directory(directory: &Path, mode: u32) -> Result<(), StackError> {
    fs::create_dir_all(directory).map_err(StackError::file(directory))?;
    if fs::metadata(directory).is_ok_and(|metadata| metadata.mode() & 0o777 == mode) {
        return Ok(());
    }
    let permissions = fs::Permissions::from_mode(mode);
    fs::set_permissions(directory, permissions).map_err(StackError::file(directory))
}

fn write(path: &Path, text: &str) -> Result<(), StackError> {
    fs::write(path, text).map_err(StackError::file(path))
}

fn write_secret(path: &Path, text: &str) -> Result<(), StackError> {
    use std::io::Write;
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    let mut file = file.map_err(StackError::file(path))?;
    file.write_all(text.as_bytes()).map_err(StackError::file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, expected: Option<(u32, u32)>) {
        let accounts = "root:x:0:0:root:/root:/bin/bash\n\
                        nobody:x:65534:65533:nobody:/nonexistent:/usr/sbin/nologin\nbroken:x:\n";
        let user = expected.map(|(uid, gid)| User { uid, gid });
        assert_eq!(account(accounts, name), user, "{name}");
    }

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        check("nobody", Some((65534, 65533)));
        check("body", None);
        check("broken", None);
        check("root", Some((0, 0)));
    }
}
