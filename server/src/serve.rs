//! Wires repository, engine, trainings and services onto a listener, serves
//! until the shutdown, and shuts down within a bounded time. What a service
//! does is in `rpc`.

mod metrics;
mod model_usage;
mod reload;
mod services;
mod transport;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use self::model_usage::EngineModelUsage;
use self::reload::Reloader;
pub(crate) use self::services::Layers;
use self::services::Services;
use self::transport::Tls;
use crate::access::{AccessControl, AccessError, is_exposed};
use crate::backup;
use crate::config::Config;
use crate::data_folder::{self, DataFolderError, SNAPSHOT_KEY};
use crate::devices;
use crate::http::{self, ApiState, HttpParts};
use crate::listener::{self, ListenerConfig};
use crate::metrics::Metrics;
use crate::rpc::generation::GenerationRpc;
use crate::rpc::layers::auth::AuthLayer;
use crate::rpc::layers::call_log::CallLogLayer;
use crate::rpc::layers::call_metrics::CallMetricsLayer;
use crate::rpc::layers::in_flight::InFlightLayer;
use crate::rpc::layers::request_body::{MAX_MESSAGE_BYTES, RequestBodyLayer};
use crate::rpc::model::ModelRpc;
use crate::rpc::server::{ServerInfo, ServerLoad, ServerRpc};
use crate::rpc::session::SessionRpc;
use crate::rpc::training::TrainingRpc;
use crate::rpc::transfers::Transfers;
use crate::shutdown::Signals;
use crate::traces::{TracesError, Tracing};
use crate::training_log::TrainingLog;
use charlstm_engine::{Engine, EngineConfig};
use charlstm_model::device::{Device, DeviceError};
use charlstm_model::kernels::{KernelError, Kernels};
use charlstm_repository::{Repository, RepositoryError};
use charlstm_store::session::{
    EmbeddedSessions, EmbeddedSettings, ImportedLegacy, KeyFileError, OpenError, SessionLimits,
    SessionStorage, SnapshotKeys, default_max_bytes,
};
use charlstm_training::events::State;
use charlstm_training::jobs::{Jobs, JobsConfig};
use charlstm_training::sample;

/// Maximum time that a shutdown waits for calls in flight and for the training.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// Maximum time that a shutdown waits for the last commits of sessions: long
/// for a slow disk, and shorter than service managers wait (systemd: 90 s).
const SAVE_GRACE: Duration = Duration::from_secs(60);

