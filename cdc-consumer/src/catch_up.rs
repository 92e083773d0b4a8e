//! How far a generation that is built has come, beside the one that readers see.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rdkafka::consumer::BaseConsumer;
use sqlx::{PgConnection, Row};

use crate::config::KafkaSettings;
use crate::database::{self, Database, Generation, Place, schema_of};
use crate::fence;
use crate::offsets::Partition;
use crate::same_log::{self, Bounds, Built};
use crate::source;

/// Next offsets by partition.
pub(crate) type Offsets = BTreeMap<Partition, i64>;

/// What there is to see at one moment.
pub(crate) struct Look {
    /// Where the logs end.
    pub(crate) ends: Offsets,
    /// How far the new generation was built.
    pub(crate) built: Offsets,
    /// The generation that readers see.
    pub(crate) published: Generation,
    /// Rows that the newest snapshot did not mention are gone from the views that readers see, and not yet
    /// from the new ones.
    pub(crate) unswept: bool,
}

/// Partitions that were not built up to these offsets, and how much is left.
pub(crate) fn behind<'w>(built: &Offsets, wanted: &'w Offsets) -> Vec<(&'w Partition, i64)> {
    let left = wanted.iter().map(|(partition, next)| {
        let built = built.get(partition).copied().unwrap_or(0);
        (partition, next - built)
    });
    left.filter(|(_, count)| *count > 0).collect()
}

/// Whether everything before these offsets was built.
pub(crate) fn reached(built: &Offsets, wanted: &Offsets) -> bool {
    behind(built, wanted).is_empty()
}

fn ends(bounds: &Bounds) -> Offsets {
    bounds.iter().map(|(partition, (_, end))| (partition.clone(), *end)).collect()
}

/// Looks at the broker and the database.
pub(crate) struct Observer {
    kafka: KafkaSettings,
    client: Arc<BaseConsumer>,
    database: Database,
    place: Place,
    topics: Vec<String>,
    connection: Option<PgConnection>,
}

impl Observer {
    pub(crate) fn new(
        kafka: &KafkaSettings,
        database: Database,
        place: Place,
        topics: Vec<String>,
    ) -> anyhow::Result<Self> {
        let client = Arc::new(source::client(kafka)?);
        Ok(Self { kafka: kafka.clone(), client, database, place, topics, connection: None })
    }

    pub(crate) async fn look(&mut self) -> anyhow::Result<Look> {
        let ends = ends(&self.bounds().await?);
        let built = self.built().await?;
        let published = self.published().await?;
        // Somebody who published another may have dropped the one that this asks.
        let unswept = published == self.place.published && self.unswept().await?;
        Ok(Look { ends, built, published, unswept })
    }

    /// Fails where the logs are not those that readers see views of, or cannot give what is still to be built.
    pub(crate) async fn check_logs(
        &mut self,
        from_cut_log: bool,
        deleted_keys_kept: Duration,
    ) -> anyhow::Result<()> {
        let Place { generation, published } = self.place;
        // In this order: the views go on, and so does the log.
        let shown = self.stored(published).await?;
        let built = self.stored(generation).await?;
        let bounds = self.bounds().await?;
        let begin_anew = |topic: &str| {
            format!(
                "take a new snapshot (docs/operations.md, \"A slot was lost\"), begin the new log with `cdc-consumer \
                 offsets reset --topic {topic} --new-log --execute`, then say this again"
            )
        };
        let who = "the views that readers see have read";
        same_log::check(&self.kafka, &shown, &bounds, who, begin_anew).await?;
        let who = format!("generation {generation} was built");
        let drop = |_: &str| {
            format!(
                "drop that generation (`migrate drop --generation {generation}`) and say this again"
            )
        };
        same_log::check(&self.kafka, &built, &bounds, &who, drop).await?;
        self.logs_suffice(&next_of(built), &bounds, from_cut_log, deleted_keys_kept).await
    }

