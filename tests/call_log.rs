//! The log: one line for each call, the life of a training, and no texts.

use charlstm_proto::v1::*;
use tonic::{Code, Request};

use crate::support::metrics_page::{get, metrics_address};
use crate::support::wire::{self, Wire};
use crate::support::{Server, http_call};

/// Returns the line of the log of a call.
async fn line(server: &Server, request_id: &str) -> String {
    let id = format!("request_id=\"{request_id}\"");
    wire::eventually(async || {
        let log = server.log();
        let is_of_call = |line: &&str| line.contains(&id) && line.contains("duration_ms");
        log.lines().find(is_of_call).map(str::to_owned)
    })
    .await
}

fn with_id<T>(message: T, id: &'static str) -> Request<T> {
    let mut request = Request::new(message);
    let id = id.parse().unwrap();
    request.metadata_mut().insert("x-request-id", id);
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_has_a_line_with_the_id_of_its_request_and_without_texts() {
    let mut wire = Wire::start(&[]).await;
    let request = with_id(wire::start("tale", 9), "order-7");
    let response = wire.generation.generate(request).await.unwrap();
    assert_eq!(response.metadata().get("x-request-id").unwrap(), "order-7");
    let generated = wire::rest(&mut response.into_inner()).await.unwrap();
    let line = line(&wire.server, "order-7").await;
    for expected in [
        "method=\"/charlstm.v1.GenerationService/Generate\"",
        "code=\"OK\"",
        "peer=127.0.0.1:",
        "principal=\"admin\"",
        "model=\"verse@1\"",
        "session=\"tale\"",
        "chars=9",
        "queue_ms=",
        "first_char_ms=",
    ] {
        assert!(line.contains(expected), "{expected} is not in {line}");
    }

    // A rejected call has one, too, and a call without an id gets one.
    let request = with_id(wire::resume("other", 1), "order-8");
    let status = wire.generation.generate(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.metadata().get("x-request-id").unwrap(), "order-8");
    let line = self::line(&wire.server, "order-8").await;
    assert!(line.contains("code=\"INVALID_ARGUMENT\""), "{line}");
    let list = wire.sessions.list_sessions(ListSessionsRequest::default());
    let response = list.await.unwrap();
    let id = response.metadata().get("x-request-id").unwrap();
    self::line(&wire.server, id.to_str().unwrap()).await;

    let log = wire.server.log();
    for event in ["accepted", "started", "epoch", "ended"] {
        assert!(log.contains(&format!("training {event}")), "{event}: {log}");
    }
    assert!(!log.contains(wire::PRIME.trim()), "the prompt is in {log}");
    assert!(!log.contains(&generated.text), "the text is in {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_over_http_has_the_same_line_metrics_and_id() {
    let wire = Wire::start(&["--metrics-listen", "127.0.0.1:0"]).await;
    let post = |id: &'static str, body: &'static str| {
        let headers = [("content-type", "application/json"), ("x-request-id", id)];
        http_call::send(&wire.server, "POST /v1/completions", &headers, body)
    };
    let (status, response) = post(
        "web-1",
        r#"{"model": "verse", "prompt": "arma ", "max_tokens": 9, "session_id": "page"}"#,
    );
    assert_eq!(status, 200, "{response}");
    assert!(response.contains("x-request-id: web-1"), "{response}");
    let (status, response) = post(
        "web-2",
        r#"{"model": "verse", "prompt": "arma ", "max_tokens": 9, "stream": true}"#,
    );
    assert_eq!(status, 200, "{response}");
    for (id, session) in [("web-1", "session=\"page\""), ("web-2", "")] {
        let line = line(&wire.server, id).await;
        for expected in [
            "method=\"/v1/completions\"",
            "code=\"OK\"",
            "peer=127.0.0.1:",
            "principal=\"admin\"",
            "model=\"verse@1\"",
            "chars=9",
            "queue_ms=",
            "first_char_ms=",
            session,
        ] {
            assert!(line.contains(expected), "{expected} is not in {line}");
        }
        assert!(!line.contains("arma"), "the prompt is in {line}");
    }
    let (status, _) = post("web-3", r#"{"model": "nothing", "prompt": "a"}"#);
    assert_eq!(status, 404);
    let line = line(&wire.server, "web-3").await;
    assert!(line.contains("code=\"NOT_FOUND\""), "{line}");
    let (_, page) = get(&metrics_address(&wire.server), "/metrics");
    for (code, count) in [("OK", 2), ("NOT_FOUND", 1)] {
        let expected = format!(
            "grpc_server_handled_total{{grpc_type=\"http\",grpc_service=\"http\",\
             grpc_method=\"/v1/completions\",grpc_code=\"{code}\"}} {count}"
        );
        assert!(page.contains(&expected), "{expected} is not in {page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_logged_only_on_request() {
    let mut wire = Wire::start(&["--log-text"]).await;
    let request = with_id(wire::start("", 9), "order-9");
    let response = wire.generation.generate(request).await.unwrap();
    wire::rest(&mut response.into_inner()).await.unwrap();
    let line = line(&wire.server, "order-9").await;
    assert!(line.contains("prompt=\"arma \""), "{line}");
    assert!(line.contains("text=\""), "{line}");
}
