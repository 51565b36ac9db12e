//! The checks of the program `gpu_check`, without a GPU: a stand-in for the driver runs
//! the kernels, compiled as C++, on the CPU (`host/driver.cpp`).

use std::path::Path;
use std::process::Command;

use program::{Options, Size};

#[path = "host/compiler.rs"]
mod compiler;
#[allow(dead_code)]
#[path = "../examples/gpu_check/main.rs"]
mod program;

#[test]
fn everything_that_is_checked_on_a_gpu_holds_on_a_stand_in() {
    if compiler::compiler().is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/build_driver.sh");
    let built = Command::new(script).arg(folder.path()).status();
    assert!(built.expect("the script runs").success());
    // In a process of its own, which looks for the driver there.
    let output = Command::new(std::env::current_exe().expect("a path"))
        .args(["--ignored", "--exact", "--nocapture", "checks"])
        .env("LD_LIBRARY_PATH", folder.path())
        .output()
        .expect("the program runs");
    let report = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}\n{errors}");
    assert!(report.contains(" checks, 0 failed"), "{report}");
}

#[test]
#[ignore = "needs a driver: started by the other test"]
fn checks() {
    let options = Options {
        device: 0,
        only: Some("exact".to_owned()),
        size: Size::Tiny,
    };
    program::run(&options).expect("no check fails");
}
