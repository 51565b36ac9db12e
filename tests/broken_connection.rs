//! A connection that breaks midway: the client comes back by itself, and what
//! it shows is what it would have shown.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use support::{SMALL, Server, ask, ask_ok, train_small, verse};

/// Bytes from the server after which the first connection breaks: after the
/// beginning of a training or a text, and well before its end.
const CUT_AFTER: usize = 4000;

/// Passes bytes on to `server`. The first connection through it breaks after
/// [`CUT_AFTER`] bytes from the server; the others do not.
fn proxy(server: &Server) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server: SocketAddr = server.address().parse().unwrap();
    thread::spawn(move || {
        for (index, client) in listener.incoming().enumerate() {
            let client = client.unwrap();
            let server = TcpStream::connect(server).unwrap();
            let most = if index == 0 { CUT_AFTER } else { usize::MAX };
            let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || pass(from, to, usize::MAX));
            thread::spawn(move || pass(server, client, most));
        }
    });
    address
}

/// Passes at most so many bytes on, then breaks both connections.
fn pass(mut from: TcpStream, mut to: TcpStream, mut most: usize) {
    let mut buffer = [0; 1024];
    while most > 0 {
        let room = most.min(buffer.len());
        let Ok(read @ 1..) = from.read(&mut buffer[..room]) else {
            break;
        };
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
        most -= read;
    }
    // Either fails only where the other side has broken it already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn a_training_is_shown_to_its_end_with_each_epoch_once() {
    let server = Server::start(&[]);
    let address = format!("http://{}", proxy(&server));
    let text = server.folder().join("verse.txt");
    std::fs::write(&text, verse(6000)).unwrap();
    let mut arguments = vec!["--addr", &address, "train", "--model", "verse"];
    arguments.extend(["--text", text.to_str().unwrap()]);
    let small = SMALL.chunks(2).filter(|pair| pair[0] != "--epochs");
    arguments.extend(small.flatten());
    arguments.extend(["--epochs", "40", "--sample-chars", "300"]);

    let said = ask(&server, &arguments);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.contains("reconnecting in"), "{}", said.stderr);
    let shown: Vec<&str> = said
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("epoch ")?.split('/').next())
        .collect();
    let expected: Vec<String> = (1..=40).map(|epoch: u32| epoch.to_string()).collect();
    assert_eq!(shown, expected);
    assert!(
        said.stdout.contains("succeeded: verse@1"),
        "{}",
        said.stdout
    );
}

#[test]
fn a_text_in_a_session_is_the_same_as_without_the_break() {
    let server = Server::start(&[]);
    let said = train_small(&server, "verse", &[]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let generate = |session| {
        [
            "generate",
            "--prime",
            "arma ",
            "--length",
            "3000",
            "--seed",
            "3",
            "--session",
            session,
        ]
    };
    let whole = ask_ok(&server, &generate("whole"));

    let address = format!("http://{}", proxy(&server));
    let mut arguments = vec!["--addr", &address];
    arguments.extend(generate("broken"));
    let said = ask(&server, &arguments);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stderr.contains("repeating the call"),
        "{}",
        said.stderr
    );
    assert_eq!(said.stdout, whole);
}
