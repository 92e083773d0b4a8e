//! The schema registry: a writer schema by its id.

use std::sync::Arc;
use std::time::Duration;

use schema_registry_converter::async_impl::schema_registry::{
    SrSettings, get_referenced_schema, get_schema_by_id,
};
use schema_registry_converter::error::SRCError;
use schema_registry_converter::schema_registry_common::RegisteredReference;
use secrecy::ExposeSecret;

use crate::config::RegistrySettings;
use crate::schema::{self, Node, SchemaError};

/// The registry answers from memory; longer than this means it is away.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of the registry. It keeps no cache: the decoder does, for good, since an id never changes
/// its meaning, while an error may pass.
#[derive(Debug, Clone)]
pub struct Registry {
    settings: Arc<SrSettings>,
    url: String,
}

/// Why a schema is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("the registry settings are not valid")]
    Settings(#[source] SRCError),
    #[error("could not fetch schema {id} from {url}")]
    Fetch {
        id: u32,
        url: String,
        #[source]
        source: SRCError,
    },
    #[error("schema {id} cannot be used")]
    Schema {
        id: u32,
        #[source]
        source: SchemaError,
    },
}

impl Registry {
    /// Checks the settings; asks nothing yet.
    pub fn new(settings: &RegistrySettings) -> Result<Self, RegistryError> {
        let urls = &settings.schema_registry_url;
        let mut builder = SrSettings::new_builder(urls.first().cloned().unwrap_or_default());
        for url in urls.iter().skip(1) {
            builder.add_url(url.clone());
        }
        if let Some(user) = &settings.schema_registry_username {
            let password = settings.schema_registry_password.as_ref();
            builder.set_basic_authorization(user, password.map(ExposeSecret::expose_secret));
        }
        builder.set_timeout(REQUEST_TIMEOUT);
        let built = builder.build().map_err(RegistryError::Settings)?;
        Ok(Self { settings: Arc::new(built), url: urls.join(",") })
    }

    /// Fetches and parses a schema with everything it refers to.
    pub async fn schema(&self, id: u32) -> Result<Arc<Node>, RegistryError> {
        let failed = |source| RegistryError::Fetch { id, url: self.url.clone(), source };
        let registered = get_schema_by_id(id, &self.settings).await.map_err(failed)?;
        let mut references = Vec::new();
        self.collect(registered.references, &mut references).await.map_err(failed)?;
        let node = schema::parse(&registered.schema, &references)
            .map_err(|source| RegistryError::Schema { id, source })?;
        Ok(Arc::new(node))
    }

    /// Appends referenced schemas, dependencies first.
    async fn collect(
        &self,
        references: Vec<RegisteredReference>,
        found: &mut Vec<String>,
    ) -> Result<(), SRCError> {
        for reference in references {
            let schema = get_referenced_schema(&self.settings, &reference).await?;
            Box::pin(self.collect(schema.references, found)).await?;
            if !found.contains(&schema.schema) {
                found.push(schema.schema);
            }
        }
        Ok(())
    }
}
