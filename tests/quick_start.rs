//! `charlstm-client run`: from a text to a REPL in one command, with a server
//! that is started for it, or with the one that is running.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use crate::support::client::client_program;
use crate::support::process::output_with_input;
use crate::support::server::free_address;
use crate::support::{CommandOutput, SMALL, Server, ask_ok, verse};

/// Runs `run` with the home folder of a person, against `address`, and with
/// `typed` as what the person types.
fn run(home: &Path, address: &str, arguments: &[&str], typed: &str) -> CommandOutput {
    let mut command = Command::new(client_program());
    command
        .arg("run")
        .args(arguments)
        .env("CHARLSTM_ADDR", format!("http://{address}"))
        .env("XDG_DATA_HOME", home)
        .env("XDG_STATE_HOME", home);
    output_with_input(&mut command, typed.as_bytes()).into()
}

/// Writes the corpus, and returns its name.
fn text_in(folder: &Path) -> String {
    let text = folder.join("verse.txt");
    std::fs::write(&text, verse(6000)).unwrap();
    text.to_str().unwrap().to_owned()
}

#[test]
fn one_command_starts_a_server_trains_generates_and_leaves_nothing_running() {
    let home = tempfile::tempdir().unwrap();
    let text = text_in(home.path());
    let address = free_address();
    let typed = "/set length 20\n/set seed 3\narma \n/quit\n";
    let mut arguments = vec!["--text", &text];
    arguments.extend_from_slice(SMALL);

    let first = run(home.path(), &address, &arguments, typed);
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    assert!(
        first.stderr.contains("started a server"),
        "{}",
        first.stderr
    );
    assert!(first.stdout.contains("epoch 2/2"), "{}", first.stdout);
    let (_, text) = first.stdout.split_once("succeeded: verse@1").unwrap();
    let (_, text) = text.split_once('\n').unwrap();
    assert_eq!(text.chars().count(), 20 + 1, "{text:?}");
    assert!(
        TcpStream::connect(&address).is_err(),
        "the server has ended"
    );
    assert!(home.path().join("charlstm/models").is_dir());

    // The second time the model exists, and the same seed gives the same text.
    let second = run(home.path(), &address, &arguments, typed);
    assert_eq!(second.code, Some(0), "{}", second.stderr);
    assert_eq!(second.stdout, text);
}

#[test]
fn a_running_server_is_used_and_keeps_running() {
    let server = Server::start(&[]);
    let home = tempfile::tempdir().unwrap();
    let text = text_in(home.path());
    let mut arguments = vec!["--text", &text, "--model", "mine"];
    arguments.extend_from_slice(SMALL);
    let output = run(home.path(), server.address(), &arguments, "");
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(
        !output.stderr.contains("started a server"),
        "{}",
        output.stderr
    );
    assert!(ask_ok(&server, &["models", "list"]).contains("mine@1"));
    assert!(!home.path().join("charlstm/models").exists());
}

#[test]
fn if_the_server_cannot_start_the_end_of_its_log_is_shown() {
    let home = tempfile::tempdir().unwrap();
    let text = text_in(home.path());
    let first = Server::start(&[]);
    // The other server uses this folder.
    let folder = first.data_dir();
    let arguments = ["--text", &text, "--data-dir", folder.to_str().unwrap()];
    let output = run(home.path(), &free_address(), &arguments, "");
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert!(output.stderr.contains("did not start"), "{}", output.stderr);
    assert!(output.stderr.contains("server.log"), "{}", output.stderr);
}
