//! The kinds of faults and what each may be done to. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use devstack::Service;
use devstack::addresses::{CONNECTORS, TOPICS};
use serde::{Serialize, Serializer};

/// Consumers that run all the time; one more joins and leaves.
pub(crate) const CONSUMERS: u8 = 2;
pub(crate) const EXTRA_CONSUMER: u8 = CONSUMERS + 1;

/// What a process fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Server {
    Consumer,
    Connect,
    Kafka,
    Registry,
    Postgres,
}

impl Server {
    const ALL: [Self; 5] =
        [Self::Consumer, Self::Connect, Self::Kafka, Self::Registry, Self::Postgres];

    fn name(self) -> &'static str {
        match self {
            Self::Consumer => "consumer",
            Self::Connect => "connect",
            Self::Kafka => "kafka",
            Self::Registry => "registry",
            Self::Postgres => "postgres",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// SIGKILL, and started again after a moment.
    Kill(Server),
    /// SIGSTOP with open connections, later SIGCONT.
    Pause(Server),
    /// Stopped politely and started at once.
    Restart(Server),
    /// `PostgreSQL` ends every session of the consumers.
    EndSessions,
    /// One consumer's database connections are cut and refused.
    CutDatabase,
    /// One consumer's database connections carry nothing, and nobody says so.
    StallDatabase,
    /// One consumer's database connections are slow.
    SlowDatabase,
    /// A transaction of one consumer commits and the reply is lost.
    LoseCommitReply,
    /// `cdc-consumer offsets reset` under the running consumers.
    ResetOffsets,
    /// Another consumer joins the group and leaves it again.
    JoinAndLeave,
    /// Connect is told to restart a connector's task.
    RestartTask,
    /// `cdc-consumer rebuild` under the running consumers, and the generation before dropped.
    Rebuild,
}

impl Kind {
    pub(crate) fn all() -> Vec<Self> {
        let processes = [Self::Kill, Self::Pause, Self::Restart];
        let processes = processes.iter().flat_map(|kind| Server::ALL.map(kind));
        let others = [
            Self::EndSessions,
            Self::CutDatabase,
            Self::StallDatabase,
            Self::SlowDatabase,
            Self::LoseCommitReply,
            Self::ResetOffsets,
            Self::JoinAndLeave,
            Self::RestartTask,
            Self::Rebuild,
        ];
        processes.chain(others).collect()
    }

    /// Two faults overlap only when they hit different servers: undoing one must not undo the other.
    pub(crate) fn server(self) -> Server {
        match self {
            Self::Kill(server) | Self::Pause(server) | Self::Restart(server) => server,
            Self::RestartTask => Server::Connect,
            Self::EndSessions
            | Self::CutDatabase
            | Self::StallDatabase
            | Self::SlowDatabase
            | Self::LoseCommitReply
            | Self::ResetOffsets
            | Self::JoinAndLeave
            | Self::Rebuild => Server::Consumer,
        }
    }

