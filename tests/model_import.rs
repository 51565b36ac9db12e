//! Models from elsewhere: checkpoints of PyTorch, and large models, which are
//! moved with little memory.

use std::fs;
use std::io::Read;

use charlstm_model::architecture::Architecture;
use charlstm_model::model_file::{ModelFile, ModelMetadata};
use charlstm_model::parameters::Parameters;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_repository::{Publisher, Repository};
use serde::Deserialize;
use tempfile::TempDir;

use crate::support::{Server, ask, ask_ok, root};

/// The file tests/golden/checkpoints/expected.json.
#[derive(Deserialize)]
struct Expected {
    tokens: String,
    prime: String,
    greedy: String,
}

#[test]
fn checkpoints_of_pytorch_generate_the_greedy_text_of_pytorch() {
    let folder = root().join("tests/golden/checkpoints");
    let expected = fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: Expected = serde_json::from_str(&expected).unwrap();
    // PyTorch computed in float32.
    let server = Server::start(&["--precision", "float32"]);
    let vocabulary = server.folder().join("vocabulary.txt");
    fs::write(&vocabulary, &expected.tokens).unwrap();
    let vocabulary = vocabulary.to_str().unwrap();
    // A corpus with the same characters in another order, most of which the
    // model predicts: the client checks that.
    let corpus = server.folder().join("corpus.txt");
    let text: String = expected.tokens.chars().rev().collect();
    let predicted = format!("{}{}", expected.prime, expected.greedy);
    fs::write(&corpus, format!("{text}{}", predicted.repeat(30))).unwrap();
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
        ask_ok(&server, &arguments);
        let text = ask_ok(
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
    let output = ask(
        &server,
        &[
            "models",
            "import",
            path,
            "--model",
            "hostile",
            "--pth",
            "--vocabulary",
            vocabulary,
        ],
    );
    assert_eq!(output.code, Some(1));
    assert!(
        output.stderr.contains("__main__.Elsewhere"),
        "{}",
        output.stderr
    );
    assert!(!server.data_dir().join("models/hostile").exists());
    let staging = server.data_dir().join("models/.staging");
    assert_eq!(fs::read_dir(staging).unwrap().count(), 0);
}

/// Returns the number of bytes that `/proc/ID/status` reports for a key.
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
fn a_large_model_is_exported_and_imported_with_little_memory() {
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
    repository
        .publish(&Publisher::admin(), "large", &model)
        .unwrap();
    drop(repository);
    let server = Server::start_in(folder, &[]);

    let before = memory(&server, "VmRSS:");
    let file = server.folder().join("large.safetensors");
    let file = file.to_str().unwrap();
    ask_ok(&server, &["models", "export", "large", "--output", file]);
    ask_ok(&server, &["models", "import", file, "--model", "copy"]);
    let peak = memory(&server, "VmHWM:");
    assert!(
        peak.saturating_sub(before) < bytes / 3,
        "a model of {bytes} bytes: from {before} to {peak}"
    );
    let copied = server.data_dir().join("models/copy/1/model.safetensors");
    let original = server.data_dir().join("models/large/1/model.safetensors");
    assert!(fs::read(copied).unwrap() == fs::read(original).unwrap());
}
