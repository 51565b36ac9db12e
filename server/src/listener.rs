//! Accepts connections and serves HTTP on them, within limits: a maximum
//! number of connections, a time limit for the TLS handshake and for the
//! beginning of HTTP, and bounds on what one HTTP/2 connection may have open.
//!
//! A rejected or expired connection costs nothing more than its socket, for at
//! most the time limit.

mod handshake;
mod http;
mod incident_log;
mod open_files;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod tls;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::handshake::HandshakeLimit;
use self::http::Connection;
use self::incident_log::IncidentLog;
pub(crate) use self::open_files::{RESERVED_FILES, raise_limit};
pub(crate) use self::tls::{TlsPem, server_config};
use crate::metrics::connections::{ConnectionMetrics, Phase};

/// Maximum time for the TLS handshake, and again for the beginning of HTTP. A
/// client on a slow network needs a few seconds at most.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Delay before the next attempt after the system has failed to accept a
/// connection, at first and at most: it doubles with each failure.
const MIN_ACCEPT_DELAY: Duration = Duration::from_millis(20);
const MAX_ACCEPT_DELAY: Duration = Duration::from_secs(1);

/// What a listener needs besides its socket and its service.
#[derive(Clone, Debug)]
pub(crate) struct ListenerConfig {
    /// Maximum number of open connections; further ones are closed immediately.
    pub(crate) max_connections: usize,
    /// Maximum time for each of the two handshakes.
    pub(crate) handshake_timeout: Duration,
    /// TLS, if it is configured. A new value applies to later connections.
    pub(crate) tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    /// Whether HTTP/1.1 is served too. `tls` must offer the same protocols.
    pub(crate) http1: bool,
}

impl ListenerConfig {
    /// At most `max_connections`, with the default time limit, over HTTP/2.
    pub(crate) fn new(
        max_connections: usize,
        tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    ) -> Self {
        Self {
            max_connections,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            tls,
            http1: false,
        }
    }
}

/// Serves the connections that arrive at `listener` until `shutdown` is
/// cancelled, and then until all of them are closed: clients are asked to open
/// no more calls, and those in flight may end. Dropping the future closes all
/// connections.
///
/// Each request has the extension `TcpConnectInfo` of tonic, and with TLS also
/// `TlsConnectInfo<TcpConnectInfo>`.
pub(crate) async fn serve(
    listener: TcpListener,
    config: ListenerConfig,
    metrics: ConnectionMetrics,
    routes: Router,
    shutdown: CancellationToken,
) {
    let mut connections = JoinSet::new();
    let mut failures = FailureLog::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, _) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if concerns_one_client(&error) => continue,
            Err(error) => {
                let delay = failures.failed(&error);
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = tokio::time::sleep(delay) => continue,
                }
            }
        };
        if connections.len() >= config.max_connections {
            failures.rejected(config.max_connections);
            metrics.rejected();
            continue;
        }
        failures.accepted();
        let (config, metrics) = (config.clone(), metrics.clone());
        let (routes, shutdown) = (routes.clone(), shutdown.clone());
        connections.spawn(serve_connection(stream, config, metrics, routes, shutdown));
    }
    // New clients are to be refused, and not to wait in the queue of the system.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve_connection(
    stream: TcpStream,
    config: ListenerConfig,
    metrics: ConnectionMetrics,
    routes: Router,
    shutdown: CancellationToken,
) {
    let _open = metrics.opened();
    // A character is a small packet, and is not to wait for the next one. It
    // fails only if the client has left.
    let _ = stream.set_nodelay(true);
    let limit = config.handshake_timeout;
    let connection = Connection {
        routes,
        http1: config.http1,
        limit,
        shutdown: shutdown.clone(),
    };
    let has_expired = match &config.tls {
        None => connection.serve(HandshakeLimit::new(stream, limit)).await,
        Some(tls) => {
            let tls = Arc::clone(&tls.borrow());
            let accept = tokio_rustls::TlsAcceptor::from(tls).accept(stream);
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = tokio::time::timeout(limit, accept) => accepted,
            };
            match accepted {
                Ok(Ok(stream)) => connection.serve(HandshakeLimit::new(stream, limit)).await,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a TLS handshake failed");
                    return;
                }
                Err(_) => return metrics.expired(Phase::Tls),
            }
        }
    };
    if has_expired {
        metrics.expired(Phase::Http);
    }
}

/// Whether `accept` failed because of the client that it would have accepted.
fn concerns_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// Reports failures to accept, and connections that are rejected, at most once a
/// minute: at a limit, connections are accepted and rejected in turn.
#[derive(Debug, Default)]
struct FailureLog {
    delay: Option<Duration>,
    failures: IncidentLog,
    rejections: IncidentLog,
}

impl FailureLog {
    /// Returns the delay before the next attempt.
    fn failed(&mut self, error: &io::Error) -> Duration {
        if let Some(since_last) = self.failures.occurred(Instant::now()) {
            tracing::error!(%error, since_last, "cannot accept connections; trying again");
        }
        let delay = match self.delay {
            None => MIN_ACCEPT_DELAY,
            Some(delay) => (delay * 2).min(MAX_ACCEPT_DELAY),
        };
        self.delay = Some(delay);
        delay
    }

    fn rejected(&mut self, max_connections: usize) {
        if let Some(since_last) = self.rejections.occurred(Instant::now()) {
            tracing::warn!(
                max_connections,
                since_last,
                "too many connections: further ones are closed; see --max-connections"
            );
        }
    }

    fn accepted(&mut self) {
        self.delay = None;
    }
}
