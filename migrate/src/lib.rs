//! Brings databases to the shape this version of the programs expects: databases, roles, tables,
//! publications, and generations of views. A step of its own, never a side effect of a service.
//!
//! Every function takes a superuser's URL, may be run again at any time, and may be run by several
//! processes at once: one session-level advisory lock per server puts them in line. The lock lives
//! in the database `postgres`, because roles belong to the whole server.
//!
//! | role | may |
//! |---|---|
//! | `migrator` | owns schemas and tables; cannot log in |
//! | `user_api` | read and write `users` |
//! | `post_api` | read and write `posts`, read the published views |
//! | `cdc_consumer` | read and write the tables of every generation |
//! | `debezium` | replicate, read the captured tables |
//!
//! No role can connect to a database it has no work in.

mod apply;
mod bootstrap;
mod generation;
mod lock;

use secrecy::SecretString;
use sqlx::PgConnection;
use sqlx::migrate::Migrator;

pub use generation::Generation;

use bootstrap::{Role, Server};

static USERS: Migrator = sqlx::migrate!("../migrations/users");
static POSTS: Migrator = sqlx::migrate!("../migrations/posts");
static VIEWS: Migrator = sqlx::migrate!("../migrations/views");

/// Creates or updates the user service's database, the one `admin_url` names.
pub async fn users(admin_url: &str, passwords: &Passwords) -> Result<(), MigrateError> {
    let mut server = Server::lock(admin_url).await?;
    let roles = [
        Role::owner(),
        Role::login("user_api", passwords.user_api.as_ref()),
        Role::replication("debezium", passwords.debezium.as_ref()),
    ];
    let mut db = server.database(&roles).await?;
    apply::apply(&mut db, "users", &USERS).await
}

/// Creates or updates the post service's database, the one `admin_url` names, without its views.
pub async fn posts(admin_url: &str, passwords: &Passwords) -> Result<(), MigrateError> {
    let mut server = Server::lock(admin_url).await?;
    let roles = [
        Role::owner(),
        Role::login("post_api", passwords.post_api.as_ref()),
        Role::login("cdc_consumer", passwords.cdc_consumer.as_ref()),
        Role::replication("debezium", passwords.debezium.as_ref()),
    ];
    let mut db = server.database(&roles).await?;
    apply::apply(&mut db, "posts", &POSTS).await
}

/// Creates or updates one generation of views in the database `admin_url` names, where [`posts`]
/// ran before.
///
/// The first generation of a database becomes the current one. Of the current generation the
/// published views are refreshed; a later generation stays invisible until [`publish`].
pub async fn views(admin_url: &str, generation: Generation) -> Result<(), MigrateError> {
    let server = Server::lock(admin_url).await?;
    let mut db = server.connect().await?;
    generation::enter(&mut db, generation).await?;
    apply::apply(&mut db, "views", &VIEWS).await?;
    generation::grant(&mut db, generation).await?;
    match generation::current(&mut db).await? {
        Some(current) if current != generation => Ok(()),
        Some(_) | None => generation::publish(&mut db, generation, async |_| Ok(())).await,
    }
}

/// Makes `generation` the one readers see, in one transaction.
///
/// The thin views in `public` are replaced; one that other objects depend on and whose columns
/// changed is an error, and then nothing changes.
pub async fn publish(admin_url: &str, generation: Generation) -> Result<(), MigrateError> {
    publish_after(admin_url, generation, async |_| Ok(())).await
}

/// The same after `before` had the transaction: what it locks stays as it is until readers see the
/// generation, and when it fails everything stays as it was.
pub async fn publish_after<E: From<MigrateError>>(
    admin_url: &str,
    generation: Generation,
    before: impl AsyncFnOnce(&mut PgConnection) -> Result<(), E>,
) -> Result<(), E> {
    let server = Server::lock(admin_url).await?;
    let mut db = server.connect().await?;
    generation::publish(&mut db, generation, before).await
}

/// Drops a generation that readers no longer see, or do not see yet, with everything in it.
pub async fn drop_generation(admin_url: &str, generation: Generation) -> Result<(), MigrateError> {
    let server = Server::lock(admin_url).await?;
    let mut db = server.connect().await?;
    generation::drop(&mut db, generation).await
}

/// The generations there are, in their order.
pub async fn generations(admin_url: &str) -> Result<Vec<Generation>, MigrateError> {
    let server = Server::lock(admin_url).await?;
    let mut db = server.connect().await?;
    generation::all(&mut db).await
}

