//! Connects to the server: address, TLS, token and one client per service.

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

use crate::args::GlobalFlags;
use crate::failure::Failure;

/// Time limit for establishing a connection: long enough for a slow network,
/// short enough to wait for the error message of a wrong address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Interval of HTTP/2 keep-alive pings, so that a broken network is detected
/// while a training sends no events.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// Maximum size of a received message. An exported session of the largest
/// model (8 layers of 4096) takes 256 KiB; a list of thousands of models is
/// larger.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Flow-control window of a stream: some thousand small messages. A slow reader
/// thus pauses its own stream; with a larger window, tens of thousands of
/// unread frames would make the HTTP/2 library close the whole connection.
const STREAM_WINDOW_BYTES: u32 = 1 << 16;

/// Flow-control window of the connection: enough for hundreds of streams.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 24;

/// First bytes of a TLS alert record: its type and the major version
/// (RFC 8446, section 5.1).
const TLS_ALERT: [u8; 2] = [0x15, 0x03];

/// Time limit for probing why a call failed. Short, because the failure is
/// already known and only its message can get better.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A channel that adds the token to each call.
pub(crate) type AuthorizedChannel = InterceptedService<Channel, Credentials>;

/// A connection to one server. Cloning is cheap and shares the connection. A
/// lost connection is re-established by the next call.
#[derive(Clone)]
pub(crate) struct Connection {
    channel: AuthorizedChannel,
}

