//! Who may talk with a server, and how the two know each other: TLS and
//! tokens, with the client that people use.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use charlstm_proto::v1::GetServerStatusRequest;
use charlstm_proto::v1::server_service_client::ServerServiceClient;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use support::{Said, Server, ask, train_small};
use tempfile::TempDir;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

const TOKEN: &str = "a-secret-that-nobody-guesses";

/// A certificate authority, a server's certificate and token files.
struct Papers {
    folder: TempDir,
}

impl Papers {
    fn issue() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority("ours");
        let key = KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let certificate = CertificateParams::new(names)
            .unwrap()
            .signed_by(&key, &authority)
            .unwrap();
        let own_key = KeyPair::generate().unwrap();
        let shown = |authority| {
            let params = CertificateParams::new(vec!["a-client".to_owned()]).unwrap();
            params.signed_by(&own_key, authority).unwrap().pem()
        };
        let another = self::authority("another");
        for (name, content) in [
            ("client.pem", shown(&authority)),
            ("strange-client.pem", shown(&another)),
            ("client.key", own_key.serialize_pem()),
            ("ca.pem", authority.pem()),
            ("other-ca.pem", another.pem()),
            ("server.pem", certificate.pem()),
            ("server.key", key.serialize_pem()),
            ("tokens", format!("# of the tests\n{TOKEN}\n")),
            ("token", format!("{TOKEN}\n")),
            ("wrong-token", "a-guess\n".to_owned()),
        ] {
            fs::write(folder.path().join(name), content).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        let path: PathBuf = self.folder.path().join(name);
        path.into_os_string().into_string().unwrap()
    }

    /// A server that shows its certificate and asks for a token.
    fn server(&self) -> Server {
        let (cert, key) = (self.path("server.pem"), self.path("server.key"));
        let tokens = self.path("tokens");
        let flags = ["--tls-cert", &cert, "--tls-key", &key];
        Server::start(&[&flags[..], &["--auth-token-file", &tokens]].concat())
    }

    /// What the client says that trusts one file and shows another.
    fn status(&self, server: &Server, ca: Option<&str>, token: Option<&str>) -> Said {
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

fn log_of(server: &Server) -> String {
    fs::read_to_string(server.folder().join("server.log")).unwrap()
}

#[test]
fn the_client_trains_and_generates_over_tls_with_a_token() {
    let papers = Papers::issue();
    let server = papers.server();
    assert!(server.url().starts_with("https://127.0.0.1:"));
    let (ca, token) = (papers.path("ca.pem"), papers.path("token"));
    let access = ["--tls-ca", &ca, "--token-file", &token];
    let said = train_small(&server, "verse", &access);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let generate = ["generate", "--prime", "arma ", "--length", "40"];
    let said = ask(&server, &[&generate[..], &access[..]].concat());
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.starts_with("arma "), "{}", said.stdout);
    assert_eq!(said.stdout.trim_end_matches('\n').chars().count(), 45);
    assert!(!log_of(&server).contains(TOKEN), "a log is no place for it");
}

#[test]
fn the_client_says_clearly_that_a_token_is_missing_or_wrong() {
    let papers = Papers::issue();
    let server = papers.server();
    for token in [None, Some("wrong-token")] {
        let said = papers.status(&server, Some("ca.pem"), token);
        assert_eq!(said.code, Some(1), "{}", said.stderr);
        assert_eq!(said.stdout, "");
        assert!(said.stderr.contains("needs a token"), "{}", said.stderr);
        assert!(said.stderr.contains("--token-file"), "{}", said.stderr);
    }
    let said = papers.status(&server, Some("ca.pem"), Some("no-such-file"));
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    assert!(said.stderr.contains("no-such-file"), "{}", said.stderr);
    let said = papers.status(&server, Some("ca.pem"), Some("token"));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
}

#[test]
fn the_client_does_not_trust_a_server_whose_authority_it_does_not_know() {
    let papers = Papers::issue();
    let server = papers.server();
    // The second one has those of the system.
    for ca in [Some("other-ca.pem"), None] {
        let said = papers.status(&server, ca, Some("token"));
        assert_eq!(said.code, Some(1), "{}", said.stderr);
        assert_eq!(said.stdout, "");
        let reason = "invalid peer certificate: UnknownIssuer";
        assert!(said.stderr.contains(reason), "{}", said.stderr);
    }
    let said = papers.status(&server, Some("server.key"), Some("token"));
    assert_ne!(said.code, Some(0), "a key is no authority");
}

/// The status of the server over TLS, as any client would ask for it.
async fn asked(server: &Server, ca: &Path, authorization: Option<&str>) -> Result<(), Status> {
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
async fn on_the_wire_a_call_without_its_token_is_unauthenticated() {
    let papers = Papers::issue();
    let server = papers.server();
    let ca = papers.folder.path().join("ca.pem");
    let right = format!("Bearer {TOKEN}");
    let longer = format!("{right}x");
    for wrong in [None, Some("Bearer "), Some(TOKEN), Some(longer.as_str())] {
        let status = asked(&server, &ca, wrong).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, "TOKEN_NEEDED");
    }
    asked(&server, &ca, Some(&right)).await.unwrap();
}

#[test]
fn the_client_says_something_where_one_side_speaks_tls_and_the_other_does_not() {
    let papers = Papers::issue();
    let server = papers.server();
    let plain = format!("http://{}", server.address());
    let said = ask(&server, &["status", "--addr", &plain]);
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert!(said.stderr.contains("speaks TLS"), "{}", said.stderr);
    assert!(said.stderr.contains("https://"), "{}", said.stderr);

    let server = Server::start(&[]);
    let tls = format!("https://{}", server.address());
    let said = ask(&server, &["status", "--addr", &tls]);
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert!(
        said.stderr.contains("does not speak TLS"),
        "{}",
        said.stderr
    );
    let said = papers.status(&server, Some("ca.pem"), None);
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    assert!(said.stderr.contains("https://"), "{}", said.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_client_authority_only_who_shows_its_certificate_is_served() {
    let papers = Papers::issue();
    let (cert, key) = (papers.path("server.pem"), papers.path("server.key"));
    let ca = papers.path("ca.pem");
    let flags = ["--tls-cert", &cert, "--tls-key", &key];
    let server = Server::start(&[&flags[..], &["--tls-client-ca", &ca]].concat());
    let read = |name: &str| fs::read(papers.path(name)).unwrap();
    let asked = async |shown: Option<&str>| {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("ca.pem")));
        if let Some(name) = shown {
            tls = tls.identity(Identity::from_pem(read(name), read("client.key")));
        }
        let endpoint = Channel::from_shared(server.url().to_owned()).unwrap();
        // A handshake that is refused may show itself only at the first call.
        let channel = endpoint.tls_config(tls).unwrap().connect_lazy();
        let mut client = ServerServiceClient::new(channel);
        client.get_server_status(GetServerStatusRequest {}).await
    };
    // The connection ends; which way it is noticed depends on who is faster.
    for wrong in [None, Some("strange-client.pem")] {
        let status = asked(wrong).await.unwrap_err();
        assert!(
            matches!(
                status.code(),
                Code::Unavailable | Code::Unknown | Code::Cancelled
            ),
            "{status:?}"
        );
    }
    asked(Some("client.pem")).await.unwrap();
}