/// The generation readers see, or none if there has not been one yet.
pub async fn current_generation(admin_url: &str) -> Result<Option<Generation>, MigrateError> {
    let server = Server::lock(admin_url).await?;
    let mut db = server.connect().await?;
    generation::current(&mut db).await
}

/// The passwords of the roles that can log in. Without one here a role keeps the one it has, and a new role gets
/// its name.
#[derive(Debug, Clone)]
pub struct Passwords {
    /// Of `user_api`.
    pub user_api: Option<SecretString>,
    /// Of `post_api`.
    pub post_api: Option<SecretString>,
    /// Of `cdc_consumer`.
    pub cdc_consumer: Option<SecretString>,
    /// Of `debezium`.
    pub debezium: Option<SecretString>,
}

impl Passwords {
    /// Every password equals its role's name. For development and tests only.
    pub fn development() -> Self {
        Self {
            user_api: Some("user_api".into()),
            post_api: Some("post_api".into()),
            cdc_consumer: Some("cdc_consumer".into()),
            debezium: Some("debezium".into()),
        }
    }
}

/// Why a database could not be brought into shape.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The text is not a `postgres://` URL.
    #[error("the database url could not be read")]
    Url {
        /// The parser's complaint; it never shows the password.
        source: sqlx::Error,
    },
    /// The URL names no database.
    #[error("the database url names no database")]
    NoDatabase,
    /// No connection, or not in time.
    #[error("could not connect to database {database:?} at {address}")]
    Connect {
        /// The database's name.
        database: String,
        /// Host and port.
        address: String,
        /// The client's complaint.
        source: sqlx::Error,
    },
    /// The lock that keeps two migrations apart.
    #[error("could not take the migration lock")]
    Lock {
        /// The server's complaint.
        source: sqlx::Error,
    },
    /// A role could not be created or altered.
    #[error("could not set up role {role:?}")]
    Role {
        /// The role's name.
        role: &'static str,
        /// The server's complaint.
        source: sqlx::Error,
    },
    /// The database could not be created, or its rights not set.
    #[error("could not set up database {database:?}")]
    Database {
        /// The database's name.
        database: String,
        /// The server's complaint.
        source: sqlx::Error,
    },
    /// A migration failed, or a file that was applied has changed since.
    #[error("could not apply the migrations of {set:?}")]
    Apply {
        /// `users`, `posts` or `views`.
        set: &'static str,
        /// Which one, and why.
        source: sqlx::migrate::MigrateError,
    },
    /// A migration retypes or drops in place what a view shows.
    #[error(
        "could not apply the migrations of {set:?}: views stand on what one of them changes in place. Where those \
         are what readers see, build the views anew with it (`cdc-consumer rebuild`)"
    )]
    Shown {
        /// `users`, `posts` or `views`.
        set: &'static str,
        /// Which one, and why.
        source: sqlx::migrate::MigrateError,
    },
    /// A generation's schema, rights or record could not be set up.
    #[error("could not set up generation {generation}")]
    Generation {
        /// Its number.
        generation: Generation,
        /// The server's complaint.
        source: sqlx::Error,
    },
    /// A published view could not be replaced.
    #[error("could not publish view {view:?} of generation {generation}")]
    Publish {
        /// The generation's number.
        generation: Generation,
        /// The view's name.
        view: String,
        /// The server's complaint.
        source: sqlx::Error,
    },
    /// Readers did not let a thin view be replaced.
    #[error(
        "transactions that read view {view:?} did not let it be replaced; their sessions \
         (pg_stat_activity.pid): {sessions}. Nothing was changed; say it again when they are done"
    )]
    BeingRead {
        /// The generation's number.
        generation: Generation,
        /// The view's name.
        view: String,
        /// The process ids of those who read it.
        sessions: String,
        /// The server's complaint.
        source: sqlx::Error,
    },
    /// The generation to publish has no schema.
    #[error("there is no generation {generation}")]
    NoGeneration {
        /// Its number.
        generation: Generation,
    },
    /// Readers see the generation that was to be dropped.
    #[error("generation {generation} is the one readers see; it cannot be dropped")]
    InUse {
        /// Its number.
        generation: Generation,
    },
    /// Which generation is current could not be read.
    #[error("could not read the current generation")]
    Current {
        /// The server's complaint.
        source: sqlx::Error,
    },
}
