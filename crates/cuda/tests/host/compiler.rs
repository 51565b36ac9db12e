//! The C++ compiler that tests without a GPU need.

use std::process::Command;

/// Returns the compiler. `None` if it is not installed, which fails the tests if
/// CHARLSTM_REQUIRE_ALL is set.
pub(crate) fn compiler() -> Option<String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    if Command::new(&compiler).arg("--version").output().is_ok() {
        return Some(compiler);
    }
    assert!(
        std::env::var_os("CHARLSTM_REQUIRE_ALL").is_none(),
        "{compiler} is not installed, and CHARLSTM_REQUIRE_ALL is set"
    );
    eprintln!("skipped: {compiler} is not installed");
    None
}
