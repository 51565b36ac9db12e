//! Clients that share no code with the server, only the contract: Python with
//! the `.proto` files, and grpcurl through reflection. `examples` has more.

use std::fs;
use std::process::Command;

use crate::support::Server;
use crate::support::corpus::latin;
use crate::support::process::run;
use crate::support::tools::python_tool;

#[test]
fn a_python_client_trains_generates_handles_an_error_and_cancels() {
    let Some(python) = python_tool("python") else {
        return;
    };
    let mut server = Server::start(&[]);
    let text = server.folder().join("corpus.txt");
    fs::write(&text, latin()).unwrap();

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
