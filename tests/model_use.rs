//! Models that are in use, and models that come from elsewhere: removed under
//! their sessions, imported from PyTorch, moved while large.

#![allow(clippy::unwrap_used)]

mod support;
// Some of it is for the tests of sessions alone.
#[allow(dead_code)]
#[path = "support/wire.rs"]
mod wire;

use std::fs;
use std::io::Read;

use charlstm_model::architecture::Architecture;
use charlstm_model::model_file::{ModelFile, ModelMetadata};
use charlstm_model::parameters::Parameters;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_proto::v1::DeleteModelRequest;
use charlstm_proto::v1::model_service_client::ModelServiceClient;
use charlstm_repository::Repository;
use serde::Deserialize;
use support::Server;
use tempfile::TempDir;
use tonic::Code;
use wire::{Wire, anew, endless, further, is, read, rest};

#[tokio::test(flavor = "multi_thread")]
async fn a_model_with_sessions_is_removed_only_by_force_and_they_are_told() {
    let mut wire = Wire::start(&[]).await;
    let mut models = ModelServiceClient::new(wire.server.connect().await);
    let mut delete = async |force: Option<bool>| {
        let model = "verse".to_owned();
        models
            .delete_model(DeleteModelRequest { model, force })
            .await
    };
    wire.text(anew("one", 20)).await;
    wire.text(anew("two", 20)).await;

    let refused = delete(None).await.unwrap_err();
    is(&refused, Code::FailedPrecondition, "MODEL_IN_USE");
    assert!(refused.message().contains("2 sessions"), "{refused}");
    let refused = delete(Some(false)).await.unwrap_err();
    is(&refused, Code::FailedPrecondition, "MODEL_IN_USE");
    wire.text(further("one", 20)).await;

    let mut stream = wire.open(endless(further("two", 0))).await;
    read(&mut stream, 5).await;
    let deleted = delete(Some(true)).await.unwrap().into_inner();
    assert_eq!(deleted.versions, [1]);
    // The text under way ends, whichever way: it does not go on for ever.
    let _ = rest(&mut stream).await;
    let refused = wire.refusal(further("one", 20)).await;
    is(&refused, Code::FailedPrecondition, "SESSION_MODEL_GONE");
    // It can still be looked at, and deleted.
    assert_eq!(wire.session("two").await.unwrap().version, 1);
    wire.delete("two").await;
}

/// tests/golden/checkpoints/expected.json.
#[derive(Deserialize)]
struct Expected {
    tokens: String,
    prime: String,
    greedy: String,
}

#[test]
fn checkpoints_that_pytorch_saved_write_its_greedy_text() {
    let folder = support::root().join("tests/golden/checkpoints");
    let expected = fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: Expected = serde_json::from_str(&expected).unwrap();
    let server = Server::start(&[]);
    let vocabulary = server.folder().join("vocabulary.txt");
    fs::write(&vocabulary, &expected.tokens).unwrap();
    let vocabulary = vocabulary.to_str().unwrap();
    // As a corpus: the characters again and again, in another order.
    let corpus = server.folder().join("corpus.txt");
    let text: String = expected.tokens.chars().rev().collect();
    fs::write(&corpus, text.repeat(3)).unwrap();
    let corpus = corpus.to_str().unwrap();

    let imports: [(&str, &[&str]); 5] = [
        ("tokens.pth", &["--pth"]),
        ("tokens.pth", &["--pth", "--text", corpus]),
        ("plain.pth", &["--pth", "--vocabulary", vocabulary]),
        ("legacy.pth", &["--pth"]),
        ("plain.safetensors", &["--vocabulary", vocabulary]),
    ];
    let length = expected.greedy.chars().count().to_string();
    for (file, flags) in imports {
        let path = folder.join(file);
        let mut arguments = vec!["models", "import", path.to_str().unwrap(), "--model", "net"];
        arguments.extend_from_slice(flags);
        support::ask_ok(&server, &arguments);
        let text = support::ask_ok(
            &server,
            &[
                "generate",
                "--model",
                "net",
                "--prime",
                &expected.prime,
                "--greedy",
                "--length",
                &length,
                "--no-echo",
            ],
        );
        assert_eq!(
            text.trim_end_matches('\n'),
            expected.greedy.trim_end_matches('\n'),
            "{file}"
        );
    }

    let path = folder.join("code.pth");
    let path = path.to_str().unwrap();
    let said = support::ask(
        &server,
        &[
            "models",
            "import",
            path,
            "--model",
            "evil",
            "--pth",
            "--vocabulary",
            vocabulary,
        ],
    );
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr.contains("__main__.Elsewhere"),
        "{}",
        said.stderr
    );
    assert!(!server.data_dir().join("models/evil").exists());
    let staging = server.data_dir().join("models/.staging");
    assert_eq!(fs::read_dir(staging).unwrap().count(), 0);
}

/// Bytes that `/proc/ID/status` tells under a key.
fn memory(server: &Server, key: &str) -> u64 {
    let mut status = String::new();
    fs::File::open(format!("/proc/{}/status", server.id()))
        .unwrap()
        .read_to_string(&mut status)
        .unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    let kilobytes = line.split_whitespace().nth(1).unwrap();
    1024 * kilobytes.parse::<u64>().unwrap()
}

#[test]
fn a_large_model_is_moved_in_little_memory() {
    let vocabulary = Vocabulary::of("abcdefghij".chars());
    let parameters = Parameters::zeros(Architecture {
        vocabulary_size: vocabulary.len(),
        hidden_size: 1600,
        num_layers: 2,
    });
    let bytes = 4 * parameters.values.len() as u64;
    assert!(bytes > 120_000_000);
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(&folder.path().join("data")).unwrap();
    let model = ModelFile {
        parameters,
        vocabulary,
        metadata: ModelMetadata::default(),
    };
    repository.publish("large", &model).unwrap();
    drop(repository);
    let server = Server::start_in(folder, &[]);

    let before = memory(&server, "VmRSS:");
    let file = server.folder().join("large.safetensors");
    let file = file.to_str().unwrap();
    support::ask_ok(&server, &["models", "export", "large", "--output", file]);
    support::ask_ok(&server, &["models", "import", file, "--model", "copy"]);
    let peak = memory(&server, "VmHWM:");
    assert!(
        peak.saturating_sub(before) < bytes / 3,
        "{bytes} bytes of model: from {before} to {peak}"
    );
    let copied = server.data_dir().join("models/copy/1/model.safetensors");
    let original = server.data_dir().join("models/large/1/model.safetensors");
    assert!(fs::read(copied).unwrap() == fs::read(original).unwrap());
}
