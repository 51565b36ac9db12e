//! `ModelService`: models are listed, described, deleted, exported and imported.

use charlstm_model::architecture::Architecture;
use charlstm_model::model_file::{ModelFile, ModelMetadata};
use charlstm_model::parameters::Parameters;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_proto::v1::export_model_response::Payload as Exported;
use charlstm_proto::v1::import_model_request::Payload as Imported;
use charlstm_proto::v1::model_service_client::ModelServiceClient;
use charlstm_proto::v1::{
    DeleteModelRequest, ExportModelRequest, FinishReason, GetModelRequest, ImportModelHeader,
    ImportModelRequest, ListModelsRequest, Model, ModelFormat,
};
use charlstm_repository::{Publisher, Repository};
use charlstm_store::hex;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::Server;
use crate::support::wire::{Wire, assert_status, endless, read, rest, resume, start};

type Client = ModelServiceClient<Channel>;

fn model() -> ModelFile {
    let vocabulary = Vocabulary::of("\n abcdefghij".chars());
    let mut parameters = Parameters::zeros(Architecture {
        vocabulary_size: vocabulary.len(),
        // Several chunks of an export.
        hidden_size: 160,
        num_layers: 2,
    });
    for (index, value) in parameters.values.iter_mut().enumerate() {
        *value = (index % 97) as f32 / 97.0;
    }
    ModelFile {
        parameters,
        vocabulary,
        metadata: ModelMetadata {
            recipe: "notebook".to_owned(),
            epochs: 2,
            training_id: "t".to_owned(),
            train_loss: Some(2.5),
            created_unix_ms: 1,
            ..ModelMetadata::default()
        },
    }
}

/// Starts a server that has `a@1`, `a@2` and `b@1`.
async fn server() -> (Server, Client) {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(&folder.path().join("data")).unwrap();
    for name in ["a", "a", "b"] {
        repository
            .publish(&Publisher::admin(), name, &model())
            .unwrap();
    }
    drop(repository);
    let server = Server::start_in(folder, &[]);
    let client = Client::new(server.connect().await);
    (server, client)
}

async fn import(client: &mut Client, parts: Vec<Imported>) -> Result<Model, Status> {
    let messages = parts.into_iter().map(|payload| ImportModelRequest {
        payload: Some(payload),
    });
    let messages: Vec<_> = messages.collect();
    let response = client.import_model(tokio_stream::iter(messages)).await?;
    Ok(response.into_inner().model.unwrap())
}

fn header(name: &str, format: ModelFormat) -> Imported {
    Imported::Header(ImportModelHeader {
        name: name.to_owned(),
        format: format.into(),
        vocabulary: String::new(),
        sha256: String::new(),
    })
}

fn reference(text: &str) -> ExportModelRequest {
    ExportModelRequest {
        model: text.to_owned(),
    }
}

async fn export(client: &mut Client, model: &str) -> (u64, Vec<u8>) {
    let response = client.export_model(reference(model)).await.unwrap();
    let mut stream = response.into_inner();
    let first = stream.message().await.unwrap().unwrap().payload.unwrap();
    let Exported::Header(header) = first else {
        panic!("the header is not the first message");
    };
    let mut bytes = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        match message.payload.unwrap() {
            Exported::Chunk(chunk) => bytes.extend_from_slice(&chunk),
            Exported::Header(_) => panic!("a second header"),
        }
    }
    assert_eq!(header.bytes, bytes.len() as u64);
    assert_eq!(header.sha256, hex::encode(&Sha256::digest(&bytes)));
    (header.version, bytes)
}

#[tokio::test]
async fn models_are_listed_and_described() {
    let (_server, mut client) = server().await;
    let list = client.list_models(ListModelsRequest {}).await.unwrap();
    let models = list.into_inner().models;
    let listed: Vec<_> = models
        .iter()
        .map(|m| (m.name.as_str(), m.version))
        .collect();
    assert_eq!(listed, [("a", 2), ("b", 1)]);

    let request = GetModelRequest {
        model: "a@1".to_owned(),
    };
    let response = client.get_model(request).await.unwrap().into_inner();
    assert_eq!(response.versions, [1, 2]);
    let described = response.model.unwrap();
    assert_eq!(described.version, 1);
    assert_eq!(described.vocabulary, "\n abcdefghij");
    assert_eq!((described.hidden_size, described.num_layers), (160, 2));
    assert_eq!(described.train_loss, Some(2.5));
    assert_eq!(described.training.unwrap().recipe, "notebook");
}

