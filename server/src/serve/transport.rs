//! TLS and the limits of the transport, from the settings.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::sync::watch;

use super::{ServeError, read_file};
use crate::config::{Config, TlsFiles};
use crate::http::{OriginPolicy, own_names};
use crate::listener::{RESERVED_FILES, TlsPem, raise_limit, server_config};

/// TLS, whose files are read again when they change.
pub(super) struct Tls {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    /// Whether HTTP/1.1 is offered next to HTTP/2.
    http1: bool,
    contents: PemFiles,
    config: watch::Sender<Arc<ServerConfig>>,
    /// The DNS names of the certificate.
    names: watch::Sender<Vec<String>>,
}

/// The contents of the files of TLS.
#[derive(PartialEq, Eq)]
struct PemFiles {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Tls {
    /// Reads the files of TLS; `None` if TLS is not configured. Blocks.
    ///
    /// # Errors
    /// A file that cannot be read, or a certificate or key that is invalid.
    pub(super) fn of(config: &Config) -> Result<Option<Self>, ServeError> {
        let Some(files) = config.tls() else {
            return Ok(None);
        };
        let http1 = config.http.is_on;
        let contents = PemFiles::read(files)?;
        Ok(Some(Self {
            cert: files.cert.to_owned(),
            key: files.key.to_owned(),
            client_ca: files.client_ca.map(Path::to_owned),
            http1,
            config: watch::Sender::new(contents.config(files, http1)?),
            names: watch::Sender::new(own_names(&contents.cert)),
            contents,
        }))
    }

    /// Returns the settings of new connections.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.config.subscribe()
    }

    /// Reads the files again. If they have changed, later connections use them.
    /// Returns whether they have changed. Blocks.
    ///
    /// # Errors
    /// As [`Self::of`]; what was read before stays in force.
    pub(super) fn reload(&mut self) -> Result<bool, ServeError> {
        let files = TlsFiles {
            cert: &self.cert,
            key: &self.key,
            client_ca: self.client_ca.as_deref(),
        };
        let contents = PemFiles::read(files)?;
        if contents == self.contents {
            return Ok(false);
        }
        self.config
            .send_replace(contents.config(files, self.http1)?);
        self.names.send_replace(own_names(&contents.cert));
        self.contents = contents;
        Ok(true)
    }
}

impl PemFiles {
    fn read(files: TlsFiles<'_>) -> Result<Self, ServeError> {
        Ok(Self {
            cert: read_file(files.cert)?,
            key: read_file(files.key)?,
            client_ca: files.client_ca.map(read_file).transpose()?,
        })
    }

    /// Returns the settings of connections. `files` are named in an error.
    fn config(&self, files: TlsFiles<'_>, http1: bool) -> Result<Arc<ServerConfig>, ServeError> {
        let pem = TlsPem {
            cert: &self.cert,
            key: &self.key,
            client_ca: self.client_ca.as_deref(),
        };
        server_config(pem, http1).map_err(|error| {
            let (cert, key) = (files.cert.display(), files.key.display());
            let mut names = format!("{cert} (--tls-cert), {key} (--tls-key)");
            if let Some(authority) = files.client_ca {
                names.push_str(&format!(", {} (--tls-client-ca)", authority.display()));
            }
            ServeError::Tls(format!("{error}; the files are {names}"))
        })
    }
}

/// Returns the hosts and origins that may use HTTP.
pub(super) fn origin_policy(config: &Config, tls: Option<&Tls>) -> OriginPolicy {
    let names = match tls {
        Some(tls) => tls.names.subscribe(),
        None => watch::Sender::new(Vec::new()).subscribe(),
    };
    let (hosts, origins) = (&config.http.allowed_hosts, &config.http.cors_origins);
    OriginPolicy::new(tls.is_some(), names, hosts, origins)
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