/// The token of the caller, if there is one.
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
    /// Connects to the server.
    ///
    /// Fails with `NoServer` if no server answers, with `Usage` if a flag is
    /// invalid and with `Unreadable` if a file cannot be read.
    pub(crate) async fn open(global: &GlobalFlags) -> Result<Self, Failure> {
        let address = address(&global.addr)?;
        let credentials = Credentials {
            bearer: bearer(global)?,
        };
        let channel = endpoint(&address, global)?
            .connect()
            .await
            .map_err(|error| connect_failure(address, root_cause(&error)))?;
        Ok(Self {
            channel: InterceptedService::new(channel, credentials),
        })
    }

    pub(crate) fn training(&self) -> TrainingServiceClient<AuthorizedChannel> {
        TrainingServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn generation(&self) -> GenerationServiceClient<AuthorizedChannel> {
        GenerationServiceClient::new(self.channel.clone())
    }

    pub(crate) fn models(&self) -> ModelServiceClient<AuthorizedChannel> {
        ModelServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn sessions(&self) -> SessionServiceClient<AuthorizedChannel> {
        SessionServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn server(&self) -> ServerServiceClient<AuthorizedChannel> {
        ServerServiceClient::new(self.channel.clone())
    }

    pub(crate) fn health(
        &self,
    ) -> tonic_health::pb::health_client::HealthClient<AuthorizedChannel> {
        tonic_health::pb::health_client::HealthClient::new(self.channel.clone())
    }
}

/// Creates the failure of connecting to `address`. If TLS failed, a server is
/// there, and a flag may be wrong.
fn connect_failure(address: String, reason: String) -> Failure {
    if reason.contains("certificate") {
        return Failure::Refused(format!(
            "the certificate of the server at {address} is not trusted: {reason}; \
             specify its certificate authority with --tls-ca FILE"
        ));
    }
    // rustls reports an answer that is not TLS like this.
    if address.starts_with("https://") && reason.contains("InvalidContentType") {
        return Failure::Refused(format!(
            "the server at {address} does not speak TLS; use http:// instead of https://"
        ));
    }
    Failure::NoServer { address, reason }
}

/// Probes whether a call over plain HTTP failed because the server expects
/// TLS, and returns the failure that says so. Takes at most `PROBE_TIMEOUT`.
pub(crate) async fn tls_mismatch(addr: &str) -> Option<Failure> {
    let url = address(addr).ok()?;
    let authority = url.strip_prefix("http://")?.split('/').next()?;
    let probe = async {
        let mut stream = TcpStream::connect(authority).await.ok()?;
        // A TLS server answers the preface of HTTP/2 with an alert.
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .ok()?;
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).await.ok()?;
        Some(answer == TLS_ALERT)
    };
    let is_tls = tokio::time::timeout(PROBE_TIMEOUT, probe).await.ok()??;
    is_tls.then(|| {
        Failure::Refused(format!(
            "the server at {authority} speaks TLS; use --addr https://{authority}, and \
             --tls-ca FILE if its certificate is signed by your own authority"
        ))
    })
}

/// Returns the value of `--addr` as a URL; `host:port` means plain HTTP.
fn address(addr: &str) -> Result<String, Failure> {
    let addr = addr.trim().trim_end_matches('/');
    let url = if addr.contains("://") {
        addr.to_owned()
    } else {
        format!("http://{addr}")
    };
    let known_scheme = url.starts_with("http://") || url.starts_with("https://");
    let has_host = url.split("://").nth(1).is_some_and(|rest| !rest.is_empty());
    if known_scheme && has_host {
        Ok(url)
    } else {
        Err(Failure::Usage(format!(
            "--addr: invalid address {addr:?}; use http://HOST:PORT or https://HOST:PORT"
        )))
    }
}

/// Returns the `host:port` of `--addr` if a server can be started there: it is
/// an address of this machine, with a port and without TLS.
pub(crate) fn local_address(addr: &str) -> Option<String> {
    let url = address(addr).ok()?;
    let authority = url.strip_prefix("http://")?.split('/').next()?;
    let (host, port) = authority.rsplit_once(':')?;
    let is_local = matches!(host, "127.0.0.1" | "localhost" | "[::1]");
    (is_local && port.parse::<u16>().is_ok()).then(|| authority.to_owned())
}

fn endpoint(address: &str, global: &GlobalFlags) -> Result<Endpoint, Failure> {
    let invalid = |error: tonic::transport::Error| {
        Failure::Usage(format!("--addr {address}: {}", root_cause(&error)))
    };
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(invalid)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .user_agent(concat!("charlstm-client/", env!("CARGO_PKG_VERSION")))
        .map_err(invalid)?;
    if !address.starts_with("https://") {
        return match global.tls_ca {
            Some(_) => Err(Failure::Usage(format!(
                "--tls-ca requires an https:// address, but --addr is {address}"
            ))),
            None => Ok(endpoint),
        };
    }
    let tls = match &global.tls_ca {
        Some(path) => {
            let pem = fs::read(path).map_err(|error| Failure::unreadable(path, &error))?;
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
        }
        None => ClientTlsConfig::new().with_native_roots(),
    };
    endpoint
        .tls_config(tls)
        .map_err(|error| Failure::Usage(format!("--tls-ca: {}", root_cause(&error))))
}

/// Returns the `authorization` header with the token from `--token-file`.
fn bearer(global: &GlobalFlags) -> Result<Option<AsciiMetadataValue>, Failure> {
    let Some(path) = &global.token_file else {
        return Ok(None);
    };
    let token = fs::read_to_string(path).map_err(|error| Failure::unreadable(path, &error))?;
    let mut bearer: AsciiMetadataValue =
        format!("Bearer {}", token.trim()).parse().map_err(|_| {
            Failure::Usage(format!(
                "--token-file {}: the token contains characters that are not allowed in a header",
                path.display()
            ))
        })?;
    bearer.set_sensitive(true);
    Ok(Some(bearer))
}

/// Returns the message of the innermost error; that of tonic is only
/// "transport error".
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
    fn a_server_can_be_started_only_at_a_local_address_with_a_port() {
        assert_eq!(local_address("localhost:5").unwrap(), "localhost:5");
        assert_eq!(local_address("http://127.0.0.1:1/").unwrap(), "127.0.0.1:1");
        for other in ["http://example.com:5", "https://127.0.0.1:5", "127.0.0.1"] {
            assert_eq!(local_address(other), None, "{other}");
        }
    }

    #[test]
    fn an_address_with_another_scheme_or_without_a_host_is_invalid_usage() {
        assert_eq!(address("ftp://a:1").unwrap_err().exit_code(), 2);
        assert_eq!(address("").unwrap_err().exit_code(), 2);
    }
}
