//! What `check` finds about a topic: whether it is there, how long it keeps records, whether the stored offsets
//! lie in it, and whether its newest records fit its table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rdkafka::consumer::BaseConsumer;

use crate::assignment::check_bounds;
use crate::batch::Batch;
use crate::check::{Findings, Verdict};
use crate::config::KafkaSettings;
use crate::decode::{Decoded, Decoder, Record, View};
use crate::fence::StoredOffset;
use crate::kafka_admin;
use crate::offsets::{Partition, Progress};
use crate::plan::DEFAULTED;
use crate::refetch::{RawRecord, RecordFetcher};
use crate::registry::Registry;
use crate::source::{self, BrokerOffsets};

/// Records looked at from the end of a partition for one with a value.
const RECORDS_BACK: usize = 3;

/// A topic must remember deletes for as long as somebody may need to mend a consumer.
const AWAY: Duration = Duration::from_hours(24);

/// First and next offsets of a topic's partitions.
type Bounds = BTreeMap<i32, (i64, i64)>;

/// Looks at one topic after the other.
pub(crate) struct TopicCheck<'a> {
    pub(crate) kafka: &'a KafkaSettings,
    pub(crate) client: Arc<BaseConsumer>,
    pub(crate) registry: Registry,
    pub(crate) fetcher: RecordFetcher,
    /// Nothing where they could not be read.
    pub(crate) offsets: Option<Vec<StoredOffset>>,
    /// Those whose tables could be read.
    pub(crate) views: Arc<Vec<View>>,
    pub(crate) findings: &'a mut Findings,
}

impl TopicCheck<'_> {
    /// Fails only where no other topic could be looked at either.
    pub(crate) async fn look(&mut self, topic: &str) -> anyhow::Result<()> {
        let subject = format!("topic {topic}");
        let (client, name) = (Arc::clone(&self.client), topic.to_owned());
        let asked = tokio::task::spawn_blocking(move || source::log_bounds(&client, &name));
        let bounds = asked.await.context("the question was broken off")??;
        if bounds.is_empty() {
            let says = "does not exist; its connector makes it with the first change";
            self.findings.add(Verdict::Doubtful, &subject, says);
            return Ok(());
        }
        let (verdict, says) = match kafka_admin::topic_settings(self.kafka, topic).await {
            Ok(settings) => retention(&settings),
            Err(error) => (Verdict::Doubtful, format!("its settings cannot be read: {error}")),
        };
        self.findings.add(verdict, &subject, format!("{} partitions, {says}", bounds.len()));
        self.look_at_offsets(topic, &bounds);
        if self.views.iter().any(|view| view.spec.topic == topic) {
            self.look_at_records(topic, &bounds).await;
        }
        Ok(())
    }

    /// The next record of each partition must still be there.
    fn look_at_offsets(&mut self, topic: &str, bounds: &Bounds) {
        let subject = format!("offsets of {topic}");
        let Some(offsets) = &self.offsets else { return };
        let mut lag = 0;
        for (&number, &(log_start, log_end)) in bounds {
            let partition = Partition { topic: topic.to_owned(), number };
            let broker = BrokerOffsets { log_start, log_end, requested: None };
            let stored = offsets.iter().find(|at| at.topic == topic && at.partition == number);
            let next_offset = stored.map_or(log_start, |stored| stored.next_offset);
            lag += log_end - next_offset;
            if let Err(error) = check_bounds(&partition, next_offset, broker) {
                return self.findings.failed(&subject, &error.into());
            }
        }
        let says = format!("inside their logs, lag {lag}");
        self.findings.add(Verdict::Fine, &subject, says);
    }

    /// Decodes the newest record of each partition as the consumer would.
    async fn look_at_records(&mut self, topic: &str, bounds: &Bounds) {
        let subject = format!("records of {topic}");
        let mut decoder = Decoder::new(Arc::clone(&self.views));
        let (mut fitting, mut others) = (0, 0);
        for (&number, &bounds) in bounds {
            let partition = Partition { topic: topic.to_owned(), number };
            let Some((offset, record)) = self.newest_record(&partition, bounds).await else {
                continue;
            };
            match self.decode(&mut decoder, &partition, offset, &record).await {
                Ok(None) => fitting += 1,
                Ok(Some(refused)) => {
                    others += 1;
                    let says = format!("{partition} @ {offset} would be kept aside: {refused}");
                    self.findings.add(Verdict::Wrong, &subject, says);
                }
                Err(error) => {
                    others += 1;
                    self.findings.failed(&subject, &error);
                    break; // the next ones would only say the same
                }
            }
        }
        if fitting > 0 {
            let says = format!("the newest of {fitting} partitions fits its table");
            self.findings.add(Verdict::Fine, &subject, says);
        } else if others == 0 {
            self.findings.add(Verdict::Fine, &subject, "there is none to look at");
        }
        let defaulted: Vec<_> = decoder.defaulted_columns().collect();
        if !defaulted.is_empty() {
            let says = format!("{} {DEFAULTED}", defaulted.join(", "));
            self.findings.add(Verdict::Doubtful, &format!("columns of {topic}"), says);
        }
    }

    /// One near the end of a partition, with a value. What cannot be read (the mark of a transaction, a
    /// record compacted away) is passed over.
    async fn newest_record(
        &self,
        partition: &Partition,
        (start, end): (i64, i64),
    ) -> Option<(i64, RawRecord)> {
        for offset in (start..end).rev().take(RECORDS_BACK) {
            let fetched = self.fetcher.fetch(partition, offset).await;
            if let Ok(Some(record @ (_, Some(_)))) = fetched {
                return Some((offset, record));
            }
        }
        None
    }

    /// Why the record would be kept aside, if it would. An error where the whole topic would halt.
    async fn decode(
        &self,
        decoder: &mut Decoder,
        partition: &Partition,
        offset: i64,
        (key, value): &RawRecord,
    ) -> anyhow::Result<Option<String>> {
        let mut batch = Batch::new(self.views.iter().map(View::shape));
        let mut progress = Progress::new(offset, 0);
        let record = Record {
            topic: &partition.topic,
            partition: partition.number,
            offset,
            timestamp_millis: -1,
            key: key.as_deref(),
            value: value.as_deref(),
            headers: &false,
        };
        while let Decoded::NeedsSchema(id) =
            decoder.decode(&record, partition, &mut progress, &mut batch)?
        {
            decoder.learn(id, self.registry.schema(id).await?);
        }
        Ok(batch.refused.first().map(|refused| refused.error.clone()))
    }
}

