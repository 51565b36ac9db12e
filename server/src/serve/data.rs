//! Opens the data folder (models, keys, sessions and trainings), and starts the
//! engine that generates.

use std::sync::Arc;

use super::ServeError;
use super::prepared::Prepared;
use super::replica::Replica;
use super::shared_storage::SharedStorage;
use super::trainings;
use crate::config::Config;
use crate::data_folder::{SESSIONS, SNAPSHOT_KEY};
use crate::devices::{self, GenerationSettings};
use charlstm_engine::{Engine, EngineConfig};
use charlstm_repository::Repository;
use charlstm_store::session::{
    EmbeddedSessions, EmbeddedSettings, ImportedLegacy, SessionLimits, SessionStorage,
    SnapshotKeys, default_max_bytes,
};
use charlstm_training::jobs::Jobs;
use tokio_util::sync::CancellationToken;

/// The opened data folder.
pub(super) struct Data {
    pub(super) repository: Repository,
    pub(super) keys: Arc<SnapshotKeys>,
    pub(super) sessions: Arc<dyn SessionStorage>,
    pub(super) jobs: Jobs,
    pub(super) engine: Engine,
    /// Cancelled if the GPU fails and the server is to end then.
    pub(super) gpu_failed: CancellationToken,
}

impl Data {
    /// Opens the data folder, which must be locked, or what replicas share, and
    /// starts the engine and, if configured, the interrupted trainings. Blocks.
    ///
    /// # Errors
    /// A part that cannot be opened, or a thread that cannot be started.
    pub(super) fn open(
        config: &Config,
        prepared: &Prepared,
        shared: Option<(&Replica, &SharedStorage)>,
        stopping: &CancellationToken,
    ) -> Result<Self, ServeError> {
        let (device, kernels) = (prepared.device, prepared.kernels);
        let generation = devices::generation(&GenerationSettings {
            device,
            precision: config.precision,
            kernels,
            max_rows: config.max_batch,
            threads: config.threads,
            gpu_failure: config.gpu_failure,
        });
        let repository = match shared {
            Some((replica, storage)) => {
                let changes = replica.registry.changes();
                storage.repository(config, generation.devices, changes, stopping)?
            }
            None => Repository::open_for(&config.data_dir, generation.devices)?,
        };
        let keys = match &config.snapshot_key_file {
            Some(file) => SnapshotKeys::read(file)?,
            None => SnapshotKeys::read_or_create(&config.data_dir.join(SNAPSHOT_KEY))?,
        };
        let sessions: Arc<dyn SessionStorage> = match shared {
            Some((replica, _)) => Arc::clone(&replica.sessions) as _,
            None => open_sessions(config)?,
        };
        let jobs = match shared {
            Some((replica, storage)) => {
                trainings::open_shared(config, prepared, &repository, storage, &replica.registry)?
            }
            None => trainings::open(config, prepared, &repository)?,
        };
        let threads = generation.threads;
        let engine = start_engine(config, threads, &repository, Arc::clone(&sessions))?;
        Ok(Self {
            repository,
            keys: Arc::new(keys),
            sessions,
            jobs,
            engine,
            gpu_failed: generation.failed,
        })
    }
}

/// Opens the session storage of the data folder.
fn open_sessions(config: &Config) -> Result<Arc<dyn SessionStorage>, ServeError> {
    let folder = config.data_dir.join(SESSIONS);
    let max_bytes = match config.session_store_bytes {
        Some(bytes) => bytes.as_u64(),
        None => default_max_bytes(&folder).map_err(ServeError::file(&folder))?,
    };
    let settings = EmbeddedSettings {
        limits: SessionLimits {
            max_sessions: config.max_sessions as u64,
            max_bytes,
            max_idle: config.session_ttl,
            ..SessionLimits::default()
        },
        durability: config.session_durability,
        cache_bytes: config.session_cache_bytes.as_u64(),
    };
    let sessions = EmbeddedSessions::open(&folder, settings)?;
    let imported = sessions.imported();
    if imported != ImportedLegacy::default() {
        tracing::info!(
            sessions = imported.sessions,
            lost = imported.lost,
            damaged = imported.damaged,
            "imported the sessions of version 0.1"
        );
    }
    let stats = sessions.stats();
    tracing::info!(
        sessions = stats.sessions,
        bytes = stats.bytes,
        damaged = stats.damaged,
        "opened the sessions"
    );
    Ok(Arc::new(sessions))
}

fn start_engine(
    config: &Config,
    threads: usize,
    repository: &Repository,
    sessions: Arc<dyn SessionStorage>,
) -> Result<Engine, ServeError> {
    let settings = EngineConfig {
        workers: threads,
        max_batch: config.max_batch,
        max_queue: config.max_queue,
        max_queued_chars: config.max_queued_chars,
        reader_timeout: config.reader_timeout,
        prompt_cache_bytes: config.prompt_cache_bytes.as_u64(),
        ..EngineConfig::default()
    };
    Engine::start(settings, Arc::new(repository.clone()), sessions).map_err(ServeError::Threads)
}
