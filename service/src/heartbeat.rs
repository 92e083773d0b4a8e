//! A row of the service's own database that changes now and then, for the sake of its replication slot.
//!
//! A slot holds back the server's WAL until Debezium confirms a later change of this database. When the
//! service is quiet and others on the server are not, this row is that change. Debezium could write it
//! itself, with heartbeats of its own, but loses changes then: see docs/adr/0015.

use std::time::Duration;

use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

/// WAL of so long is held back at most. Short, because a connector's task asks the registry for the row's
/// schema when it meets the row first, and fails if the registry is away just then: better at its start.
const EVERY: Duration = Duration::from_secs(1);

/// A beat that takes longer is given up. Its connection may have vanished, and would never be heard of.
const BEAT_TIMEOUT: Duration = Duration::from_secs(5);

/// Changes the row until `shutdown`. Several instances of a service may do so side by side. A database that
/// is away needs no heartbeat, and gets the next one.
pub fn start(pool: PgPool, shutdown: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let beats = async {
            loop {
                ticks.tick().await;
                match timeout(BEAT_TIMEOUT, beat(&pool)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "heartbeat row not written"),
                    Err(_) => tracing::debug!(timeout = ?BEAT_TIMEOUT, "heartbeat row not written"),
                }
            }
        };
        shutdown.run_until_cancelled(beats).await;
    })
}

async fn beat(pool: &PgPool) -> Result<(), sqlx::Error> {
    let sql = "insert into cdc_heartbeat (id, beaten_at)
        values (1, now())
        on conflict (id) do update set beaten_at = excluded.beaten_at";
    sqlx::query(sql).execute(pool).await.map(drop)
}