/// How long a consumer may be away from a topic with these settings. Pure.
fn retention(settings: &BTreeMap<String, String>) -> (Verdict, String) {
    let number = |name: &str| settings.get(name).and_then(|value| value.parse::<i64>().ok());
    let policy = settings.get("cleanup.policy").map_or("delete", String::as_str);
    if policy.contains("delete") {
        let (age, bytes) = (number("retention.ms"), number("retention.bytes"));
        if (age.unwrap_or(-1), bytes.unwrap_or(-1)) == (-1, -1) {
            return (Verdict::Fine, "keeps every record".to_owned());
        }
        let kept = age.filter(|age| *age >= 0).map_or("its size allows".to_owned(), written);
        let says = format!(
            "keeps records for {kept} (cleanup.policy={policy}): a consumer that is away for longer halts, \
             and a rebuild needs a new snapshot"
        );
        return (Verdict::Doubtful, says);
    }
    let lag = number("min.compaction.lag.ms").unwrap_or(0);
    if Duration::from_millis(lag.unsigned_abs()) >= AWAY {
        return (Verdict::Fine, format!("compacted; a consumer may be away for {}", written(lag)));
    }
    let says = format!(
        "compacted after {}: a consumer that is away for longer may miss where a delete stood; raise \
         min.compaction.lag.ms",
        written(lag)
    );
    (Verdict::Doubtful, says)
}

fn written(millis: i64) -> String {
    humantime::format_duration(Duration::from_millis(millis.unsigned_abs())).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_forgets_too_soon_is_doubtful() {
        let check = |settings: &[(&str, &str)], verdict, says: &str| {
            let settings = settings.iter().map(|&(name, value)| (name.into(), value.into()));
            let found = retention(&settings.collect());
            assert_eq!(found.0, verdict, "{}", found.1);
            assert!(found.1.contains(says), "{}", found.1);
        };
        let compact = ("cleanup.policy", "compact");
        check(&[compact, ("min.compaction.lag.ms", "259200000")], Verdict::Fine, "for 3days");
        check(&[compact, ("min.compaction.lag.ms", "0")], Verdict::Doubtful, "after 0s");
        check(&[compact], Verdict::Doubtful, "raise min.compaction.lag.ms");
        let delete = ("cleanup.policy", "delete");
        check(&[delete, ("retention.ms", "604800000")], Verdict::Doubtful, "for 7days");
        check(&[delete, ("retention.ms", "-1"), ("retention.bytes", "-1")], Verdict::Fine, "every");
        check(
            &[delete, ("retention.ms", "-1"), ("retention.bytes", "9")],
            Verdict::Doubtful,
            "size",
        );
        check(
            &[("cleanup.policy", "compact,delete"), ("retention.ms", "9000")],
            Verdict::Doubtful,
            "9s",
        );
    }
}
