//! Clients that stop in the middle of uploads and downloads: others are served,
//! and the server stops without waiting for them.

use std::time::{Duration, Instant};

use charlstm_proto::v1::generation_service_client::GenerationServiceClient;
use charlstm_proto::v1::*;
use futures_util::StreamExt;
use futures_util::stream::{once, pending};
use tonic::Code;
use tonic::codegen::Bytes;
use tonic_types::StatusExt;

use crate::support::frames::{Frames, OpenCall, framed, headers};
use crate::support::{Server, ask_ok, train_small};

const IMPORT: &str = "charlstm.v1.ModelService/ImportModel";
const EXPORT: &str = "charlstm.v1.ModelService/ExportModel";
const TRAIN: &str = "charlstm.v1.TrainingService/Train";

/// Connections, and calls of each kind on each.
const CONNECTIONS: usize = 4;
const CALLS: usize = 100;

/// Begins calls that never continue.
async fn stall(server: &Server) -> Vec<(Frames, Vec<OpenCall>)> {
    let header = ImportModelHeader {
        name: "stalled".to_owned(),
        ..ImportModelHeader::default()
    };
    let import = framed(&ImportModelRequest {
        payload: Some(import_model_request::Payload::Header(header)),
    });
    let spec = TrainingSpec {
        model: "stalled".to_owned(),
        ..TrainingSpec::default()
    };
    let train = framed(&TrainRequest {
        payload: Some(train_request::Payload::Spec(spec)),
    });
    let export = framed(&ExportModelRequest {
        model: "verse".to_owned(),
    });
    let mut stalled = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut frames = Frames::connect_with_window(server, 100).await;
        let mut calls = Vec::new();
        for _ in 0..CALLS {
            for (path, message, is_complete) in [
                (IMPORT, &import, false),
                (TRAIN, &train, false),
                (EXPORT, &export, true),
            ] {
                let mut call = frames.open(headers(server, path, &[])).await;
                call.send(message.clone());
                if is_complete {
                    call.request.send_data(Bytes::new(), true).unwrap();
                }
                calls.push(call);
            }
        }
        stalled.push((frames, calls));
    }
    stalled
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_transfers_delay_neither_other_clients_nor_the_end_of_the_server() {
    let server = Server::start(&[]);
    let trained = train_small(&server, "verse", &[]);
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    let stalled = stall(&server).await;
    let generate = ["generate", "--model", "verse", "--prime", "arma"];
    ask_ok(&server, &generate);
    // Takes the slot of a transfer, once one has been idle for some seconds.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let trained = train_small(&server, "other", &[]);
        if trained.code == Some(0) {
            break;
        }
        let is_full = trained.stderr.contains("too many models and corpora");
        assert!(is_full && Instant::now() < deadline, "{}", trained.stderr);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let threads = format!("/proc/{}/task", server.id());
    let threads = std::fs::read_dir(threads).unwrap().count();
    assert!(threads < 100, "{threads} threads");
    // Panics if the server does not stop.
    server.stop();
    drop(stalled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scoring_whose_client_sends_nothing_ends_after_the_transfer_timeout() {
    let server = Server::start(&["--transfer-timeout", "1s"]);
    let trained = train_small(&server, "verse", &[]);
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    let mut client = GenerationServiceClient::new(server.connect().await);
    let header = score_stream_request::Payload::Header(ScoreStreamHeader::default());
    let header = ScoreStreamRequest {
        payload: Some(header),
    };
    let silent = once(async { header }).chain(pending());
    let mut scores = client.score_stream(silent).await.unwrap().into_inner();
    let status = scores.message().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let reason = status.get_details_error_info().unwrap().reason;
    assert_eq!(reason, "STREAM_STALLED");
}
