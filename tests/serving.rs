//! The server as a program: what it prints, what it reports about itself,
//! errors at the start, and the shutdown.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use charlstm_proto::v1::model_service_client::ModelServiceClient;
use charlstm_proto::v1::server_service_client::ServerServiceClient;
use charlstm_proto::v1::{GetModelRequest, GetServerStatusRequest, ImportModelRequest};
use tempfile::TempDir;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::support::server::{Server, command, fail_to_start};
use crate::support::wire::assert_status;

const SERVICES: [&str; 2] = ["charlstm.v1.ModelService", "charlstm.v1.ServerService"];

/// Starts a server that must fail, on a folder of its own.
fn failure(flags: &[&str]) -> (Option<i32>, String) {
    let folder = TempDir::new().unwrap();
    fail_to_start(&mut command(folder.path(), flags))
}

#[tokio::test]
async fn it_prints_one_line_and_reports_that_it_serves() {
    let mut server = Server::start(&[]);
    assert!(server.url().starts_with("http://127.0.0.1:"));
    let mut health = HealthClient::new(server.connect().await);
    for service in ["", SERVICES[0], SERVICES[1]] {
        let service = service.to_owned();
        let response = health.check(HealthCheckRequest { service }).await.unwrap();
        assert_eq!(response.into_inner().status(), ServingStatus::Serving);
    }
    let (status, rest) = server.terminate();
    assert_eq!(status.code(), Some(0));
    assert_eq!(rest, "", "more than one line on standard output");
}

#[tokio::test]
async fn reflection_lists_the_services() {
    let server = Server::start(&[]);
    let mut reflection = ServerReflectionClient::new(server.connect().await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let responses = reflection
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap();
    let response = responses.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = response.message_response else {
        panic!("{response:?}");
    };
    let names: Vec<&str> = list.service.iter().map(|one| one.name.as_str()).collect();
    for service in SERVICES.iter().chain(&["grpc.health.v1.Health"]) {
        assert!(names.contains(service), "{service} is not in {names:?}");
    }
}

#[tokio::test]
async fn it_reports_its_device_and_limits() {
    let server = Server::start(&["--max-batch", "7", "--threads", "1"]);
    let mut client = ServerServiceClient::new(server.connect().await);
    let status = client
        .get_server_status(GetServerStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.device, "cpu");
    assert_eq!((status.max_batch, status.threads), (7, 1));
    assert_eq!(status.models, 0);
    assert_eq!(status.server_version, env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_idle_or_silent_clients() {
    let mut server = Server::start(&[]);
    // One client has a connection without calls, one sends nothing, and one
    // sends the preface of HTTP/2 and then never responds.
    let channel = server.connect().await;
    let _silent = TcpStream::connect(server.address()).unwrap();
    let mut greeting = TcpStream::connect(server.address()).unwrap();
    greeting
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .unwrap();
    let mut first = [0; 9];
    greeting.read_exact(&mut first).unwrap();
    let mut health = HealthClient::new(channel.clone());
    let watched = HealthCheckRequest::default();
    let mut states = health.watch(watched).await.unwrap().into_inner();
    let state = states.message().await.unwrap().unwrap();
    assert_eq!(state.status(), ServingStatus::Serving);

    server.signal_to_stop();
    let state = states.message().await.unwrap().unwrap();
    assert_eq!(state.status(), ServingStatus::NotServing);
    let (status, _) = tokio::task::spawn_blocking(move || server.wait())
        .await
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_immediately_a_server_that_waits_for_a_call() {
    for (second, code) in [(libc::SIGTERM, 143), (libc::SIGINT, 130)] {
        let mut server = Server::start(&[]);
        let channel = server.connect().await;
        // The shutdown waits for an upload that never ends, up to its grace
        // period.
        let mut models = ModelServiceClient::new(channel.clone());
        let upload = tokio_stream::pending::<ImportModelRequest>();
        let upload = tokio::spawn(async move { models.import_model(upload).await });
        let mut health = HealthClient::new(channel);
        let watched = HealthCheckRequest::default();
        let mut states = health.watch(watched).await.unwrap().into_inner();
        while states.message().await.unwrap().unwrap().status() != ServingStatus::NotServing {
            // Only after the first state, which is Serving.
            server.signal_to_stop();
        }
        server.signal(second);
        let (status, _) = tokio::task::spawn_blocking(move || server.wait())
            .await
            .unwrap();
        assert_eq!(status.code(), Some(code));
        upload.abort();
    }
}

#[test]
fn a_port_in_use_is_an_error_at_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, error) = failure(&["--listen", &address]);
    assert_eq!(code, Some(1));
    assert!(
        error.contains(&format!("error: cannot listen on {address}")),
        "{error}"
    );
    assert!(error.contains("--listen"), "{error}");
}

#[test]
fn a_data_folder_in_use_by_another_server_is_an_error_at_the_start() {
    let server = Server::start(&[]);
    let (code, error) = fail_to_start(&mut command(&server.data_dir(), &[]));
    assert_eq!(code, Some(1));
    assert!(
        error.contains("in use by another charlstm-server"),
        "{error}"
    );
}

#[tokio::test]
async fn with_a_token_file_only_calls_with_a_token_are_served_and_health_needs_none() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "secret").unwrap();
    let path = file.path().to_str().unwrap();
    let server = Server::start(&["--auth-token-file", path]);
    let channel = server.connect().await;
    let mut client = ServerServiceClient::new(channel.clone());
    let status = client
        .get_server_status(GetServerStatusRequest {})
        .await
        .unwrap_err();
    assert_status(&status, Code::Unauthenticated, "TOKEN_NEEDED");

    let mut request = tonic::Request::new(GetServerStatusRequest {});
    let token = "Bearer secret".parse().unwrap();
    request.metadata_mut().insert("authorization", token);
    client.get_server_status(request).await.unwrap();
    let mut health = HealthClient::new(channel);
    health.check(HealthCheckRequest::default()).await.unwrap();
}

#[test]
fn a_file_that_is_not_a_certificate_is_an_error_at_the_start() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let (code, error) = failure(&["--tls-cert", path, "--tls-key", path]);
    assert_eq!(code, Some(1));
    let expected = format!(
        "cannot set up TLS: there is no valid private key in PEM format: no items found; the \
         files are {path} (--tls-cert), {path} (--tls-key)"
    );
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn a_server_that_is_open_to_a_network_warns_about_missing_tls_and_tokens() {
    let server = Server::start(&["--listen", "0.0.0.0:0", "--insecure"]);
    let log = server.log();
    assert!(log.contains("no TLS"), "{log}");
    assert!(log.contains("no access control"), "{log}");
    let server = Server::start(&[]);
    assert!(!server.log().contains("WARN"), "{}", server.log());
}

#[tokio::test]
async fn an_error_about_a_huge_text_of_the_client_reaches_the_client() {
    let server = Server::start(&[]);
    let mut models = ModelServiceClient::new(server.connect().await);
    let request = GetModelRequest {
        model: "é".repeat(100_000),
    };
    let status = models.get_model(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().starts_with("model: "), "{status}");
    assert!(status.message().chars().count() < 400, "{status}");
}
