//! Connects to the server: address, TLS, token and one client per service.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;

use crate::args::GlobalFlags;
use crate::display;
use crate::failure::Failure;
use crate::output::Output;
use crate::text_decoder::{LineEndings, TextDecoder};

/// Time limit for establishing a connection: long enough for a slow network,
/// short enough to wait for the error message of a wrong address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Port of a server if the address has neither a scheme nor a port.
const DEFAULT_PORT: u16 = 50051;

/// Interval of HTTP/2 keep-alive pings, so that a broken network is detected
/// while a training sends no events.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// How long the answer to such a ping may take.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Time limit for the first answer of the server: every server answers a health
/// check at once, so that a peer that is silent for this long is something else.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Number of times that a server is asked whose connection breaks.
const ANSWER_ATTEMPTS: u32 = 3;

/// A channel that adds the token to each call.
pub(crate) type AuthorizedChannel = InterceptedService<Channel, Credentials>;

/// A connection to a server, or to several that share their sessions, one of
/// which is used at a time. Cloning is cheap and shares the connection. A lost
/// connection is re-established by the next call.
#[derive(Clone)]
pub(crate) struct Connection {
    /// One for each address; those that were not used yet connect with their
    /// first call.
    channels: Arc<[AuthorizedChannel]>,
    /// Index of the one that is used.
    current: Arc<AtomicUsize>,
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
    /// Connects to the server, and checks that it answers. Of several addresses,
    /// the first one is used whose server answers.
    ///
    /// Fails with `NoServer` if nothing accepts the connection, with `Refused`
    /// if what accepts it is not a charlstm server, with `Usage` if a flag is
    /// invalid and with `Unreadable` if a file cannot be read.
    pub(crate) async fn open(global: &GlobalFlags) -> Result<Self, Failure> {
        let addresses = addresses(&global.addr)?;
        let credentials = Credentials {
            bearer: bearer(global)?,
        };
        let exposing = addresses.iter().find(|address| exposes_token(address));
        if let Some(address) = exposing.filter(|_| credentials.bearer.is_some()) {
            Output::new(global.json).note(&format!(
                "the token is sent unencrypted to {address}; use https:// if the server \
                 supports TLS"
            ));
        }
        let endpoints = addresses.iter().map(|address| endpoint(address, global));
        let endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
        let authorized = |channel| InterceptedService::new(channel, credentials.clone());
        let channels = endpoints.iter().map(Endpoint::connect_lazy);
        let mut channels: Vec<_> = channels.map(authorized).collect();
        let mut failure = None;
        for (index, address) in addresses.iter().enumerate() {
            match endpoints[index].connect().await {
                Ok(channel) => channels[index] = authorized(channel),
                Err(error) => {
                    failure.get_or_insert(connect_failure(address, root_cause(&error)));
                    continue;
                }
            }
            let connection = Self {
                channels: channels.as_slice().into(),
                current: Arc::new(AtomicUsize::new(index)),
            };
            match connection.check_answer(address, global).await {
                Ok(()) => return Ok(connection),
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        if addresses.len() > 1 {
            let all = addresses.join(", ");
            Output::new(global.json).note(&format!(
                "none of {all} can be used; the error is that of the first one"
            ));
        }
        Err(failure.unwrap_or_else(|| Failure::Usage("--addr names no server".into())))
    }

    /// Uses the server at the next address from now on, because this one is gone
    /// or cannot carry out a call.
    pub(crate) fn use_next_server(&self) {
        let next = (self.index() + 1) % self.channels.len();
        self.current.store(next, Ordering::Relaxed);
    }

    fn index(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    fn channel(&self) -> AuthorizedChannel {
        self.channels[self.index()].clone()
    }

    /// Checks that the peer is a gRPC server, by asking for its health.
    async fn check_answer(&self, address: &str, global: &GlobalFlags) -> Result<(), Failure> {
        let is_tls = address.starts_with("https://");
        let mut attempts = 0;
        let (reason, peer) = loop {
            attempts += 1;
            let reason = match self.ask_for_health().await {
                Answer::OfServer => return Ok(()),
                Answer::Other(reason) => break (reason, Peer::Unknown),
                Answer::None(reason) => reason,
            };
            let peer = if is_tls {
                Peer::Unknown
            } else {
                Peer::probe(authority(address)).await
            };
            // The network may have interrupted the connection.
            if peer != Peer::Unknown || attempts == ANSWER_ATTEMPTS {
                break (reason, peer);
            }
        };
        Err(Failure::Refused(match peer {
            Peer::Tls => {
                let authority = authority(address);
                format!(
                    "the server at {authority} speaks TLS; use --addr https://{authority}, and \
                     --tls-ca FILE if its certificate is signed by your own authority"
                )
            }
            Peer::Other(greeting) => format!(
                "{address} is not the address of a charlstm server: what answers there sends \
                 {greeting:?}"
            ),
            Peer::Unknown if is_tls && global.tls_cert.is_none() => format!(
                "the server at {address} closed the connection: {reason}; if it requires a \
                 client certificate, use --tls-cert FILE --tls-key FILE"
            ),
            Peer::Unknown => {
                format!("{address} is not the address of a charlstm server: {reason}")
            }
        }))
    }

    async fn ask_for_health(&self) -> Answer {
        let mut health = self.health();
        let check = health.check(HealthCheckRequest::default());
        match tokio::time::timeout(ANSWER_TIMEOUT, check).await {
            Ok(Ok(_)) => Answer::OfServer,
            // tonic reports an answer of an HTTP/2 server that is not a gRPC
            // server like this.
            Ok(Err(status)) if status.message().starts_with("grpc-status header missing") => {
                Answer::Other(format!("it is a web server ({})", status.message()))
            }
            Ok(Err(status)) => match status.source() {
                // The server sent the status.
                None => Answer::OfServer,
                Some(error) => Answer::None(root_cause(error)),
            },
            Err(_) => Answer::Other("it does not answer".into()),
        }
    }

    pub(crate) fn training(&self) -> TrainingServiceClient<AuthorizedChannel> {
        TrainingServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn generation(&self) -> GenerationServiceClient<AuthorizedChannel> {
        GenerationServiceClient::new(self.channel())
    }

    pub(crate) fn models(&self) -> ModelServiceClient<AuthorizedChannel> {
        ModelServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn sessions(&self) -> SessionServiceClient<AuthorizedChannel> {
        SessionServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn server(&self) -> ServerServiceClient<AuthorizedChannel> {
        ServerServiceClient::new(self.channel())
    }

    pub(crate) fn health(
        &self,
    ) -> tonic_health::pb::health_client::HealthClient<AuthorizedChannel> {
        tonic_health::pb::health_client::HealthClient::new(self.channel())
    }
}

/// The answer to the question for the health of a server.
enum Answer {
    /// Any answer of a gRPC server.
    OfServer,
    /// The answer of something else, or silence.
    Other(String),
    /// The connection broke.
    None(String),
}

/// What listens at an address, as far as its first bytes tell.
#[derive(Debug, Eq, PartialEq)]
enum Peer {
    /// A server that expects TLS.
    Tls,
    /// A server of another protocol, which sends this.
    Other(String),
    /// An HTTP/2 server, or one that sends nothing.
    Unknown,
}

impl Peer {
    /// Connects to `authority` and looks at the answer to the preface of HTTP/2.
    /// Takes at most `PROBE_TIMEOUT`, because the call has failed already and
    /// only its message can get better.
    async fn probe(authority: &str) -> Self {
        const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
        let answer = async {
            let mut stream = TcpStream::connect(authority).await.ok()?;
            stream
                .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                .await
                .ok()?;
            let mut answer = vec![0; 40];
            let read = stream.read(&mut answer).await.ok()?;
            answer.truncate(read);
            Some(answer)
        };
        match tokio::time::timeout(PROBE_TIMEOUT, answer).await {
            Ok(Some(answer)) => Self::of(&answer),
            _ => Self::Unknown,
        }
    }

    fn of(answer: &[u8]) -> Self {
        // A TLS alert: its type and the major version (RFC 8446, section 5.1).
        if answer.starts_with(&[0x15, 0x03]) {
            return Self::Tls;
        }
        // Protocols with readable messages: HTTP/1, SSH, SMTP, Redis.
        let line = answer.split(|byte| matches!(byte, b'\r' | b'\n')).next();
        match line.map(std::str::from_utf8) {
            Some(Ok(line)) if !line.is_empty() && line.chars().all(|c| !c.is_control()) => {
                Self::Other(line.to_owned())
            }
            _ => Self::Unknown,
        }
    }
}

/// Creates the failure of connecting to `address`. If TLS failed, a server is
/// there, and a flag may be wrong.
fn connect_failure(address: &str, reason: String) -> Failure {
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
    let remedy = if is_local(authority(address)) {
        "start a server with `charlstm-server`, or specify another address with --addr URL or \
         CHARLSTM_ADDR"
    } else {
        "check the address (--addr or CHARLSTM_ADDR), and that a server is running there"
    };
    Failure::NoServer {
        address: address.to_owned(),
        reason,
        remedy,
    }
}

/// Returns the `host:port` of a URL.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// Returns true if `authority` is an address of this machine.
fn is_local(authority: &str) -> bool {
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    matches!(host, "127.0.0.1" | "localhost" | "[::1]")
}

/// Returns true if a token would leave this machine without encryption.
fn exposes_token(address: &str) -> bool {
    address.starts_with("http://") && !is_local(authority(address))
}

/// Returns the addresses in the value of `--addr`, as URLs.
fn addresses(addr: &str) -> Result<Vec<String>, Failure> {
    addr.split(',').map(address).collect()
}

/// Returns one address of `--addr` as a URL. `HOST` and `HOST:PORT` mean plain
/// HTTP; a URL without a port has the one of its scheme.
fn address(addr: &str) -> Result<String, Failure> {
    let addr = addr.trim().trim_end_matches('/');
    let url = if addr.contains("://") {
        addr.to_owned()
    } else if addr.contains(':') && !addr.ends_with(']') {
        format!("http://{addr}")
    } else {
        format!("http://{addr}:{DEFAULT_PORT}")
    };
    let known_scheme = url.starts_with("http://") || url.starts_with("https://");
    let has_host = !addr.is_empty() && !authority(&url).is_empty();
    if known_scheme && has_host {
        Ok(url)
    } else {
        Err(Failure::Usage(format!(
            "--addr: invalid address {addr:?}; use HOST:PORT, http://HOST:PORT or \
             https://HOST:PORT"
        )))
    }
}

/// Returns the `host:port` of `--addr` if a server can be started there: it is
/// an address of this machine, with a port and without TLS.
pub(crate) fn local_address(addr: &str) -> Option<String> {
    let url = address(addr).ok()?;
    let authority = authority(url.strip_prefix("http://")?);
    let (_, port) = authority.rsplit_once(':')?;
    (is_local(authority) && port.parse::<u16>().is_ok()).then(|| authority.to_owned())
}

fn endpoint(address: &str, global: &GlobalFlags) -> Result<Endpoint, Failure> {
    let invalid = |error: tonic::transport::Error| {
        Failure::Usage(format!("--addr {address}: {}", root_cause(&error)))
    };
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(invalid)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .user_agent(concat!("charlstm-client/", env!("CARGO_PKG_VERSION")))
        .map_err(invalid)?;
    if !address.starts_with("https://") {
        let flags = [
            (&global.tls_ca, "--tls-ca"),
            (&global.tls_cert, "--tls-cert"),
        ];
        return match flags.into_iter().find(|(file, _)| file.is_some()) {
            Some((_, flag)) => Err(Failure::Usage(format!(
                "{flag} requires an https:// address, but --addr is {address}"
            ))),
            None => Ok(endpoint),
        };
    }
    let read = |path: &Path| fs::read(path).map_err(|error| Failure::unreadable(path, &error));
    let mut tls = match &global.tls_ca {
        Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    if let (Some(certificate), Some(key)) = (&global.tls_cert, &global.tls_key) {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    endpoint.tls_config(tls).map_err(|error| {
        Failure::Usage(format!(
            "the files of --tls-ca, --tls-cert and --tls-key cannot be used: {}",
            root_cause(&error)
        ))
    })
}

/// Returns the `authorization` header with the token from `--token-file`.
fn bearer(global: &GlobalFlags) -> Result<Option<AsciiMetadataValue>, Failure> {
    let Some(path) = &global.token_file else {
        return Ok(None);
    };
    let bytes = fs::read(path).map_err(|error| Failure::unreadable(path, &error))?;
    let decoded = TextDecoder::decode_all(&bytes, LineEndings::Lf);
    let (token, _) = decoded.map_err(|invalid| Failure::Unreadable {
        path: path.clone(),
        reason: invalid.reason(path),
    })?;
    let mut bearer: AsciiMetadataValue =
        format!("Bearer {}", token.trim()).parse().map_err(|_| {
            Failure::Usage(format!(
                "--token-file {}: the token contains characters that are not allowed in a header",
                display::path(path)
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
    fn an_address_without_scheme_means_plain_http_at_the_default_port() {
        for (addr, url) in [
            ("localhost:5", "http://localhost:5"),
            ("localhost", "http://localhost:50051"),
            ("[::1]", "http://[::1]:50051"),
            ("[::1]:5", "http://[::1]:5"),
            ("http://a:1/", "http://a:1"),
            ("https://a:1", "https://a:1"),
            ("https://a", "https://a"),
        ] {
            assert_eq!(address(addr).unwrap(), url);
        }
    }

    #[test]
    fn a_server_can_be_started_only_at_a_local_address_with_a_port() {
        assert_eq!(local_address("localhost:5").unwrap(), "localhost:5");
        assert_eq!(local_address("http://127.0.0.1:1/").unwrap(), "127.0.0.1:1");
        for other in [
            "http://example.com:5",
            "https://127.0.0.1:5",
            "http://127.0.0.1",
        ] {
            assert_eq!(local_address(other), None, "{other}");
        }
    }

    #[test]
    fn an_address_with_another_scheme_or_without_a_host_is_invalid_usage() {
        assert_eq!(address("ftp://a:1").unwrap_err().exit_code(), 2);
        assert_eq!(address("").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn only_a_remote_server_without_tls_exposes_the_token() {
        assert!(exposes_token("http://example.com:5"));
        assert!(!exposes_token("http://localhost:5"));
        assert!(!exposes_token("https://example.com:5"));
    }

    #[test]
    fn a_peer_of_another_protocol_is_recognized_by_its_first_line() {
        let other = |line: &str| Peer::Other(line.into());
        let http = b"HTTP/1.1 400 Bad Request\r\nServer: x";
        assert_eq!(Peer::of(http), other("HTTP/1.1 400 Bad Request"));
        assert_eq!(Peer::of(b"SSH-2.0-x\r\n"), other("SSH-2.0-x"));
        assert_eq!(Peer::of(b"\x15\x03\x01\0\x02"), Peer::Tls);
        // The settings of an HTTP/2 server.
        assert_eq!(Peer::of(b"\0\0\x06\x04\0\0\0\0\0"), Peer::Unknown);
        assert_eq!(Peer::of(b""), Peer::Unknown);
    }

    #[test]
    fn the_remedy_for_a_missing_server_depends_on_where_it_should_be() {
        let remedy = |address| connect_failure(address, "refused".into()).to_string();
        assert!(remedy("http://127.0.0.1:1").contains("start a server"));
        assert!(!remedy("http://example.com:1").contains("start a server"));
    }
}
