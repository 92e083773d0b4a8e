//! Asks a process whether it does its work, each in its own protocol.

use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::addresses::{HOST, KAFKA_PORT, admin_url};
use crate::connectors::{self, ConnectorError};
use crate::service::Service;

/// For one question. A paused process answers nothing at all.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    #[error("no answer within {} seconds", PROBE_DEADLINE.as_secs())]
    Silent,
    #[error("it refuses connections")]
    Connection(#[source] std::io::Error),
    #[error("it answers {url} with {status}: {body}")]
    Status { url: String, status: u16, body: String },
    #[error("it does not answer HTTP")]
    Http(#[source] reqwest::Error),
    #[error("it does not answer a query")]
    Query(#[source] sqlx::Error),
    #[error("it does not speak Kafka's protocol")]
    Protocol,
    #[error(
        "PostgreSQL gave up the replication slot {slots}: what changed since is in the source alone; \
         see \"A slot was lost\" in docs/operations.md"
    )]
    LostSlots { slots: String },
    #[error(transparent)]
    Connectors(#[from] ConnectorError),
}

/// Healthy means: it answers the kind of request it exists for.
pub(crate) async fn check(service: Service) -> Result<(), Unhealthy> {
    let probe = async {
        match service {
            Service::Postgres => postgres().await,
            Service::Kafka => kafka().await,
            Service::Registry => http(service, "/apis/ccompat/v7/subjects").await,
            Service::Connect => http(service, "/connectors").await,
            Service::UserApi | Service::PostApi | Service::Consumer(_) => {
                http(service, "/health/ready").await
            }
        }
    };
    in_time(Box::pin(probe)).await
}

/// On the heap: the future of a connection is large, and all that asks would hold it.
async fn in_time<T>(
    probe: Pin<Box<impl Future<Output = Result<T, Unhealthy>>>>,
) -> Result<T, Unhealthy> {
    tokio::time::timeout(PROBE_DEADLINE, probe).await.unwrap_or(Err(Unhealthy::Silent))
}

/// What [`check`] asks, and whether what its work rests on is there: Connect calls a connector whose slot is
/// lost RUNNING, and so does Debezium, which waits for the slot for ever.
pub(crate) async fn check_thoroughly(service: Service, root: &Path) -> Result<(), Unhealthy> {
    check(service).await?;
    if service == Service::Connect { slots(root).await } else { Ok(()) }
}

/// Fails when a connector's slot is lost. One that does not exist yet is no loss; neither is a PostgreSQL that
/// does not answer, which has a check of its own.
pub(crate) async fn slots(root: &Path) -> Result<(), Unhealthy> {
    let slots = connectors::slots(root)?;
    let lost = async { lost_slots(slots).await.map_err(Unhealthy::Query) };
    match in_time(Box::pin(lost)).await {
        Ok(Some(slots)) => Err(Unhealthy::LostSlots { slots }),
        Ok(None) | Err(_) => Ok(()),
    }
}

async fn lost_slots(slots: Vec<String>) -> Result<Option<String>, sqlx::Error> {
    let mut connection = PgConnection::connect(&admin_url("postgres")).await?;
    let lost = "select string_agg(slot_name, ', ' order by slot_name)
        from pg_replication_slots where wal_status = 'lost' and slot_name = any ($1)";
    let lost = sqlx::query_scalar(lost).bind(slots);
    let lost = lost.fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(lost)
}

async fn postgres() -> Result<(), Unhealthy> {
    let mut connection =
        PgConnection::connect(&admin_url("postgres")).await.map_err(Unhealthy::Query)?;
    sqlx::query("select 1").execute(&mut connection).await.map_err(Unhealthy::Query)?;
    connection.close().await.map_err(Unhealthy::Query)
}

async fn http(service: Service, path: &str) -> Result<(), Unhealthy> {
    let url = format!("http://{HOST}:{}{path}", service.ports()[0]);
    let response = reqwest::get(&url).await.map_err(Unhealthy::Http)?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let body = response.text().await.map_err(Unhealthy::Http)?;
    let body = body.trim().chars().take(300).collect();
    Err(Unhealthy::Status { url, status: status.as_u16(), body })
}

/// An `ApiVersions` request, version 0: the one request every broker answers to every client.
/// An open port alone would not tell that requests are served.
async fn kafka() -> Result<(), Unhealthy> {
    const CORRELATION_ID: i32 = 77;
    let mut stream = TcpStream::connect((HOST, KAFKA_PORT)).await.map_err(Unhealthy::Connection)?;
    stream.write_all(&api_versions_request(CORRELATION_ID)).await.map_err(Unhealthy::Connection)?;
    // Length, correlation id, error code.
    let mut answer = [0_u8; 10];
    stream.read_exact(&mut answer).await.map_err(Unhealthy::Connection)?;
    let expected = [&CORRELATION_ID.to_be_bytes()[..], &[0, 0]].concat();
    if answer[4..] == expected[..] { Ok(()) } else { Err(Unhealthy::Protocol) }
}

fn api_versions_request(correlation_id: i32) -> Vec<u8> {
    const API_VERSIONS: i16 = 18;
    const VERSION: i16 = 0;
    const CLIENT: &str = "devstack";
    let client_length = i16::try_from(CLIENT.len()).expect("the name is short");
    let mut body = Vec::new();
    body.extend(API_VERSIONS.to_be_bytes());
    body.extend(VERSION.to_be_bytes());
    body.extend(correlation_id.to_be_bytes());
    body.extend(client_length.to_be_bytes());
    body.extend(CLIENT.as_bytes());
    let length = i32::try_from(body.len()).expect("the request is short");
    [&length.to_be_bytes()[..], &body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_starts_with_its_length() {
        let request = api_versions_request(1);
        assert_eq!(request[..4], 18_i32.to_be_bytes());
        assert_eq!(request.len(), 4 + 18);
        assert!(request.ends_with(b"devstack"));
    }
}
