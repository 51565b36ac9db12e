//! Probes for service managers: whether the program is alive, and whether it
//! accepts calls. Neither needs a token.

use axum::http::StatusCode;
use tokio_util::sync::CancellationToken;

/// `GET /healthz`: the program responds.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: 503 as soon as the server shuts down.
pub(super) fn readyz(shutdown: &CancellationToken) -> (StatusCode, &'static str) {
    if shutdown.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}
