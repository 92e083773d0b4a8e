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

    async fn check(wait_ms: u64, enough_at: u32, last: u32) {
        let count = Cell::new(0);
        let attempt = || {
            count.set(count.get() + 1);
            std::future::ready(Ok::<_, Infallible>(count.get()))
        };
        let wait = Duration::from_millis(wait_ms);
        let result = until(wait, |seen| *seen >= enough_at, attempt).await;
        assert_eq!(result, Ok(last));
    }

    #[tokio::test]
    async fn attempts_end_with_success_or_with_the_wait() {
        check(0, 1, 1).await;
        check(0, 2, 1).await;
        check(10_000, 3, 3).await;
        // At 0, 10 and 30 ms, and once more at the end.
        check(35, 100, 4).await;
    }
}
