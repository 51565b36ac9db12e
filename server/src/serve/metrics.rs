//! Serves the metrics over HTTP, at `GET /metrics` on a separate address. There
//! is no authentication and no TLS, as Prometheus expects by default; the
//! metrics contain no session id and no text.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::ServeError;
use crate::access::AccessControl;
use crate::metrics::principals::PrincipalStats;
use crate::metrics::{Metrics, ServerStats, TrainingStats};
use charlstm_engine::Engine;
use charlstm_replicas::sessions::{LeaseCounters, PostgresSessions};
use charlstm_repository::Repository;
use charlstm_store::session::ListRequest;
use charlstm_training::events::State;
use charlstm_training::jobs::Jobs;

/// The format that [`Metrics::encode`] writes.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where the values come from.
pub(super) struct Sources {
    pub(super) metrics: Metrics,
    pub(super) engine: Engine,
    pub(super) jobs: Jobs,
    pub(super) repository: Repository,
    pub(super) access: Arc<AccessControl>,
    pub(super) data_dir: PathBuf,
    /// `None` without a database.
    pub(super) replica_sessions: Option<Arc<PostgresSessions>>,
}

/// Serves the metrics on the listener in a background task until `shutdown`.
///
/// # Errors
/// [`ServeError::Network`] if the listener has no address.
pub(super) fn start(
    listener: TcpListener,
    sources: Sources,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(super::network)?;
    let sources = Arc::new(sources);
    let routes = Router::new().route(
        "/metrics",
        get(move || {
            let sources = Arc::clone(&sources);
            async move { respond(&sources).await }
        }),
    );
    tokio::spawn(async move {
        // Open keep-alive connections must not delay shutdown.
        let result = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            result = axum::serve(listener, routes) => result,
        };
        if let Err(error) = result {
            tracing::error!(%error, "serving metrics failed");
        }
    });
    tracing::info!(%address, "serving metrics at /metrics");
    Ok(())
}

async fn respond(sources: &Sources) -> Response {
    let mut stats = sources.stats();
    stats.principals = sources.principals().await;
    match sources.metrics.encode(&stats, &sources.data_dir) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

impl Sources {
    /// Returns what the principals of the file use.
    async fn principals(&self) -> Vec<PrincipalStats> {
        let mut stats = Vec::new();
        for principal in self.access.principals() {
            let (owner, quotas) = (principal.owner(), principal.quotas());
            let count = ListRequest {
                owner: Some(owner.clone()),
                max_sessions: 1,
                after: None,
            };
            let sessions = self.engine.sessions(count).await;
            stats.push(PrincipalStats {
                name: owner.to_string(),
                streams: (principal.usage().streams(), quotas.max_streams),
                sessions: (sessions.map_or(0, |page| page.total), quotas.max_sessions),
                trainings: (self.jobs.unfinished_of(owner), quotas.max_trainings),
            });
        }
        stats
    }

    fn stats(&self) -> ServerStats {
        let load = self.engine.stats();
        let mut stats = ServerStats {
            sessions: load.sessions.sessions,
            session_bytes: load.sessions.bytes,
            generations_running: load.running,
            generations_queued: load.queued,
            decode_steps: load.steps,
            batch_rows: load.rows,
            prefill_chars: load.prefill_chars,
            prompt_cache: load.prompt_cache,
            models: self.repository.count(),
            models_loaded: self.repository.loaded().len(),
            trainings: STATES.map(|(_, name)| (name, 0)).to_vec(),
            training: None,
            commits: load.commits,
            leases: self
                .replica_sessions
                .as_ref()
                .map_or_else(LeaseCounters::default, |sessions| sessions.lease_counters()),
            principals: Vec::new(),
        };
        for job in self.jobs.list() {
            let summary = job.summary();
            let state = STATES.iter().position(|(state, _)| *state == summary.state);
            if let Some(index) = state {
                stats.trainings[index].1 += 1;
            }
            if summary.state == State::Running
                && let Some(step) = summary.last_step
            {
                stats.training = Some(TrainingStats {
                    loss: step.loss,
                    chars_per_second: step.chars_per_second,
                    progress: step.step as f64 / step.total_steps.max(1) as f64,
                });
            }
        }
        stats
    }
}

/// All states, with the values of the label `state`.
const STATES: [(State, &str); 6] = [
    (State::Queued, "queued"),
    (State::Running, "running"),
    (State::Succeeded, "succeeded"),
    (State::Cancelled, "cancelled"),
    (State::Failed, "failed"),
    (State::Interrupted, "interrupted"),
];
