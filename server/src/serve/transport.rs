//! The transport: HTTP/2 with its limits, and TLS.

use std::time::Duration;

use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use super::{ServeError, in_full, read_file};
use crate::config::TlsFiles;

/// Maximum size of one message to the server, in bytes. Models and corpora
/// arrive in chunks; this bounds the corpus of `StartTraining`, which is one
/// message.
pub(super) const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Time without any data on a connection after which the client is pinged.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// Time after which a connection is closed whose client does not answer a ping.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Maximum number of calls of one connection that the client has cancelled
/// before the server has accepted them; beyond it, the connection is closed. A
/// client that stops cancels thousands of calls at once and must not lose its
/// connection because of it. Each costs a few hundred bytes until it is
/// accepted, so a connection costs a few megabytes at most. (The default of
/// the library is 20.)
const MAX_PENDING_RESETS: usize = 16_384;

/// Builds the transport, with TLS if `tls` is given.
///
/// # Errors
/// A file that cannot be read, or a certificate or key that is invalid.
pub(super) fn transport(tls: Option<TlsFiles<'_>>) -> Result<Server, ServeError> {
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS));
    let Some(files) = tls else {
        return Ok(server);
    };
    let identity = Identity::from_pem(read_file(files.cert)?, read_file(files.key)?);
    let mut tls = ServerTlsConfig::new().identity(identity);
    if let Some(path) = files.client_ca {
        tls = tls.client_ca_root(Certificate::from_pem(read_file(path)?));
    }
    server
        .tls_config(tls)
        .map_err(|error| ServeError::Tls(in_full(&error)))
}
