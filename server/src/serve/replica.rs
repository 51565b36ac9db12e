//! Registers this server as one of several on a database.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::ServeError;
use crate::config::Config;
use crate::rpc::server::ServerLoad;
use charlstm_replicas::database::{Database, DatabaseError, DatabaseSettings, DatabaseUrl};
use charlstm_replicas::registry::{Registry, ReplicaInfo, ReplicaLoad};
use charlstm_replicas::sessions::{PostgresSessions, PostgresSettings};
use charlstm_store::secret_file;
use charlstm_store::session::{SessionLimits, SessionStorage};

/// A URL with its parameters.
const MAX_URL_BYTES: u64 = 16 << 10;

/// How long to wait for the last statements at shutdown.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The connection to the database, and what is in it.
#[derive(Debug)]
pub(super) struct Replica {
    database: Database,
    pub(super) registry: Registry,
    pub(super) sessions: Arc<PostgresSessions>,
}

impl Replica {
    /// Connects, applies missing migrations and enters this server in the list;
    /// `None` if no database is configured.
    ///
    /// # Errors
    /// The database cannot be reached or used.
    pub(super) async fn connect(
        config: &Config,
        address: SocketAddr,
    ) -> Result<Option<Self>, ServeError> {
        let Some(url) = database_url(config)? else {
            return Ok(None);
        };
        let text = url.to_string();
        let connected = Self::connect_to(url, config, address).await;
        let replica = connected.map_err(|source| ServeError::Database { url: text, source })?;
        Ok(Some(replica))
    }

    async fn connect_to(
        url: DatabaseUrl,
        config: &Config,
        address: SocketAddr,
    ) -> Result<Self, DatabaseError> {
        let database = Database::connect(DatabaseSettings::new(url)).await?;
        let name = config.replicas.replica_name.clone();
        let name = name.unwrap_or_else(default_name);
        let info = ReplicaInfo {
            name: name.into(),
            address: address.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            precision: config.precision.to_string(),
        };
        let registry = Registry::register(database.clone(), info).await?;
        warn_about_others(&registry).await?;
        let defaults = SessionLimits::default();
        let max_bytes = config.session_store_bytes;
        let settings = PostgresSettings {
            limits: SessionLimits {
                max_sessions: config.max_sessions as u64,
                max_bytes: max_bytes.map_or(defaults.max_bytes, |bytes| bytes.as_u64()),
                max_idle: config.session_ttl,
                ..defaults
            },
            cache_bytes: config.session_cache_bytes.as_u64(),
            registry: registry.clone(),
        };
        let sessions = PostgresSessions::start(database.clone(), settings).await?;
        let stats = sessions.stats();
        tracing::info!(
            replica = %registry.info().name,
            database = %database.url(),
            sessions = stats.sessions,
            "sessions are in the database"
        );
        Ok(Self {
            database,
            registry,
            sessions: Arc::new(sessions),
        })
    }

    /// Returns the database.
    pub(super) fn database(&self) -> &Database {
        &self.database
    }

    /// Lets the heartbeats report what this server does.
    pub(super) fn report_load(&self, load: impl Fn() -> ServerLoad + Send + Sync + 'static) {
        self.registry.report_load(move || {
            let load = load();
            ReplicaLoad {
                generations_running: u32::try_from(load.generations_running).unwrap_or(u32::MAX),
                training: load.training,
            }
        });
    }

    /// Leaves the list, and closes the connections.
    pub(super) async fn leave(self) {
        let leave = async {
            if let Err(error) = self.registry.unregister().await {
                tracing::warn!(%error, "this server stays in the list of replicas for a while");
            }
            self.database.close().await;
        };
        if tokio::time::timeout(LEAVE_TIMEOUT, leave).await.is_err() {
            tracing::warn!("the connections to the database did not close in time");
        }
    }
}

/// Returns the database that the settings name.
///
/// # Errors
/// The file cannot be used.
pub(super) fn database_url(config: &Config) -> Result<Option<DatabaseUrl>, ServeError> {
    let Some(path) = &config.replicas.database_file else {
        return Ok(config.replicas.database.clone());
    };
    let text = secret_file::read(path, MAX_URL_BYTES).map_err(ServeError::file(path))?;
    let url: Result<DatabaseUrl, DatabaseError> = text.trim().parse();
    Ok(Some(url.map_err(ServeError::file(path))?))
}

/// Warns about replicas with another precision or with the name of this one.
async fn warn_about_others(registry: &Registry) -> Result<(), DatabaseError> {
    let replicas = registry.list().await?;
    let this = registry.info();
    for other in replicas.iter().filter(|r| r.is_present() && !r.is_this) {
        if other.info.precision != this.precision {
            tracing::warn!(
                replica = %other.info.name,
                its_precision = other.info.precision,
                precision = this.precision,
                "another replica has another --precision: new sessions depend on which one they \
                 start at"
            );
        }
        if other.info.name == this.name {
            tracing::warn!(replica = %this.name, "another replica has the same --replica-name");
        }
    }
    Ok(())
}

/// The name of the machine, and a random suffix.
fn default_name() -> String {
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    let suffix = rand::random::<u32>();
    format!("{host}-{suffix:08x}")
}
