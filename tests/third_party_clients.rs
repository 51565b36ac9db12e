//! Clients that share no code with the server, only the contract: Python and
//! Node with the `.proto` files, and grpcurl through reflection.

use std::fs;
use std::process::Command;

use crate::support::process::run;
use crate::support::tools::{node_modules, python_tool};
use crate::support::{Server, ask_ok};

/// Returns a few thousand characters, some of which take more than one byte.
fn corpus() -> String {
    let line = "Gallia est omnis divisa in partes tres, quarum unam incolunt Belgæ – “ipsi”.\n";
    line.repeat(60)
}

#[test]
fn a_python_client_trains_generates_handles_an_error_and_cancels() {
    let Some(python) = python_tool("python") else {
        return;
    };
    let mut server = Server::start(&[]);
    let text = server.folder().join("corpus.txt");
    fs::write(&text, corpus()).unwrap();

    let printed = run(Command::new(&python)
        .arg("tests/python/train_and_generate.py")
        .arg(server.address())
        .arg(&text)
        .arg("gallia"));
    assert!(
        printed.contains("ok: the server still serves other calls"),
        "{printed}"
    );

    // The example of the README, with the model from above.
    let printed = run(Command::new(&python)
        .arg("examples/python/generate.py")
        .args([server.address(), "gallia", "Gallia est"]));
    assert_eq!(printed.chars().count(), 300, "{printed}");

    assert_eq!(server.terminate().0.code(), Some(0), "a clean stop");
}

#[test]
fn grpcurl_lists_the_services_through_reflection() {
    let Some(grpcurl) = python_tool("grpcurl") else {
        return;
    };
    let server = Server::start(&[]);
    let listed = run(Command::new(&grpcurl)
        .arg("-plaintext")
        .arg(server.address())
        .arg("list"));
    for service in [
        "charlstm.v1.GenerationService",
        "charlstm.v1.ModelService",
        "charlstm.v1.ServerService",
        "charlstm.v1.SessionService",
        "charlstm.v1.TrainingService",
        "grpc.health.v1.Health",
    ] {
        assert!(
            listed.lines().any(|line| line == service),
            "{service} is not in\n{listed}"
        );
    }

    let health = run(Command::new(&grpcurl)
        .arg("-plaintext")
        .arg(server.address())
        .arg("grpc.health.v1.Health/Check"));
    assert!(health.contains("SERVING"), "{health}");

    let described = run(Command::new(&grpcurl)
        .arg("-plaintext")
        .arg(server.address())
        .args(["describe", "charlstm.v1.GenerationService.Generate"]));
    assert!(described.contains("GenerateRequest"), "{described}");
}

/// Runs an example that trains, generates in a session, handles an error and
/// cancels a generation, and returns what it prints.
fn run_tour(server: &Server, command: &mut Command, model: &str) -> String {
    let text = server.folder().join("corpus.txt");
    fs::write(&text, corpus()).unwrap();
    let printed = run(command.arg(server.address()).arg(&text).arg(model));
    // The server continues to serve.
    let listed = ask_ok(server, &["models", "list"]);
    assert!(listed.contains(&format!("{model}@1")), "{listed}");
    printed
}

/// Asserts that an example in Python or JavaScript has printed each step.
fn assert_complete(printed: &str, model: &str) {
    for part in [
        "epoch 2: loss ".to_owned(),
        format!("trained {model}@1"),
        "generated 40 characters: ".to_owned(),
        "generated 10 more".to_owned(),
        "error NOT_FOUND MODEL_NOT_FOUND: there is no model \"unknown\"".to_owned(),
        "stopped early with CANCELLED".to_owned(),
    ] {
        assert!(printed.contains(&part), "{part:?} is not in\n{printed}");
    }
}

#[test]
fn an_asyncio_client_trains_generates_handles_an_error_and_cancels() {
    let Some(python) = python_tool("python") else {
        return;
    };
    let server = Server::start(&[]);
    let mut command = Command::new(python);
    command.arg("examples/python/tour_async.py");
    assert_complete(&run_tour(&server, &mut command, "async"), "async");
}

#[test]
fn a_node_client_trains_generates_handles_an_error_and_cancels() {
    let Some(modules) = node_modules() else {
        return;
    };
    let server = Server::start(&[]);
    let mut command = Command::new("node");
    command
        .env("NODE_PATH", modules)
        .arg("examples/node/tour.js");
    assert_complete(&run_tour(&server, &mut command, "node"), "node");
}

#[test]
fn grpcurl_trains_generates_handles_an_error_and_times_out() {
    let Some(grpcurl) = python_tool("grpcurl") else {
        return;
    };
    let server = Server::start(&[]);
    let mut command = Command::new("sh");
    command
        .env("GRPCURL", grpcurl)
        .arg("examples/grpcurl/tour.sh");
    let printed = run_tour(&server, &mut command, "curled");
    for part in [
        "\"state\": \"STATE_SUCCEEDED\"",
        "\"reason\": \"FINISH_REASON_LENGTH\"",
        "\"chars\": \"10\"",
        "Code: NotFound",
        "\"reason\":\"MODEL_NOT_FOUND\"",
        "Code: DeadlineExceeded",
    ] {
        assert!(printed.contains(part), "{part:?} is not in\n{printed}");
    }
}
