//! What answers at the address, TLS, tokens and time limits.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::task::{Context, Poll};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::transport::{Certificate, Identity, Server};

use crate::fake::FakeServer;
use crate::{client, run, text};

/// Starts a server that sends `greeting` to every connection.
fn greeting_server(greeting: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 10]);
            let _ = stream.write_all(greeting);
        }
    });
    address
}

/// A web server that speaks HTTP/2 and has no page.
#[derive(Clone)]
struct EmptyWebServer;

impl NamedService for EmptyWebServer {
    const NAME: &'static str = "grpc.health.v1.Health";
}

impl Service<http::Request<Body>> for EmptyWebServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        let mut response = http::Response::new(Body::empty());
        *response.status_mut() = http::StatusCode::NOT_FOUND;
        std::future::ready(Ok(response))
    }
}

#[test]
fn a_server_of_another_protocol_is_not_taken_for_a_charlstm_server() {
    for (greeting, shown) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"[..],
            "HTTP/1.1 400 Bad Request",
        ),
        (b"SSH-2.0-Test\r\n", "SSH-2.0-Test"),
    ] {
        let address = greeting_server(greeting);
        for command in [&["status"][..], &["models", "list"]] {
            let output = run(address, command);
            assert_eq!(output.status.code(), Some(1));
            assert_eq!(text(&output.stdout), "");
            let message = text(&output.stderr);
            assert!(
                message.contains("not the address of a charlstm server"),
                "{message}"
            );
            assert!(message.contains(shown), "{message}");
        }
    }
}

#[test]
fn a_web_server_is_not_taken_for_a_charlstm_server() {
    let runtime = Runtime::new().unwrap();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().add_service(EmptyWebServer);
    runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let output = run(address, &["status"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("it is a web server"), "{message}");
}

#[test]
fn a_peer_that_does_not_answer_is_reported() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let output = run(address, &["models", "list"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("it does not answer"), "{message}");
}

#[test]
fn a_command_ends_after_its_time_limit() {
    let fake = FakeServer {
        stall_after: Some(3),
        ..Default::default()
    };
    let server = fake.serve("127.0.0.1:0");
    let output = run(
        server.address,
        &["--timeout", "1s", "generate", "--prime", "> "],
    );
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "> abc");
    assert_eq!(
        text(&output.stderr),
        "error: timed out after 1.0 s (--timeout)\n"
    );
}

#[test]
fn a_token_file_with_a_byte_order_mark_contains_the_token() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "\u{feff}secret\r\n").unwrap();
    let output = client(server.address, &["generate", "--prime", "x"])
        .env("CHARLSTM_TOKEN_FILE", &path)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let received = fake.received.lock().unwrap();
    assert_eq!(received.authorizations, [Some("Bearer secret".to_owned())]);
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a certificate for `name` and its key to `folder`.
fn write_certificate(folder: &Path, name: &str, authority: &CertifiedIssuer<'_, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
    std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

#[test]
fn a_server_that_requires_a_client_certificate_is_served_with_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let authority = authority();
    write_certificate(folder.path(), "localhost", &authority);
    write_certificate(folder.path(), "client", &authority);
    std::fs::write(path("ca.pem"), authority.pem()).unwrap();
    let read = |name: &str| std::fs::read(path(name)).unwrap();
    let identity = Identity::from_pem(read("localhost.pem"), read("localhost.key"));
    let server = FakeServer::default()
        .serve_with_client_certificates(identity, Certificate::from_pem(authority.pem()));
    let address = format!("https://localhost:{}", server.address.port());
    let list = |flags: &[&str]| {
        std::process::Command::new(env!("CARGO_BIN_EXE_charlstm-client"))
            .args([
                "--addr",
                &address,
                "--tls-ca",
                &path("ca.pem"),
                "models",
                "list",
            ])
            .args(flags)
            .output()
            .unwrap()
    };
    let (certificate, key) = (path("client.pem"), path("client.key"));
    let output = list(&["--tls-cert", &certificate, "--tls-key", &key]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("m@1"));

    let output = list(&[]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.contains("--tls-cert FILE --tls-key FILE"),
        "{message}"
    );

    let output = list(&["--tls-cert", &certificate]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--tls-key"));
}

#[test]
fn an_unknown_host_has_no_advice_to_start_a_server() {
    let output = run("charlstm.invalid:5", &["status"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("check the address"), "{message}");
    assert!(!message.contains("start a server"), "{message}");
}

#[test]
fn with_json_wrong_usage_is_an_object_too() {
    for arguments in [
        &["--json", "generate", "--top-k", "-1", "--prime", "x"][..],
        &["generate", "--json"],
        &["--json", "nope"],
    ] {
        let output = run("127.0.0.1:1", arguments);
        assert_eq!(output.status.code(), Some(2));
        let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(object["event"], "error");
        assert_eq!(object["exit_code"], 2);
        let message = object["message"].as_str().unwrap();
        assert!(
            !message.contains('\u{1b}') && !message.starts_with("error"),
            "{message}"
        );
        assert!(text(&output.stderr).starts_with("error: "));
    }
    let output = run("127.0.0.1:1", &["--json", "--", "nope"]);
    assert_eq!(output.status.code(), Some(2));
    let version = run("127.0.0.1:1", &["--json", "--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert!(text(&version.stdout).starts_with("charlstm-client "));
}
