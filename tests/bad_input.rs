//! What a person gets wrong, and the answer to it: what is wrong, where, and
//! what would be right. Nothing crashes, and the server serves on.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::{Server, ask, ask_ok, train_small};

/// Asserts that a command fails with this code and says all of these.
fn refused(server: &Server, arguments: &[&str], code: i32, words: &[&str]) {
    let said = ask(server, arguments);
    assert_eq!(said.code, Some(code), "{arguments:?}: {}", said.stderr);
    for word in words {
        assert!(
            said.stderr.contains(word),
            "{arguments:?} does not say {word:?}: {}",
            said.stderr
        );
    }
}

fn file(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_corpus_that_cannot_be_trained_on_is_refused_with_what_is_wrong() {
    let server = Server::start(&[]);
    let folder = server.folder();
    let train = |path: &str, words: &[&str], code| {
        refused(
            &server,
            &["train", "--text", path, "--model", "m"],
            code,
            words,
        );
    };
    train("no/such/file.txt", &["no/such/file.txt"], 2);
    let without_texts = folder.join("without-texts");
    fs::create_dir(&without_texts).unwrap();
    train(without_texts.to_str().unwrap(), &["without-texts"], 2);
    train(&file(folder, "empty", b""), &["empty"], 2);
    // 100 characters, where a batch of 16 x 32 and what is held out need 568.
    train(&file(folder, "short", &[b'a'; 100]), &["568", "100"], 1);
    let mut broken = vec![b'a'; 20_000];
    broken[15_000] = 0xff;
    train(&file(folder, "broken", &broken), &["UTF-8", "15000"], 2);
    assert!(ask_ok(&server, &["--json", "trainings", "list"]).is_empty());
}

#[test]
fn a_hyperparameter_outside_its_range_is_named_with_its_limit_and_value() {
    let server = Server::start(&[]);
    let text = file(server.folder(), "text", support::verse(3000).as_bytes());
    for (flag, value) in [
        ("--hidden-size", "0"),
        ("--num-layers", "99"),
        ("--batch-size", "0"),
        ("--sequence-length", "100000"),
        ("--epochs", "0"),
        ("--dropout", "1"),
        ("--dropout", "NaN"),
        ("--learning-rate", "0"),
        ("--learning-rate", "inf"),
        ("--clip-norm", "-1"),
        ("--validation-fraction", "0.9"),
        ("--recipe", "magic"),
    ] {
        let given = format!("{flag}={value}");
        let arguments = ["train", "--text", &text, "--model", "m", &given];
        refused(&server, &arguments, 1, &[flag, value]);
    }
    let arguments = ["train", "--text", &text, "--model", "../up"];
    refused(&server, &arguments, 1, &["model", "../up"]);
}

#[test]
fn an_unknown_model_or_character_or_an_empty_prime_is_refused_with_what_would_be_right() {
    let server = Server::start(&[]);
    refused(&server, &["generate", "--prime", "a"], 1, &["no model"]);
    let said = train_small(&server, "verse", &[]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);

    let other = ["generate", "--model", "prose", "--prime", "a"];
    refused(&server, &other, 1, &["prose", "verse"]);
    let version = ["generate", "--model", "verse@7", "--prime", "a"];
    refused(&server, &version, 1, &["verse@7"]);
    let strange = ["generate", "--prime", "ab€"];
    refused(&server, &strange, 1, &["€", "U+20AC", "position 2"]);
    refused(&server, &["generate"], 2, &["--prime"]);
    refused(&server, &["generate", "--prime", ""], 1, &["prime"]);
    let new = ["generate", "--prime", "", "--session", "new"];
    refused(&server, &new, 1, &["prime"]);
    let hot = ["generate", "--prime", "a", "--temperature", "1000"];
    refused(&server, &hot, 1, &["temperature", "1000"]);

    let text = ask_ok(&server, &["generate", "--prime", "arma", "--length", "5"]);
    assert_eq!(text.chars().count(), 9);
}

#[test]
fn a_server_that_is_not_there_is_named_with_how_to_start_one() {
    let server = Server::start(&[]);
    let address = server.url().to_owned();
    let mut status = support::client(&server, &["status"]);
    drop(server);
    let output = status.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&address), "{said}");
    assert!(said.contains("charlstm-server"), "{said}");
}

#[test]
fn a_device_that_is_not_there_is_an_error_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut command: Command = support::command(folder.path(), &["--device", "cuda:7"]);
    let output = command.output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cuda:7"), "{said}");
    assert!(output.stdout.is_empty());
}