/// The server could not start, or failed.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The address is in use, or not an address of this machine.
    #[error(
        "cannot listen on {address} ({flag}): {source}{}",
        listen_advice(source)
    )]
    Listen {
        /// The flag that configures the address.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system reports.
        source: io::Error,
    },
    /// The device is not available.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernels are not available.
    #[error(transparent)]
    Kernels(#[from] KernelError),
    /// The data folder cannot be used.
    #[error(transparent)]
    DataFolder(#[from] DataFolderError),
    /// A file or folder named by the configuration cannot be used.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The models cannot be opened.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The stored sessions cannot be opened.
    #[error(transparent)]
    SessionStore(#[from] OpenError),
    /// The key file of snapshots cannot be used.
    #[error(transparent)]
    SnapshotKeys(#[from] KeyFileError),
    /// A file that says who may call cannot be used.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Traces cannot be exported.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// Certificate or key is invalid.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// The network failed.
    #[error("network error: {0}")]
    Network(String),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Threads(io::Error),
    /// A generation worker ended unexpectedly.
    #[error("a generation worker failed; see the log")]
    Engine,
    /// Sessions could not be saved at shutdown.
    #[error("the sessions could not be saved: {0}")]
    Sessions(String),
}

fn listen_advice(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::AddrInUse {
        " (another program is listening there: stop it or choose another address)"
    } else {
        ""
    }
}

/// Binds the address that `flag` configures.
///
/// # Errors
/// [`ServeError::Listen`].
pub async fn listen(flag: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen {
            flag,
            address,
            source,
        })
}

/// Serves on the listener until a signal asks for the shutdown or the server fails,
/// and the calls in flight have ended, for at most the grace period. Prints one
/// line to standard output when the server is ready.
///
/// Connections that do not close in time stay in the runtime, which the caller
/// shuts down.
///
/// # Errors
/// `Engine` and `Network` if the server failed while it was serving, and
/// `Sessions` if it could not save them; any other [`ServeError`] before
/// anything is served.
pub async fn serve(
    config: Config,
    listener: TcpListener,
    signals: Signals,
) -> Result<(), ServeError> {
    let Signals { shutdown, reload } = signals;
    let started = Instant::now();
    let tls = Tls::of(&config)?;
    let max_connections = transport::max_connections(config.max_connections);
    let access = Arc::new(AccessControl::from_files(&config.access_files())?);
    let traces = Tracing::new(config.otlp_endpoint.as_deref())?;
    let metrics = Metrics::default();
    let calls = TaskTracker::new();
    let in_flight = InFlightLayer::new(calls.clone());
    let timeout = config.transfer_timeout;
    let layers = Layers {
        call_metrics: CallMetricsLayer::new(metrics.clone()),
        call_log: CallLogLayer::new(config.log_text, traces.clone()),
        auth: AuthLayer::new(Arc::clone(&access)),
        request_body: RequestBodyLayer::new(timeout, shutdown.clone()),
        in_flight: in_flight.clone(),
    };
    let device = devices::select(config.device)?;
    let kernels = config.kernels.select()?;
    let _lock = data_folder::lock(&config.data_dir)?;
    // All that can fail without touching the data comes first.
    let mut services = Services::new(layers.clone())?;
    let address = listener.local_addr().map_err(network)?;
    let metrics_listener = match config.metrics_listen {
        Some(address) => Some(listen("--metrics-listen", address).await?),
        None => None,
    };
    let devices = devices::decode_devices(device, config.precision, kernels, config.max_batch);
    let repository = Repository::open_for(&config.data_dir, devices)?;
    let keys = match &config.snapshot_key_file {
        Some(file) => SnapshotKeys::read(file)?,
        None => SnapshotKeys::read_or_create(&config.data_dir.join(SNAPSHOT_KEY))?,
    };
    let keys = Arc::new(keys);
    let sessions = open_sessions(&config)?;
    let jobs = open_jobs(&config, device, &repository)?;
    let engine = start_engine(&config, device, &repository, Arc::clone(&sessions))?;

    let info = ServerInfo {
        device,
        precision: config.precision,
        kernels,
        threads: config.threads,
        max_sessions: config.max_sessions,
        max_batch: config.max_batch,
        max_queue: config.max_queue,
        started,
    };
    let generation = GenerationRpc::new(engine.clone(), Arc::clone(&keys), metrics.clone());
    services.add(generation.clone().server());
    let http = HttpParts {
        state: ApiState {
            generation,
            repository: repository.clone(),
        },
        policy: transport::origin_policy(&config, tls.as_ref()),
        layers: layers.clone(),
        shutdown: shutdown.clone(),
    };
    services.add(SessionRpc::server(engine.clone(), keys));
    let training_log = TrainingLog::new(traces.clone());
    for job in jobs.list() {
        // Resumed at the start.
        if matches!(job.summary().state, State::Queued | State::Running) {
            training_log.follow(job);
        }
    }
    let transfers = Transfers::on_disk_of(&config.data_dir);
    let training = TrainingRpc::server(jobs.clone(), training_log, transfers.clone());
    services.add(training.max_decoding_message_size(MAX_MESSAGE_BYTES));
    let usage = Arc::new(EngineModelUsage(engine.clone()));
    let models = ModelRpc::server(repository.clone(), usage, transfers);
    services.add(models.max_decoding_message_size(MAX_MESSAGE_BYTES));
    let load = load_of(engine.clone(), jobs.clone());
    let connection_metrics = metrics.connections();
    if let Some(listener) = metrics_listener {
        let sources = metrics::Sources {
            metrics,
            engine: engine.clone(),
            jobs: jobs.clone(),
            repository: repository.clone(),
            access: Arc::clone(&access),
            data_dir: config.data_dir.clone(),
        };
        metrics::start(listener, sources, shutdown.clone())?;
    }
    services.add(ServerRpc::server(info, repository, load));

    let (routes, health) = services.finish().await;
    let mut routes = routes.into_axum_router();
    if config.http.is_on {
        routes = http::router(routes, http);
    }
    let listener_config = ListenerConfig {
        http1: config.http.is_on,
        ..ListenerConfig::new(max_connections, tls.as_ref().map(Tls::subscribe))
    };
    let mut serving = tokio::spawn(listener::serve(
        listener,
        listener_config,
        connection_metrics,
        routes,
        shutdown.clone(),
    ));
    let stopping = shutdown.clone();
    let sweeping = tokio::spawn(async move { in_flight.end_unread(timeout, stopping).await });
    if let Err(error) = backup::serve_requests(&config.data_dir, sessions, shutdown.clone()) {
        tracing::warn!(%error, "`charlstm-server backup` works only while the server is stopped");
    }
    if is_exposed(address) && config.insecure {
        warn_about_open_address(&config, address);
    }
    let mut reloader = Reloader::new();
    if config.access_files().is_any() {
        reloader.add("principals and tokens", move || access.reload());
    }
    if let Some(mut tls) = tls {
        reloader.add("certificates", move || tls.reload());
    }
    tokio::spawn(reloader.run(reload, shutdown.clone()));
    notify(NotifyState::Ready);
    let announced = announce(&config, address, device, kernels);

    let failure = match announced {
        Ok(()) => tokio::select! {
            // The shutdown also ends `serving`, which is not a failure then.
            biased;
            () = shutdown.cancelled() => None,
            () = engine.failed() => Some(ServeError::Engine),
            ended = &mut serving => Some(serving_ended(ended)),
        },
        Err(error) => Some(error),
    };
    if let Some(error) = &failure {
        tracing::error!(%error, "the server failed and shuts down");
    }
    notify(NotifyState::Stopping);
    health.stop().await;
    // Also if the server failed: no more connections, and no more metrics.
    shutdown.cancel();
    calls.close();
    // Stopping the engine and the training ends their streams, and with them
    // the calls in flight.
    let (saved, (), ()) = tokio::join!(
        stop_engine(&engine),
        stop_jobs(jobs),
        drain(&calls, serving),
    );
    sweeping.abort();
    // Also the traces of the last calls.
    let exported = tokio::task::spawn_blocking(move || traces.shutdown()).await;
    if let Err(error) = exported {
        tracing::error!(%error, "the last traces were not exported");
    }
    tracing::info!("the server has stopped");
    match failure {
        Some(error) => Err(error),
        None => saved,
    }
}

/// Why the server that accepts connections ended although no shutdown was requested.
fn serving_ended(ended: Result<(), tokio::task::JoinError>) -> ServeError {
    match ended {
        Ok(()) => ServeError::Network("the listener was closed".to_owned()),
        Err(error) => network(error),
    }
}

/// Ends all generations and commits their sessions.
async fn stop_engine(engine: &Engine) -> Result<(), ServeError> {
    let stopped = tokio::time::timeout(SAVE_GRACE, engine.stop()).await;
    let error = match stopped {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("they were not stored within {} s", SAVE_GRACE.as_secs()),
    };
    tracing::error!(error, "the sessions could not be saved");
    Err(ServeError::Sessions(error))
}

/// Ends the running training, and saves a checkpoint.
async fn stop_jobs(jobs: Jobs) {
    let (ended, has_ended) = tokio::sync::oneshot::channel();
    // A thread of its own: those that may block may all be in use.
    std::thread::spawn(move || {
        // The receiver is there until this was sent.
        let _ = ended.send(jobs.stop(SHUTDOWN_GRACE));
    });
    if !has_ended.await.unwrap_or(false) {
        tracing::error!(
            "the training did not end in time; it can be resumed from its last checkpoint"
        );
    }
}

/// Opens the session storage of the data folder.
fn open_sessions(config: &Config) -> Result<Arc<dyn SessionStorage>, ServeError> {
    let folder = config.data_dir.join("sessions");
    let max_bytes = match config.session_store_bytes {
        Some(bytes) => bytes.as_u64(),
        None => default_max_bytes(&folder).map_err(|error| ServeError::File {
            path: folder.clone(),
            reason: error.to_string(),
        })?,
    };
    let settings = EmbeddedSettings {
        limits: SessionLimits {
            max_sessions: config.max_sessions as u64,
            max_bytes,
            max_idle: config.session_ttl,
            ..SessionLimits::default()
        },
        durability: config.session_durability.into(),
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
    device: Device,
    repository: &Repository,
    sessions: Arc<dyn SessionStorage>,
) -> Result<Engine, ServeError> {
    let settings = EngineConfig {
        workers: devices::generation_threads(device, config.precision, config.threads),
        max_batch: config.max_batch,
        max_queue: config.max_queue,
        max_queued_chars: config.max_queued_chars,
        reader_timeout: config.reader_timeout,
        prompt_cache_bytes: config.prompt_cache_bytes.as_u64(),
        ..EngineConfig::default()
    };
    Engine::start(settings, Arc::new(repository.clone()), sessions).map_err(ServeError::Threads)
}

fn open_jobs(config: &Config, device: Device, repository: &Repository) -> Result<Jobs, ServeError> {
    let folder = config.data_dir.join("trainings");
    let jobs = Jobs::open(
        JobsConfig {
            keep_ended: config.keep_trainings,
            tensorboard: config.tensorboard,
            ..JobsConfig::new(folder.clone())
        },
        devices::learners(device, config.threads),
        Arc::new(repository.clone()),
        Box::new(sample::write),
    )
    .map_err(|error| ServeError::File {
        path: folder,
        reason: error.to_string(),
    })?;
    if config.resume_interrupted {
        jobs.resume_interrupted();
    }
    Ok(jobs)
}

fn load_of(engine: Engine, jobs: Jobs) -> impl Fn() -> ServerLoad + Send + Sync + 'static {
    move || {
        let (generations, trainings) = (engine.stats(), jobs.load());
        ServerLoad {
            sessions: generations.sessions.sessions,
            generations_running: generations.running,
            generations_queued: generations.queued,
            trainings_running: trainings.running,
            trainings_queued: trainings.queued,
        }
    }
}

/// Waits until all calls have ended and their connections are closed, but not
/// for idle clients, and at most for the grace period.
async fn drain(calls: &TaskTracker, mut serving: tokio::task::JoinHandle<()>) {
    let calls_ended = async {
        if serving.is_finished() {
            return calls.wait().await;
        }
        tokio::select! {
            _ = &mut serving => return,
            () = calls.wait() => {}
        }
        // The last bytes of the responses may not have been sent yet; clients
        // that respond at all close their connections within this time.
        let _ = tokio::time::timeout(SHUTDOWN_GRACE / 10, &mut serving).await;
    };
    if tokio::time::timeout(SHUTDOWN_GRACE, calls_ended)
        .await
        .is_err()
    {
        let calls = calls.len();
        tracing::warn!(calls, "calls that did not end in time are aborted");
    }
    serving.abort();
}

fn read_file(path: &Path) -> Result<Vec<u8>, ServeError> {
    std::fs::read(path).map_err(|error| ServeError::File {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// Reports the state of the server to the service manager, if there is one.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager could not be notified");
    }
}

/// Checks the files and devices that the settings name, without changing
/// anything.
///
/// # Errors
/// What would prevent the server from starting.
pub fn check(config: &Config) -> Result<(), ServeError> {
    AccessControl::from_files(&config.access_files())?;
    Tls::of(config)?;
    devices::select(config.device)?;
    config.kernels.select()?;
    if let Some(file) = &config.snapshot_key_file {
        SnapshotKeys::read(file)?;
    }
    Ok(())
}

/// Prints the line on standard output that other programs wait for.
fn announce(
    config: &Config,
    address: SocketAddr,
    device: Device,
    kernels: Kernels,
) -> Result<(), ServeError> {
    let tls = config.tls().is_some();
    let scheme = if tls { "https" } else { "http" };
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "listening on {scheme}://{address}")
        .and_then(|()| stdout.flush())
        .map_err(network)?;
    let precision = config.precision;
    let kernels = kernels.name(precision);
    tracing::info!(%address, tls, %device, %precision, kernels, "the server is ready");
    Ok(())
}

/// Warns if others than local clients can read the traffic or call the server.
fn warn_about_open_address(config: &Config, address: SocketAddr) {
    let tls = config.tls();
    if tls.is_none() {
        tracing::warn!(%address, "no TLS: the network can read all traffic; see --tls-cert");
    }
    if !config.has_access_control() {
        tracing::warn!(
            %address,
            "no access control: everyone who can reach this address can use the server; \
             see --principals"
        );
    }
}

fn network(error: impl std::error::Error) -> ServeError {
    ServeError::Network(in_full(&error))
}

/// Returns the message of an error with those of its sources: the outermost
/// message of the transport's errors says nothing.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
