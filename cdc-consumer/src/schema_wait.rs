//! A schema on its way from the registry, while the session goes on polling.

use std::sync::Arc;

use service::health::Readiness;
use tokio::runtime::Handle;
use tokio::sync::oneshot::{self, Receiver, error::TryRecvError};
use tokio::task::JoinHandle;

use crate::pipeline::SessionError;
use crate::recovery::{self, Backoff, Recovery};
use crate::registry::{Registry, RegistryError};
use crate::schema::Node;

type Fetched = Result<Arc<Node>, RegistryError>;

/// At most one schema is asked for at a time: records behind the one that needs it wait anyway.
pub(crate) struct SchemaWait {
    registry: Registry,
    readiness: Readiness,
    wanted: Option<Wanted>,
}

/// A schema being fetched, until nobody waits for it any more.
struct Wanted {
    id: u32,
    receiver: Receiver<Fetched>,
    fetching: JoinHandle<()>,
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.fetching.abort();
    }
}

/// Dropped with the task that fetches, however that ends: then it is no reason any more not to be ready.
struct Waiting(Readiness);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.clear("registry");
    }
}

impl SchemaWait {
    pub(crate) fn new(registry: Registry, readiness: Readiness) -> Self {
        Self { registry, readiness, wanted: None }
    }

    /// Whether a schema is being fetched.
    pub(crate) fn waiting(&self) -> bool {
        self.wanted.is_some()
    }

    /// Begins to fetch a schema, for as long as it takes.
    pub(crate) fn fetch(&mut self, id: u32, runtime: &Handle) {
        let (sender, receiver) = oneshot::channel();
        let (registry, waiting) = (self.registry.clone(), Waiting(self.readiness.clone()));
        let fetching = runtime.spawn(async move {
            let fetched = fetch(&registry, &waiting.0, id).await;
            // Whoever waited may be gone.
            drop(sender.send(fetched));
        });
        self.wanted = Some(Wanted { id, receiver, fetching });
    }

    /// Nobody waits any more.
    pub(crate) fn forget(&mut self) {
        self.wanted = None;
    }

    /// The schema, once it is here.
    pub(crate) fn arrived(&mut self) -> Result<Option<(u32, Arc<Node>)>, SessionError> {
        let Some(Wanted { id, receiver, .. }) = &mut self.wanted else { return Ok(None) };
        let id = *id;
        match receiver.try_recv() {
            Ok(fetched) => {
                self.wanted = None;
                Ok(Some((id, fetched?)))
            }
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Closed) => Err(SessionError::WriterDied),
        }
    }
}

async fn fetch(registry: &Registry, readiness: &Readiness, id: u32) -> Fetched {
    let mut backoff = Backoff::default();
    loop {
        match registry.schema(id).await {
            Ok(schema) => {
                if !backoff.fresh() {
                    tracing::info!(schema.id = id, "the registry answers again");
                }
                return Ok(schema);
            }
            Err(error) if recovery::of_registry(&error) == Recovery::Retry => {
                let error = service::telemetry::chain(&error).to_string();
                if backoff.fresh() {
                    tracing::warn!(error, "records wait for the registry");
                }
                readiness.block("registry", error);
                tokio::time::sleep(backoff.pause()).await;
            }
            Err(error) => return Err(error),
        }
    }
}
