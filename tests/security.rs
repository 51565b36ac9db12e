//! TLS and access tokens, with the command-line client and on the wire.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use charlstm_proto::v1::server_service_client::ServerServiceClient;
use charlstm_proto::v1::training_service_client::TrainingServiceClient;
use charlstm_proto::v1::{GetServerStatusRequest, ListTrainingsRequest};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::client::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, RootCertStore};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tonic::{Code, Request, Status};

use crate::support::files::write_secret;
use crate::support::wire::{assert_status, eventually};
use crate::support::{CommandOutput, Server, ask, train_small};

const TOKEN: &str = "a-secret-token";

/// A certificate authority, certificates for the server and for clients, and
/// token files.
struct TestCerts {
    folder: TempDir,
}

impl TestCerts {
    fn create() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority("ours");
        let key = KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let certificate = CertificateParams::new(names)
            .unwrap()
            .signed_by(&key, &authority)
            .unwrap();
        let own_key = KeyPair::generate().unwrap();
        let client_certificate = |name: &str, authority| {
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.signed_by(&own_key, authority).unwrap().pem()
        };
        let another = self::authority("another");
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let new_certificate = CertificateParams::new(names)
            .unwrap()
            .signed_by(&key, &another)
            .unwrap();
        for (name, content) in [
            ("client.pem", client_certificate("a-client", &authority)),
            (
                "other-client.pem",
                client_certificate("b-client", &authority),
            ),
            (
                "strange-client.pem",
                client_certificate("a-client", &another),
            ),
            ("client.key", own_key.serialize_pem()),
            ("ca.pem", authority.pem()),
            ("other-ca.pem", another.pem()),
            ("server.pem", certificate.pem()),
            ("new-server.pem", new_certificate.pem()),
            ("server.key", key.serialize_pem()),
            ("tokens", format!("# of the tests\n{TOKEN}\n")),
            ("token", format!("{TOKEN}\n")),
            ("wrong-token", "a-guess\n".to_owned()),
        ] {
            write_secret(&folder.path().join(name), &content);
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        let path: PathBuf = self.folder.path().join(name);
        path.into_os_string().into_string().unwrap()
    }

    /// Starts a server with TLS that requires a token.
    fn server(&self) -> Server {
        let (cert, key) = (self.path("server.pem"), self.path("server.key"));
        let tokens = self.path("tokens");
        let flags = ["--tls-cert", &cert, "--tls-key", &key];
        Server::start(&[&flags[..], &["--auth-token-file", &tokens]].concat())
    }

