//! Reads the source and holds the layering: dependencies point down only.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// A file of the server's source, under its path from `server/src`.
struct Source {
    path: String,
    /// The code without comments, strings and tests.
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 10, "the source was not found");
    files
        .into_iter()
        .map(|file| Source {
            path: file
                .strip_prefix(&root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned(),
            code: code_of(&fs::read_to_string(&file).unwrap()),
        })
        .filter(|source| !source.path.ends_with("tests.rs"))
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Leaves out line comments, texts on one line, and the module of tests at
/// the end.
fn code_of(text: &str) -> String {
    let end = text.find("#[cfg(test)]").unwrap_or(text.len());
    let mut code = String::new();
    for line in text[..end].lines() {
        let line = line.split("//").next().unwrap();
        // Every second piece between quotation marks is a text.
        let pieces: Vec<&str> = line.split('"').step_by(2).collect();
        code.push_str(&pieces.join("\"\""));
        code.push('\n');
    }
    code
}

/// True where the word stands in the code as a path or a crate.
fn names(code: &str, word: &str) -> bool {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// The top module of a path: `model/step.rs` is in `model`.
fn room(path: &str) -> &str {
    path.split('/').next().unwrap().trim_end_matches(".rs")
}

/// Finds words in files where they must not be.
fn offences(words: &[&str], forbidden: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources() {
        for word in words {
            if forbidden(&source.path) && names(&source.code, word) {
                found.push(format!("{} names {word}", source.path));
            }
        }
    }
    found
}

fn none(offences: &[String]) {
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn the_model_knows_no_rpc_and_no_async_runtime() {
    let words = [
        "tonic",
        "prost",
        "tokio",
        "tokio_stream",
        "tokio_util",
        "futures_util",
    ];
    none(&offences(&words, |path| room(path) == "model"));
}

#[test]
fn nothing_below_rpc_knows_grpc() {
    let words = [
        "tonic",
        "prost",
        "tonic_types",
        "tonic_health",
        "charlstm_proto",
    ];
    none(&offences(&words, |path| {
        !matches!(room(path), "rpc" | "serve" | "metrics")
    }));
}

#[test]
fn tensors_stay_in_the_model_and_in_the_worker_that_trains() {
    none(&offences(&["tch", "torch_sys"], |path| {
        room(path) != "model" && path != "training/trainer.rs" && path != "training/worker.rs"
    }));
}

#[test]
fn only_config_reads_the_command_line_and_the_environment() {
    let words = ["std::env", "env::var", "env::var_os", "env::args", "clap"];
    none(&offences(&words, |path| room(path) != "config"));
}

#[test]
fn a_status_is_made_in_one_place() {
    let words = [
        "Status::new",
        "Status::with_details",
        "Status::with_error_details",
        "Status::invalid_argument",
        "Status::not_found",
        "Status::internal",
        "Status::unavailable",
        "Status::aborted",
        "Status::cancelled",
        "Status::failed_precondition",
        "Status::resource_exhausted",
        "Status::unimplemented",
        "Status::deadline_exceeded",
        "Status::already_exists",
        "Status::unknown",
        "Status::data_loss",
        "Status::unauthenticated",
        "Status::permission_denied",
        "Status::out_of_range",
        "ErrorDetails",
    ];
    none(&offences(&words, |path| !path.starts_with("rpc/status/")));
}

#[test]
fn dependencies_point_down_only() {
    // Each room and those that it must not know, as `crate::ROOM`.
    let above: [(&str, &[&str]); 5] = [
        (
            "model",
            &[
                "config",
                "serve",
                "rpc",
                "generation",
                "training",
                "sessions",
                "repository",
            ],
        ),
        (
            "repository",
            &[
                "config",
                "serve",
                "rpc",
                "generation",
                "training",
                "sessions",
            ],
        ),
        (
            "sessions",
            &["config", "serve", "rpc", "generation", "training"],
        ),
        ("generation", &["config", "serve", "rpc", "training"]),
        ("training", &["config", "serve", "rpc", "sessions"]),
    ];
    for (lower, uppers) in above {
        let words: Vec<String> = uppers
            .iter()
            .map(|upper| format!("crate::{upper}"))
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        none(&offences(&words, |path| room(path) == lower));
    }
}

#[test]
fn each_file_says_what_lives_in_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    for file in files {
        if file.ends_with("tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//! "), "{} has no head", file.display());
        let lines = text.lines().count();
        assert!(
            lines <= 500,
            "{} has {lines} lines: two rooms",
            file.display()
        );
    }
}
