//! TLS and the limits of the transport, from the settings.

use std::sync::Arc;

use rustls::ServerConfig;
use tokio::sync::watch;

use super::{ServeError, in_full, read_file};
use crate::config::{Config, TlsFiles};
use crate::http::{OriginPolicy, own_names};
use crate::listener::{RESERVED_FILES, TlsPem, raise_limit, server_config};

/// Maximum size of one message to the server, in bytes. Models and corpora
/// arrive in chunks; this bounds the corpus of `StartTraining`, which is one
/// message.
pub(super) const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Reads the files of TLS, if `files` is given. The sender of a new value
/// replaces the certificate of later connections. `http1` offers HTTP/1.1 next
/// to HTTP/2.
///
/// # Errors
/// A file that cannot be read, or a certificate or key that is invalid.
pub(super) fn tls(
    files: Option<TlsFiles<'_>>,
    http1: bool,
) -> Result<Option<watch::Sender<Arc<ServerConfig>>>, ServeError> {
    let Some(files) = files else {
        return Ok(None);
    };
    let client_ca = files.client_ca.map(read_file).transpose()?;
    let pem = TlsPem {
        cert: &read_file(files.cert)?,
        key: &read_file(files.key)?,
        client_ca: client_ca.as_deref(),
    };
    let config = server_config(pem, http1).map_err(|error| ServeError::Tls(in_full(&error)))?;
    Ok(Some(watch::Sender::new(config)))
}

/// Returns which browsers may use HTTP.
///
/// # Errors
/// The certificate cannot be read.
pub(super) fn origin_policy(config: &Config) -> Result<OriginPolicy, ServeError> {
    let tls = config.tls();
    let names = match tls {
        Some(files) => own_names(&read_file(files.cert)?),
        None => Vec::new(),
    };
    let (hosts, origins) = (&config.http.allowed_hosts, &config.http.cors_origins);
    Ok(OriginPolicy::new(tls.is_some(), names, hosts, origins))
}

/// Raises the limit of open files, and returns how many connections fit below
/// it, at most `configured`.
pub(super) fn max_connections(configured: usize) -> usize {
    let files = raise_limit();
    let possible = files.saturating_sub(RESERVED_FILES).max(1);
    if possible < configured {
        tracing::warn!(
            configured,
            possible,
            open_files = files,
            "--max-connections is lowered to what the limit of open files allows"
        );
    }
    configured.min(possible)
}
