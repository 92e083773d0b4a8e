//! The consumer's own library, set up as the program sets it up: shipped defaults, tables read from
//! the catalogue.

use std::sync::Arc;

use anyhow::Context;
use cdc_consumer::apply;
use cdc_consumer::config::RunSettings;
use cdc_consumer::database::{Database, Generation, Place};
use cdc_consumer::decode::View;
use cdc_consumer::refetch::RecordFetcher;
use cdc_consumer::registry::Registry;
use cdc_consumer::{pipeline, view};
use clap::Parser;

use crate::target::{self, Table, Target};

/// The consumer's settings with their shipped defaults.
#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    run: RunSettings,
}

/// Parts for one table of the target.
pub(crate) struct Library {
    pub(crate) settings: RunSettings,
    pub(crate) database: Database,
    pub(crate) generation: Generation,
    pub(crate) views: Arc<Vec<View>>,
    pub(crate) registry: Registry,
}

impl Library {
    pub(crate) async fn new(target: &Target, table: Table) -> anyhow::Result<Self> {
        let url = format!("--consumer-database-url={}", target::url("cdc_consumer"));
        let settings = Defaults::try_parse_from(["bench", &url])?.run;
        let database = Database::new(&settings.database.consumer_database_url)?;
        let generation = database.current_generation().await?;
        let specs = view::parse(&table.declaration(&target.filled.topic))?;
        let views = Arc::new(pipeline::views(&database, generation, &specs).await?);
        let registry = Registry::new(&settings.registry)?;
        Ok(Self { settings, database, generation, views, registry })
    }

    /// The only view.
    pub(crate) fn view(&self) -> anyhow::Result<&View> {
        self.views.first().context("one view was declared")
    }

    /// The statements that the consumer would apply batches by.
    pub(crate) fn target(&self) -> apply::Target {
        let letters = i64::from(self.settings.limits.dead_letters_max);
        let fetcher = RecordFetcher::new(&self.settings.kafka);
        let copy_rows_min = self.settings.limits.copy_rows_min.get();
        let place = Place::published(self.generation);
        apply::Target::new(&self.views, place, letters, copy_rows_min, fetcher)
    }

    /// Widths of key and row.
    pub(crate) fn shape(&self) -> anyhow::Result<(usize, usize)> {
        Ok(self.view()?.shape())
    }
}
