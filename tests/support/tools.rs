//! Tools that some tests need and that not every machine has.

use std::path::PathBuf;

use super::root;

/// Reports that the calling test is skipped because of `reason`. Panics if
/// CHARLSTM_REQUIRE_ALL is set: then no test may be skipped.
pub(crate) fn skip(reason: &str) {
    assert!(
        std::env::var_os("CHARLSTM_REQUIRE_ALL").is_none(),
        "CHARLSTM_REQUIRE_ALL is set, and {reason}"
    );
    eprintln!("skipped: {reason}");
}

/// Returns a program that `make python` installs into `.venv/bin`; `None`,
/// after [`skip`], if it is not installed.
pub(crate) fn python_tool(name: &str) -> Option<PathBuf> {
    installed(root().join(".venv/bin").join(name), "make python")
}

/// Returns a Python with the oldest supported versions of what the Python
/// package needs, which `make python` installs; `None`, after [`skip`], if it is
/// not installed.
pub(crate) fn oldest_python() -> Option<PathBuf> {
    installed(
        root().join("target/python-oldest/bin/python"),
        "make python",
    )
}

/// Returns the folder of the packages that `make node` installs into
/// `target/node`; `None`, after [`skip`], if they are not installed.
pub(crate) fn node_modules() -> Option<PathBuf> {
    installed(root().join("target/node/node_modules"), "make node")
}

/// Returns the folder of the packages that `scripts/web.sh` installs into
/// `target/web`; `None`, after [`skip`], if they are not installed.
pub(crate) fn page_modules() -> Option<PathBuf> {
    installed(root().join("target/web/node_modules"), "make web")
}

/// Returns Chromium; `None`, after [`skip`], if it is not installed.
pub(crate) fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).find_map(|folder| {
        let names = ["chromium", "chromium-browser", "google-chrome"];
        names
            .map(|name| folder.join(name))
            .into_iter()
            .find(|file| file.exists())
    });
    if found.is_none() {
        skip("Chromium is not installed (Debian: apt-get install chromium)");
    }
    found
}

fn installed(path: PathBuf, command: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    skip(&format!(
        "{} does not exist; `{command}` installs it",
        path.display()
    ));
    None
}
