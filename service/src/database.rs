//! A service's connection pool, and what its errors mean to a client.

use std::borrow::Cow;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgPool};
use tokio::time::timeout;

use crate::Problem;

/// How long a request waits for a connection before it is told to come back.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the readiness probe waits for the database.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a connection that was given back is taken to be alive. It was tested then; to test it once more
/// would add a round trip to every request of a busy service.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// Longest time a statement may take; PostgreSQL ends it then.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may be silent when it is tested. One that vanished says nothing for ever.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// How long [`close`] waits for connections.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// When a client may try again what could not be done now.
pub const RETRY_AFTER: Duration = Duration::from_secs(2);

const DEADLOCK: &str = "40P01";
const LOCK_TIMEOUT: &str = "55P03";
const READ_ONLY: &str = "25006";
/// By the statement timeout.
const CANCELED: &str = "57014";

/// A pool that connects when it is first used, so that a service starts, and says that it is not
/// ready, while its database is away. Fails only if `url` cannot be read.
pub fn pool(
    name: &str,
    url: &SecretString,
    connection_count_max: u32,
) -> Result<PgPool, sqlx::Error> {
    let statement_timeout = format!("{}ms", STATEMENT_TIMEOUT.as_millis());
    let options =
        PgConnectOptions::from_str(url.expose_secret())?.application_name(name).options([
            // A 2xx promises that the change survives a crash, whatever the server's default is.
            ("synchronous_commit", "on"),
            ("statement_timeout", &statement_timeout),
        ]);
    Ok(PgPoolOptions::new()
        .max_connections(connection_count_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .before_acquire(|connection, state| {
            Box::pin(async move {
                if state.idle_for > TRUSTED_FOR {
                    answer(PING_TIMEOUT, connection.ping()).await?;
                }
                Ok(true)
            })
        })
        // A request that was given up leaves its statement behind, and sqlx waits for the end of it, for ever
        // if the connection has vanished. Whatever was asked is over by the statement timeout; dropped earlier,
        // a connection would still be one of the server's. If nothing was left behind, this asks nothing: sqlx
        // pings each connection that is given back.
        .after_release(|connection, _| {
            Box::pin(async move {
                answer(STATEMENT_TIMEOUT, connection.flush()).await?;
                Ok(true)
            })
        })
        .connect_lazy_with(options))
}

/// Closes the connections, and gives up those that do not come back in time: a process that shall end does.
pub async fn close(pool: &PgPool) {
    if timeout(CLOSE_TIMEOUT, pool.close()).await.is_err() {
        tracing::warn!(timeout = ?CLOSE_TIMEOUT, "database connections still in use were cut");
    }
}

/// What a connection answers, or that it does not.
async fn answer(
    limit: Duration,
    answered: impl Future<Output = Result<(), sqlx::Error>>,
) -> Result<(), sqlx::Error> {
    timeout(limit, answered).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Why the database cannot be used right now, for the readiness probe; nothing if it takes changes.
pub async fn reasons(pool: PgPool) -> Vec<String> {
    let asked = sqlx::query_scalar("select current_setting('transaction_read_only')::bool");
    match timeout(PROBE_TIMEOUT, asked.fetch_one(&pool)).await {
        Ok(Ok(false)) => vec![],
        Ok(Ok(true)) => vec!["database: only reads".to_owned()],
        Ok(Err(error)) => {
            tracing::debug!(%error, "readiness probe failed");
            vec!["database: does not accept queries".to_owned()]
        }
        Err(_) => vec![format!("database: no answer within {PROBE_TIMEOUT:?}")],
    }
}

/// The answer to a request whose query failed. The database's text goes to the log only.
pub fn problem(error: sqlx::Error) -> Problem {
    use sqlx::Error as E;
    match &error {
        E::PoolTimedOut | E::PoolClosed | E::Io(_) | E::Tls(_) | E::WorkerCrashed => {
            unavailable(error)
        }
        E::Database(database) => match database.code().as_deref() {
            Some(code) if is_passing(code) => unavailable(error),
            // The request held a character that the database cannot store.
            Some("22021") => Problem::bad_request("a value holds a NUL character").cause(error),
            Some(_) | None => Problem::internal(error),
        },
        _ => Problem::internal(error),
    }
}

/// The name of the constraint that a statement violated, if that is why it failed.
pub fn violated(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error().and_then(|error| error.constraint())
}

/// Whether a statement for several requests failed by what may be the fault of one of them, and certainly took
/// no effect: it was refused, or ended because of a lock or its duration.
pub fn is_one_requests_fault(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| {
        !is_passing(&code) || [DEADLOCK, LOCK_TIMEOUT, CANCELED].contains(&&*code)
    })
}

/// Whether the statement was ended because it waited for a lock longer than it said it would.
pub fn is_lock_timeout(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| code == LOCK_TIMEOUT)
}

/// Whether the statement was chosen to be ended so that another could go on. It took no effect, and nothing
/// speaks against doing it again.
pub fn is_deadlock(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| code == DEADLOCK)
}

fn code(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code)
}

fn unavailable(error: sqlx::Error) -> Problem {
    Problem::unavailable(RETRY_AFTER).detail("the database cannot be used right now").cause(error)
}

/// Whether the same statement may succeed later: connections lost (class 08), resources short
/// (53), shutdown, restart or timeout (57), trouble of the system (58), serialization failure and deadlock (40),
/// a lock held, a server that only reads: after a failover, a standby that the address still leads to.
fn is_passing(sqlstate: &str) -> bool {
    ["08", "40", "53", "57", "58", LOCK_TIMEOUT, READ_ONLY]
        .iter()
        .any(|class| sqlstate.starts_with(class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_is_away_is_503_and_a_surprise_is_500() {
        for (error, status) in [
            (sqlx::Error::PoolTimedOut, 503),
            (sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()), 503),
            (sqlx::Error::RowNotFound, 500),
        ] {
            assert_eq!(problem(error).status().as_u16(), status);
        }
        for (code, passing) in [
            ("57P03", true),
            ("40001", true),
            ("58030", true),
            ("25006", true),
            ("23505", false),
            ("25001", false),
        ] {
            assert_eq!(is_passing(code), passing, "{code}");
        }
    }

    #[tokio::test]
    async fn a_probe_of_a_database_that_is_away_gives_a_reason() {
        let url = SecretString::from("postgres://u:p@127.0.0.1:1/d");
        let pool = pool("test", &url, 1).unwrap();
        assert_eq!(reasons(pool).await, ["database: no answer within 1s"]);
    }
}
