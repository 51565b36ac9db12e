//! What `make gpu-bundle` packs for a machine with a GPU, on the CPU.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::support::client::client_program;
use crate::support::process::run;
use crate::support::{root, server_program};

#[test]
fn the_check_of_a_server_on_a_gpu_passes_on_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let programs = folder.path().join("release");
    fs::create_dir(&programs).unwrap();
    symlink(server_program(), programs.join("charlstm-server")).unwrap();
    symlink(client_program(), programs.join("charlstm-client")).unwrap();
    let printed = run(Command::new("python3")
        .arg("-B")
        .arg(root().join("bench/gpu_server.py"))
        .args(["--device", "cpu", "--quick", "--logs"])
        .arg(folder.path())
        .env("CARGO_TARGET_DIR", folder.path()));
    assert_eq!(printed.matches("ok      ").count(), 7, "{printed}");
    assert!(printed.contains("0 guarantees broken"), "{printed}");
    assert!(
        printed.contains("| 64 streams during a training"),
        "{printed}"
    );
}
