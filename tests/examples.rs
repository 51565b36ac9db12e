//! The examples in `examples/`: each trains, generates in a session, handles an
//! error and cancels a generation, without and with TLS and a token.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::corpus::latin;
use crate::support::files::write_secret;
use crate::support::process::{self, run};
use crate::support::tools::{node_modules, python_tool, skip};
use crate::support::{Server, client, root};

/// Exit code of the scripts that compile an example if a tool is missing.
const TOOL_MISSING: i32 = 3;

/// Starts a server that requires TLS and a token, and returns it and the variables with
/// which the examples and the client find their files.
fn secure_server() -> (Server, Vec<(&'static str, PathBuf)>) {
    let folder = tempfile::tempdir().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certified = rcgen::generate_simple_self_signed(names).unwrap();
    let path = |name: &str| folder.path().join(name);
    let (certificate, key, token) = (path("server.pem"), path("server.key"), path("token"));
    fs::write(&certificate, certified.cert.pem()).unwrap();
    write_secret(&key, &certified.signing_key.serialize_pem());
    write_secret(&token, "a-secret-token\n");
    let flags = [
        ("--auth-token-file", &token),
        ("--tls-cert", &certificate),
        ("--tls-key", &key),
    ];
    let variables = vec![
        ("CHARLSTM_TOKEN_FILE", token.clone()),
        ("CHARLSTM_TLS_CA", certificate.clone()),
    ];
    let flags: Vec<&str> = flags
        .iter()
        .flat_map(|(flag, path)| [*flag, path.to_str().unwrap()])
        .collect();
    (Server::start_in(folder, &flags), variables)
}

/// Runs an example against both kinds of server, and asserts that it prints all
/// of `parts`.
fn run_example(example: impl Fn() -> Command, model: &str, parts: &[&str]) {
    for (server, variables) in [(Server::start(&[]), Vec::new()), secure_server()] {
        let text = server.folder().join("corpus.txt");
        fs::write(&text, latin()).unwrap();
        let mut command = example();
        command.envs(variables.iter().map(|(name, path)| (name, path)));
        let printed = run(command.arg(server.address()).arg(&text).arg(model));
        for part in parts {
            assert!(printed.contains(part), "{part:?} is not in\n{printed}");
        }
        // The server continues to serve.
        let mut list = client(&server, &["models", "list"]);
        let listed = run(list.envs(variables.iter().map(|(name, path)| (name, path))));
        assert!(listed.contains(&format!("{model}@1")), "{listed}");
    }
}

/// Runs an example in a programming language: they print the same, but each
/// library has its own names of the status codes.
fn run_tour(example: impl Fn() -> Command, model: &str, [not_found, cancelled]: [&str; 2]) {
    let parts = [
        "epoch 2: loss ",
        &format!("trained {model}@1"),
        "generated 40 characters: ",
        "generated 10 more",
        &format!("error {not_found} MODEL_NOT_FOUND: there is no model \"unknown\""),
        &format!("stopped early with {cancelled}"),
    ];
    run_example(example, model, &parts);
}

#[test]
fn an_asyncio_client_trains_generates_handles_an_error_and_cancels() {
    let Some(python) = python_tool("python") else {
        return;
    };
    let example = || {
        let mut command = Command::new(&python);
        command.arg("examples/python/tour_async.py");
        command
    };
    run_tour(example, "async", ["NOT_FOUND", "CANCELLED"]);
}

#[test]
fn a_node_client_trains_generates_handles_an_error_and_cancels() {
    let Some(modules) = node_modules() else {
        return;
    };
    let example = || {
        let mut command = Command::new("node");
        command
            .env("NODE_PATH", &modules)
            .arg("examples/node/tour.js");
        command
    };
    run_tour(example, "node", ["NOT_FOUND", "CANCELLED"]);
}

#[test]
fn grpcurl_trains_generates_handles_an_error_and_times_out() {
    let Some(grpcurl) = python_tool("grpcurl") else {
        return;
    };
    let example = || {
        let mut command = Command::new("sh");
        command
            .env("GRPCURL", &grpcurl)
            .arg("examples/grpcurl/tour.sh");
        command
    };
    let parts = [
        "\"state\": \"STATE_SUCCEEDED\"",
        "\"reason\": \"FINISH_REASON_LENGTH\"",
        "\"chars\": \"10\"",
        "Code: NotFound",
        "\"reason\":\"MODEL_NOT_FOUND\"",
        "Code: DeadlineExceeded",
    ];
    run_example(example, "curled", &parts);
}

/// Compiles an example with a script, and returns the program; `None`, after
/// [`skip`], if a tool is missing.
fn compiled(script: &str, folder: &Path) -> Option<PathBuf> {
    let program = folder.join("tour");
    let output = process::output(Command::new(root().join(script)).arg(&program));
    if output.status.code() == Some(TOOL_MISSING) {
        skip(output.stderr.trim());
        return None;
    }
    let success = output.status.success();
    assert!(success, "{}{}", output.stdout, output.stderr);
    Some(program)
}

#[test]
fn a_go_client_trains_generates_handles_an_error_and_cancels() {
    let folder = tempfile::tempdir().unwrap();
    if let Some(program) = compiled("scripts/go_example.sh", folder.path()) {
        run_tour(|| Command::new(&program), "go", ["NotFound", "Canceled"]);
    }
}

#[test]
fn a_java_client_trains_generates_handles_an_error_and_cancels() {
    if python_tool("python").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    if let Some(program) = compiled("scripts/java_example.sh", folder.path()) {
        run_tour(
            || Command::new(&program),
            "java",
            ["NOT_FOUND", "CANCELLED"],
        );
    }
}
