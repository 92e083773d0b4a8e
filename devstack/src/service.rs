//! The processes of the stack by name.

use std::str::FromStr;
use std::time::Duration;

use crate::addresses::{
    CONNECT_PORT, CONSUMER_EXTRA_PORT, CONSUMER_PORT, KAFKA_CONTROLLER_PORT, KAFKA_PORT,
    POST_API_PORT, POSTGRES_PORT, REGISTRY_MANAGEMENT_PORT, REGISTRY_PORT, USER_API_PORT,
};

/// Consumers one machine may run at once; each has a port of its own.
pub const CONSUMERS_MAX: u8 = 8;

/// One process of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Service {
    Postgres,
    Kafka,
    Registry,
    Connect,
    UserApi,
    PostApi,
    /// The consumers are numbered from 1; the first is called `cdc-consumer`, the others
    /// `cdc-consumer-2` and so on.
    Consumer(u8),
}

impl Service {
    /// What `up` starts, in the order of their dependencies.
    pub const STANDARD: [Self; 7] = [
        Self::Postgres,
        Self::Kafka,
        Self::Registry,
        Self::Connect,
        Self::UserApi,
        Self::PostApi,
        Self::Consumer(1),
    ];

    /// [`Self::STANDARD`] and every further consumer.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::STANDARD.into_iter().chain((2..=CONSUMERS_MAX).map(Self::Consumer))
    }

    /// Ports this process listens on; the first one is where it is asked for its health.
    pub fn ports(self) -> Vec<u16> {
        match self {
            Self::Postgres => vec![POSTGRES_PORT],
            Self::Kafka => vec![KAFKA_PORT, KAFKA_CONTROLLER_PORT],
            Self::Registry => vec![REGISTRY_PORT, REGISTRY_MANAGEMENT_PORT],
            Self::Connect => vec![CONNECT_PORT],
            Self::UserApi => vec![USER_API_PORT],
            Self::PostApi => vec![POST_API_PORT],
            Self::Consumer(0 | 1) => vec![CONSUMER_PORT],
            Self::Consumer(number) => vec![CONSUMER_EXTRA_PORT + u16::from(number) - 2],
        }
    }

    /// Whether it is another project's server, not one of our own programs.
    pub fn is_server(self) -> bool {
        self.program().is_none()
    }

    /// The file of one of our own programs.
    pub(crate) fn program(self) -> Option<&'static str> {
        match self {
            Self::Postgres | Self::Kafka | Self::Registry | Self::Connect => None,
            Self::UserApi => Some("user-api"),
            Self::PostApi => Some("post-api"),
            Self::Consumer(_) => Some("cdc-consumer"),
        }
    }

    /// Time from the start of the process to its first healthy answer. Generous: a loaded
    /// machine of two cores, and recovery after a kill.
    pub fn start_deadline(self) -> Duration {
        match self {
            Self::Connect | Self::Kafka | Self::Registry => Duration::from_mins(2),
            Self::Postgres | Self::UserApi | Self::PostApi | Self::Consumer(_) => {
                Duration::from_mins(1)
            }
        }
    }
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Postgres => f.pad("postgres"),
            Self::Kafka => f.pad("kafka"),
            Self::Registry => f.pad("registry"),
            Self::Connect => f.pad("connect"),
            Self::UserApi => f.pad("user-api"),
            Self::PostApi => f.pad("post-api"),
            Self::Consumer(0 | 1) => f.pad("cdc-consumer"),
            Self::Consumer(number) => f.pad(&format!("cdc-consumer-{number}")),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no process of the stack is called {name:?}; there are postgres, kafka, registry, connect, \
     user-api, post-api, cdc-consumer, and cdc-consumer-2 to cdc-consumer-{CONSUMERS_MAX}"
)]
pub struct UnknownService {
    name: String,
}

impl FromStr for Service {
    type Err = UnknownService;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::all()
            .find(|service| service.to_string() == name)
            .ok_or_else(|| UnknownService { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_back_to_its_service() {
        for service in Service::all() {
            assert_eq!(service.to_string().parse(), Ok(service));
        }
        for wrong in ["", "cdc-consumer-1", "cdc-consumer-9", "Kafka"] {
            assert!(wrong.parse::<Service>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_two_services_share_a_port() {
        let mut ports: Vec<u16> = Service::all().flat_map(Service::ports).collect();
        let count = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), count);
        assert_eq!(Service::Consumer(2).ports(), [8094]);
    }
}
