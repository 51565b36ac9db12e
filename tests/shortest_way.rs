//! `charlstm-client run`: from a text to a conversation in one command, with a
//! server that is started for it, or with the one that is there.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use support::{SMALL, Said, Server, ask_ok, client_program, verse};

/// `run` on the folder of a person, against `address`, with `typed` as what
/// the person types.
fn run(home: &Path, address: &str, arguments: &[&str], typed: &str) -> Said {
    let mut child = Command::new(client_program())
        .arg("run")
        .args(arguments)
        .env("CHARLSTM_ADDR", format!("http://{address}"))
        .env("XDG_DATA_HOME", home)
        .env("XDG_STATE_HOME", home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A client that has ended already says why below.
    let _ = child.stdin.take().unwrap().write_all(typed.as_bytes());
    let output = child.wait_with_output().unwrap();
    Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// An address where nobody listens.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Writes the text to learn from; its name.
fn text_in(folder: &Path) -> String {
    let text = folder.join("verse.txt");
    std::fs::write(&text, verse(6000)).unwrap();
    text.to_str().unwrap().to_owned()
}

#[test]
fn one_command_starts_a_server_learns_a_text_talks_and_leaves_nothing_running() {
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
    let (_, said) = first.stdout.split_once("succeeded: verse@1").unwrap();
    let (_, said) = said.split_once('\n').unwrap();
    assert_eq!(said.chars().count(), 20 + 1, "{said:?}");
    assert!(
        TcpStream::connect(&address).is_err(),
        "the server has ended"
    );
    assert!(home.path().join("charlstm/models").is_dir());

    // The second time the model is there, and the same seed says the same.
    let second = run(home.path(), &address, &arguments, typed);
    assert_eq!(second.code, Some(0), "{}", second.stderr);
    assert_eq!(second.stdout, said);
}

#[test]
fn a_server_that_is_there_is_used_and_goes_on() {
    let server = Server::start(&[]);
    let home = tempfile::tempdir().unwrap();
    let text = text_in(home.path());
    let mut arguments = vec!["--text", &text, "--model", "mine"];
    arguments.extend_from_slice(SMALL);
    let said = run(home.path(), server.address(), &arguments, "");
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(!said.stderr.contains("started a server"), "{}", said.stderr);
    assert!(ask_ok(&server, &["models", "list"]).contains("mine@1"));
    assert!(!home.path().join("charlstm/models").exists());
}

#[test]
fn a_server_that_cannot_start_is_told_with_the_end_of_its_log() {
    let home = tempfile::tempdir().unwrap();
    let text = text_in(home.path());
    let first = Server::start(&[]);
    // Another server has this folder.
    let folder = first.data_dir();
    let arguments = ["--text", &text, "--data-dir", folder.to_str().unwrap()];
    let said = run(home.path(), &free_address(), &arguments, "");
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert!(said.stderr.contains("did not start"), "{}", said.stderr);
    assert!(said.stderr.contains("server.log"), "{}", said.stderr);
}
