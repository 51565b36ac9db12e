//! The Python package: its own tests, against the server under test.

use std::path::Path;
use std::process::Command;

use crate::support::process::run;
use crate::support::tools::{oldest_python, python_tool};
use crate::support::{root, server_program};

/// Runs tests of the package with a Python that has pytest.
fn run_tests(python: &Path, arguments: &[&str]) {
    let printed = run(Command::new("env")
        .arg("-C")
        .arg(root().join("python"))
        .arg(python)
        .args(["-m", "pytest", "-q", "-p", "no:cacheprovider"])
        .args(arguments)
        .env("CHARLSTM_SERVER", server_program())
        .env("PYTHONDONTWRITEBYTECODE", "1"));
    assert!(printed.contains(" passed"), "{printed}");
}

#[test]
fn the_tests_of_the_python_package_pass() {
    // An older .venv has no pytest.
    if python_tool("pytest").is_none() {
        return;
    }
    if let Some(python) = python_tool("python") {
        run_tests(&python, &[]);
    }
}

#[test]
fn the_python_package_works_with_the_oldest_versions_that_it_declares() {
    if let Some(python) = oldest_python() {
        run_tests(&python, &["-m", "basics"]);
    }
}
