//! Wires models, engines and services onto a listener, serves until told to
//! stop, and ends within a bounded time. What a service does is in `rpc`.

mod metrics;
mod services;

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use charlstm_proto::v1::model_service_server::ModelServiceServer;
use charlstm_proto::v1::server_service_server::ServerServiceServer;
use charlstm_proto::v1::training_service_server::TrainingServiceServer;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use self::services::Services;
use crate::config::{
    Config, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_MESSAGE_BYTES, MAX_RESET_CALLS,
    SHUTDOWN_GRACE, TlsFiles,
};
use crate::devices;
use crate::rpc::admission::{Door, Tokens};
use crate::rpc::generation::GenerationRpc;
use crate::rpc::model::{ModelRpc, ModelUsage};
use crate::rpc::server::{Load, ServerInfo, ServerRpc};
use crate::rpc::session::SessionRpc;
use crate::rpc::training::TrainingRpc;
use charlstm_engine::generation::{Engine, EngineConfig};
use charlstm_engine::sessions::store::SessionLimits;
use charlstm_model::device::{Device, DeviceError};
use charlstm_repository::{ModelId, Repository, RepositoryError};
use charlstm_training::jobs::{Jobs, JobsConfig};
use charlstm_training::sample;

/// The server could not start, or broke.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The address is taken, or not one of this machine.
    #[error("cannot listen on {address}: {source}{}", listen_advice(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The device is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The data folder belongs to another server that runs.
    #[error("{} is in use by another charlstm-server; give each its own --data-dir", .0.display())]
    DataFolderInUse(PathBuf),
    /// A file or folder that the configuration names cannot be used.
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
    /// Certificate and key are not what TLS needs.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// The network failed.
    #[error("the network failed: {0}")]
    Network(String),
}

fn listen_advice(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::AddrInUse {
        " (another server may be running there; choose another address with --listen)"
    } else {
        ""
    }
}

/// Binds the address.
///
/// # Errors
/// [`ServeError::Listen`].
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen { address, source })
}

/// Serves on the listener until `shutdown` is cancelled and the calls under
/// way have ended, or their grace time has. Prints one line to standard
/// output when it is ready.
///
/// Connections that do not close in time live on in the runtime: the caller
/// shuts that down.
///
/// # Errors
/// Any [`ServeError`] but `Listen`, before anything is served.
pub async fn serve(
    config: Config,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let started = Instant::now();
    let mut server = transport(config.tls.as_ref())?;
    let door = Door {
        tokens: tokens(config.auth_token_file.as_deref())?,
        ..Door::default()
    };
    let metrics = door.metrics.clone();
    let device = devices::select(config.device)?;
    let _lock = lock_data_folder(&config.data_dir)?;
    let decode_device = devices::decode_device(device, config.max_batch);
    let repository = Repository::open_for(&config.data_dir, decode_device)?;

    let engine = start_engine(&config, device, &repository)?;
    let jobs = open_jobs(&config, device, &repository)?;

    let facts = ServerInfo {
        device,
        threads: config.threads,
        max_sessions: config.max_sessions,
        max_batch: config.max_batch,
        max_queue: config.max_queue,
        started,
    };
    let mut services = Services::new(door.clone())?;
    services.add(GenerationRpc::server(engine.clone(), metrics.clone()));
    services.add(SessionRpc::server(engine.clone()));
    let training = TrainingServiceServer::new(TrainingRpc::new(jobs.clone()));
    services.add(training.max_decoding_message_size(MAX_MESSAGE_BYTES));
    let models = ModelRpc::new(
        repository.clone(),
        Arc::new(EngineModelUsage(engine.clone())),
    );
    services.add(ModelServiceServer::new(models).max_decoding_message_size(MAX_MESSAGE_BYTES));
    let load = load_of(engine.clone(), jobs.clone());
    if let Some(address) = config.metrics_listen {
        let sources = metrics::Sources {
            metrics,
            engine: engine.clone(),
            jobs: jobs.clone(),
            repository: repository.clone(),
        };
        metrics::start(address, sources, shutdown.clone()).await?;
    }
    services.add(ServerServiceServer::new(ServerRpc::new(
        facts, repository, load,
    )));

    let (routes, health) = services.finish().await;
    let address = listener.local_addr().map_err(network)?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let stopped = shutdown.clone().cancelled_owned();
    let serving = tokio::spawn(
        server
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, stopped),
    );
    announce(address, config.tls.is_some(), device)?;

    shutdown.cancelled().await;
    health.stop().await;
    door.inside.close();
    // The streams of both end first; then the calls do.
    let saved = tokio::task::spawn_blocking(move || save(&engine, jobs));
    drain(&door, serving).await;
    if saved.await.is_err() {
        tracing::error!("saving trainings and sessions panicked");
    }
    tracing::info!("the server has stopped");
    Ok(())
}

