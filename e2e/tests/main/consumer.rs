//! The consumer as an operator sees it: its admin port and its commands.

use std::collections::BTreeSet;
use std::process::Output;

use devstack::Service;
use devstack::addresses::{HOST, environment};
use serde_json::Value;
use tokio::process::Command;

use crate::system::System;

/// Both topics together.
pub(crate) const PARTITION_COUNT: usize = 8;

impl System {
    pub(crate) async fn consumer_status(&self, consumer: Service) -> Result<Value, String> {
        let url = format!("http://{HOST}:{}/status.json", consumer.ports()[0]);
        let answer = self.http.get(&url).await?;
        if answer.status == 200 { Ok(answer.body) } else { Err(format!("{answer:?}")) }
    }

    /// Succeeds when these consumers own every partition, each of them exactly once, and none
    /// of them is without one.
    pub(crate) async fn shared_out(&self, consumers: &[Service]) -> Result<String, String> {
        let mut seen = BTreeSet::new();
        let mut counts = Vec::new();
        for &consumer in consumers {
            let status = self.consumer_status(consumer).await?;
            let partitions = status["partitions"].as_array().cloned().unwrap_or_default();
            counts.push(partitions.len());
            seen.extend(
                partitions
                    .iter()
                    .map(|each| (each["topic"].to_string(), each["partition"].to_string())),
            );
        }
        let text = counts.iter().map(usize::to_string).collect::<Vec<_>>().join(" + ");
        let whole =
            seen.len() == PARTITION_COUNT && counts.iter().sum::<usize>() == PARTITION_COUNT;
        if whole && !counts.contains(&0) { Ok(text) } else { Err(format!("{text}: {seen:?}")) }
    }

    /// Records that ended in any way in `user_view` since the consumer's process started.
    pub(crate) async fn user_records(&self) -> Result<u64, String> {
        let status = self.consumer_status(Service::Consumer(1)).await?;
        let views = status["views"].as_array().cloned().unwrap_or_default();
        let view = views.iter().find(|view| view["view"] == "user_view");
        let view = view.ok_or_else(|| status.to_string())?;
        let outcomes = ["applied", "folded", "stale", "ignored", "quarantined"];
        Ok(outcomes.iter().filter_map(|name| view[name].as_u64()).sum())
    }

    /// Runs one of the consumer's commands.
    pub(crate) async fn command(&self, args: &[&str]) -> Output {
        let program = self.stack.places().programs.join("cdc-consumer");
        Command::new(program).args(args).envs(environment()).output().await.unwrap()
    }

    /// Runs a command that must succeed; returns what it printed.
    pub(crate) async fn command_output(&self, args: &[&str]) -> String {
        let output = self.command(args).await;
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {text}{errors}");
        text
    }
}