    /// Runs `status` with a certificate authority and a token.
    fn status(&self, server: &Server, ca: Option<&str>, token: Option<&str>) -> CommandOutput {
        let mut arguments = vec!["status".to_owned()];
        for (flag, name) in [("--tls-ca", ca), ("--token-file", token)] {
            if let Some(name) = name {
                arguments.extend([flag.to_owned(), self.path(name)]);
            }
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        ask(server, &arguments)
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::OrganizationName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

#[test]
fn the_client_trains_and_generates_over_tls_with_a_token() {
    let certs = TestCerts::create();
    let server = certs.server();
    assert!(server.url().starts_with("https://127.0.0.1:"));
    let (ca, token) = (certs.path("ca.pem"), certs.path("token"));
    let access = ["--tls-ca", &ca, "--token-file", &token];
    let output = train_small(&server, "verse", &access);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let generate = ["generate", "--prime", "arma ", "--length", "40"];
    let output = ask(&server, &[&generate[..], &access[..]].concat());
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(output.stdout.starts_with("arma "), "{}", output.stdout);
    assert_eq!(output.stdout.trim_end_matches('\n').chars().count(), 45);
    assert!(!server.log().contains(TOKEN), "the token is in the log");
}

#[test]
fn the_client_reports_a_missing_or_wrong_token() {
    let certs = TestCerts::create();
    let server = certs.server();
    for token in [None, Some("wrong-token")] {
        let output = certs.status(&server, Some("ca.pem"), token);
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        assert_eq!(output.stdout, "");
        assert!(
            output.stderr.contains("requires a valid access token"),
            "{}",
            output.stderr
        );
        assert!(output.stderr.contains("--token-file"), "{}", output.stderr);
    }
    let output = certs.status(&server, Some("ca.pem"), Some("no-such-file"));
    assert_eq!(output.code, Some(2), "{}", output.stderr);
    assert!(output.stderr.contains("no-such-file"), "{}", output.stderr);
    let output = certs.status(&server, Some("ca.pem"), Some("token"));
    assert_eq!(output.code, Some(0), "{}", output.stderr);
}

#[test]
fn the_client_rejects_a_server_of_an_unknown_authority() {
    let certs = TestCerts::create();
    let server = certs.server();
    // None: the authorities of the system.
    for ca in [Some("other-ca.pem"), None] {
        let output = certs.status(&server, ca, Some("token"));
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        assert_eq!(output.stdout, "");
        let reason = "invalid peer certificate: UnknownIssuer";
        assert!(output.stderr.contains(reason), "{}", output.stderr);
    }
    let output = certs.status(&server, Some("server.key"), Some("token"));
    assert_ne!(output.code, Some(0), "a key is not an authority");
}

/// Requests the status of the server over TLS.
async fn request_status(
    server: &Server,
    ca: &Path,
    authorization: Option<&str>,
) -> Result<(), Status> {
    let ca = Certificate::from_pem(fs::read(ca).unwrap());
    let channel = Channel::from_shared(server.url().to_owned())
        .unwrap()
        .tls_config(ClientTlsConfig::new().ca_certificate(ca))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut request = Request::new(GetServerStatusRequest {});
    if let Some(value) = authorization {
        let metadata = request.metadata_mut();
        metadata.insert("authorization", value.parse().unwrap());
    }
    let mut client = ServerServiceClient::new(channel);
    client.get_server_status(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_a_valid_token_is_unauthenticated() {
    let certs = TestCerts::create();
    let server = certs.server();
    let ca = certs.folder.path().join("ca.pem");
    let right = format!("Bearer {TOKEN}");
    let longer = format!("{right}x");
    for wrong in [None, Some("Bearer "), Some(TOKEN), Some(longer.as_str())] {
        let status = request_status(&server, &ca, wrong).await.unwrap_err();
        assert_status(&status, Code::Unauthenticated, "TOKEN_NEEDED");
    }
    request_status(&server, &ca, Some(&right)).await.unwrap();
}

#[test]
fn the_client_explains_that_only_one_side_uses_tls() {
    let certs = TestCerts::create();
    let server = certs.server();
    let plain = format!("http://{}", server.address());
    let output = ask(&server, &["status", "--addr", &plain]);
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert!(output.stderr.contains("speaks TLS"), "{}", output.stderr);
    assert!(output.stderr.contains("https://"), "{}", output.stderr);

    let server = Server::start(&[]);
    let tls = format!("https://{}", server.address());
    let output = ask(&server, &["status", "--addr", &tls]);
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert!(
        output.stderr.contains("does not speak TLS"),
        "{}",
        output.stderr
    );
    let output = certs.status(&server, Some("ca.pem"), None);
    assert_eq!(output.code, Some(2), "{}", output.stderr);
    assert!(output.stderr.contains("https://"), "{}", output.stderr);
}

/// Connects with TLS, with or without a client certificate, and reads the first
/// byte that the server sends after the handshake. The client sends nothing,
/// so an alert of the server always arrives.
async fn first_byte(certs: &TestCerts, server: &Server, identity: Option<&str>) -> io::Result<u8> {
    let certificates = |name: &str| {
        let certificates = CertificateDer::pem_file_iter(certs.path(name)).unwrap();
        certificates.map(Result::unwrap)
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates("ca.pem"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some(name) => {
            let key = PrivateKeyDer::from_pem_file(certs.path("client.key")).unwrap();
            let certificates = certificates(name).collect();
            config.with_client_auth_cert(certificates, key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(server.address()).await?;
    let name = "127.0.0.1".try_into().unwrap();
    let mut stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    stream.read_u8().await
}

/// Returns the TLS alert that an error is about.
fn alert(error: &io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_client_authority_only_clients_with_its_certificate_are_served() {
    let certs = TestCerts::create();
    let (cert, key) = (certs.path("server.pem"), certs.path("server.key"));
    let ca = certs.path("ca.pem");
    let flags = ["--tls-cert", &cert, "--tls-key", &key];
    // Only over HTTP/2 alone does the server speak first.
    let further = ["--tls-client-ca", &ca, "--http", "off"];
    let server = Server::start(&[&flags[..], &further].concat());
    for (identity, expected) in [
        (None, AlertDescription::CertificateRequired),
        (Some("strange-client.pem"), AlertDescription::UnknownCA),
    ] {
        let error = first_byte(&certs, &server, identity).await.unwrap_err();
        assert_eq!(alert(&error), Some(expected), "{error}");
    }
    first_byte(&certs, &server, Some("client.pem"))
        .await
        .unwrap();

    let channel = connect_as(&certs, &server, "client.pem").await;
    let mut client = ServerServiceClient::new(channel);
    client
        .get_server_status(GetServerStatusRequest {})
        .await
        .unwrap();
}

/// Connects with a client certificate.
async fn connect_as(certs: &TestCerts, server: &Server, certificate: &str) -> Channel {
    let read = |name: &str| fs::read(certs.path(name)).unwrap();
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("ca.pem")))
        .identity(Identity::from_pem(read(certificate), read("client.key")));
    let endpoint = Channel::from_shared(server.url().to_owned()).unwrap();
    endpoint.tls_config(tls).unwrap().connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_in_a_client_certificate_is_a_principal() {
    let certs = TestCerts::create();
    let (cert, key, ca) = (
        certs.path("server.pem"),
        certs.path("server.key"),
        certs.path("ca.pem"),
    );
    let principals = certs.folder.path().join("principals.toml");
    let entry =
        "[[principal]]\nname = \"alice\"\ncertificate = \"a-client\"\nroles = [\"generate\"]\n";
    write_secret(&principals, entry);
    let principals = principals.to_str().unwrap();
    let flags = [
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--tls-client-ca",
        &ca,
    ];
    let server = Server::start(&[&flags[..], &["--principals", principals]].concat());

    let channel = connect_as(&certs, &server, "client.pem").await;
    let mut client = ServerServiceClient::new(channel.clone());
    client
        .get_server_status(GetServerStatusRequest {})
        .await
        .unwrap();
    let request = ListTrainingsRequest { owner: None };
    let mut trainings = TrainingServiceClient::new(channel);
    let denied = trainings.list_trainings(request).await.unwrap_err();
    assert_status(&denied, Code::PermissionDenied, "ROLE_REQUIRED");
    // A certificate that is valid and belongs to no principal.
    let channel = connect_as(&certs, &server, "other-client.pem").await;
    let mut client = ServerServiceClient::new(channel);
    let unknown = client.get_server_status(GetServerStatusRequest {}).await;
    assert_status(&unknown.unwrap_err(), Code::Unauthenticated, "TOKEN_NEEDED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_certificate_is_used_for_new_connections_without_a_restart() {
    let certs = TestCerts::create();
    let server = certs.server();
    let ca = |name: &str| {
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(fs::read(certs.path(name)).unwrap()))
    };
    let endpoint = Channel::from_shared(server.url().to_owned()).unwrap();
    let connect = |name: &str| endpoint.clone().tls_config(ca(name)).unwrap();
    let old = connect("ca.pem").connect().await.unwrap();
    assert!(connect("other-ca.pem").connect().await.is_err());
    fs::rename(certs.path("new-server.pem"), certs.path("server.pem")).unwrap();
    eventually(async || connect("other-ca.pem").connect().await.ok()).await;
    // Connections stay open.
    let mut request = Request::new(GetServerStatusRequest {});
    let token = format!("Bearer {TOKEN}").parse().unwrap();
    request.metadata_mut().insert("authorization", token);
    let mut client = ServerServiceClient::new(old);
    client.get_server_status(request).await.unwrap();
}
