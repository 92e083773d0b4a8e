//! How long it takes until new rows are visible again.

use std::time::Duration;

use devstack::Service;
use devstack::addresses::CONNECTORS;
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use crate::fault::{Injection, rounded};
use crate::field::Field;
use crate::history::Anomaly;
use crate::marker::{Mark, Marker};
use crate::owed::Owed;

/// Between two looks. Bounds how exact the times are.
const LOOK_INTERVAL: Duration = Duration::from_millis(30);
/// After so long without new rows in the view somebody has to help. Long, because a busy machine
/// takes half a minute to start a server.
const STUCK_AFTER: Duration = Duration::from_mins(3);
/// A task that has FAILED is not started again by Connect; what would still mend it takes less.
const FAILED_AFTER: Duration = Duration::from_secs(30);
const FAILED_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// From when on recovery is measured, and by what besides new rows.
#[derive(Debug)]
pub(crate) struct Healed {
    pub(crate) at: Instant,
    /// Consumers that must have brought more records to an end than these counts.
    pub(crate) applying: Vec<(Service, u64)>,
    /// From the fault until new rows were visible again, although it lasted.
    pub(crate) takeover: Option<Duration>,
    /// Nothing came that it could have broken.
    pub(crate) missed: bool,
}

impl Healed {
    pub(crate) fn at_once(applying: Vec<(Service, u64)>) -> Self {
        Self { at: Instant::now(), applying, takeover: None, missed: false }
    }
}

/// Waits until a change made after the heal is visible, with everything before it, and the consumers
/// that were hit apply again. Helps when that does not happen by itself, which is an anomaly; none if not even that
/// mended it.
pub(crate) async fn measure(
    field: &Field,
    marker: &Marker,
    injection: &Injection,
    healed: &Healed,
) -> Option<Duration> {
    if let Some(time) = wait(field, marker, healed).await {
        return Some(time);
    }
    let what = format!("{} of {}", injection.kind, injection.target);
    let seconds = healed.at.elapsed().as_secs();
    let statements = field.statements().await;
    field.history.write("stuck", &json!({ "after": what, "statements": statements }));
    field.history.keep(&field.stack.places().log("connect"));
    for name in CONNECTORS {
        let path = format!("/connectors/{name}/restart?includeTasks=true");
        let outcome = field.tell_connect(&path).await.map_err(|error| error.to_string());
        field.history.write("helped", &json!({ "connector": name, "error": outcome.err() }));
    }
    let time = wait(field, marker, healed).await;
    let end = match time {
        Some(time) => format!("after the connectors were restarted all was well at {time:.1?}"),
        None => "restarting the connectors did not help".to_owned(),
    };
    let details = format!("{seconds} s after {what} no new row had arrived; {end}");
    field.history.anomaly(Anomaly::Stuck, details);
    time
}

async fn wait(field: &Field, marker: &Marker, healed: &Healed) -> Option<Duration> {
    let end = Instant::now() + STUCK_AFTER;
    let visible = async {
        let owed = insist(|| Owed::read(field, marker)).await;
        let mark = mark(marker).await;
        seen(marker, mark).await;
        let visible = rounded(healed.at.elapsed());
        for missing in insist(|| owed.missing(field)).await {
            field.history.anomaly(Anomaly::Lost, missing);
        }
        visible
    };
    let applying = async {
        for &(service, before) in &healed.applying {
            while field.records_done(service).await.is_none_or(|now| now <= before) {
                sleep(LOOK_INTERVAL).await;
            }
        }
        rounded(healed.at.elapsed())
    };
    let both = async { tokio::join!(visible, applying) };
    let (visible, applying) = tokio::select! {
        both = both => both,
        () = failed(field) => return None,
        () = sleep_until(end) => return None,
    };
    field.history.write("visible", &json!({ "rows": visible, "applying": applying }));
    Some(Duration::from_secs_f64(visible.max(applying)))
}

/// Ends when a task has been FAILED for a while.
async fn failed(field: &Field) {
    let mut since = None;
    loop {
        sleep(FAILED_LOOK_INTERVAL).await;
        if field.failed_task().await {
            if since.get_or_insert_with(Instant::now).elapsed() >= FAILED_AFTER {
                return;
            }
        } else {
            since = None;
        }
    }
}

/// Writes marks until one is acknowledged.
async fn mark(marker: &Marker) -> Mark {
    insist(|| marker.mark()).await
}

/// Another fault may last meanwhile.
async fn insist<T, F: Future<Output = anyhow::Result<T>>>(attempt: impl Fn() -> F) -> T {
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(_) => sleep(LOOK_INTERVAL).await,
        }
    }
}

async fn seen(marker: &Marker, mark: Mark) {
    while !marker.visible(mark).await.unwrap_or(false) {
        sleep(LOOK_INTERVAL).await;
    }
}

/// Time until a change made now is visible.
pub(crate) async fn visible_in(marker: &Marker) -> Duration {
    let started = Instant::now();
    let mark = mark(marker).await;
    seen(marker, mark).await;
    started.elapsed()
}
