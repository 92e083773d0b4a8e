//! Work that must be cleaned up after, whatever became of it.

use std::sync::LazyLock;

use anyhow::bail;
use tokio::sync::watch;

/// Whether somebody pressed Ctrl-C since the first [`unless_interrupted`]: during the cleaning up it ends
/// nothing, but nothing is begun after it either.
static PRESSED: LazyLock<watch::Receiver<bool>> = LazyLock::new(|| {
    let (pressed, receiver) = watch::channel(false);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            pressed.send_replace(true);
        }
    });
    receiver
});

/// Fails when interrupted, before or during the work. From the first call on an interrupt no longer ends
/// the program.
pub(crate) async fn unless_interrupted<T>(
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let mut pressed = PRESSED.clone();
    tokio::select! {
        biased;
        Ok(_) = pressed.wait_for(|pressed| *pressed) => bail!("interrupted"),
        outcome = work => outcome,
    }
}

/// Cleans up when the work is over. Of two errors both are told.
pub(crate) async fn cleaned_up<T>(
    work: impl Future<Output = anyhow::Result<T>>,
    clean_up: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<T> {
    let outcome = work.await;
    match (outcome, clean_up.await) {
        (Err(error), Err(also)) => Err(error.context(format!("and to clean up failed: {also:#}"))),
        (outcome, cleaned) => outcome.and_then(|outcome| cleaned.map(|()| outcome)),
    }
}
