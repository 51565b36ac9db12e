//! Full and read-only disks: clear errors, nothing is left behind, and nothing
//! that was there is lost. Trainings on a full disk are in `training_faults`.

use std::fs;
use std::path::Path;

use crate::support::ballast::Ballast;
use crate::support::server::{Server, command, fail_to_start, on_own_disk};
use crate::support::{ask, train_small, verse};

/// Large enough for two logs of the session store, which are 48 MiB each.
const DISK_BYTES: u64 = 160 << 20;
/// What is left of that for the corpus.
const FREE_BYTES: u64 = 4 << 20;

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
    let _ballast = Ballast::fill_except(&server.small_disk(), FREE_BYTES);
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
