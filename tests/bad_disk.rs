//! Full and read-only disks: clear errors, nothing is left behind, and nothing
//! that was there is lost.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use crate::support::process::Process;
use crate::support::server::{Server, command, fail_to_start, on_own_disk};
use crate::support::{ask, ask_ok, client, train_small, verse};

const DISK_BYTES: u64 = 4 << 20;

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_corpus_that_does_not_fit_on_the_disk_is_rejected_and_leaves_nothing_behind() {
    let Some(server) = Server::start_on_small_disk(DISK_BYTES, &[]) else {
        return;
    };
    let text = server.folder().join("large.txt");
    fs::write(&text, verse(30_000).repeat(100)).unwrap();
    let text = text.to_str().unwrap();
    let output = ask(&server, &["train", "--text", text, "--model", "large"]);
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert!(output.stderr.contains("no space left"), "{}", output.stderr);
    assert_eq!(names(&server.small_disk().join("trainings")), [""; 0]);

    let output = train_small(&server, "verse", &["--epochs", "1"]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
}

/// Whether a line of `--json trainings watch` reports an event.
fn is_event(line: &str, event: &str) -> bool {
    line.contains(&format!("\"event\":\"{event}\""))
}

#[test]
fn a_training_whose_disk_fills_up_continues_without_loss_when_there_is_space_again() {
    let Some(server) = Server::start_on_small_disk(DISK_BYTES, &[]) else {
        return;
    };
    let output = train_small(&server, "verse", &["--epochs", "60", "--detach"]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let id = output.stdout.trim().to_owned();
    let mut watch = client(&server, &["--json", "trainings", "watch", &id]);
    let watch = Process::start(watch.stdout(Stdio::piped()));
    let lines = BufReader::new(watch.take_stdout().unwrap()).lines();
    let mut lines = lines.map(Result::unwrap);
    assert!(lines.any(|line| is_event(&line, "epoch")));
    let ballast = server.small_disk().join("ballast");
    let mut file = File::create(&ballast).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    while file.write_all(&[1]).is_ok() {}

    let failed = lines.find(|line| is_event(line, "checkpoint_failed"));
    let failed = failed.unwrap();
    assert!(failed.contains("no space left"), "{failed}");

    // The space is free when the file is closed and deleted.
    drop(file);
    fs::remove_file(ballast).unwrap();
    let finished = lines.find(|line| is_event(line, "finished"));
    let finished = finished.unwrap();
    assert!(finished.contains("STATE_SUCCEEDED"), "{finished}");
    let watched = ask_ok(&server, &["--json", "trainings", "watch", &id]);
    for epoch in 1..=60 {
        let number = format!("\"epoch\":{epoch},");
        let reported = watched
            .lines()
            .filter(|line| is_event(line, "epoch") && line.contains(&number));
        assert_eq!(reported.count(), 1, "epoch {epoch}");
    }
}

#[test]
fn a_read_only_data_folder_is_an_error_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let Some(mut server) = on_own_disk(&data, "ro", &command(&data, &[])) else {
        return;
    };
    let (code, error) = fail_to_start(&mut server);
    assert_eq!(code, Some(1), "{error}");
    assert!(
        error.contains(data.to_str().unwrap()) && error.contains("Read-only file system"),
        "{error}"
    );
}
