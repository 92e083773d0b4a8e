//! Plain COPY of the final rows into a table equal to the consumer's: no decoding, no conflicts, no
//! transactions but one. Nothing that keeps a table can be faster.

use std::time::{Duration, Instant};

use futures_util::TryStreamExt;

use crate::target::Target;

/// Bytes sent to the server at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Returns how long it took. The text of the rows is in memory before.
pub(crate) async fn run(target: &Target) -> anyhow::Result<Duration> {
    let mut db = target.db().await?;
    let all = "copy (select e.*, now(), 0, 0 from public.expected e) to stdout";
    let mut text = Vec::new();
    {
        let mut data = db.copy_out_raw(all).await?;
        while let Some(chunk) = data.try_next().await? {
            text.extend_from_slice(&chunk);
        }
    }
    let started = Instant::now();
    let mut writer = db.copy_in_raw("copy public.bench_copy from stdin").await?;
    for chunk in text.chunks(CHUNK_BYTES) {
        writer.send(chunk).await?;
    }
    writer.finish().await?;
    Ok(started.elapsed())
}