    /// Fails where a log does not reach back to what was built: rows that did not change since would be
    /// missing from the new views. So it does where a partition of it stood still for longer than the topics
    /// remember what was deleted: the rows would be back.
    async fn logs_suffice(
        &mut self,
        built: &Offsets,
        bounds: &Bounds,
        from_cut_log: bool,
        deleted_keys_kept: Duration,
    ) -> anyhow::Result<()> {
        let generation = self.place.generation;
        for (partition, &(start, _)) in bounds {
            match built.get(partition) {
                Some(&next) => ensure!(
                    next >= start,
                    "{partition}: generation {generation} was built up to record {next}, the broker's first is \
                     {start} by now, those between are gone; drop that generation (`migrate drop --generation \
                     {generation}`) and say it again"
                ),
                None => ensure!(
                    start == 0 || from_cut_log,
                    "{partition}: the broker's first record is {start}, those before it are gone, and with \
                     them the rows that did not change since; take a new snapshot \
                     (docs/operations.md), then say --from-cut-log"
                ),
            }
        }
        ensure!(
            !self.stood_still(built, &ends(bounds), deleted_keys_kept).await?,
            "generation {generation} has been standing still for longer than {} (CONSUMER_DELETED_KEYS_KEPT): the \
             topics may not tell any more which of its rows were deleted since; drop it (`migrate drop --generation \
             {generation}`) and say it again without its number",
            humantime::format_duration(deleted_keys_kept)
        );
        Ok(())
    }

    /// Whether a partition that is behind the end of its log was last moved, or known to be there ([`leave`]), so long ago.
    async fn stood_still(
        &mut self,
        built: &Offsets,
        ends: &Offsets,
        period: Duration,
    ) -> anyhow::Result<bool> {
        let schema = schema_of(self.place.generation);
        let sql = format!(
            "select exists (
                 select from {schema}.cdc_offset o
                 join unnest($1::text[], $2::int[]) as b (topic, partition) using (topic, partition)
                 where now() - o.updated_at > make_interval(secs => $3))"
        );
        let behind: Vec<_> =
            behind(built, ends).into_iter().map(|(partition, _)| partition).collect();
        let read = sqlx::query_scalar(&sql)
            .bind(behind.iter().map(|partition| partition.topic.as_str()).collect::<Vec<_>>())
            .bind(behind.iter().map(|partition| partition.number).collect::<Vec<_>>())
            .bind(period.as_secs_f64());
        let read = read.fetch_one(self.connected().await?).await;
        read.context("could not read when the generation was built")
    }

    /// First and next offset of all partitions.
    async fn bounds(&self) -> anyhow::Result<Bounds> {
        let (client, topics) = (Arc::clone(&self.client), self.topics.clone());
        let asked = tokio::task::spawn_blocking(move || {
            let mut all = Bounds::new();
            for topic in topics {
                for (number, bounds) in source::log_bounds(&client, &topic)? {
                    all.insert(Partition { topic: topic.clone(), number }, bounds);
                }
            }
            anyhow::Ok(all)
        });
        asked.await.context("the question to the broker was broken off")?
    }

    /// How far the new generation was built.
    pub(crate) async fn built(&mut self) -> anyhow::Result<Offsets> {
        Ok(next_of(self.stored(self.place.generation).await?))
    }

    /// How far a generation is. A connection that fails is made anew with the next question.
    async fn stored(&mut self, generation: Generation) -> anyhow::Result<Built> {
        let sql = offsets_sql(generation);
        let topics = self.topics.clone();
        let read = sqlx::query(&sql).bind(topics).fetch_all(self.connected().await?);
        let rows = read.await.inspect_err(|_| self.connection = None);
        let rows = rows.with_context(|| {
            format!("could not read how far the views of generation {generation} are")
        })?;
        progress(&rows)
    }

    async fn published(&mut self) -> anyhow::Result<Generation> {
        let read = database::published(self.connected().await?);
        let published = read.await.inspect_err(|_| self.connection = None);
        published.context("could not read which views readers see")
    }

    /// Of another snapshot than the old views' newest no end may come any more; what they swept is removed
    /// before the swap ([`crate::swept`]). Dead letters may hold a sweep up, and wait for an operator.
    async fn unswept(&mut self) -> anyhow::Result<bool> {
        let (new, old) = (schema_of(self.place.generation), schema_of(self.place.published));
        let sql = format!(
            "select exists (
                 select from {new}.cdc_snapshot n
                 left join {old}.cdc_snapshot o using (view_name)
                 where n.swept_at is null
                 and (o.view_name is null or o.swept_at is not null and o.source_lsn = n.source_lsn)
                 and not exists (select from {new}.cdc_dead_letter l where l.view_name = n.view_name))"
        );
        let read = sqlx::query_scalar(&sql).fetch_one(self.connected().await?);
        let unswept = read.await.inspect_err(|_| self.connection = None);
        unswept.context("could not read what is known of snapshots")
    }

    async fn connected(&mut self) -> anyhow::Result<&mut PgConnection> {
        match &mut self.connection {
            Some(connection) => Ok(connection),
            none => Ok(none.insert(self.database.connect().await?)),
        }
    }
}

