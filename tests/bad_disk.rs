//! Disks that are full or cannot be written: clear errors, nothing left
//! behind, and nothing lost that was there.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use support::{Server, ask, ask_ok, client, command, on_own_disk, train_small, verse};

const DISK_BYTES: u64 = 4 << 20;

fn names(folder: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_corpus_that_the_disk_does_not_take_is_refused_and_leaves_nothing_behind() {
    let Some(server) = Server::start_on_small_disk(DISK_BYTES, &[]) else {
        return;
    };
    let text = server.folder().join("large.txt");
    fs::write(&text, verse(30_000).repeat(100)).unwrap();
    let text = text.to_str().unwrap();
    let said = ask(&server, &["train", "--text", text, "--model", "large"]);
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert!(said.stderr.contains("no room left"), "{}", said.stderr);
    assert_eq!(names(&server.small_disk().join("trainings")), [""; 0]);

    let said = train_small(&server, "verse", &["--epochs", "1"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
}

#[test]
fn a_disk_that_fills_up_in_the_course_of_a_training_costs_nothing_once_there_is_room_again() {
    let Some(server) = Server::start_on_small_disk(DISK_BYTES, &[]) else {
        return;
    };
    let said = train_small(&server, "verse", &["--epochs", "60", "--detach"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let id = said.stdout.trim().to_owned();
    let mut watch = client(&server, &["--json", "trainings", "watch", &id])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let first = lines.find(|line| line.as_ref().unwrap().contains("\"event\":\"epoch\""));
    assert!(first.is_some());
    let ballast = server.small_disk().join("ballast");
    let mut file = File::create(&ballast).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    while file.write_all(&[1]).is_ok() {}

    let end = lines.map(Result::unwrap);
    let end = end
        .filter(|line| line.contains("\"event\":\"finished\""))
        .last();
    watch.wait().unwrap();
    let end = end.unwrap();
    assert!(end.contains("STATE_FAILED"), "{end}");
    assert!(
        end.contains("could not be stored") && end.contains("no room left"),
        "{end}"
    );

    // The room is free once nobody has it open.
    drop(file);
    fs::remove_file(ballast).unwrap();
    let said = ask(&server, &["trainings", "resume", &id]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let watched = ask_ok(&server, &["--json", "trainings", "watch", &id]);
    for epoch in 1..=60 {
        let number = format!("\"epoch\":{epoch},");
        let told = watched
            .lines()
            .filter(|line| line.contains("\"event\":\"epoch\"") && line.contains(&number));
        assert_eq!(told.count(), 1, "epoch {epoch}");
    }
    assert!(watched.contains("STATE_SUCCEEDED"), "{watched}");
}

#[test]
fn a_data_folder_that_cannot_be_written_is_an_error_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let Some(mut server) = on_own_disk(&data, "ro", &command(&data, &[])) else {
        return;
    };
    let output = server.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(data.to_str().unwrap()) && said.contains("Read-only file system"),
        "{said}"
    );
}
