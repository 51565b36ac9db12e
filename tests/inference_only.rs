//! The build without libtorch: `--no-default-features`.

use charlstm_proto::v1::generation_service_client::GenerationServiceClient;
use charlstm_proto::v1::train_request::Payload;
use charlstm_proto::v1::training_service_client::TrainingServiceClient;
use charlstm_proto::v1::{GenerateRequest, StartTrainingRequest, TrainRequest, TrainingSpec};
use charlstm_repository::{Publisher, Repository};
use tonic::Code;

use crate::support::server::{Server, command_of, inference_only_program};
use crate::support::untrained::{LETTERS, untrained_model};
use crate::support::wire::{assert_status, length, rest};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_libtorch_generates_and_rejects_trainings_with_a_reason() {
    let program = inference_only_program();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let repository = Repository::open(&data).unwrap();
    repository
        .publish(
            &Publisher::admin(),
            "small",
            &untrained_model(LETTERS.chars(), 1.0),
        )
        .unwrap();
    drop(repository);
    let server = Server::launch(folder, command_of(program, &data, &[]));
    let libraries = std::fs::read_to_string(format!("/proc/{}/maps", server.id())).unwrap();
    for library in ["libtorch", "libc10"] {
        assert!(!libraries.contains(library), "{library} is loaded");
    }

    let channel = server.connect().await;
    let mut generation = GenerationServiceClient::new(channel.clone());
    let request = GenerateRequest {
        prime: "abc".to_owned(),
        max_chars: Some(50),
        session_id: Some("session".to_owned()),
        ..GenerateRequest::default()
    };
    let mut stream = generation.generate(request).await.unwrap().into_inner();
    let generated = rest(&mut stream).await.unwrap();
    assert_eq!(length(&generated.text), 50);
    assert_eq!(generated.finished.position, 53);

    let mut training = TrainingServiceClient::new(channel);
    let spec = TrainingSpec {
        model: "other".to_owned(),
        ..TrainingSpec::default()
    };
    let message = TrainRequest {
        payload: Some(Payload::Spec(spec.clone())),
    };
    let streamed = training.train(tokio_stream::once(message)).await;
    let request = StartTrainingRequest {
        spec: Some(spec),
        corpus: b"abcabcabc".as_slice().into(),
    };
    let unary = training.start_training(request).await;
    for status in [streamed.map(drop), unary.map(drop)].map(Result::unwrap_err) {
        assert_status(&status, Code::Unimplemented, "TRAINING_UNSUPPORTED");
        assert!(status.message().contains("build"), "{status}");
    }
}
