//! Works through the schedule: at most two faults at once, never two of one server, and a new one
//! only when the system has recovered from those before it or takes its time, unless the schedule
//! wants them to overlap.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use devstack::Service;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};

use crate::fault::{CONSUMERS, Injection, Kind, Server, rounded};
use crate::field::Field;
use crate::history::Anomaly;
use crate::inject::inject;
use crate::marker::Marker;
use crate::recovery::{self, Healed};
use crate::schedule::OVERLAP_AFTER;

/// Between two looks at whether every process is there.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
const AT_ONCE_MAX: usize = 2;
/// Longest wait for the recovery of the fault before. On a busy machine a server takes a minute to
/// start; the others are not spared meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// A fault that is not over.
struct Underway {
    server: Server,
    /// Shared with its task; the only one left when that has ended.
    alone: Arc<AtomicBool>,
}

/// What became of one fault.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) kind: Kind,
    /// Nothing else was going on from its beginning to its recovery.
    pub(crate) alone: bool,
    /// From the heal until new rows were visible; none when they did not come at all.
    pub(crate) recovery: Option<Duration>,
    pub(crate) takeover: Option<Duration>,
    /// Nothing came that it could have broken.
    pub(crate) missed: bool,
}

/// Injects until the time is over; ends when the system has recovered from everything. `announce` is
/// told what begins; `outcomes` keeps what a run shows that is stopped before its time.
pub(crate) async fn run(
    field: &Arc<Field>,
    marker: &Arc<Marker>,
    schedule: &[Injection],
    length: Duration,
    announce: impl Fn(String),
    outcomes: &mut Vec<Outcome>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut active: JoinSet<anyhow::Result<Outcome>> = JoinSet::new();
    let mut begun = started;
    let mut underway: Vec<Underway> = Vec::new();
    for (number, injection) in schedule.iter().enumerate() {
        sleep_until(started + injection.at).await;
        let due = Instant::now();
        loop {
            underway.retain(|each| Arc::strong_count(&each.alone) > 1);
            let patience = if injection.overlaps { Duration::ZERO } else { PATIENCE };
            let wait = patience.saturating_sub(due.elapsed());
            let server = injection.kind.server();
            let free =
                active.len() < AT_ONCE_MAX && underway.iter().all(|each| each.server != server);
            if active.is_empty() || (free && wait.is_zero()) {
                break;
            }
            // At the end of the wait, or when a place is free.
            let end = if free { due + patience } else { due + Duration::from_hours(1) };
            if let Ok(outcome) = timeout_at(end, finished(&mut active)).await {
                outcomes.extend(outcome?);
            }
        }
        if injection.overlaps {
            // The fault before may have come late; this one follows it all the same.
            sleep_until(begun + OVERLAP_AFTER).await;
        }
        begun = Instant::now();
        // What the system was too slow for is left out rather than made the run longer.
        if started.elapsed() > length {
            field.history.write("skipped", &json!({ "count": schedule.len() - number }));
            break;
        }
        let alone = Arc::new(AtomicBool::new(underway.is_empty()));
        for other in &underway {
            other.alone.store(false, Relaxed);
        }
        underway.push(Underway { server: injection.kind.server(), alone: Arc::clone(&alone) });
        announce(format!("{} of {}", injection.kind, injection.target));
        let (field, marker) = (Arc::clone(field), Arc::clone(marker));
        active.spawn(one(field, marker, injection.clone(), alone));
    }
    while !active.is_empty() {
        outcomes.extend(finished(&mut active).await?);
    }
    Ok(())
}

async fn finished(
    active: &mut JoinSet<anyhow::Result<Outcome>>,
) -> anyhow::Result<Option<Outcome>> {
    match active.join_next().await {
        Some(outcome) => Ok(Some(outcome??)),
        None => Ok(None),
    }
}

async fn one(
    field: Arc<Field>,
    marker: Arc<Marker>,
    injection: Injection,
    alone: Arc<AtomicBool>,
) -> anyhow::Result<Outcome> {
    let Injection { kind, target, .. } = injection;
    field.history.write("inject", &json!({ "fault": kind, "target": target }));
    let healed = inject(&field, &marker, &injection).await?;
    let takeover = healed.takeover.map(rounded);
    let fields = json!({
        "fault": kind, "target": target, "takeover_seconds": takeover, "missed": healed.missed
    });
    field.history.write("heal", &fields);
    if stood_still(kind, &healed, alone.load(Relaxed)) {
        let details = format!("the other consumer took nothing over while {target} was frozen");
        field.history.anomaly(Anomaly::NoTakeover, details);
    }
    let recovery = recovery::measure(&field, &marker, &injection, &healed).await;
    let alone = alone.load(Relaxed);
    let seconds = recovery.map(rounded);
    let fields =
        json!({ "fault": kind, "target": target, "recovery_seconds": seconds, "alone": alone });
    field.history.write("recovered", &fields);
    Ok(Outcome { kind, alone, recovery, takeover: healed.takeover, missed: healed.missed })
}

/// Whether a frozen consumer's rows stood still although the other consumer and the servers were there.
fn stood_still(kind: Kind, healed: &Healed, alone: bool) -> bool {
    let frozen = kind == Kind::Pause(Server::Consumer) && !healed.missed;
    frozen && healed.takeover.is_none() && alone
}

/// Starts again what ended by itself, as the supervisor of a real installation would. For our own
/// programs that is an anomaly; a server may give up when another one is away as it starts.
pub(crate) async fn supervise(field: Arc<Field>) {
    let mut ticks = interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let services = Service::STANDARD.into_iter().chain((2..=CONSUMERS).map(Service::Consumer));
    let services: Vec<Service> = services.collect();
    loop {
        ticks.tick().await;
        for &service in &services {
            // Asked twice: the fault may begin between the questions, or end.
            if field.is_expected_down(service)
                || field.stack.running(service).is_some()
                || field.is_expected_down(service)
            {
                continue;
            }
            if service.is_server() {
                field.history.write("ended", &json!({ "process": service.to_string() }));
            } else {
                field.history.anomaly(Anomaly::Ended, format!("{service} ended by itself"));
                field.history.keep(&field.stack.places().log(&service.to_string()));
            }
            if let Err(error) = field.launch(service).await {
                let fields =
                    json!({ "process": service.to_string(), "error": format!("{error:#}") });
                field.history.write("not started", &fields);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_takeover_that_did_not_come_is_excused_by_another_fault_alone() {
        let frozen = Kind::Pause(Server::Consumer);
        let none = Healed::at_once(vec![]);
        assert!(stood_still(frozen, &none, true));
        assert!(!stood_still(frozen, &none, false));
        let takeover = Some(Duration::from_secs(9));
        assert!(!stood_still(frozen, &Healed { takeover, ..Healed::at_once(vec![]) }, true));
        assert!(!stood_still(frozen, &Healed { missed: true, ..Healed::at_once(vec![]) }, true));
        assert!(!stood_still(Kind::Kill(Server::Consumer), &none, true));
    }
}
