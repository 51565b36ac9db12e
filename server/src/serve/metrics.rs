//! The door for those who collect metrics: HTTP on an address of its own,
//! `GET /metrics`. It has no token and no TLS, as collectors expect; what is
//! told there names no session and no text.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio_util::sync::CancellationToken;

use super::{ServeError, listen};
use crate::metrics::{Figures, Metrics, TrainingFigures};
use charlstm_engine::generation::Engine;
use charlstm_repository::Repository;
use charlstm_training::events::State;
use charlstm_training::jobs::Jobs;

/// What the encoder writes.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where the figures come from.
pub(super) struct Sources {
    pub(super) metrics: Metrics,
    pub(super) engine: Engine,
    pub(super) jobs: Jobs,
    pub(super) repository: Repository,
}

/// Serves metrics in the background until `shutdown`.
///
/// # Errors
/// [`ServeError::Listen`].
pub(super) async fn start(
    address: SocketAddr,
    sources: Sources,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let listener = listen(address).await?;
    let address = listener.local_addr().map_err(super::network)?;
    let sources = Arc::new(sources);
    let routes = Router::new().route(
        "/metrics",
        get(move || {
            let sources = Arc::clone(&sources);
            async move { answer(&sources) }
        }),
    );
    tokio::spawn(async move {
        // Collectors that keep a connection open do not hold up the end.
        let outcome = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            outcome = axum::serve(listener, routes) => outcome,
        };
        if let Err(error) = outcome {
            tracing::error!(%error, "metrics are no longer served");
        }
    });
    tracing::info!(%address, "metrics are served at /metrics");
    Ok(())
}

fn answer(sources: &Sources) -> Response {
    match sources.metrics.encode(&sources.figures()) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

impl Sources {
    fn figures(&self) -> Figures {
        let texts = self.engine.load_stats();
        let mut figures = Figures {
            sessions: texts.sessions,
            session_bytes: texts.session_bytes,
            running: texts.running,
            queued: texts.queued,
            steps: texts.steps,
            rows: texts.rows,
            models: self.repository.count(),
            models_loaded: self.repository.loaded().len(),
            trainings: STATES.map(|(_, name)| (name, 0)).to_vec(),
            training: None,
        };
        for job in self.jobs.list() {
            let summary = job.summary();
            let place = STATES.iter().position(|(state, _)| *state == summary.state);
            if let Some(place) = place {
                figures.trainings[place].1 += 1;
            }
            if summary.state == State::Running
                && let Some(step) = summary.last_step
            {
                figures.training = Some(TrainingFigures {
                    loss: step.loss,
                    chars_per_second: step.chars_per_second,
                    progress: step.step as f64 / step.total_steps.max(1) as f64,
                });
            }
        }
        figures
    }
}

/// All states, under the names that the label has.
const STATES: [(State, &str); 6] = [
    (State::Queued, "queued"),
    (State::Running, "running"),
    (State::Succeeded, "succeeded"),
    (State::Cancelled, "cancelled"),
    (State::Failed, "failed"),
    (State::Interrupted, "interrupted"),
];
