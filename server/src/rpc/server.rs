//! ServerService: what an operator asks the server about itself.

use std::time::{Duration, Instant};

use charlstm_model::decode_step::Precision;
use charlstm_proto::v1 as proto;
use charlstm_proto::v1::server_service_server::ServerService;
use tonic::{Request, Response, Status};

use super::convert::to_u32;
use charlstm_model::device::Device;
use charlstm_repository::Repository;

/// What does not change while the server runs.
#[derive(Clone, Debug)]
pub struct ServerInfo {
    /// Where it computes.
    pub device: Device,
    /// Threads that compute.
    pub threads: usize,
    /// Most sessions that are kept.
    pub max_sessions: usize,
    /// Most generations in the batch.
    pub max_batch: usize,
    /// Most generations that wait.
    pub max_queue: usize,
    /// When it was started.
    pub started: Instant,
}

/// What it has to do at this moment.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Sessions that are kept.
    pub sessions: u64,
    /// Generations in the batch.
    pub generations_running: usize,
    /// Generations that wait.
    pub generations_queued: usize,
    /// Trainings that run.
    pub trainings_running: usize,
    /// Trainings that wait.
    pub trainings_queued: usize,
}

/// The service. `load` is called for each request and must not block.
pub struct ServerRpc<L> {
    facts: ServerInfo,
    repository: Repository,
    load: L,
}

impl<L: Fn() -> Load + Send + Sync + 'static> ServerRpc<L> {
    /// A service that tells these facts and what `load` returns.
    pub fn new(facts: ServerInfo, repository: Repository, load: L) -> Self {
        Self {
            facts,
            repository,
            load,
        }
    }
}

#[tonic::async_trait]
impl<L: Fn() -> Load + Send + Sync + 'static> ServerService for ServerRpc<L> {
    async fn get_server_status(
        &self,
        _request: Request<proto::GetServerStatusRequest>,
    ) -> Result<Response<proto::GetServerStatusResponse>, Status> {
        let (facts, load) = (&self.facts, (self.load)());
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let loaded = self.repository.loaded();
        let step_checks = loaded.iter().map(|model| proto::StepCheck {
            model: model.id.to_string(),
            row_invariant: model.check.row_invariant,
            microseconds_one_row: micros(model.check.one_row),
            microseconds_row_in_batch: micros(model.check.row_in_batch),
        });
        Ok(Response::new(proto::GetServerStatusResponse {
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            device: facts.device.to_string(),
            threads: to_u32(facts.threads),
            uptime_seconds: facts.started.elapsed().as_secs(),
            models: to_u32(self.repository.count()),
            sessions: load.sessions,
            max_sessions: facts.max_sessions as u64,
            generations_running: to_u32(load.generations_running),
            max_batch: to_u32(facts.max_batch),
            generations_queued: to_u32(load.generations_queued),
            max_queue: to_u32(facts.max_queue),
            trainings_running: to_u32(load.trainings_running),
            trainings_queued: to_u32(load.trainings_queued),
            step_checks: step_checks.collect(),
            precision: Precision::Float32.to_string(),
            kernels: String::new(),
        }))
    }
}
