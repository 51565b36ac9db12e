//! Requests that break the gRPC protocol: each is rejected with a status that
//! says what is wrong.

use charlstm_proto::v1::*;
use tonic::codegen::Bytes;

use crate::support::Server;
use crate::support::frames::{Frames, framed, headers};

const LIST: &str = "charlstm.v1.ModelService/ListModels";
const TRAIN: &str = "charlstm.v1.TrainingService/Train";
const GENERATE: &str = "charlstm.v1.GenerationService/Generate";

const INVALID_ARGUMENT: Option<i32> = Some(3);
const DEADLINE_EXCEEDED: Option<i32> = Some(4);

/// A message with a field of the wrong type: a group that is not closed.
const MALFORMED: &[u8] = &[0, 0, 0, 0, 2, 0x0b, 0xff];

#[tokio::test]
async fn a_request_of_another_content_type_is_rejected_with_415() {
    for (http, also_wrong) in [("off", "application/json"), ("on", "text/plain")] {
        let server = Server::start(&["--http", http]);
        let mut frames = Frames::connect(&server).await;
        for wrong in ["text/html", "application/grpc-other", also_wrong] {
            let request = headers(&server, LIST, &[("content-type", wrong)]);
            let head = frames.call(request, framed(&ListModelsRequest {})).await;
            assert_eq!(head.status, 415, "{wrong}, --http {http}");
        }
        let right = [("content-type", "application/grpc+proto")];
        let head = frames.call(
            headers(&server, LIST, &right),
            framed(&ListModelsRequest {}),
        );
        let head = head.await;
        assert_eq!((head.status.as_u16(), head.grpc_status()), (200, None));
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_decoded_is_an_invalid_argument() {
    let server = Server::start(&[]);
    let mut frames = Frames::connect(&server).await;
    let message = framed(&ListModelsRequest {});
    for path in [LIST, TRAIN, GENERATE] {
        for (what, bytes) in [
            ("malformed protobuf", Bytes::from_static(MALFORMED)),
            ("half a message", Bytes::from_static(&MALFORMED[..6])),
            (
                "an unknown compression",
                Bytes::from_static(&[7, 0, 0, 0, 0]),
            ),
            ("no message", Bytes::new()),
        ] {
            let head = frames.call(headers(&server, path, &[]), bytes).await;
            assert_eq!(head.grpc_status(), INVALID_ARGUMENT, "{path}: {what}");
        }
    }
    let two = Bytes::from([&message[..], &message[..]].concat());
    let head = frames.call(headers(&server, LIST, &[]), two).await;
    assert_eq!(head.grpc_status(), INVALID_ARGUMENT, "two messages");
}

#[tokio::test]
async fn a_call_whose_deadline_has_passed_at_its_arrival_ends_with_deadline_exceeded() {
    let server = Server::start(&[]);
    let mut frames = Frames::connect(&server).await;
    for path in [TRAIN, "charlstm.v1.ModelService/ImportModel"] {
        let call = frames
            .open(headers(&server, path, &[("grpc-timeout", "1n")]))
            .await;
        assert_eq!(call.head().await.grpc_status(), DEADLINE_EXCEEDED, "{path}");
    }
}
