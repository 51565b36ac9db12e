//! Clients that share no code with the server, only the contract: Python with
//! grpcio from the `.proto` files, and a generic tool through reflection.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::process::Command;

use support::Server;

/// Some thousand characters, a few of them more than one byte long.
fn corpus() -> String {
    let line = "Gallia est omnis divisa in partes tres, quarum unam incolunt Belgæ – “ipsi”.\n";
    line.repeat(60)
}

#[test]
fn a_python_program_trains_generates_meets_an_error_and_leaves_midway() {
    let Some(python) = support::python_tool("python") else {
        return;
    };
    let mut server = Server::start(&[]);
    let text = server.folder().join("corpus.txt");
    fs::write(&text, corpus()).unwrap();

    let said = support::run(
        Command::new(&python)
            .arg("tests/python/train_and_generate.py")
            .arg(server.address())
            .arg(&text)
            .arg("gallia"),
    );
    assert!(
        said.contains("ok: the server still serves other calls"),
        "{said}"
    );

    // The example that the README shows, with the model that is there now.
    let said = support::run(
        Command::new(&python)
            .arg("examples/python/generate.py")
            .args([server.address(), "gallia", "Gallia est"]),
    );
    assert_eq!(said.chars().count(), 300, "{said}");

    assert_eq!(
        server.terminate().0.code(),
        Some(0),
        "it ends cleanly on SIGTERM"
    );
}

#[test]
fn a_generic_tool_lists_the_services_through_reflection() {
    let Some(grpcurl) = support::python_tool("grpcurl") else {
        return;
    };
    let server = Server::start(&[]);
    let listed = support::run(
        Command::new(&grpcurl)
            .arg("-plaintext")
            .arg(server.address())
            .arg("list"),
    );
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

    let health = support::run(
        Command::new(&grpcurl)
            .arg("-plaintext")
            .arg(server.address())
            .arg("grpc.health.v1.Health/Check"),
    );
    assert!(health.contains("SERVING"), "{health}");

    let described = support::run(
        Command::new(&grpcurl)
            .arg("-plaintext")
            .arg(server.address())
            .args(["describe", "charlstm.v1.GenerationService.Generate"]),
    );
    assert!(described.contains("GenerateRequest"), "{described}");
}

/// Runs an example that trains, generates in a session, meets an error and
/// leaves midway, and says so.
fn take_a_tour(server: &Server, command: &mut Command, model: &str) -> String {
    let text = server.folder().join("corpus.txt");
    fs::write(&text, corpus()).unwrap();
    let said = support::run(command.arg(server.address()).arg(&text).arg(model));
    // It serves the next one as if nothing had been.
    let listed = support::ask_ok(server, &["models", "list"]);
    assert!(listed.contains(&format!("{model}@1")), "{listed}");
    said
}

/// What the examples in Python and JavaScript say.
fn assert_toured(said: &str, model: &str) {
    for part in [
        "epoch 2: loss ".to_owned(),
        format!("trained {model}@1"),
        "generated 40 characters: ".to_owned(),
        "generated 10 more".to_owned(),
        "error NOT_FOUND MODEL_NOT_FOUND: there is no model \"unknown\"".to_owned(),
        "stopped early with CANCELLED".to_owned(),
    ] {
        assert!(said.contains(&part), "{part:?} is not in\n{said}");
    }
}

#[test]
fn an_asyncio_program_trains_generates_meets_an_error_and_leaves_midway() {
    let Some(python) = support::python_tool("python") else {
        return;
    };
    let server = Server::start(&[]);
    let mut command = Command::new(python);
    command.arg("examples/python/tour_async.py");
    assert_toured(&take_a_tour(&server, &mut command, "async"), "async");
}

#[test]
fn a_node_program_trains_generates_meets_an_error_and_leaves_midway() {
    let Some(modules) = support::node_modules() else {
        return;
    };
    let server = Server::start(&[]);
    let mut command = Command::new("node");
    command
        .env("NODE_PATH", modules)
        .arg("examples/node/tour.js");
    assert_toured(&take_a_tour(&server, &mut command, "node"), "node");
}

#[test]
fn a_generic_tool_trains_generates_meets_an_error_and_leaves_midway() {
    let Some(grpcurl) = support::python_tool("grpcurl") else {
        return;
    };
    let server = Server::start(&[]);
    let mut command = Command::new("sh");
    command
        .env("GRPCURL", grpcurl)
        .arg("examples/grpcurl/tour.sh");
    let said = take_a_tour(&server, &mut command, "curled");
    for part in [
        "\"state\": \"STATE_SUCCEEDED\"",
        "\"reason\": \"FINISH_REASON_LENGTH\"",
        "\"chars\": \"10\"",
        "Code: NotFound",
        "\"reason\":\"MODEL_NOT_FOUND\"",
        "Code: DeadlineExceeded",
    ] {
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
}
