//! Waiting for a view to show something. Views follow their source after milliseconds, so a short
//! wait lets a client use at once what it has just written elsewhere.

use std::time::Duration;

use tokio::time::{Instant, sleep};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Runs `attempt` until what it returns is `enough` or `wait` is over, and returns the last
/// result. The first attempt is immediate; no connection is held between attempts.
pub(crate) async fn until<T, E, F>(
    wait: Duration,
    enough: impl Fn(&T) -> bool,
    attempt: impl Fn() -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let deadline = Instant::now() + wait;
    let mut pause = FIRST_PAUSE;
    loop {
        let result = attempt().await?;
        let now = Instant::now();
        if enough(&result) || now >= deadline {
            return Ok(result);
        }
        sleep(pause.min(deadline - now)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::*;

    /// Attempts until the `enough_at`th, and how long they took.
    async fn attempts(wait: Duration, enough_at: u32) -> (u32, Duration) {
        let started = Instant::now();
        let count = Cell::new(0);
        let attempt = || {
            count.set(count.get() + 1);
            std::future::ready(Ok::<_, Infallible>(count.get()))
        };
        let result = until(wait, |seen| *seen >= enough_at, attempt).await;
        assert_eq!(result, Ok(count.get()));
        (count.get(), started.elapsed())
    }

    #[tokio::test]
    async fn attempts_end_with_success_or_with_the_wait() {
        for (wait_seconds, enough_at, last) in [(0, 1, 1), (0, 2, 1), (60, 3, 3)] {
            let (count, _) = attempts(Duration::from_secs(wait_seconds), enough_at).await;
            assert_eq!(count, last, "{wait_seconds} s, enough at {enough_at}");
        }
        // At 0, 10 and 30 ms, and once more at the end; fewer where the machine is slow, never more.
        let wait = Duration::from_millis(35);
        let (count, time) = attempts(wait, 100).await;
        assert!((2..=4).contains(&count) && time >= wait, "{count} attempts in {time:?}");
    }
}
