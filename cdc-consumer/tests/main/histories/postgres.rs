//! The real fence and the real statements, called as a writer calls them.

use cdc_consumer::apply::{self, Attempt, Care, Target};
use cdc_consumer::batch::Batch;
use cdc_consumer::fence::{self, Wanted};
use cdc_consumer::offsets::{Partition, Progress};
use sqlx::PgConnection;

/// A view database.
pub(crate) struct Postgres {
    pub(crate) connection: PgConnection,
    pub(crate) target: Target,
}

impl Postgres {
    pub(crate) async fn acquire(
        &mut self,
        partition: &Partition,
        requested: Option<i64>,
    ) -> Progress {
        let wanted = Wanted { partition: partition.clone(), log_start: 0, requested };
        fence::acquire(&mut self.connection, &wanted, "history").await.expect("acquired")
    }

    /// Applies a batch, unless the fence holds it back.
    pub(crate) async fn apply(&mut self, batch: &Batch) -> bool {
        let attempt = apply::apply(&mut self.connection, &self.target, batch, Care::Sets).await;
        let applied = matches!(attempt.expect("no failure"), Attempt::Applied(_));
        // What a writer asks when the answer to its commit is lost.
        let settled = fence::settled(&mut self.connection, &batch.claims).await.expect("offsets");
        assert!(settled || !applied, "an applied batch is settled");
        applied
    }
}
