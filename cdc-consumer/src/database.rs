//! Connections to the view database.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

/// The current generation: the number in the name of its schema.
pub type Generation = i32;

/// Where changes are applied, and what must hold meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The generation whose rows and offsets change.
    pub generation: Generation,
    /// The generation that readers must be seeing: the same one, or the one it is to replace.
    pub published: Generation,
}

impl Place {
    /// The generation that readers see.
    pub fn published(generation: Generation) -> Self {
        Self { generation, published: generation }
    }
}

/// A server gives up on a client that stopped in the middle of a transaction, so that its row locks do
/// not outlive it: the next owner of a partition waits for them.
pub(crate) const IDLE_IN_TRANSACTION_MAX: Duration = Duration::from_secs(10);

/// A server that accepts no connection in this time is away. The system's own limit is minutes.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Where the views are and how to reach them.
#[derive(Debug, Clone)]
pub struct Database {
    options: PgConnectOptions,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("the database URL is not valid")]
    Url(#[source] sqlx::Error),
    #[error("could not connect to the database at {0}")]
    Connect(String, #[source] sqlx::Error),
    #[error("could not read the current generation; run `migrate views` first")]
    Generation(#[source] sqlx::Error),
    #[error("the database did not answer for {0:?}")]
    Silent(Duration),
}

impl Database {
    /// TLS settings (`sslmode`, `sslrootcert`, ...) are parameters of the URL.
    pub fn new(url: &SecretString) -> Result<Self, DatabaseError> {
        let options: PgConnectOptions = url.expose_secret().parse().map_err(DatabaseError::Url)?;
        let idle = IDLE_IN_TRANSACTION_MAX.as_millis().to_string();
        let options = options.application_name("cdc-consumer").options([
            ("idle_in_transaction_session_timeout", idle.as_str()),
            ("tcp_user_timeout", idle.as_str()),
            // Debezium sends money with a point and two digits.
            ("lc_monetary", "C"),
            // Compiling a plan costs more than any of our statements runs.
            ("jit", "off"),
            // Statements of the same shape again and again.
            ("plan_cache_mode", "force_generic_plan"),
        ]);
        Ok(Self { options })
    }

    /// Host and port, for messages.
    pub fn address(&self) -> String {
        format!("{}:{}", self.options.get_host(), self.options.get_port())
    }

    /// A connection that finds unqualified names in `public`.
    pub async fn connect(&self) -> Result<PgConnection, DatabaseError> {
        self.connect_with(&self.options).await
    }

    /// A connection that finds unqualified names in a generation.
    pub async fn connect_to(&self, generation: Generation) -> Result<PgConnection, DatabaseError> {
        self.connect_with(&self.options_of(generation)).await
    }

    /// The connection that is kept in `slot`, made as [`Self::connect_to`] does when there is none.
    pub(crate) async fn connected<'c>(
        &self,
        slot: &'c mut Option<PgConnection>,
        generation: Generation,
    ) -> Result<&'c mut PgConnection, DatabaseError> {
        match slot {
            Some(connection) => Ok(connection),
            none => Ok(none.insert(self.connect_to(generation).await?)),
        }
    }

    /// A connection that applies batches to a generation.
    ///
    /// The plans of its statements are kept: planning one takes longer than a small batch runs. A plan is made
    /// for the first batches, often of empty tables, where reading a table whole seems cheapest; every later
    /// batch would then read a table whole that has grown. So nothing is left to choose: a batch is looked
    /// up row by row in an index, in the order of its keys. Keys of one batch are different, so that
    /// remembering what was looked up saves nothing.
    pub async fn connect_writer(
        &self,
        generation: Generation,
    ) -> Result<PgConnection, DatabaseError> {
        let options = self.options_of(generation);
        let options = options.options([
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("enable_material", "off"),
            ("enable_memoize", "off"),
            ("enable_seqscan", "off"),
        ]);
        self.connect_with(&options).await
    }

    /// The options of a connection that finds unqualified names in a generation.
    pub(crate) fn options_of(&self, generation: Generation) -> PgConnectOptions {
        let search_path = format!("{},public", schema_of(generation));
        self.options.clone().options([("search_path", search_path.as_str())])
    }

    async fn connect_with(
        &self,
        options: &PgConnectOptions,
    ) -> Result<PgConnection, DatabaseError> {
        let connecting = tokio::time::timeout(CONNECT_MAX, PgConnection::connect_with(options));
        let connected = connecting.await.unwrap_or_else(|_| {
            Err(sqlx::Error::Io(std::io::Error::from(std::io::ErrorKind::TimedOut)))
        });
        connected.map_err(|error| DatabaseError::Connect(self.address(), error))
    }

    /// Asks which generation is current.
    pub async fn current_generation(&self) -> Result<Generation, DatabaseError> {
        let mut connection = self.connect().await?;
        published(&mut connection).await.map_err(DatabaseError::Generation)
    }
}

/// What the database answers, unless it is silent for too long: a network that lost a connection need not say
/// so, and then nothing else would ever end the wait. The connection is of no use after that.
pub(crate) async fn answered<T, E: From<DatabaseError>>(
    patience: Duration,
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let answer = tokio::time::timeout(patience, asked).await;
    answer.unwrap_or_else(|_| Err(DatabaseError::Silent(patience).into()))
}

/// The generation that readers see.
pub(crate) async fn published(connection: &mut PgConnection) -> Result<Generation, sqlx::Error> {
    sqlx::query_scalar("select current from public.cdc_generation").fetch_one(connection).await
}

/// The schema of a generation.
pub fn schema_of(generation: Generation) -> String {
    format!("views_{generation}")
}
