//! The TLS settings of the server, from PEM files.

use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

/// The contents of the PEM files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlsPem<'a> {
    /// Certificate chain.
    pub(crate) cert: &'a [u8],
    /// Private key.
    pub(crate) key: &'a [u8],
    /// Authorities, one of which must have signed the certificate of each
    /// client.
    pub(crate) client_ca: Option<&'a [u8]>,
}

/// A certificate or key is invalid.
#[derive(Debug, Error)]
pub(crate) enum TlsError {
    /// A file is not valid PEM, or does not contain what it should.
    #[error("there is no valid {what} in PEM format: {source}")]
    Pem {
        /// What the file should contain.
        what: &'static str,
        /// What is wrong.
        source: rustls_pki_types::pem::Error,
    },
    /// A file contains no certificate.
    #[error("there is no {0} in PEM format")]
    NoCertificate(&'static str),
    /// The certificate or key cannot be used.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
    /// The authorities of clients cannot be used.
    #[error("certificate authorities of clients: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Returns the settings for connections. `http1` offers HTTP/1.1 next to
/// HTTP/2.
///
/// # Errors
/// [`TlsError`].
pub(crate) fn server_config(pem: TlsPem<'_>, http1: bool) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match pem.client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(pem, "certificate authority of clients")? {
                roots.add(certificate)?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_slice(pem.key).map_err(|source| TlsError::Pem {
        what: "private key",
        source,
    })?;
    let mut config = builder.with_single_cert(certificates(pem.cert, "certificate")?, key)?;
    config.alpn_protocols.push(b"h2".to_vec());
    if http1 {
        config.alpn_protocols.push(b"http/1.1".to_vec());
    }
    Ok(Arc::new(config))
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|source| TlsError::Pem { what, source })?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate(what));
    }
    Ok(certificates)
}