/// Keeps the offsets of the generation that readers see where they are, until the transaction ends, and
/// returns them.
pub(crate) async fn hold(
    tx: &mut PgConnection,
    place: Place,
    topics: &[String],
) -> anyhow::Result<Offsets> {
    let sql = format!("{} for update", offsets_sql(place.published));
    let rows = sqlx::query(&sql).bind(topics).fetch_all(&mut *tx).await;
    let rows = rows.context("could not hold the views that readers see where they are")?;
    let published = database::published(tx).await;
    replaces(place, published.context("could not read which views readers see")?)?;
    Ok(next_of(progress(&rows)?))
}

/// Notes that the old views are as new as the new ones, where they are: going back to them, a partition that was quiet
/// for long has not been standing still for as long.
pub(crate) async fn leave(tx: &mut PgConnection, place: Place) -> anyhow::Result<()> {
    let sql = format!(
        "update {old}.cdc_offset o set updated_at = now()
         from {new}.cdc_offset n
         where n.topic = o.topic and n.partition = o.partition and n.next_offset = o.next_offset",
        old = schema_of(place.published),
        new = schema_of(place.generation),
    );
    let left = sqlx::query(&sql).execute(tx).await;
    left.map(drop).context("could not note how new the old views are")
}

/// Fails when readers no longer see the generation that was to be replaced: what was built is compared with
/// that one, and theirs may show more.
pub(crate) fn replaces(place: Place, published: Generation) -> anyhow::Result<()> {
    ensure!(
        published == place.published,
        "readers see generation {published} by now, published by somebody else, not {}; this command changed \
         nothing of that. Say it again if generation {} is wanted all the same",
        place.published,
        place.generation
    );
    Ok(())
}

/// How many records the new generation keeps aside that are no dead letters in the one that readers see.
pub(crate) async fn more_dead_letters(tx: &mut PgConnection, place: Place) -> anyhow::Result<i64> {
    let (new, old) = (schema_of(place.generation), schema_of(place.published));
    let sql = format!(
        "select count(*)
         from {new}.cdc_dead_letter n
         left join {old}.cdc_dead_letter o using (topic, partition, record_offset)
         where o.id is null"
    );
    let count = sqlx::query_scalar(&sql).fetch_one(tx).await;
    count.context("could not count the dead letters")
}

/// In the order in which a batch locks them.
fn offsets_sql(generation: i32) -> String {
    format!(
        "select topic, partition, next_offset, anchor_offset, anchor_timestamp from {}.cdc_offset
         where topic = any($1) order by topic, partition",
        schema_of(generation)
    )
}

fn progress(rows: &[sqlx::postgres::PgRow]) -> anyhow::Result<Built> {
    let built = rows.iter().map(|row| {
        let partition =
            Partition { topic: row.try_get("topic")?, number: row.try_get("partition")? };
        Ok((partition, (row.try_get("next_offset")?, fence::anchor(row)?)))
    });
    built.collect::<Result<_, sqlx::Error>>().context("stored offsets have another form")
}

fn next_of(built: Built) -> Offsets {
    built.into_iter().map(|(partition, (next, _))| (partition, next)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_reached_only_when_each_partition_is_there() {
        let offsets = |offsets: &[(i32, i64)]| {
            let partition = |number| Partition { topic: "t".into(), number };
            offsets.iter().map(|&(number, next)| (partition(number), next)).collect::<Offsets>()
        };
        let check = |built: &[(i32, i64)], wanted: &[(i32, i64)], expected| {
            assert_eq!(
                reached(&offsets(built), &offsets(wanted)),
                expected,
                "{built:?} {wanted:?}"
            );
        };
        check(&[], &[], true);
        check(&[(0, 5)], &[(0, 5)], true);
        check(&[(0, 9), (1, 4)], &[(0, 5), (1, 5)], false);
        check(&[(0, 9)], &[(0, 5), (1, 0)], true);
        check(&[(0, 9)], &[(0, 5), (1, 1)], false);
    }
}
