//! `run` checks which model it uses.

use std::process::Output;

use crate::fake::FakeServer;
use crate::{client, text};

fn run(fake: &FakeServer, arguments: &[&str]) -> Output {
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    client(server.address, &[&["run"], arguments].concat())
        .env("XDG_STATE_HOME", folder.path())
        .output()
        .unwrap()
}

/// A server with a model that was trained on "first text".
fn trained_server() -> FakeServer {
    let fake = FakeServer::default();
    // printf 'first text' | sha256sum
    let sha256 = "fa0343363edb8cb3ed1c098a47c28e56a7d7c8ade8dce7ed408b12b6280dd135";
    fake.trained_on.lock().unwrap().push(sha256.into());
    fake
}

fn write(folder: &tempfile::TempDir, name: &str, content: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_model_of_the_same_text_is_used_and_flags_without_effect_are_named() {
    let fake = trained_server();
    let folder = tempfile::tempdir().unwrap();
    let book = write(&folder, "m.txt", "first text");
    let arguments = ["--text", &book, "--epochs", "2", "--hidden-size", "8"];
    let output = run(&fake, &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let messages = text(&output.stderr);
    assert!(
        messages.contains("m@1 was trained on this text"),
        "{messages}"
    );
    assert!(
        messages.contains("--epochs, --hidden-size have no effect"),
        "{messages}"
    );
    assert!(messages.contains("using model m@1"), "{messages}");
    assert!(fake.received.lock().unwrap().spec.is_none());
}

#[test]
fn a_model_of_another_text_gets_a_new_version() {
    let fake = trained_server();
    let folder = tempfile::tempdir().unwrap();
    let book = write(&folder, "m.txt", "another text");
    let output = run(&fake, &["--text", &book]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let messages = text(&output.stderr);
    assert!(
        messages.contains("m@1 was trained on another text"),
        "{messages}"
    );
    assert_eq!(fake.received.lock().unwrap().corpus, b"another text");
}

#[test]
fn a_text_that_does_not_exist_is_an_error_even_if_there_is_a_model() {
    let fake = trained_server();
    let output = run(&fake, &["--text", "/nonexistent/m.txt"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("/nonexistent/m.txt: no such file"));
    let output = run(&fake, &["--text", "-"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_data_folder_has_no_effect_if_a_server_is_running() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let output = run(&trained_server(), &["--data-dir", path]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("--data-dir has no effect"));
}
