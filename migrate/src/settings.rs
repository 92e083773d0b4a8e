use clap::{Args, Parser, Subcommand};
use migrate::{Generation, Passwords};
use secrecy::{ExposeSecret, SecretString};
use service::telemetry::{LogFilter, LogFormat};

/// Creates and updates databases, roles, tables, publications and views.
///
/// Safe to run again and safe to run several times at once. The URLs must be a superuser's:
/// roles and databases are created where they are missing.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Settings {
    #[command(subcommand)]
    pub(crate) command: Command,

    #[command(flatten)]
    pub(crate) passwords: PasswordSettings,

    /// Log lines for people (text) or collectors (json).
    #[arg(long, env = "LOG_FORMAT", default_value_t, global = true)]
    pub(crate) log_format: LogFormat,

    /// What is logged, as a directive list.
    #[arg(long, env = "RUST_LOG", default_value = "info,sqlx=warn", global = true)]
    pub(crate) log_filter: LogFilter,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Everything below, in this order.
    All {
        #[command(flatten)]
        users: UserDatabase,
        #[command(flatten)]
        posts: PostDatabase,
    },
    /// The user service's database.
    Users(UserDatabase),
    /// The post service's database, without views.
    Posts(PostDatabase),
    /// The views in the post service's database.
    Views {
        #[command(flatten)]
        posts: PostDatabase,
        /// Number of the generation to create or update [default: the current one, or 1].
        #[arg(long)]
        generation: Option<Generation>,
    },
    /// Drop a generation of views that readers do not see, with everything in it.
    Drop {
        #[command(flatten)]
        posts: PostDatabase,
        /// Its number.
        #[arg(long)]
        generation: Generation,
    },
}

#[derive(Debug, Args)]
pub(crate) struct UserDatabase {
    /// The user service's database, as a superuser.
    #[arg(long, env = "USER_DATABASE_ADMIN_URL", hide_env_values = true)]
    pub(crate) user_url: String,
}

#[derive(Debug, Args)]
pub(crate) struct PostDatabase {
    /// The post service's database, as a superuser.
    #[arg(long, env = "POST_DATABASE_ADMIN_URL", hide_env_values = true)]
    pub(crate) post_url: String,
}

/// Passwords the roles shall have. A role without one here keeps the one it has; a new role gets its own name,
/// which is meant for development alone.
#[derive(Debug, Args)]
pub(crate) struct PasswordSettings {
    /// Password of role `user_api` [default: it keeps the one it has; a new role gets its name].
    #[arg(
        long = "user-api-password",
        env = "MIGRATE_USER_API_PASSWORD",
        hide_env_values = true,
        global = true
    )]
    user_api: Option<SecretString>,

    /// Password of role `post_api` [default: it keeps the one it has; a new role gets its name].
    #[arg(
        long = "post-api-password",
        env = "MIGRATE_POST_API_PASSWORD",
        hide_env_values = true,
        global = true
    )]
    post_api: Option<SecretString>,

    /// Password of role `cdc_consumer` [default: it keeps the one it has; a new role gets its name].
    #[arg(
        long = "cdc-consumer-password",
        env = "MIGRATE_CDC_CONSUMER_PASSWORD",
        hide_env_values = true,
        global = true
    )]
    cdc_consumer: Option<SecretString>,

    /// Password of role `debezium` [default: it keeps the one it has; a new role gets its name].
    #[arg(
        long = "debezium-password",
        env = "MIGRATE_DEBEZIUM_PASSWORD",
        hide_env_values = true,
        global = true
    )]
    debezium: Option<SecretString>,
}

impl PasswordSettings {
    pub(crate) fn read(&self) -> Passwords {
        Passwords {
            user_api: given(self.user_api.as_ref()),
            post_api: given(self.post_api.as_ref()),
            cdc_consumer: given(self.cdc_consumer.as_ref()),
            debezium: given(self.debezium.as_ref()),
        }
    }
}

/// An empty variable is what compose passes for an unset one.
fn given(setting: Option<&SecretString>) -> Option<SecretString> {
    setting.filter(|password| !password.expose_secret().is_empty()).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_those_given_and_generations_are_positive() {
        let parse = |arguments: &[&str]| Settings::try_parse_from(arguments);
        let urls = ["migrate", "views", "--post-url", "postgres://h/d"];
        let settings = parse(&urls).unwrap();
        assert!(settings.passwords.read().post_api.is_none());
        let with = |more: [&'static str; 2]| parse(&[urls.as_slice(), more.as_slice()].concat());
        let settings = with(["--post-api-password", "x"]).unwrap();
        let given = |settings: Settings| settings.passwords.read().post_api;
        assert_eq!(given(settings).unwrap().expose_secret(), "x");
        let settings = with(["--post-api-password", ""]).unwrap();
        assert!(given(settings).is_none(), "an empty one is none");
        assert!(with(["--generation", "0"]).is_err());
        assert!(with(["--generation", "2"]).is_ok());
    }
}
