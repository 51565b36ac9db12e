//! Faults under trainings and models: full disks, damaged files, kills. A
//! fault affects one training or one model and is reported; everything else
//! works, and nothing is lost that can be kept.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Lines};
use std::process::{ChildStdout, Stdio};

use crate::support::ballast::Ballast;
use crate::support::process::Process;
use crate::support::{Server, ask, ask_ok, client, train_small, verse};

/// Large enough for two logs of the session store, which are 48 MiB each.
const DISK_BYTES: u64 = 160 << 20;
const EPOCHS: u32 = 60;

/// A watcher of a training, from its first event on.
struct Watch {
    /// Killed when this is dropped.
    _process: Process,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watch {
    fn start(server: &Server, id: &str) -> Self {
        let mut command = client(server, &["--json", "trainings", "watch", id]);
        let process = Process::start(command.stdout(Stdio::piped()));
        let lines = BufReader::new(process.take_stdout().unwrap()).lines();
        Self {
            _process: process,
            lines,
        }
    }

    /// Returns the next event of a kind. Panics if the training ends before.
    fn next(&mut self, kind: &str) -> String {
        let is_kind = |line: &String| line.contains(&format!("\"event\":\"{kind}\""));
        let mut lines = self.lines.by_ref().map(Result::unwrap);
        lines
            .find(is_kind)
            .unwrap_or_else(|| panic!("the training ends without {kind}"))
    }
}

/// Starts a training that takes some seconds, and returns its id.
fn start(server: &Server, model: &str) -> String {
    let epochs = EPOCHS.to_string();
    let output = train_small(server, model, &["--epochs", &epochs, "--detach"]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    output.stdout.trim().to_owned()
}

fn assert_each_epoch_is_reported_once(watched: &str) {
    for epoch in 1..=EPOCHS {
        let number = format!("\"epoch\":{epoch},");
        let reported = watched
            .lines()
            .filter(|line| line.contains("\"event\":\"epoch\"") && line.contains(&number));
        assert_eq!(reported.count(), 1, "epoch {epoch}");
    }
}

#[test]
fn a_finished_model_waits_for_space_on_a_full_disk_and_is_then_published() {
    let Some(server) = Server::start_on_small_disk(DISK_BYTES, &[]) else {
        return;
    };
    let id = start(&server, "verse");
    let mut watch = Watch::start(&server, &id);
    watch.next("epoch");
    let ballast = Ballast::fill(&server.small_disk());
    let failed = watch.next("checkpoint_failed");
    assert!(failed.contains("no space left"), "{failed}");
    let failed = watch.next("checkpoint_failed");
    assert!(failed.contains("the finished model"), "{failed}");
    let shown = ask_ok(&server, &["--json", "trainings", "show", &id]);
    assert!(shown.contains("STATE_RUNNING"), "{shown}");
    drop(ballast);
    let finished = watch.next("finished");
    assert!(finished.contains("STATE_SUCCEEDED"), "{finished}");
    ask_ok(&server, &["models", "show", "verse@1"]);
    let watched = ask_ok(&server, &["--json", "trainings", "watch", &id]);
    assert_each_epoch_is_reported_once(&watched);
}

#[test]
fn a_model_is_deleted_and_no_model_is_imported_on_a_full_disk() {
    let Some(server) = Server::start_on_small_disk(DISK_BYTES, &[]) else {
        return;
    };
    for _ in 0..2 {
        let output = train_small(&server, "verse", &["--epochs", "1"]);
        assert_eq!(output.code, Some(0), "{}", output.stderr);
    }
    let exported = server.folder().join("verse.safetensors");
    let exported = exported.to_str().unwrap();
    ask_ok(
        &server,
        &["models", "export", "verse", "--output", exported],
    );
    let ballast = Ballast::fill(&server.small_disk());
    let import = ["models", "import", exported, "--model", "verse"];
    let output = ask(&server, &import);
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("no space left"), "{}", output.stderr);
    ask_ok(&server, &["models", "delete", "verse@2"]);
    ask_ok(&server, &["models", "delete", "verse@1"]);
    assert_eq!(ask(&server, &["models", "show", "verse"]).code, Some(1));
    drop(ballast);
    ask_ok(&server, &import);
    // Its number was recorded although the disk was full.
    ask_ok(&server, &["models", "show", "verse@3"]);
}

#[test]
fn a_training_that_was_cancelled_resumed_and_killed_is_interrupted() {
    let server = Server::start(&[]);
    let id = start(&server, "verse");
    Watch::start(&server, &id).next("epoch");
    ask_ok(&server, &["trainings", "cancel", &id]);
    Watch::start(&server, &id).next("finished");
    // Its progress is shown, until the server is killed.
    let mut resume = client(&server, &["--json", "trainings", "resume", &id]);
    let resume = Process::start(resume.stdout(Stdio::piped()).stderr(Stdio::null()));
    let mut lines = BufReader::new(resume.take_stdout().unwrap()).lines();
    let is_epoch = |line: &std::io::Result<String>| {
        let line = line.as_ref().unwrap();
        line.contains("\"event\":\"epoch\"")
    };
    assert!(lines.any(|line| is_epoch(&line)));
    let server = Server::start_in(server.kill(), &["--resume-interrupted"]);
    let mut watch = Watch::start(&server, &id);
    let resumed = watch.next("resumed");
    assert!(resumed.contains("\"run\":2"), "{resumed}");
    let resumed = watch.next("resumed");
    assert!(resumed.contains("\"run\":3"), "{resumed}");
    let finished = watch.next("finished");
    assert!(finished.contains("STATE_SUCCEEDED"), "{finished}");
    let watched = ask_ok(&server, &["--json", "trainings", "watch", &id]);
    assert_each_epoch_is_reported_once(&watched);
}

#[test]
fn a_corpus_that_is_cut_short_in_use_fails_its_training_and_not_the_server() {
    let server = Server::start(&[]);
    let id = start(&server, "verse");
    let mut watch = Watch::start(&server, &id);
    watch.next("epoch");
    let tokens = server.data_dir().join("trainings").join(&id);
    let tokens = File::options().write(true).open(tokens.join("tokens.bin"));
    tokens.unwrap().set_len(10).unwrap();
    let finished = watch.next("finished");
    assert!(finished.contains("STATE_FAILED"), "{finished}");
    assert!(finished.contains("truncated"), "{finished}");
    let output = train_small(&server, "verse", &["--epochs", "1"]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
}

#[test]
fn a_damaged_history_leaves_a_succeeded_training_succeeded() {
    let mut server = Server::start(&[]);
    let output = train_small(&server, "verse", &["--epochs", "2", "--detach"]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let id = output.stdout.trim().to_owned();
    Watch::start(&server, &id).next("finished");
    let events = |server: &Server| {
        let folder = server.data_dir().join("trainings").join(&id);
        folder.join("events.jsonl")
    };
    let sound = fs::read(events(&server)).unwrap();
    for length in [sound.len() - 1, sound.len() / 2, 0] {
        fs::write(events(&server), &sound[..length]).unwrap();
        server = Server::start_in(server.kill(), &[]);
        let shown = ask_ok(&server, &["--json", "trainings", "show", &id]);
        assert!(shown.contains("STATE_SUCCEEDED"), "{length}: {shown}");
        assert!(shown.contains("\"version\":1"), "{length}: {shown}");
        let finished = Watch::start(&server, &id).next("finished");
        assert!(finished.contains("STATE_SUCCEEDED"), "{finished}");
    }
}

#[test]
fn a_damaged_model_is_reported_by_every_call_and_no_other_is_used_in_its_place() {
    let mut server = Server::start(&[]);
    for model in ["first", "second"] {
        let output = train_small(&server, model, &["--epochs", "1"]);
        assert_eq!(output.code, Some(0), "{}", output.stderr);
    }
    let file = |server: &Server| server.data_dir().join("models/first/1/model.safetensors");
    let mut bytes = fs::read(file(&server)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(file(&server), bytes).unwrap();
    // No model is in memory.
    server = Server::start_in(server.stop(), &[]);
    let text = server.folder().join("text.txt");
    fs::write(&text, verse(100)).unwrap();
    let text = text.to_str().unwrap();
    let generate = ["generate", "--model", "first", "--prime", "arma"];
    let score = ["score", "--model", "first", "--text", text];
    for call in [
        &generate[..],
        &score[..],
        &["models", "show", "first"],
        &["models", "export", "first", "--output", "-"],
        &[
            "train",
            "--text",
            text,
            "--model",
            "x",
            "--init-from",
            "first",
        ],
    ] {
        let output = ask(&server, call);
        assert_eq!(output.code, Some(1), "{call:?}");
        assert!(
            output.stderr.contains("first@1 is damaged"),
            "{call:?}: {}",
            output.stderr
        );
    }
    let output = ask(
        &server,
        &["--json", "generate", "--model", "first", "--prime", "arma"],
    );
    let error = format!("{}{}", output.stdout, output.stderr);
    assert!(
        error.contains("MODEL_DAMAGED") && error.contains("DATA_LOSS"),
        "{error}"
    );
    let output = ask(&server, &["generate", "--prime", "arma"]);
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("first, second"), "{}", output.stderr);
    ask_ok(&server, &["models", "delete", "first"]);
    ask_ok(&server, &["generate", "--prime", "arma", "--length", "5"]);
}
