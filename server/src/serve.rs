//! Wires repository, engine, trainings and services onto a listener, serves
//! until the shutdown, and shuts down within a bounded time. What a service
//! does is in `rpc`.

mod data;
mod metrics;
mod model_usage;
mod prepared;
mod reload;
mod replica;
mod routes;
mod services;
mod shared_storage;
mod stop;
mod trainings;
mod transport;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use sd_notify::NotifyState;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use self::data::Data;
use self::prepared::Prepared;
use self::replica::Replica;
use self::routes::{RouteContext, load_of};
use self::services::Services;
pub(crate) use self::shared_storage::SharedStorage;
use self::stop::stop;
use self::transport::Tls;
use crate::access::{AccessControl, AccessError, is_exposed};
use crate::backup;
use crate::config::Config;
use crate::data_folder::{self, DataFolderError};
use crate::devices;
use crate::listener;
use crate::migrate::{self, MigrateError};
use crate::shutdown::Signals;
use crate::traces::TracesError;
use charlstm_model::device::{Device, DeviceError};
use charlstm_model::kernels::{KernelError, Kernels};
use charlstm_replicas::database::DatabaseError;
use charlstm_replicas::object_store::ObjectStoreError;
use charlstm_repository::RepositoryError;
use charlstm_store::session::{KeyFileError, OpenError, SnapshotKeys};

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
    /// The database cannot be used.
    #[error("--database {url}: {source}")]
    Database {
        /// The database, without a password.
        url: String,
        /// What is wrong.
        source: DatabaseError,
    },
    /// The object store cannot be used.
    #[error(transparent)]
    ObjectStore(#[from] ObjectStoreError),
    /// The data folder of a replica has data of its own.
    #[error("{}", shared_storage::own_data(.0))]
    OwnData(PathBuf),
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
    /// The GPU that generates failed, and the server is not to continue on the
    /// CPU.
    #[error("the GPU failed; see the log")]
    Gpu,
    /// Sessions could not be saved at shutdown.
    #[error("the sessions could not be saved: {0}")]
    Sessions(String),
}

impl ServeError {
    /// A file or folder cannot be used, for the reason that an error names.
    fn file<E: std::error::Error>(path: &Path) -> impl Fn(E) -> Self {
        move |error| Self::File {
            path: path.to_owned(),
            reason: error.to_string(),
        }
    }
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
    let prepared = Prepared::of(&config)?;
    let _lock = data_folder::lock(&config.data_dir)?;
    let calls = TaskTracker::new();
    let layers = prepared.layers(&config, &calls, &shutdown);
    // All that can fail without touching the data comes first.
    let services = Services::new(layers.clone())?;
    let address = listener.local_addr().map_err(network)?;
    let metrics_listener = match config.metrics_listen {
        Some(address) => Some(listen("--metrics-listen", address).await?),
        None => None,
    };
    if config.replicas.has_database() {
        shared_storage::check_folder(&config.data_dir)?;
    }
    let (replica, storage) = connect(&config, address).await?.unzip();
    let shared = replica.as_ref().zip(storage.as_ref());
    let data = Data::open(&config, &prepared, shared, &shutdown)?;
    if let Some(replica) = &replica {
        replica.report_load(load_of(data.engine.clone(), data.jobs.clone()));
    }
    if let Some(listener) = metrics_listener {
        metrics::start(
            listener,
            prepared.sources(&config, &data, replica.as_ref()),
            shutdown.clone(),
        )?;
    }
    let context = RouteContext {
        config: &config,
        prepared: &prepared,
        data: &data,
        replica: replica.as_ref(),
        layers: &layers,
        shutdown: &shutdown,
    };
    let (routes, health) = context.routes(services, started).await;

    let mut serving = tokio::spawn(listener::serve(
        listener,
        prepared.listener_config(&config),
        prepared.metrics.connections(),
        routes,
        shutdown.clone(),
    ));
    let (in_flight, timeout) = (layers.in_flight.clone(), config.transfer_timeout);
    let stopping = shutdown.clone();
    let sweeping = tokio::spawn(async move { in_flight.end_unread(timeout, stopping).await });
    let sessions = Arc::clone(&data.sessions);
    if let Err(error) = backup::serve_requests(&config.data_dir, sessions, shutdown.clone()) {
        tracing::warn!(%error, "`charlstm-server backup` works only while the server is stopped");
    }
    if is_exposed(address) && config.insecure {
        warn_about_open_address(&config, address);
    }
    let (device, kernels, traces) = (prepared.device, prepared.kernels, prepared.traces.clone());
    tokio::spawn(prepared.reloader(&config).run(reload, shutdown.clone()));
    notify(NotifyState::Ready);
    let announced = announce(&config, address, device, kernels);

    let failure = match announced {
        Ok(()) => tokio::select! {
            // The shutdown also ends `serving`, which is not a failure then.
            biased;
            () = shutdown.cancelled() => None,
            () = data.engine.failed() => Some(ServeError::Engine),
            () = data.gpu_failed.cancelled() => Some(ServeError::Gpu),
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
    let saved = stop(data, &calls, serving).await;
    sweeping.abort();
    if let Some(replica) = replica {
        replica.leave().await;
    }
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

/// Opens what replicas share; `None` if nothing is configured.
async fn connect(
    config: &Config,
    address: SocketAddr,
) -> Result<Option<(Replica, SharedStorage)>, ServeError> {
    let replica = Replica::connect(config, address).await?;
    // The settings have either both or none.
    let (Some(replica), Some(url)) = (replica, &config.replicas.object_store) else {
        return Ok(None);
    };
    let storage = SharedStorage::open(url, replica.database().clone()).await?;
    Ok(Some((replica, storage)))
}

/// Copies the data folder into the database and the object store, see
/// [`crate::migrate`]. Returns what was copied.
///
/// # Errors
/// [`MigrateError`].
pub async fn migrate(config: &Config) -> Result<String, MigrateError> {
    let connected = connect(config, config.listen).await;
    let connected = connected.map_err(|error| MigrateError::Failed(error.to_string()))?;
    let (replica, storage) = connected.ok_or(MigrateError::NoTarget)?;
    let migrated = migrate::migrate(&config.data_dir, &storage, &*replica.sessions).await;
    replica.leave().await;
    Ok(migrated?.to_string())
}

/// Why the server that accepts connections ended although no shutdown was requested.
fn serving_ended(ended: Result<(), tokio::task::JoinError>) -> ServeError {
    match ended {
        Ok(()) => ServeError::Network("the listener was closed".to_owned()),
        Err(error) => network(error),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, ServeError> {
    std::fs::read(path).map_err(ServeError::file(path))
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
    replica::database_url(config)?;
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
