//! How the server is reached: address, TLS, token. No command is here.

use std::error::Error;
use std::fs;
use std::time::Duration;

use charlstm_proto::v1::generation_service_client::GenerationServiceClient;
use charlstm_proto::v1::model_service_client::ModelServiceClient;
use charlstm_proto::v1::server_service_client::ServerServiceClient;
use charlstm_proto::v1::session_service_client::SessionServiceClient;
use charlstm_proto::v1::training_service_client::TrainingServiceClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::args::Global;
use crate::exit::Failure;

/// Long enough for a slow network, short enough that a wrong address is
/// noticed while one still looks at the terminal.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A silent peer is asked for a sign of life after this time, so that a
/// broken network is noticed while a training says nothing.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Largest message that is accepted. An exported session of the largest model
/// (8 layers of 4096) has 256 KiB; lists of thousands of models are larger.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// What the server may send ahead of a reader: on a stream some thousand small
/// messages, so that a slow one stops the server and not the connection (HTTP/2
/// gives up a connection on which many thousand small frames lie unread); on
/// the connection enough for hundreds of streams.
const STREAM_WINDOW_BYTES: u32 = 1 << 16;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 24;

/// The beginning of an alert of TLS: its type, and the high byte of its
/// version (RFC 8446, section 5.1).
const TLS_ALERT: [u8; 2] = [0x15, 0x03];

/// A server that does not answer a probe at once is not worth more waiting:
/// the call has failed already.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// A channel that sends the token with each call.
pub(crate) type Service = InterceptedService<Channel, Credentials>;

/// A connection to one server; cheap to clone, and it comes back by itself
/// after it broke.
#[derive(Clone)]
pub(crate) struct Connection {
    service: Service,
}

/// What proves to the server who calls.
#[derive(Clone)]
pub(crate) struct Credentials {
    bearer: Option<AsciiMetadataValue>,
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(bearer) = &self.bearer {
            request
                .metadata_mut()
                .insert("authorization", bearer.clone());
        }
        Ok(request)
    }
}

impl Connection {
    /// Connects. `NoServer` where nobody answers; `Usage` for an address or a
    /// file that cannot be right.
    pub(crate) async fn open(global: &Global) -> Result<Self, Failure> {
        let address = address(&global.addr)?;
        let credentials = Credentials {
            bearer: bearer(global)?,
        };
        let channel = endpoint(&address, global)?
            .connect()
            .await
            .map_err(|error| no_connection(address, root_cause(&error)))?;
        Ok(Self {
            service: InterceptedService::new(channel, credentials),
        })
    }

