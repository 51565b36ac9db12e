//! `ServerService`: the state of the server, for operators.

use std::time::{Duration, Instant};

use charlstm_proto::v1 as pb;
use charlstm_proto::v1::server_service_server::{ServerService, ServerServiceServer};
use tonic::{Request, Response, Status};

use super::convert::to_u32;
use super::status;
use charlstm_model::decode_step::Precision;
use charlstm_model::device::Device;
use charlstm_model::kernels::Kernels;
use charlstm_replicas::registry::{Registry, Replica};
use charlstm_repository::Repository;

/// What does not change while the server runs.
#[derive(Clone, Debug)]
pub struct ServerInfo {
    /// Device that computes.
    pub device: Device,
    /// Precision of generation, unless a session or a model has another one.
    pub precision: Precision,
    /// CPU kernels of generation.
    pub kernels: Kernels,
    /// Number of threads that compute.
    pub threads: usize,
    /// Maximum number of sessions.
    pub max_sessions: usize,
    /// Maximum number of generations in the batch.
    pub max_batch: usize,
    /// Maximum number of waiting generations.
    pub max_queue: usize,
    /// When the server was started.
    pub started: Instant,
}

/// The load at one moment.
#[derive(Clone, Debug, Default)]
pub struct ServerLoad {
    /// Number of sessions.
    pub sessions: u64,
    /// Number of generations in the batch.
    pub generations_running: usize,
    /// Number of waiting generations.
    pub generations_queued: usize,
    /// Number of running trainings.
    pub trainings_running: usize,
    /// Number of waiting trainings.
    pub trainings_queued: usize,
    /// Id of the running training.
    pub training: Option<String>,
}

/// The service. `load` is called for each request and must not block.
pub struct ServerRpc<L> {
    info: ServerInfo,
    repository: Repository,
    /// `None` for a server of its own.
    replicas: Option<Registry>,
    load: L,
}

impl<L: Fn() -> ServerLoad + Send + Sync + 'static> ServerRpc<L> {
    /// Returns the service, ready to be added to a server. It reports `info`,
    /// what `load` returns, and the replicas in the list.
    pub fn server(
        info: ServerInfo,
        repository: Repository,
        replicas: Option<Registry>,
        load: L,
    ) -> ServerServiceServer<Self> {
        ServerServiceServer::new(Self {
            info,
            repository,
            replicas,
            load,
        })
    }
}

#[tonic::async_trait]
impl<L: Fn() -> ServerLoad + Send + Sync + 'static> ServerService for ServerRpc<L> {
    async fn get_server_status(
        &self,
        _request: Request<pb::GetServerStatusRequest>,
    ) -> Result<Response<pb::GetServerStatusResponse>, Status> {
        let (info, load) = (&self.info, (self.load)());
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let loaded = self.repository.loaded();
        let step_checks = loaded.iter().map(|model| pb::StepCheck {
            model: model.id.to_string(),
            precision: model.precision().to_string(),
            row_invariant: model.check.row_invariant,
            microseconds_one_row: micros(model.check.one_row),
            microseconds_row_in_batch: micros(model.check.row_in_batch),
        });
        Ok(Response::new(pb::GetServerStatusResponse {
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            device: info.device.to_string(),
            threads: to_u32(info.threads),
            uptime_seconds: info.started.elapsed().as_secs(),
            models: to_u32(self.repository.count()),
            sessions: load.sessions,
            max_sessions: info.max_sessions as u64,
            generations_running: to_u32(load.generations_running),
            max_batch: to_u32(info.max_batch),
            generations_queued: to_u32(load.generations_queued),
            max_queue: to_u32(info.max_queue),
            trainings_running: to_u32(load.trainings_running),
            trainings_queued: to_u32(load.trainings_queued),
            step_checks: step_checks.collect(),
            precision: info.precision.to_string(),
            kernels: info.kernels.name(info.precision).to_owned(),
        }))
    }

    async fn list_replicas(
        &self,
        _request: Request<pb::ListReplicasRequest>,
    ) -> Result<Response<pb::ListReplicasResponse>, Status> {
        let replicas = match &self.replicas {
            None => Vec::new(),
            Some(registry) => {
                let replicas = registry.list().await;
                replicas.map_err(|error| status::database_unavailable(&error))?
            }
        };
        Ok(Response::new(pb::ListReplicasResponse {
            replicas: replicas.iter().map(replica).collect(),
        }))
    }
}

fn replica(replica: &Replica) -> pb::Replica {
    let (info, load) = (&replica.info, &replica.load);
    pb::Replica {
        name: info.name.to_string(),
        address: info.address.clone(),
        version: info.version.clone(),
        precision: info.precision.clone(),
        heartbeat_age_seconds: replica.heartbeat_age.as_secs_f64(),
        present: replica.is_present(),
        this_replica: replica.is_this,
        generations_running: load.generations_running,
        training_id: load.training.clone().unwrap_or_default(),
    }
}
