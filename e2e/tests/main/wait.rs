//! Waiting for a condition, never for time alone.

use std::time::Duration;

use tokio::time::{Instant, sleep};

const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Looks until there is something to return. What was seen instead at last is part of the failure.
pub(crate) async fn until<T>(
    what: &str,
    deadline: Duration,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let end = Instant::now() + deadline;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) => assert!(
                Instant::now() < end,
                "waited {} s in vain until {what}; seen last: {seen}",
                deadline.as_secs()
            ),
        }
        sleep(POLL_INTERVAL).await;
    }
}
