//! The other end of a connection.

use std::net::SocketAddr;
use std::sync::Arc;

use tonic::codegen::http::Extensions;
use tonic::transport::CertificateDer;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

/// The client of a request, as its connection shows it. Headers such as
/// `X-Forwarded-For` are never used: the client chooses them.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Its address, or that of the proxy in front of it.
    pub address: Option<SocketAddr>,
    /// Its certificate in DER, if it has one. It was verified.
    pub certificate: Option<Vec<u8>>,
}

impl Peer {
    /// Returns the client of the request with these extensions.
    pub fn of(extensions: &Extensions) -> Self {
        if let Some(info) = extensions.get::<TlsConnectInfo<TcpConnectInfo>>() {
            let certificates: Option<Arc<Vec<CertificateDer<'static>>>> = info.peer_certs();
            let first = certificates.as_ref().and_then(|chain| chain.first());
            return Self {
                address: info.get_ref().remote_addr(),
                certificate: first.map(|der| der.to_vec()),
            };
        }
        let info = extensions.get::<TcpConnectInfo>();
        Self {
            address: info.and_then(TcpConnectInfo::remote_addr),
            certificate: None,
        }
    }
}
