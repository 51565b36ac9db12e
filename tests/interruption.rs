//! Trainings that are killed, cancelled and resumed: nothing is lost, and the
//! model is bit for bit that of an uninterrupted training.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::support::process::Process;
use crate::support::{Server, ask, ask_ok, client, train_small};

/// Returns the weights of a model, without the metadata of the file.
fn weights(server: &Server, model: &str) -> Vec<u8> {
    let path = server.folder().join("exported.safetensors");
    let output = path.to_str().unwrap();
    ask_ok(server, &["models", "export", model, "--output", output]);
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].to_vec()
}

/// Starts a training and returns its id when `epochs` epochs have ended.
fn train_until(server: &Server, epochs: usize) -> String {
    train_in(server, "auto", epochs)
}

/// As [`train_until`], in some precision.
fn train_in(server: &Server, precision: &str, epochs: usize) -> String {
    let flags = ["--epochs", "6", "--detach", "--precision", precision];
    let output = train_small(server, "verse", &flags);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let id = output.stdout.trim().to_owned();
    let mut watch = client(server, &["--json", "trainings", "watch", &id]);
    let watch = Process::start(watch.stdout(Stdio::piped()));
    let lines = BufReader::new(watch.take_stdout().unwrap()).lines();
    let ended = lines
        .map(Result::unwrap)
        .filter(|line| line.contains("\"event\":\"epoch\""))
        .nth(epochs - 1);
    assert!(ended.is_some(), "the training has {epochs} epochs");
    id
}

/// Returns how often an epoch is reported in the output of
/// `--json trainings watch`.
fn reports(watched: &str, epoch: u32) -> usize {
    let epoch = format!("\"epoch\":{epoch},");
    let lines = watched.lines();
    lines
        .filter(|line| line.contains("\"event\":\"epoch\"") && line.contains(&epoch))
        .count()
}

fn uninterrupted() -> Vec<u8> {
    uninterrupted_in("auto")
}

fn uninterrupted_in(precision: &str) -> Vec<u8> {
    let server = Server::start(&["--threads", "2"]);
    let flags = ["--epochs", "6", "--precision", precision];
    let output = train_small(&server, "verse", &flags);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    weights(&server, "verse")
}

#[test]
fn a_training_whose_server_was_killed_resumes_to_the_same_weights() {
    let expected = uninterrupted();
    for epochs in [1, 3] {
        let server = Server::start(&["--threads", "2"]);
        let id = train_until(&server, epochs);
        let server = Server::start_in(server.kill(), &["--threads", "2"]);
        let shown = ask_ok(&server, &["--json", "trainings", "show", &id]);
        assert!(shown.contains("STATE_INTERRUPTED"), "{shown}");
        let output = ask(&server, &["trainings", "resume", &id]);
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        assert!(
            weights(&server, "verse") == expected,
            "killed after epoch {epochs}"
        );

        // A client that watches from the start gets each epoch once.
        let watched = ask_ok(&server, &["--json", "trainings", "watch", &id]);
        for epoch in 1..=6 {
            assert_eq!(reports(&watched, epoch), 1, "epoch {epoch} in {watched}");
        }
    }
}

#[test]
fn a_killed_training_of_each_precision_resumes_to_the_same_weights_on_another_number_of_threads() {
    let [float32, bf16] = ["float32", "bf16"].map(|precision| {
        let server = Server::start(&["--threads", "2"]);
        let id = train_in(&server, precision, 2);
        let server = Server::start_in(server.kill(), &["--threads", "1"]);
        let output = ask(&server, &["trainings", "resume", &id]);
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        let resumed = weights(&server, "verse");
        assert!(resumed == uninterrupted_in(precision), "{precision}");
        resumed
    });
    assert!(float32 != bf16, "both precisions give the same weights");
}

#[test]
fn a_training_that_continues_with_other_instructions_says_so_and_ends() {
    let server = Server::start(&["--threads", "2"]);
    let id = train_in(&server, "bf16", 1);
    let folder = server.stop();
    let server = Server::start_in(folder, &["--kernels", "portable"]);
    let output = ask(&server, &["trainings", "resume", &id]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(
        output
            .stderr
            .contains("the training continues with portable"),
        "{}",
        output.stderr
    );
    let watched = ask_ok(&server, &["--json", "trainings", "watch", &id]);
    assert!(
        watched.contains("\"instructions\":\"portable\""),
        "{watched}"
    );
    assert!(watched.contains("STATE_SUCCEEDED"), "{watched}");
}

#[test]
fn with_resume_interrupted_a_killed_training_continues_by_itself_and_reports_each_epoch_once() {
    let expected = uninterrupted();
    let server = Server::start(&["--threads", "2"]);
    let id = train_until(&server, 2);
    let flags = ["--threads", "2", "--resume-interrupted"];
    let server = Server::start_in(server.kill(), &flags);
    let watched = ask_ok(&server, &["--json", "trainings", "watch", &id]);
    assert!(watched.contains("STATE_SUCCEEDED"), "{watched}");
    for epoch in 1..=6 {
        assert_eq!(reports(&watched, epoch), 1, "epoch {epoch} in {watched}");
    }
    assert!(weights(&server, "verse") == expected);
}

#[test]
fn a_cancelled_training_keeps_a_checkpoint_and_resumes_to_the_same_weights() {
    let server = Server::start(&["--threads", "2"]);
    let id = train_until(&server, 2);
    ask_ok(&server, &["trainings", "cancel", &id]);
    // The watcher ends when the training has.
    let watched = ask(&server, &["--json", "trainings", "watch", &id]).stdout;
    assert!(watched.contains("STATE_CANCELLED"), "{watched}");
    let output = ask(&server, &["trainings", "resume", &id]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(weights(&server, "verse") == uninterrupted());
}

#[test]
fn a_clean_stop_interrupts_a_training_that_can_be_resumed() {
    let server = Server::start(&["--threads", "2"]);
    let id = train_until(&server, 1);
    let server = Server::start_in(server.stop(), &["--threads", "2"]);
    let output = ask(&server, &["trainings", "resume", &id]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(weights(&server, "verse") == uninterrupted());
}