#[tokio::test]
async fn an_unknown_model_is_rejected_with_the_available_ones() {
    let (_server, mut client) = server().await;
    let mut get = async |model: &str| {
        let model = model.to_owned();
        client
            .get_model(GetModelRequest { model })
            .await
            .unwrap_err()
    };
    let status = get("x").await;
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().ends_with("available: a, b"), "{status}");
    assert_eq!(get("../etc").await.code(), Code::InvalidArgument);
    assert_eq!(get("").await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_exported_model_is_imported_byte_for_byte() {
    let (server, mut client) = server().await;
    let (version, bytes) = export(&mut client, "a").await;
    assert_eq!(version, 2);
    assert_eq!(bytes, model().to_bytes().unwrap());

    let parts = |sha256: &str| {
        let header = Imported::Header(ImportModelHeader {
            name: "c".to_owned(),
            sha256: sha256.to_owned(),
            ..Default::default()
        });
        let chunks = bytes.chunks(100_000);
        let chunks = chunks.map(|chunk| Imported::Chunk(chunk.to_vec().into()));
        std::iter::once(header).chain(chunks).collect()
    };
    for wrong in ["ab", &"ab".repeat(32)] {
        let status = import(&mut client, parts(wrong)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with("header.sha256: "), "{status}");
    }
    let sha256 = hex::encode(&Sha256::digest(&bytes));
    let imported = import(&mut client, parts(&sha256)).await.unwrap();
    assert_eq!((imported.name.as_str(), imported.version), ("c", 1));
    assert_eq!(imported.training_id, "");
    assert_eq!(export(&mut client, "c").await.1, bytes);
    drop(server);
}

#[tokio::test]
async fn an_import_that_is_not_a_model_is_rejected_and_leaves_nothing_behind() {
    let (server, mut client) = server().await;
    let chunk = || Imported::Chunk(vec![7; 5000].into());
    let safetensors = ModelFormat::Safetensors;
    let cases = [
        (
            vec![header("c", safetensors), chunk()],
            Code::InvalidArgument,
        ),
        (vec![header("c", safetensors)], Code::InvalidArgument),
        (vec![chunk()], Code::InvalidArgument),
        (vec![], Code::InvalidArgument),
        (
            vec![header("../c", safetensors), chunk()],
            Code::InvalidArgument,
        ),
        (
            vec![header("c", safetensors), header("c", safetensors)],
            Code::InvalidArgument,
        ),
        (
            vec![header("c", ModelFormat::Pth), chunk()],
            Code::InvalidArgument,
        ),
    ];
    for (parts, code) in cases {
        let status = import(&mut client, parts.clone()).await.unwrap_err();
        assert_eq!(status.code(), code, "{parts:?}: {status}");
    }
    let list = client.list_models(ListModelsRequest {}).await.unwrap();
    assert_eq!(list.into_inner().models.len(), 2);
    let (status, _) = { server }.terminate();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_version_or_all_versions_are_deleted() {
    let (_server, mut client) = server().await;
    let mut delete = async |model: &str| {
        let model = model.to_owned();
        let request = DeleteModelRequest { model, force: None };
        client
            .delete_model(request)
            .await
            .map(|response| response.into_inner().versions)
    };
    assert_eq!(delete("a@1").await.unwrap(), [1]);
    assert_eq!(delete("a@1").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(delete("a").await.unwrap(), [2]);
    assert_eq!(delete("a").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(delete("").await.unwrap_err().code(), Code::InvalidArgument);
    let list = client.list_models(ListModelsRequest {}).await.unwrap();
    assert_eq!(list.into_inner().models.len(), 1);
}

#[tokio::test]
async fn an_altered_model_ends_its_export_with_data_loss() {
    let (server, mut client) = server().await;
    let path = server.data_dir().join("models/a/2/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let response = client.export_model(reference("a")).await.unwrap();
    let mut stream = response.into_inner();
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the export ended without an error"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DataLoss);
    // The older version is now the latest.
    assert_eq!(export(&mut client, "a").await.0, 1);
}

#[tokio::test]
async fn an_aborted_import_leaves_nothing_behind() {
    let (mut server, mut client) = server().await;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let feed = async move {
        let chunk = Imported::Chunk(vec![7; 2_000_000].into());
        let mut payload = header("c", ModelFormat::Safetensors);
        // More than fits into the windows of a connection: when the last one is
        // accepted, the server has written some of them.
        for _ in 0..12 {
            let message = ImportModelRequest {
                payload: Some(payload),
            };
            sender.send(message).await.unwrap();
            payload = chunk.clone();
        }
        sender
    };
    let messages = tokio_stream::wrappers::ReceiverStream::new(receiver);
    {
        let call = client.import_model(messages);
        tokio::select! {
            response = call => panic!("the server did not wait for the rest: {response:?}"),
            // Until here the sender is kept, and the upload is incomplete.
            sender = feed => drop(sender),
        }
    }
    let (status, _) = tokio::task::spawn_blocking(move || {
        let ended = server.terminate();
        let staging = server.data_dir().join("models/.staging");
        assert_eq!(std::fs::read_dir(staging).unwrap().count(), 0);
        assert!(!server.data_dir().join("models/c").exists());
        ended
    })
    .await
    .unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_with_sessions_is_deleted_only_with_force_and_ends_their_calls() {
    let mut wire = Wire::start(&[]).await;
    let mut models = ModelServiceClient::new(wire.server.connect().await);
    let mut delete = async |force: Option<bool>| {
        let model = "verse".to_owned();
        models
            .delete_model(DeleteModelRequest { model, force })
            .await
    };
    wire.text(start("one", 20)).await;
    wire.text(start("two", 20)).await;

    let rejected = delete(None).await.unwrap_err();
    assert_status(&rejected, Code::FailedPrecondition, "MODEL_IN_USE");
    assert!(rejected.message().contains("2 sessions"), "{rejected}");
    let rejected = delete(Some(false)).await.unwrap_err();
    assert_status(&rejected, Code::FailedPrecondition, "MODEL_IN_USE");
    wire.text(resume("one", 20)).await;

    let mut stream = wire.open(endless(resume("two", 0))).await;
    read(&mut stream, 5).await;
    let deleted = delete(Some(true)).await.unwrap().into_inner();
    assert_eq!(deleted.versions, [1]);
    // The generation in flight ends.
    let end = rest(&mut stream).await.unwrap();
    assert_eq!(end.finished.reason(), FinishReason::Cancelled);
    let rejected = wire.rejection(resume("one", 20)).await;
    assert_status(&rejected, Code::FailedPrecondition, "SESSION_MODEL_GONE");
    // Its sessions can still be listed and deleted.
    assert_eq!(wire.session("two").await.unwrap().version, 1);
    wire.delete("two").await;
}
