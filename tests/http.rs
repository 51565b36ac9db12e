//! HTTP on the port of gRPC: the rules for browsers, probes, and the API with
//! OpenAI's own client and with requests generated from its description.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use charlstm_proto::v1::generation_service_client::GenerationServiceClient;
use charlstm_proto::v1::server_service_client::ServerServiceClient;
use charlstm_proto::v1::{GetServerStatusRequest, ScoreRequest};

use tempfile::NamedTempFile;

use crate::support::http_call::send;
use crate::support::process::run;
use crate::support::tools::python_tool;
use crate::support::{Server, ask_ok, train_small};

const TOKEN: &str = "a-secret-token";

/// Returns a file of tokens that only its owner can read.
fn token_file() -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    writeln!(file, "{TOKEN}").unwrap();
    file
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn requests_of_foreign_pages_are_rejected_before_anything_else() {
    let server = Server::start(&["--allowed-host", "models.internal"]);
    let own = format!("http://{}", server.address());
    for (headers, expected) in [
        (&[][..], 200),
        (&[("host", "localhost:1")], 200),
        (&[("host", "models.internal")], 200),
        (&[("origin", &own)], 200),
        (&[("host", "rebound.example")], 403),
        (&[("host", "127.0.0.1.rebound.example")], 403),
        (&[("origin", "http://evil.example")], 403),
        (&[("origin", "null")], 403),
    ] {
        for path in ["/", "/v1/models", "/healthz", "/nothing"] {
            let (status, response) = send(&server, &format!("GET {path}"), headers, "");
            let expected = if (path, expected) == ("/nothing", 200) {
                404
            } else {
                expected
            };
            assert_eq!(status, expected, "{path} {headers:?}: {response}");
        }
    }
    for content_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/grpc",
    ] {
        for path in [
            "/v1/completions",
            "/charlstm.v1.TrainingService/CancelTraining",
        ] {
            let form = [("content-type", content_type)];
            let (status, response) = send(&server, &format!("POST {path}"), &form, "x");
            assert_eq!(status, 415, "{path} {content_type}: {response}");
        }
    }
    let preflight = [
        ("origin", "http://evil.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "content-type"),
    ];
    let (status, response) = send(&server, "OPTIONS /v1/completions", &preflight, "");
    assert_eq!(status, 403, "{response}");
    assert!(
        !response.contains("access-control-allow-origin"),
        "{response}"
    );
}

#[test]
fn an_allowed_origin_may_read_responses() {
    let server = Server::start(&[
        "--cors-origin",
        "https://app.example.com,http://b.example:81",
    ]);
    for origin in ["https://app.example.com", "http://b.example:81"] {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type,x-grpc-web"),
        ];
        for head in ["OPTIONS /v1/completions", "GET /v1/models"] {
            let (status, response) = send(&server, head, &headers, "");
            assert_eq!(status, 200, "{response}");
            let allowed = format!("access-control-allow-origin: {origin}");
            assert!(response.contains(&allowed), "{response}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_http_only_grpc_is_served() {
    let server = Server::start(&["--http", "off"]);
    let mut client = ServerServiceClient::new(server.connect().await);
    client
        .get_server_status(GetServerStatusRequest {})
        .await
        .unwrap();
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .unwrap();
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response);
    assert!(!response.starts_with(b"HTTP/1.1 200"), "{response:?}");
}

#[test]
fn probes_and_the_page_need_no_token_and_the_api_needs_one() {
    let tokens = token_file();
    let server = Server::start(&["--auth-token-file", tokens.path().to_str().unwrap()]);
    for path in [
        "/healthz",
        "/readyz",
        "/",
        "/app.js",
        "/app.css",
        "/icon.svg",
    ] {
        let (status, response) = send(&server, &format!("GET {path}"), &[], "");
        assert_eq!(status, 200, "{path}: {response}");
    }
    let right = format!("Bearer {TOKEN}");
    let right = [("authorization", right.as_str())];
    for (headers, expected) in [
        (&[][..], 401),
        (&[("authorization", "Bearer x")], 401),
        (&right, 200),
    ] {
        for path in ["/v1/models", "/openapi.json"] {
            let (status, response) = send(&server, &format!("GET {path}"), headers, "");
            assert_eq!(status, expected, "{path}: {response}");
            assert_eq!(
                response.contains("\"authentication_error\""),
                expected == 401,
                "{response}"
            );
        }
    }
    let (status, response) = send(&server, "POST /v1/completions", &[JSON], "{}");
    assert_eq!(status, 401, "{response}");
}

#[test]
fn the_page_forbids_frames_foreign_content_and_inline_code() {
    let server = Server::start(&[]);
    let (_, response) = send(&server, "GET /", &[], "");
    let (head, page) = response.split_once("\r\n\r\n").unwrap();
    for part in [
        "frame-ancestors 'none'",
        "default-src 'none'",
        "script-src 'self'",
        "connect-src 'self'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "x-frame-options: DENY",
    ] {
        assert!(head.contains(part), "{part} is not in\n{head}");
    }
    assert!(page.contains("src=\"app.js\""), "{page}");
    assert!(
        !page.contains("://"),
        "an address of another host in\n{page}"
    );
    let etag = head
        .lines()
        .find_map(|line| line.strip_prefix("etag: "))
        .unwrap();
    let (status, _) = send(&server, "GET /", &[("if-none-match", etag)], "");
    assert_eq!(status, 304);
}

/// Returns the log-probability of each character of a text but the first.
async fn logprobs(server: &Server, text: &str) -> Vec<f32> {
    let mut client = GenerationServiceClient::new(server.connect().await);
    let request = ScoreRequest {
        text: text.to_owned(),
        logprobs: Some(true),
        ..ScoreRequest::default()
    };
    client.score(request).await.unwrap().into_inner().logprobs
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_openai_generates_streams_and_repeats_safely() {
    let Some(python) = python_tool("python") else {
        return;
    };
    let server = Server::start(&[]);
    let trained = train_small(&server, "verse", &[]);
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    let generate = [
        "generate", "--prime", "arma ", "--length", "60", "--seed", "7",
    ];
    let text = ask_ok(
        &server,
        &[&generate[..], &["--top-k", "0", "--no-echo"]].concat(),
    );
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let scores = logprobs(&server, "arma ").await;
    let scores: Vec<String> = scores.iter().map(f32::to_string).collect();
    let printed = run(Command::new(python)
        .arg("tests/python/openai_client.py")
        .args([server.address(), "verse", "arma ", text])
        .arg(scores.join(" ")));
    assert!(!printed.contains("FAILED"), "{printed}");
}

#[test]
fn requests_generated_from_the_description_of_the_api_find_no_fault() {
    let Some(schemathesis) = python_tool("schemathesis") else {
        return;
    };
    let tokens = token_file();
    let tokens = tokens.path().to_str().unwrap();
    let server = Server::start(&["--auth-token-file", tokens]);
    let trained = train_small(&server, "verse", &["--token-file", tokens]);
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    let description = format!("{}/openapi.json", server.url());
    run(Command::new(schemathesis)
        .args(["run", &description])
        .args(["--header", &format!("Authorization: Bearer {TOKEN}")])
        // Whether a prompt is accepted depends on the vocabulary of the model. A
        // POST that is not JSON is rejected whatever its path is.
        .args([
            "--exclude-checks",
            "positive_data_acceptance,unsupported_method",
        ])
        .args(["--phases", "examples,coverage,fuzzing"])
        .args(["--max-examples", "20", "--seed", "1", "--no-color"]));
}