    pub(crate) fn training(&self) -> TrainingServiceClient<Service> {
        TrainingServiceClient::new(self.service.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn generation(&self) -> GenerationServiceClient<Service> {
        GenerationServiceClient::new(self.service.clone())
    }

    pub(crate) fn models(&self) -> ModelServiceClient<Service> {
        ModelServiceClient::new(self.service.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn sessions(&self) -> SessionServiceClient<Service> {
        SessionServiceClient::new(self.service.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn server(&self) -> ServerServiceClient<Service> {
        ServerServiceClient::new(self.service.clone())
    }

    pub(crate) fn health(&self) -> tonic_health::pb::health_client::HealthClient<Service> {
        tonic_health::pb::health_client::HealthClient::new(self.service.clone())
    }
}

/// Why there is no connection. A server whose certificate is not trusted is
/// there all the same.
fn no_connection(address: String, reason: String) -> Failure {
    if reason.contains("certificate") {
        return Failure::Refused(format!(
            "the server at {address} is not trusted: {reason}; name the authority that \
             signed its certificate with --tls-ca FILE"
        ));
    }
    // The words of rustls for an answer that is no TLS at all.
    if address.starts_with("https://") && reason.contains("InvalidContentType") {
        return Failure::Refused(format!(
            "the server at {address} does not speak TLS; use http:// instead of https://"
        ));
    }
    Failure::NoServer { address, reason }
}

/// The failure of a call over plain HTTP to a server that speaks TLS; `None`
/// where that is not what went wrong.
pub(crate) async fn speaks_tls(given: &str) -> Option<Failure> {
    let url = address(given).ok()?;
    let authority = url.strip_prefix("http://")?.split('/').next()?;
    let probe = async {
        let mut stream = TcpStream::connect(authority).await.ok()?;
        // The first words of HTTP/2. What speaks TLS answers with an alert.
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .ok()?;
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).await.ok()?;
        Some(answer == TLS_ALERT)
    };
    let is_tls = tokio::time::timeout(PROBE_LIMIT, probe).await.ok()??;
    is_tls.then(|| {
        Failure::Refused(format!(
            "the server at {authority} speaks TLS; use https:// (--addr https://{authority}), \
             and --tls-ca FILE where its certificate is your own"
        ))
    })
}

/// The address as a URL; `host:port` means plain HTTP.
fn address(given: &str) -> Result<String, Failure> {
    let given = given.trim().trim_end_matches('/');
    let url = if given.contains("://") {
        given.to_owned()
    } else {
        format!("http://{given}")
    };
    let known = url.starts_with("http://") || url.starts_with("https://");
    let host_follows = url.split("://").nth(1).is_some_and(|rest| !rest.is_empty());
    if known && host_follows {
        Ok(url)
    } else {
        Err(Failure::Usage(format!(
            "--addr: {given:?} is not an address like http://127.0.0.1:50051 or https://HOST:PORT"
        )))
    }
}

/// The `host:port` of an address of this machine without TLS, where a server
/// can be started; `None` for every other address.
pub(crate) fn local(given: &str) -> Option<String> {
    let url = address(given).ok()?;
    let authority = url.strip_prefix("http://")?.split('/').next()?;
    let (host, port) = authority.rsplit_once(':')?;
    let this_machine = matches!(host, "127.0.0.1" | "localhost" | "[::1]");
    (this_machine && port.parse::<u16>().is_ok()).then(|| authority.to_owned())
}

fn endpoint(address: &str, global: &Global) -> Result<Endpoint, Failure> {
    let bad = |error: tonic::transport::Error| {
        Failure::Usage(format!("--addr {address}: {}", root_cause(&error)))
    };
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(bad)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .user_agent(concat!("charlstm-client/", env!("CARGO_PKG_VERSION")))
        .map_err(bad)?;
    if !address.starts_with("https://") {
        return match global.tls_ca {
            Some(_) => Err(Failure::Usage(format!(
                "--tls-ca needs an https:// address, and --addr is {address}"
            ))),
            None => Ok(endpoint),
        };
    }
    let tls = match &global.tls_ca {
        Some(path) => {
            let pem = fs::read(path).map_err(|error| Failure::Unreadable {
                path: path.clone(),
                reason: error.to_string(),
            })?;
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
        }
        None => ClientTlsConfig::new().with_native_roots(),
    };
    endpoint
        .tls_config(tls)
        .map_err(|error| Failure::Usage(format!("--tls-ca: {}", root_cause(&error))))
}

/// The `authorization` header, from the token file.
fn bearer(global: &Global) -> Result<Option<AsciiMetadataValue>, Failure> {
    let Some(path) = &global.token_file else {
        return Ok(None);
    };
    let token = fs::read_to_string(path).map_err(|error| Failure::Unreadable {
        path: path.clone(),
        reason: error.to_string(),
    })?;
    let mut bearer: AsciiMetadataValue =
        format!("Bearer {}", token.trim()).parse().map_err(|_| {
            Failure::Usage(format!(
                "--token-file {}: the token has characters that a header cannot carry",
                path.display()
            ))
        })?;
    bearer.set_sensitive(true);
    Ok(Some(bearer))
}

/// The innermost error: tonic's own words are only "transport error".
fn root_cause(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_scheme_means_plain_http() {
        assert_eq!(address("localhost:5").unwrap(), "http://localhost:5");
        assert_eq!(address("http://a:1/").unwrap(), "http://a:1");
        assert_eq!(address("https://a:1").unwrap(), "https://a:1");
    }

    #[test]
    fn only_an_address_of_this_machine_can_be_served_from_here() {
        assert_eq!(local("localhost:5").unwrap(), "localhost:5");
        assert_eq!(local("http://127.0.0.1:1/").unwrap(), "127.0.0.1:1");
        for other in ["http://example.com:5", "https://127.0.0.1:5", "127.0.0.1"] {
            assert_eq!(local(other), None, "{other}");
        }
    }

    #[test]
    fn an_address_of_another_kind_is_wrong_usage() {
        assert_eq!(address("ftp://a:1").unwrap_err().exit_code(), 2);
        assert_eq!(address("").unwrap_err().exit_code(), 2);
    }
}
