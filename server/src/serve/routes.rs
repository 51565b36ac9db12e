//! The routes of the server: all services, and HTTP.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use tokio_util::sync::CancellationToken;

use super::data::Data;
use super::model_usage::EngineModelUsage;
use super::prepared::Prepared;
use super::replica::Replica;
use super::services::{Health, Services};
use super::transport;
use crate::config::Config;
use crate::http::{self, ApiState, HttpParts};
use crate::rpc::generation::GenerationRpc;
use crate::rpc::layers::Layers;
use crate::rpc::layers::request_body::MAX_MESSAGE_BYTES;
use crate::rpc::model::ModelRpc;
use crate::rpc::server::{ServerInfo, ServerLoad, ServerRpc};
use crate::rpc::session::SessionRpc;
use crate::rpc::training::TrainingRpc;
use crate::rpc::transfers::Transfers;
use crate::training_log::TrainingLog;
use charlstm_engine::Engine;
use charlstm_training::events::State;
use charlstm_training::jobs::Jobs;

/// What the services need.
pub(super) struct RouteContext<'a> {
    pub(super) config: &'a Config,
    pub(super) prepared: &'a Prepared,
    pub(super) data: &'a Data,
    pub(super) replica: Option<&'a Replica>,
    pub(super) layers: &'a Layers,
    pub(super) shutdown: &'a CancellationToken,
}

impl RouteContext<'_> {
    /// Adds all services, reports them as serving, and returns the routes.
    /// `started` is when the server was started.
    pub(super) async fn routes(self, mut services: Services, started: Instant) -> (Router, Health) {
        let Self { config, data, .. } = self;
        let (engine, repository) = (&data.engine, &data.repository);
        let mut generation = GenerationRpc::new(
            engine.clone(),
            Arc::clone(&data.keys),
            self.prepared.metrics.clone(),
        );
        // A snapshot that only this replica could open would fail at the others.
        if self.replica.is_some() && config.snapshot_key_file.is_none() {
            generation = generation.without_snapshots();
        }
        services.add(generation.clone().server());
        services.add(SessionRpc::server(engine.clone(), Arc::clone(&data.keys)));
        let transfers = Transfers::on_disk_of(&config.data_dir);
        let training =
            TrainingRpc::server(data.jobs.clone(), self.training_log(), transfers.clone());
        services.add(training.max_decoding_message_size(MAX_MESSAGE_BYTES));
        let usage = Arc::new(EngineModelUsage(engine.clone()));
        let models = ModelRpc::server(repository.clone(), usage, transfers);
        services.add(models.max_decoding_message_size(MAX_MESSAGE_BYTES));
        let load = load_of(engine.clone(), data.jobs.clone());
        services.add(ServerRpc::server(
            self.info(started),
            repository.clone(),
            self.replica.map(|replica| replica.registry.clone()),
            load,
        ));

        let (routes, health) = services.finish().await;
        let mut routes = routes.into_axum_router();
        if config.http.is_on {
            routes = http::router(routes, self.http_parts(generation));
        }
        (routes, health)
    }

    /// Returns the log of the trainings, which follows those that were resumed
    /// at the start.
    fn training_log(&self) -> TrainingLog {
        let log = TrainingLog::new(self.prepared.traces.clone());
        for job in self.data.jobs.list() {
            if matches!(job.summary().state, State::Queued | State::Running) {
                log.follow(job);
            }
        }
        log
    }

    fn info(&self, started: Instant) -> ServerInfo {
        ServerInfo {
            device: self.prepared.device,
            precision: self.config.precision,
            kernels: self.prepared.kernels,
            threads: self.config.threads,
            max_sessions: self.config.max_sessions,
            max_batch: self.config.max_batch,
            max_queue: self.config.max_queue,
            started,
        }
    }

    fn http_parts(&self, generation: GenerationRpc) -> HttpParts {
        HttpParts {
            state: ApiState {
                generation,
                repository: self.data.repository.clone(),
            },
            policy: transport::origin_policy(self.config, self.prepared.tls.as_ref()),
            layers: self.layers.clone(),
            shutdown: self.shutdown.clone(),
        }
    }
}

pub(super) fn load_of(
    engine: Engine,
    jobs: Jobs,
) -> impl Fn() -> ServerLoad + Send + Sync + 'static {
    move || {
        let (generations, trainings) = (engine.stats(), jobs.load());
        ServerLoad {
            sessions: generations.sessions.sessions,
            generations_running: generations.running,
            generations_queued: generations.queued,
            trainings_running: trainings.running,
            trainings_queued: trainings.queued,
            training: jobs.running(),
        }
    }
}
