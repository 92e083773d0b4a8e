//! The shipped connectors, which stand still while something is measured that has no need of them: each
//! reads the whole log of the server, whoever wrote it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use devstack::addresses::CONNECTORS;
use sqlx::PgConnection;

use crate::connect::Connector;
use crate::interrupt::{cleaned_up, unless_interrupted};
use crate::servers::{Servers, admin, slot_behind};

/// What a connector that runs is behind at most: its services write a heartbeat every second.
const BEHIND_BYTES_MAX: i64 = 16 << 20;
/// Time in which a connector reads some of what it missed.
const STILL_MAX: Duration = Duration::from_mins(2);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Does something while the shipped connectors are stopped, lets them go on whatever became of it, and
/// waits until they have read what was written meanwhile. Their slots keep that log: more than
/// `max_slot_wal_keep_size`, and the server gives them up.
pub(crate) async fn stopped<T>(
    servers: &Servers,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let stopped = async {
        unless_interrupted(stop(servers)).await?;
        work.await
    };
    cleaned_up(stopped, resume(servers)).await
}

async fn stop(servers: &Servers) -> anyhow::Result<()> {
    for name in CONNECTORS {
        Connector::stop(servers, name).await?;
    }
    Ok(())
}

async fn resume(servers: &Servers) -> anyhow::Result<()> {
    let mut resumed = Ok(());
    for name in CONNECTORS {
        resumed = resumed.and(Connector::resume(servers, name).await);
    }
    resumed?;
    let mut db = admin("postgres").await?;
    for name in CONNECTORS {
        let settings = Connector::settings(servers, name).await?;
        let slot = settings["slot.name"].as_str().context("a shipped connector names its slot")?;
        catch_up(&mut db, slot).await.with_context(|| format!("connector {name}"))?;
    }
    Ok(())
}

async fn catch_up(db: &mut PgConnection, slot: &str) -> anyhow::Result<()> {
    let (mut least, mut moved) = (i64::MAX, Instant::now());
    loop {
        let behind = slot_behind(db, slot).await?;
        let behind = behind.with_context(|| format!("slot {slot} is lost"))?;
        if behind < BEHIND_BYTES_MAX {
            return Ok(());
        }
        if behind < least {
            (least, moved) = (behind, Instant::now());
        }
        let still = moved.elapsed() > STILL_MAX;
        ensure!(!still, "slot {slot} stays {behind} bytes behind");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
