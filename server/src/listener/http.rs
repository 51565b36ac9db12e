//! HTTP on one connection.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ::http::Request;
use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo, TlsConnectInfo};
use tower::ServiceExt;

use super::handshake::HandshakeLimit;

/// Time without any data on a connection after which the client is pinged.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// Time after which a connection is closed whose client does not answer a ping.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Maximum number of calls in flight on one connection: as many as may wait
/// for a slot in the batch by default. Clients hold further calls back.
const MAX_CONCURRENT_CALLS: u32 = 1024;

/// Maximum number of calls of one connection that the client has cancelled
/// before the server has accepted them; beyond it, the connection is closed
/// with GOAWAY. A client that stops may cancel all its calls in flight at once
/// and must not lose its connection because of that. (The default of the
/// library is 20.)
const MAX_PENDING_RESETS: usize = MAX_CONCURRENT_CALLS as usize;

/// Maximum number of calls of one connection that the server has reset because
/// of errors of the client; beyond it, the connection is closed with GOAWAY.
const MAX_ERROR_RESETS: usize = 256;

/// Maximum size of the headers of a request, in bytes: enough for the largest
/// access tokens.
const MAX_HEADER_BYTES: u32 = 16 * 1024;

/// What is served on a connection.
pub(super) struct Connection {
    pub(super) routes: Router,
    /// Whether HTTP/1.1 is served too.
    pub(super) http1: bool,
    /// Time limit for the headers of a request of HTTP/1.1.
    pub(super) limit: Duration,
    /// Ends the connection as soon as no call is in flight on it.
    pub(super) shutdown: CancellationToken,
}

impl Connection {
    /// Serves the calls of a connection until it ends. Returns whether it ended
    /// because the client did not begin within the time limit.
    pub(super) async fn serve<IO>(self, io: HandshakeLimit<IO>) -> bool
    where
        IO: AsyncRead + AsyncWrite + Peer + Unpin + Send + 'static,
    {
        let has_expired = io.expired_flag();
        let mut peer = ::http::Extensions::new();
        io.get_ref().describe(&mut peer);
        let service = self
            .routes
            .map_request(move |mut request: Request<Incoming>| {
                request.extensions_mut().extend(peer.clone());
                request
            });
        let builder = builder(self.http1, self.limit);
        let served = builder.serve_connection(TokioIo::new(io), TowerToHyperService::new(service));
        let mut served = pin!(served);
        let ended = tokio::select! {
            ended = &mut served => ended,
            () = self.shutdown.cancelled() => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error, "a connection failed");
        }
        has_expired.load(Ordering::Relaxed)
    }
}

fn builder(http1: bool, header_timeout: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(MAX_CONCURRENT_CALLS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .max_header_list_size(MAX_HEADER_BYTES);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout);
    if http1 { builder } else { builder.http2_only() }
}

/// A connection whose client can be described.
pub(super) trait Peer {
    /// Adds the addresses, and the certificate of the client if it has sent
    /// one, as tonic does.
    fn describe(&self, extensions: &mut ::http::Extensions);
}

impl Peer for TcpStream {
    fn describe(&self, extensions: &mut ::http::Extensions) {
        let addresses: TcpConnectInfo = self.connect_info();
        extensions.insert(addresses);
    }
}

impl Peer for TlsStream<TcpStream> {
    fn describe(&self, extensions: &mut ::http::Extensions) {
        let info: TlsConnectInfo<TcpConnectInfo> = self.connect_info();
        extensions.insert(info.get_ref().clone());
        extensions.insert(info);
    }
}