    /// Shortest and longest time from the fault to its end, in milliseconds. Empty for what ends
    /// by itself.
    pub(crate) fn lasts_milliseconds(self) -> std::ops::RangeInclusive<u64> {
        match self {
            Self::Kill(_) => 500..=3000,
            // Long enough for the other consumer to take over, which is measured.
            Self::Pause(Server::Consumer) => 20_000..=20_000,
            Self::Pause(_) | Self::StallDatabase | Self::SlowDatabase => 2000..=8000,
            Self::CutDatabase => 1000..=6000,
            // At most; it ends with the first commit.
            Self::LoseCommitReply => 5000..=5000,
            // About; it ends when the new views are there. Others may come meanwhile.
            Self::Rebuild => 3000..=8000,
            Self::JoinAndLeave => 5000..=8000,
            Self::Restart(_) | Self::EndSessions | Self::ResetOffsets | Self::RestartTask => 0..=0,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Kill(server) => format!("kill-{}", server.name()),
            Self::Pause(server) => format!("pause-{}", server.name()),
            Self::Restart(server) => format!("restart-{}", server.name()),
            Self::EndSessions => "end-sessions".to_owned(),
            Self::CutDatabase => "cut-database".to_owned(),
            Self::StallDatabase => "stall-database".to_owned(),
            Self::SlowDatabase => "slow-database".to_owned(),
            Self::LoseCommitReply => "lose-commit-reply".to_owned(),
            Self::ResetOffsets => "reset-offsets".to_owned(),
            Self::JoinAndLeave => "join-and-leave".to_owned(),
            Self::RestartTask => "restart-task".to_owned(),
            Self::Rebuild => "rebuild".to_owned(),
        };
        f.pad(&text)
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::all().into_iter().find(|kind| kind.to_string() == name).ok_or_else(|| {
            let known: Vec<String> = Self::all().iter().map(Self::to_string).collect();
            format!("there is no such fault; there are {}", known.join(", "))
        })
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What exactly is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Process(Service),
    /// All consumers.
    Consumers,
    /// How far into the log to go back: 0 is its beginning, 100 where the consumer stands.
    Log {
        topic: &'static str,
        percent: u8,
    },
    Connector(&'static str),
    /// All of them.
    Views,
}

impl Target {
    /// The target of `kind` that `choice`, any number, selects.
    pub(crate) fn choose(kind: Kind, choice: u64) -> Self {
        let pick = |count: usize| usize::try_from(choice % count as u64).unwrap_or(0);
        let consumer = Service::Consumer(u8::try_from(pick(CONSUMERS.into())).unwrap_or(0) + 1);
        match kind {
            Kind::Kill(server) | Kind::Pause(server) | Kind::Restart(server) => {
                Self::Process(match server {
                    Server::Consumer => consumer,
                    Server::Connect => Service::Connect,
                    Server::Kafka => Service::Kafka,
                    Server::Registry => Service::Registry,
                    Server::Postgres => Service::Postgres,
                })
            }
            Kind::CutDatabase
            | Kind::StallDatabase
            | Kind::SlowDatabase
            | Kind::LoseCommitReply => Self::Process(consumer),
            Kind::EndSessions => Self::Consumers,
            Kind::JoinAndLeave => Self::Process(Service::Consumer(EXTRA_CONSUMER)),
            Kind::ResetOffsets => {
                let topic = TOPICS[pick(TOPICS.len())];
                // Every second time to the very beginning.
                let rest = choice / TOPICS.len() as u64;
                let percent = if rest.is_multiple_of(2) { 0 } else { rest / 2 % 100 };
                Self::Log { topic, percent: u8::try_from(percent).unwrap_or(0) }
            }
            Kind::RestartTask => Self::Connector(CONNECTORS[pick(CONNECTORS.len())]),
            Kind::Rebuild => Self::Views,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(service) => write!(f, "{service}"),
            Self::Consumers => write!(f, "all consumers"),
            Self::Log { topic, percent } => write!(f, "{topic} to {percent} %"),
            Self::Connector(name) => write!(f, "connector {name}"),
            Self::Views => write!(f, "all views"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One fault of the schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Injection {
    /// From the beginning of the run.
    #[serde(rename = "at_seconds", serialize_with = "seconds")]
    pub(crate) at: Duration,
    #[serde(rename = "fault")]
    pub(crate) kind: Kind,
    pub(crate) target: Target,
    /// Until it is undone.
    #[serde(rename = "lasts_seconds", serialize_with = "seconds")]
    pub(crate) lasts: Duration,
    /// Begins while the fault before it lasts.
    pub(crate) overlaps: bool,
}

/// Seconds with three decimals, as a JSON number.
pub(crate) fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(rounded(*time))
}

/// Seconds, to the millisecond.
pub(crate) fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_back_to_its_kind() {
        for kind in Kind::all() {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let error = "kill-everything".parse::<Kind>().unwrap_err();
        assert!(error.contains("kill-consumer, kill-connect"), "{error}");
    }

    #[test]
    fn every_consumer_topic_and_connector_is_hit_by_some_choice() {
        let targets = |kind| -> Vec<String> {
            let mut all: Vec<_> =
                (0..400).map(|choice| Target::choose(kind, choice).to_string()).collect();
            all.sort();
            all.dedup();
            all
        };
        assert_eq!(targets(Kind::Kill(Server::Consumer)), ["cdc-consumer", "cdc-consumer-2"]);
        assert_eq!(targets(Kind::RestartTask), ["connector posts", "connector users"]);
        assert_eq!(targets(Kind::JoinAndLeave), ["cdc-consumer-3"]);
        let resets = targets(Kind::ResetOffsets);
        for wanted in ["user-events to 0 %", "post-events to 0 %", "post-events to 57 %"] {
            assert!(resets.contains(&wanted.to_owned()), "{wanted} is not among {resets:?}");
        }
    }
}
