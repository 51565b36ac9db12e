//! The log: one line for each call, the life of a training, and no texts.

use charlstm_proto::v1::*;
use tonic::{Code, Request};

use crate::support::Server;
use crate::support::wire::{self, Wire};

/// Returns the line of the log of a call.
async fn line(server: &Server, request_id: &str) -> String {
    let id = format!("request_id=\"{request_id}\"");
    let found = async {
        loop {
            let log = server.log();
            let is_of_call = |line: &&str| line.contains(&id) && line.contains("duration_ms");
            if let Some(line) = log.lines().find(is_of_call) {
                break line.to_owned();
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(wire::LIMIT, found).await.unwrap()
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
async fn texts_are_logged_only_on_request() {
    let mut wire = Wire::start(&["--log-text"]).await;
    let request = with_id(wire::start("", 9), "order-9");
    let response = wire.generation.generate(request).await.unwrap();
    wire::rest(&mut response.into_inner()).await.unwrap();
    let line = line(&wire.server, "order-9").await;
    assert!(line.contains("prompt=\"arma \""), "{line}");
    assert!(line.contains("text=\""), "{line}");
}
