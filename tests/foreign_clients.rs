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
    assert!(said.contains("ok: the server goes on serving"), "{said}");

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
