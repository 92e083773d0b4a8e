//! The part above a database: the lock, the roles, the database itself.

use std::io;
use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};

use crate::MigrateError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Any number will do, as long as it never changes and nothing else uses it in `postgres`.
const LOCK_KEY: i64 = 0x0063_6463_6d69_6772;

/// The server, locked against other migrations for as long as this value lives.
pub(crate) struct Server {
    options: PgConnectOptions,
    database: String,
    maintenance: PgConnection,
}

/// A role a database needs, and how it logs in.
pub(crate) struct Role<'a> {
    name: &'static str,
    attributes: &'static str,
    given: Option<&'a SecretString>,
}

const NO_LOGIN: &str = "nologin";

impl<'a> Role<'a> {
    /// The owner of everything, which nobody can log in as.
    pub(crate) fn owner() -> Self {
        Self { name: "migrator", attributes: NO_LOGIN, given: None }
    }

    /// A service.
    pub(crate) fn login(name: &'static str, given: Option<&'a SecretString>) -> Self {
        Self { name, attributes: "login", given }
    }

    /// A service that reads the write-ahead log.
    pub(crate) fn replication(name: &'static str, given: Option<&'a SecretString>) -> Self {
        Self { name, attributes: "login replication", given }
    }

    /// The password to set. One that is there already is only replaced by one that is given: a migration
    /// said without passwords locks nobody out. A new role without one gets its name, for development.
    fn password(&self, exists: bool) -> Option<&str> {
        match self.given {
            Some(given) => Some(given.expose_secret()),
            None if exists || self.attributes == NO_LOGIN => None,
            None => Some(self.name),
        }
    }
}

impl Server {
    pub(crate) async fn lock(admin_url: &str) -> Result<Self, MigrateError> {
        let options = PgConnectOptions::from_str(admin_url)
            .map_err(|source| MigrateError::Url { source })?
            .disable_statement_logging()
            // "already exists, skipping" is what a second run is expected to meet.
            .options([("client_min_messages", "warning")]);
        let database = options.get_database().ok_or(MigrateError::NoDatabase)?.to_owned();
        let mut maintenance = connect(&options, "postgres").await?;
        let locked: bool = sqlx::query_scalar("select pg_try_advisory_lock($1)")
            .bind(LOCK_KEY)
            .fetch_one(&mut maintenance)
            .await
            .map_err(|source| MigrateError::Lock { source })?;
        if !locked {
            tracing::info!("waiting for another migration on this server");
            sqlx::query("select pg_advisory_lock($1)")
                .bind(LOCK_KEY)
                .execute(&mut maintenance)
                .await
                .map_err(|source| MigrateError::Lock { source })?;
        }
        Ok(Self { options, database, maintenance })
    }

    /// Sets up roles, database and rights, and connects to it as the owner.
    pub(crate) async fn database(
        &mut self,
        roles: &[Role<'_>],
    ) -> Result<PgConnection, MigrateError> {
        for role in roles {
            self.role(role)
                .await
                .map_err(|source| MigrateError::Role { role: role.name, source })?;
        }
        let failed = |source| MigrateError::Database { database: self.database.clone(), source };
        create_database(&mut self.maintenance, &self.database).await.map_err(failed)?;
        let mut db = connect(&self.options, &self.database).await?;
        set_rights(&mut db, roles).await.map_err(failed)?;
        become_owner(&mut db).await.map_err(failed)?;
        Ok(db)
    }

    /// Connects to the database, which must exist, as the owner.
    pub(crate) async fn connect(&self) -> Result<PgConnection, MigrateError> {
        let mut db = connect(&self.options, &self.database).await?;
        become_owner(&mut db)
            .await
            .map_err(|source| MigrateError::Database { database: self.database.clone(), source })?;
        Ok(db)
    }

    async fn role(&mut self, role: &Role<'_>) -> Result<(), sqlx::Error> {
        let exists: bool =
            sqlx::query_scalar("select exists (select from pg_roles where rolname = $1)")
                .bind(role.name)
                .fetch_one(&mut self.maintenance)
                .await?;
        let verb = if exists { "alter" } else { "create" };
        let mut statement = format!("{verb} role {} {}", role.name, role.attributes);
        if let Some(password) = role.password(exists) {
            // A role's password cannot be a parameter; the server quotes it for us.
            let literal: String = sqlx::query_scalar("select quote_literal($1)")
                .bind(password)
                .fetch_one(&mut self.maintenance)
                .await?;
            statement.push_str(" password ");
            statement.push_str(&literal);
        }
        execute(&mut self.maintenance, statement).await
    }
}

/// Runs a statement that was put together from quoted parts.
pub(crate) async fn execute(db: &mut PgConnection, statement: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(&statement).execute(db).await.map(drop)
}

async fn connect(options: &PgConnectOptions, database: &str) -> Result<PgConnection, MigrateError> {
    let options = options.clone().database(database);
    let connection =
        match tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await {
            Ok(result) => result,
            Err(_) => Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())),
        };
    connection.map_err(|source| MigrateError::Connect {
        database: database.to_owned(),
        address: format!("{}:{}", options.get_host(), options.get_port()),
        source,
    })
}

