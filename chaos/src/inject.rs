//! Carries one fault out, from its beginning to its heal.

use std::time::Duration;

use anyhow::{Context, bail};
use devstack::addresses::environment;
use devstack::{Service, StackError};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::fault::{CONSUMERS, Injection, Kind, Server, Target};
use crate::field::Field;
use crate::marker::Marker;
use crate::proxy::Mode;
use crate::recovery::{Healed, visible_in};

/// Each way, on a connection that is slow. A commit takes some ten of these.
const DELAY: Duration = Duration::from_millis(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

pub(crate) async fn inject(
    field: &Field,
    marker: &Marker,
    injection: &Injection,
) -> anyhow::Result<Healed> {
    let lasts = injection.lasts;
    match (injection.kind, injection.target) {
        (Kind::Kill(_), Target::Process(service)) => kill(field, service, lasts).await,
        (Kind::Restart(_), Target::Process(service)) => restart(field, service).await,
        (Kind::Pause(server), Target::Process(service)) => {
            pause(field, marker, service, server, lasts).await
        }
        (Kind::EndSessions, _) => end_sessions(field).await,
        (Kind::CutDatabase, Target::Process(service)) => {
            network(field, service, Mode::Cut, lasts).await
        }
        (Kind::StallDatabase, Target::Process(service)) => {
            network(field, service, Mode::Stall, lasts).await
        }
        (Kind::SlowDatabase, Target::Process(service)) => {
            network(field, service, Mode::Slow(DELAY), lasts).await
        }
        (Kind::LoseCommitReply, Target::Process(service)) => {
            network(field, service, Mode::LoseCommitReply, lasts).await
        }
        (Kind::JoinAndLeave, Target::Process(service)) => {
            join_and_leave(field, service, lasts).await
        }
        (Kind::ResetOffsets, Target::Log { topic, percent }) => {
            reset_offsets(field, topic, percent).await
        }
        (Kind::RestartTask, Target::Connector(name)) => restart_task(field, name).await,
        (Kind::Rebuild, _) => rebuild(field).await,
        (kind, target) => bail!("{kind} cannot be done to {target}"),
    }
}

/// A consumer that begins anew counts from zero.
fn healed_process(service: Service) -> Healed {
    let consumer = matches!(service, Service::Consumer(_));
    let applying = consumer.then_some((service, 0)).into_iter().collect();
    Healed::at_once(applying)
}

/// False when the process had ended by itself, which the supervisor tells and mends: there is nothing to break.
fn struck(
    field: &Field,
    service: Service,
    outcome: Result<(), StackError>,
) -> anyhow::Result<bool> {
    match outcome {
        Err(StackError::NotRunning { .. }) => {
            field.expect_up(service);
            Ok(false)
        }
        outcome => Ok(outcome.map(|()| true)?),
    }
}

fn missed(service: Service) -> Healed {
    Healed { missed: true, ..healed_process(service) }
}

async fn kill(field: &Field, service: Service, lasts: Duration) -> anyhow::Result<Healed> {
    field.expect_down(service);
    if !struck(field, service, field.stack.kill(service).await)? {
        return Ok(missed(service));
    }
    sleep(lasts).await;
    let healed = healed_process(service);
    field.launch(service).await?;
    Ok(healed)
}

async fn restart(field: &Field, service: Service) -> anyhow::Result<Healed> {
    field.expect_down(service);
    field.stack.stop(service).await?;
    let healed = healed_process(service);
    field.launch(service).await?;
    Ok(healed)
}

/// Meanwhile the other consumer must take over; how soon is part of the outcome.
async fn pause(
    field: &Field,
    marker: &Marker,
    service: Service,
    server: Server,
    lasts: Duration,
) -> anyhow::Result<Healed> {
    let applying = match server {
        Server::Consumer => Some((service, field.records_done(service).await.unwrap_or(0))),
        _ => None,
    };
    field.expect_down(service);
    if !struck(field, service, field.stack.pause(service))? {
        return Ok(missed(service));
    }
    let end = Instant::now() + lasts;
    let takeover = match server {
        Server::Consumer => tokio::time::timeout_at(end, visible_in(marker)).await.ok(),
        _ => None,
    };
    tokio::time::sleep_until(end).await;
    let at = Instant::now();
    struck(field, service, field.stack.resume(service))?;
    field.expect_up(service);
    Ok(Healed { at, takeover, ..Healed::at_once(applying.into_iter().collect()) })
}

async fn baselines(field: &Field) -> Vec<(Service, u64)> {
    let mut all = Vec::new();
    for service in (1..=CONSUMERS).map(Service::Consumer) {
        all.push((service, field.records_done(service).await.unwrap_or(0)));
    }
    all
}

async fn end_sessions(field: &Field) -> anyhow::Result<Healed> {
    let applying = baselines(field).await;
    field.insist("ending the consumers' sessions", || end_all_sessions(field)).await?;
    Ok(Healed::at_once(applying))
}

async fn end_all_sessions(field: &Field) -> anyhow::Result<()> {
    let end = "select count(pg_terminate_backend(pid))
         from pg_stat_activity
         where usename = 'cdc_consumer'";
    let ended: i64 = sqlx::query_scalar(end).fetch_one(&field.post_db).await?;
    if ended == 0 {
        bail!("there are none");
    }
    Ok(())
}

async fn network(
    field: &Field,
    service: Service,
    mode: Mode,
    lasts: Duration,
) -> anyhow::Result<Healed> {
    let proxy = field.proxy(service).context("the consumer has no network of ours")?;
    proxy.set(mode);
    let end = Instant::now() + lasts;
    // A lost reply ends the fault by itself.
    while proxy.mode() == mode && Instant::now() < end {
        sleep(LOOK_INTERVAL).await;
    }
    let before = field.records_done(service).await.unwrap_or(0);
    let at = Instant::now();
    let last = proxy.set(Mode::Forward);
    let missed = last == Mode::LoseCommitReply;
    Ok(Healed { at, missed, ..Healed::at_once(vec![(service, before)]) })
}

async fn join_and_leave(
    field: &Field,
    service: Service,
    lasts: Duration,
) -> anyhow::Result<Healed> {
    field.launch(service).await?;
    sleep(lasts).await;
    let applying = baselines(field).await;
    field.stack.stop(service).await?;
    Ok(Healed::at_once(applying))
}

async fn reset_offsets(field: &Field, topic: &str, percent: u8) -> anyhow::Result<Healed> {
    field.insist("resetting the offsets", || reset_topic(field, topic, percent)).await?;
    Ok(Healed::at_once(Vec::new()))
}

async fn reset_topic(field: &Field, topic: &str, percent: u8) -> anyhow::Result<()> {
    if percent == 0 {
        return reset(field, topic, &[]).await;
    }
    let stored = format!(
        "select partition, next_offset * $2 / 100 from views_{}.cdc_offset where topic = $1",
        field.generation().await?
    );
    let stored: Vec<(i32, i64)> = sqlx::query_as(&stored)
        .bind(topic)
        .bind(i64::from(percent))
        .fetch_all(&field.post_db)
        .await?;
    for (partition, offset) in stored {
        let (partition, offset) = (partition.to_string(), offset.to_string());
        reset(field, topic, &["--partition", &partition, "--to", &offset]).await?;
    }
    Ok(())
}

async fn reset(field: &Field, topic: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let command = [&["offsets", "reset", "--topic", topic, "--execute"], arguments].concat();
    say(field, "cdc-consumer", &command).await
}

/// Broken off by another fault it is said again, and goes on.
async fn rebuild(field: &Field) -> anyhow::Result<Healed> {
    field.insist("rebuilding the views", || say(field, "cdc-consumer", &["rebuild"])).await?;
    let applying = baselines(field).await;
    let at = Instant::now();
    field.insist("dropping the views before", || drop_others(field)).await?;
    Ok(Healed { at, ..Healed::at_once(applying) })
}

async fn drop_others(field: &Field) -> anyhow::Result<()> {
    let others = "select substring(nspname from 7) from pg_namespace
         where nspname ~ '^views_[0-9]+$' and nspname <> 'views_' || $1";
    let current = field.generation().await?;
    let others: Vec<String> =
        sqlx::query_scalar(others).bind(current).fetch_all(&field.post_db).await?;
    for other in others {
        say(field, "migrate", &["drop", "--generation", &other]).await?;
    }
    Ok(())
}

/// A command of ours, as an operator would type it.
async fn say(field: &Field, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let places = field.stack.places();
    let mut command = Command::new(places.programs.join(program));
    // Where the declaration of the views is.
    command.current_dir(&places.root);
    command.args(arguments).envs(environment()).kill_on_drop(true);
    let output = command.output().await?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

async fn restart_task(field: &Field, connector: &str) -> anyhow::Result<Healed> {
    let path = format!("/connectors/{connector}/tasks/0/restart");
    field.insist("restarting a task", || field.tell_connect(&path)).await?;
    Ok(Healed::at_once(Vec::new()))
}

#[cfg(test)]
mod tests {
    use devstack::{Settings, Stack};

    use crate::history::History;

    use super::*;

    #[tokio::test]
    async fn a_process_that_ended_by_itself_is_missed_and_left_to_the_supervisor() {
        let scratch = std::env::temp_dir().join(format!("chaos-{:x}", rand::random::<u64>()));
        let mut settings = Settings::from_environment();
        settings.state = Some(scratch.clone());
        let history = History::create(&scratch, 1).unwrap();
        let field = Field::new(Stack::new(&settings).unwrap(), history).await.unwrap();
        let service = Service::Registry;
        let killed = kill(&field, service, Duration::ZERO).await;
        std::fs::remove_dir_all(scratch).unwrap();
        assert!(killed.unwrap().missed);
        assert!(!field.is_expected_down(service), "nobody would start it again");
        let frozen = field.stack.pause(service);
        assert!(!struck(&field, service, frozen).unwrap());
    }
}
