//! The server as a program: what it prints, what it tells about itself, how
//! it starts badly and ends well.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Output;

use charlstm_proto::v1::model_service_client::ModelServiceClient;
use charlstm_proto::v1::server_service_client::ServerServiceClient;
use charlstm_proto::v1::{GetServerStatusRequest, ImportModelRequest};
use support::Server;
use tempfile::TempDir;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

const SERVICES: [&str; 2] = ["charlstm.v1.ModelService", "charlstm.v1.ServerService"];

/// Starts a server that is expected to refuse.
fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let folder = TempDir::new().unwrap();
    let output: Output = support::command(folder.path(), arguments).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[tokio::test]
async fn it_prints_one_line_and_tells_that_it_serves() {
    let mut server = Server::start(&[]);
    assert!(server.url().starts_with("http://127.0.0.1:"));
    let mut health = HealthClient::new(server.connect().await);
    for service in ["", SERVICES[0], SERVICES[1]] {
        let service = service.to_owned();
        let answer = health.check(HealthCheckRequest { service }).await.unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
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
    let answers = reflection
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: Vec<&str> = list.service.iter().map(|one| one.name.as_str()).collect();
    for service in SERVICES.iter().chain(&["grpc.health.v1.Health"]) {
        assert!(names.contains(service), "{service} is not in {names:?}");
    }
}

#[tokio::test]
async fn it_tells_its_device_and_limits() {
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
async fn a_stopping_server_waits_for_no_idle_and_no_silent_client() {
    let mut server = Server::start(&[]);
    // One speaks gRPC and has nothing to say, one says nothing at all, one
    // greets and then never answers.
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
async fn a_second_signal_ends_at_once_a_server_that_waits_for_a_call() {
    for (second, code) in [(libc::SIGTERM, 143), (libc::SIGINT, 130)] {
        let mut server = Server::start(&[]);
        let channel = server.connect().await;
        // An upload that never ends is waited for, up to the grace time.
        let mut models = ModelServiceClient::new(channel.clone());
        let upload = tokio_stream::pending::<ImportModelRequest>();
        let upload = tokio::spawn(async move { models.import_model(upload).await });
        let mut health = HealthClient::new(channel);
        let watched = HealthCheckRequest::default();
        let mut states = health.watch(watched).await.unwrap().into_inner();
        while states.message().await.unwrap().unwrap().status() != ServingStatus::NotServing {
            // The first state is Serving; only then is the server told.
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
fn a_device_that_is_not_there_is_an_error_at_the_start() {
    let (code, error) = refused(&["--device", "cuda:99"]);
    assert_eq!(code, Some(1));
    assert!(
        error.contains("error: device cuda:99 is not available (available: cpu"),
        "{error}"
    );
}

#[test]
fn a_busy_port_is_an_error_at_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, error) = refused(&["--listen", &address]);
    assert_eq!(code, Some(1));
    assert!(
        error.contains(&format!("error: cannot listen on {address}")),
        "{error}"
    );
    assert!(error.contains("--listen"), "{error}");
}

#[test]
fn a_data_folder_that_another_server_uses_is_an_error_at_the_start() {
    let server = Server::start(&[]);
    let output = support::command(&server.data_dir(), &[]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error.contains("in use by another charlstm-server"),
        "{error}"
    );
}

#[test]
fn wrong_usage_has_its_own_exit_code() {
    let (code, error) = refused(&["--max-batch", "0"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("--max-batch: \"0\" is not"), "{error}");
    assert_eq!(refused(&["--no-such-flag"]).0, Some(2));
}

#[tokio::test]
async fn with_a_token_file_only_who_shows_a_token_is_served_and_health_is_open() {
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
    assert_eq!(status.code(), Code::Unauthenticated);

    let mut request = tonic::Request::new(GetServerStatusRequest {});
    let token = "Bearer secret".parse().unwrap();
    request.metadata_mut().insert("authorization", token);
    client.get_server_status(request).await.unwrap();
    let mut health = HealthClient::new(channel);
    health.check(HealthCheckRequest::default()).await.unwrap();
}

#[test]
fn a_file_that_is_no_certificate_is_an_error_at_the_start() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let (code, error) = refused(&["--tls-cert", path, "--tls-key", path]);
    assert_eq!(code, Some(1));
    assert!(error.contains("TLS cannot be set up"), "{error}");
}
