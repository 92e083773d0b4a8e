use clap::{Args, Parser, Subcommand};
use migrate::{Generation, Passwords};
use secrecy::{ExposeSecret, SecretString};
use service::telemetry::LogFormat;

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
    pub(crate) log_filter: String,
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

/// Passwords the roles shall have. A role without one here gets its own name as its password,
/// which is meant for development alone.
#[derive(Debug, Args)]
pub(crate) struct PasswordSettings {
    /// Password of role `user_api`.
    #[arg(
        long = "user-api-password",
        env = "MIGRATE_USER_API_PASSWORD",
        hide_env_values = true,
        global = true
    )]
    user_api: Option<SecretString>,

    /// Password of role `post_api`.
    #[arg(
        long = "post-api-password",
        env = "MIGRATE_POST_API_PASSWORD",
        hide_env_values = true,
        global = true
    )]
    post_api: Option<SecretString>,

    /// Password of role `cdc_consumer`.
    #[arg(
        long = "cdc-consumer-password",
        env = "MIGRATE_CDC_CONSUMER_PASSWORD",
        hide_env_values = true,
        global = true
    )]
    cdc_consumer: Option<SecretString>,

    /// Password of role `debezium`.
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
        let development = Passwords::development();
        Passwords {
            user_api: given(self.user_api.as_ref(), development.user_api),
            post_api: given(self.post_api.as_ref(), development.post_api),
            cdc_consumer: given(self.cdc_consumer.as_ref(), development.cdc_consumer),
            debezium: given(self.debezium.as_ref(), development.debezium),
        }
    }
}

/// An empty variable is what compose passes for an unset one.
fn given(setting: Option<&SecretString>, development: SecretString) -> SecretString {
    setting.filter(|password| !password.expose_secret().is_empty()).cloned().unwrap_or(development)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_default_to_the_role_names_and_generations_are_positive() {
        let parse = |arguments: &[&str]| Settings::try_parse_from(arguments);
        let urls = ["migrate", "views", "--post-url", "postgres://h/d"];
        let settings = parse(&urls).unwrap();
        assert_eq!(settings.passwords.read().post_api.expose_secret(), "post_api");
        let with = |more: [&'static str; 2]| parse(&[urls.as_slice(), more.as_slice()].concat());
        let settings = with(["--post-api-password", "x"]).unwrap();
        assert_eq!(settings.passwords.read().post_api.expose_secret(), "x");
        assert!(with(["--generation", "0"]).is_err());
        assert!(with(["--generation", "2"]).is_ok());
    }
}