/// Ends all texts and the running training, and saves sessions and a
/// checkpoint. Blocks for some seconds at most.
fn save(texts: &Engine, trainings: Jobs) {
    let trainings = std::thread::spawn(move || trainings.stop(SHUTDOWN_GRACE));
    if let Err(error) = texts.stop() {
        tracing::error!(%error, "the sessions could not be saved");
    }
    if !trainings.join().unwrap_or(false) {
        tracing::error!("the training did not end in time; it goes on from its last checkpoint");
    }
}

fn start_engine(
    config: &Config,
    device: Device,
    repository: &Repository,
) -> Result<Engine, ServeError> {
    let settings = EngineConfig {
        // A GPU computes one large batch faster than several small ones.
        workers: match device {
            Device::Cpu => config.threads,
            Device::Cuda(_) => 1,
        },
        max_batch: config.max_batch,
        max_queue: config.max_queue,
        stalled_reader: config.reader_timeout,
        sessions: SessionLimits {
            max_sessions: config.max_sessions,
            max_idle: config.session_ttl,
            ..SessionLimits::default()
        },
        folder: Some(config.data_dir.join("sessions")),
        ..EngineConfig::default()
    };
    Engine::start(settings, Arc::new(repository.clone())).map_err(|error| ServeError::File {
        path: config.data_dir.join("sessions"),
        reason: error.to_string(),
    })
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

fn load_of(engine: Engine, jobs: Jobs) -> impl Fn() -> Load + Send + Sync + 'static {
    move || {
        let (texts, trainings) = (engine.load_stats(), jobs.load());
        Load {
            sessions: texts.sessions as u64,
            generations_running: texts.running,
            generations_queued: texts.queued,
            trainings_running: trainings.running,
            trainings_queued: trainings.queued,
        }
    }
}

/// The sessions that hold on to a model version.
struct EngineModelUsage(Engine);

impl ModelUsage for EngineModelUsage {
    fn pinned(&self, id: &ModelId) -> usize {
        self.0.sessions_of(id)
    }

    fn release(&self, id: &ModelId) {
        self.0.drop_model(id);
    }
}

/// Waits until all calls have ended and the connections are closed, but not
/// for clients that keep silent, and not longer than the grace time.
async fn drain<E>(door: &Door, mut serving: tokio::task::JoinHandle<Result<(), E>>) {
    let calls_ended = async {
        tokio::select! {
            _ = &mut serving => return,
            () = door.inside.wait() => {}
        }
        // The last bytes of the answers are still on their way; clients that
        // answer at all close within this time.
        let _ = tokio::time::timeout(SHUTDOWN_GRACE / 10, &mut serving).await;
    };
    if tokio::time::timeout(SHUTDOWN_GRACE, calls_ended)
        .await
        .is_err()
    {
        let calls = door.inside.len();
        tracing::warn!(calls, "calls that did not end in time are dropped");
    }
    serving.abort();
}

fn transport(tls: Option<&TlsFiles>) -> Result<Server, ServeError> {
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_pending_accept_reset_streams(Some(MAX_RESET_CALLS));
    let Some(files) = tls else {
        return Ok(server);
    };
    let identity = Identity::from_pem(read(&files.cert)?, read(&files.key)?);
    let mut tls = ServerTlsConfig::new().identity(identity);
    if let Some(path) = &files.client_ca {
        tls = tls.client_ca_root(Certificate::from_pem(read(path)?));
    }
    server
        .tls_config(tls)
        .map_err(|error| ServeError::Tls(in_full(&error)))
}

fn tokens(path: Option<&Path>) -> Result<Option<Arc<Tokens>>, ServeError> {
    let Some(path) = path else {
        return Ok(None);
    };
    let wrong = |reason: &str| ServeError::File {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let text = String::from_utf8(read(path)?).map_err(|_| wrong("it is not UTF-8"))?;
    let tokens = Tokens::parse(&text).ok_or_else(|| wrong("there is no token in it"))?;
    Ok(Some(Arc::new(tokens)))
}

fn read(path: &Path) -> Result<Vec<u8>, ServeError> {
    std::fs::read(path).map_err(|error| ServeError::File {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// Makes the folder and locks it for this process: two servers would clean
/// up each other's unfinished files.
fn lock_data_folder(folder: &Path) -> Result<File, ServeError> {
    let wrong = |error: io::Error| ServeError::File {
        path: folder.to_owned(),
        reason: error.to_string(),
    };
    std::fs::create_dir_all(folder).map_err(wrong)?;
    let file = File::create(folder.join("lock")).map_err(wrong)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ServeError::DataFolderInUse(folder.to_owned())),
        Err(TryLockError::Error(error)) => Err(wrong(error)),
    }
}

/// The one line on standard output, which programs wait for.
fn announce(
    address: SocketAddr,
    tls: bool,
    device: impl std::fmt::Display,
) -> Result<(), ServeError> {
    let scheme = if tls { "https" } else { "http" };
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "listening on {scheme}://{address}")
        .and_then(|()| stdout.flush())
        .map_err(network)?;
    tracing::info!(%address, tls, %device, "the server is ready");
    Ok(())
}

fn network(error: impl std::error::Error) -> ServeError {
    ServeError::Network(in_full(&error))
}

/// An error with its causes: the outermost text of the transport's errors
/// says nothing.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
