//! Invalid input, and the messages about it: what is wrong, where, and what
//! would be right. Nothing crashes, and the server continues to serve.

use std::fs;
use std::path::Path;

use crate::support::server::{Server, command, fail_to_start};
use crate::support::{ask, ask_ok, client, process, train_small, verse};

/// Asserts that a command fails with this code and a message with these parts.
fn rejected(server: &Server, arguments: &[&str], code: i32, parts: &[&str]) {
    let output = ask(server, arguments);
    assert_eq!(output.code, Some(code), "{arguments:?}: {}", output.stderr);
    for part in parts {
        assert!(
            output.stderr.contains(part),
            "{arguments:?}: {part:?} is not in {}",
            output.stderr
        );
    }
}

fn file(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn an_invalid_corpus_is_rejected_with_the_reason() {
    let server = Server::start(&[]);
    let folder = server.folder();
    let train = |path: &str, parts: &[&str], code| {
        rejected(
            &server,
            &["train", "--text", path, "--model", "m"],
            code,
            parts,
        );
    };
    train("no/such/file.txt", &["no/such/file.txt"], 2);
    let without_texts = folder.join("without-texts");
    fs::create_dir(&without_texts).unwrap();
    train(without_texts.to_str().unwrap(), &["without-texts"], 2);
    train(&file(folder, "empty", b""), &["empty"], 2);
    // 100 characters; a batch of 16 x 32 and the held-out set need 568.
    train(&file(folder, "short", &[b'a'; 100]), &["568", "100"], 1);
    let mut broken = vec![b'a'; 20_000];
    broken[15_000] = 0xff;
    train(&file(folder, "broken", &broken), &["UTF-8", "15000"], 2);
    assert!(ask_ok(&server, &["--json", "trainings", "list"]).is_empty());
}

#[test]
fn a_hyperparameter_outside_its_range_is_rejected_with_its_flag_and_value() {
    let server = Server::start(&[]);
    let text = file(server.folder(), "text", verse(3000).as_bytes());
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
        rejected(&server, &arguments, 1, &[flag, value]);
    }
    let arguments = ["train", "--text", &text, "--model", "../up"];
    rejected(&server, &arguments, 1, &["model", "../up"]);
}

#[test]
fn an_unknown_model_or_character_or_an_empty_prompt_is_rejected_with_what_would_be_right() {
    let server = Server::start(&[]);
    rejected(&server, &["generate", "--prime", "a"], 1, &["no model"]);
    let output = train_small(&server, "verse", &[]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);

    let other = ["generate", "--model", "prose", "--prime", "a"];
    rejected(&server, &other, 1, &["prose", "verse"]);
    let version = ["generate", "--model", "verse@7", "--prime", "a"];
    rejected(&server, &version, 1, &["verse@7"]);
    let strange = ["generate", "--prime", "ab€"];
    rejected(&server, &strange, 1, &["€", "U+20AC", "position 2"]);
    rejected(&server, &["generate"], 2, &["--prime"]);
    rejected(&server, &["generate", "--prime", ""], 1, &["prime"]);
    let new = ["generate", "--prime", "", "--session", "new"];
    rejected(&server, &new, 1, &["prime"]);
    let hot = ["generate", "--prime", "a", "--temperature", "1000"];
    rejected(&server, &hot, 1, &["temperature", "1000"]);

    let text = ask_ok(&server, &["generate", "--prime", "arma", "--length", "5"]);
    assert_eq!(text.chars().count(), 9);
}

#[test]
fn if_no_server_is_running_the_client_names_its_address_and_how_to_start_one() {
    let server = Server::start(&[]);
    let address = server.url().to_owned();
    let mut status = client(&server, &["status"]);
    drop(server);
    let output = process::output(&mut status);
    assert_eq!(output.status.code(), Some(1), "{}", output.stderr);
    assert!(output.stderr.contains(&address), "{}", output.stderr);
    assert!(
        output.stderr.contains("charlstm-server"),
        "{}",
        output.stderr
    );
}

#[test]
fn an_unavailable_device_is_an_error_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path(), &["--device", "cuda:7"]);
    let (code, error) = fail_to_start(&mut command);
    assert_eq!(code, Some(1));
    assert!(
        error.starts_with("error: device cuda:7 is not available (available: cpu"),
        "{error}"
    );
}