async fn create_database(db: &mut PgConnection, name: &str) -> Result<(), sqlx::Error> {
    let exists: bool =
        sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(name)
            .fetch_one(&mut *db)
            .await?;
    if exists {
        return Ok(());
    }
    let quoted = quote(db, name).await?;
    // template0, so that neither the encoding nor somebody's additions to template1 get in.
    execute(db, format!("create database {quoted} template template0 encoding 'UTF8'")).await?;
    tracing::info!(database = name, "database created");
    Ok(())
}

/// Lets in the roles that work here, and nobody else.
async fn set_rights(db: &mut PgConnection, roles: &[Role<'_>]) -> Result<(), sqlx::Error> {
    let name: String =
        sqlx::query_scalar("select quote_ident(current_database())").fetch_one(&mut *db).await?;
    let names = roles.iter().map(|role| role.name).collect::<Vec<_>>().join(", ");
    let statements = format!(
        "revoke all on database {name} from public;
         revoke all on schema public from public;
         grant connect, temporary on database {name} to {names};
         grant create on database {name} to migrator;
         grant usage on schema public to {names};
         grant create on schema public to migrator;"
    );
    execute(db, statements).await
}

async fn become_owner(db: &mut PgConnection) -> Result<(), sqlx::Error> {
    execute(db, "set role migrator; set search_path to public".to_owned()).await
}

async fn quote(db: &mut PgConnection, name: &str) -> Result<String, sqlx::Error> {
    sqlx::query_scalar("select quote_ident($1)").bind(name).fetch_one(db).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A role of its own: those of the programs belong to everybody on the server.
    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "tests take the server's address from outside")]
    async fn a_password_stays_until_another_is_given() {
        let url = std::env::var("POST_DATABASE_ADMIN_URL")
            .expect("POST_DATABASE_ADMIN_URL names a superuser's database");
        let mut server = Server::lock(&url).await.expect("a server");
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()")
            .fetch_one(&mut server.maintenance)
            .await
            .expect("a session");
        let name: &'static str = format!("migrate_test_{pid}").leak();
        let secret = SecretString::from("secret");
        let mut kept = vec![];
        for given in [None, None, Some(&secret), None] {
            server.role(&Role::login(name, given)).await.expect("a role");
            // What is kept of a password has a salt: setting the same one again shows.
            let read = sqlx::query_scalar("select rolpassword from pg_authid where rolname = $1");
            let read = read.bind(name).fetch_one(&mut server.maintenance).await;
            kept.push(read.expect("a role has a password"));
        }
        let dropped = execute(&mut server.maintenance, format!("drop role {name}")).await;
        dropped.expect("the role owns nothing");
        let kept: Vec<Option<String>> = kept;
        assert!(kept.iter().all(Option::is_some), "a new role gets its name");
        assert_eq!(
            (kept[0] == kept[1], kept[1] == kept[2], kept[2] == kept[3]),
            (true, false, true)
        );
    }
}
