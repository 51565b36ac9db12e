//! A connection that breaks partway: the client reconnects by itself, and shows
//! the same as without the break.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use crate::support::{SMALL, Server, ask, ask_ok, train_small, verse};

/// Number of bytes from the server after which the first connection breaks:
/// after the beginning of a training or a text, and well before its end.
const CUT_AFTER: usize = 4000;

/// Starts a proxy of `server` and returns its address. The first connection
/// through it breaks after [`CUT_AFTER`] bytes from the server; the others do
/// not.
fn start_proxy(server: &Server) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server: SocketAddr = server.address().parse().unwrap();
    thread::spawn(move || {
        for (index, client) in listener.incoming().enumerate() {
            let client = client.unwrap();
            let server = TcpStream::connect(server).unwrap();
            let limit = if index == 0 { CUT_AFTER } else { usize::MAX };
            let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || forward(from, to, usize::MAX));
            thread::spawn(move || forward(server, client, limit));
        }
    });
    address
}

/// Forwards at most `limit` bytes, then breaks both connections.
fn forward(mut from: TcpStream, mut to: TcpStream, mut limit: usize) {
    let mut buffer = [0; 1024];
    while limit > 0 {
        let next = limit.min(buffer.len());
        let Ok(read @ 1..) = from.read(&mut buffer[..next]) else {
            break;
        };
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
        limit -= read;
    }
    // Either fails only if the other side has closed it already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn a_training_is_followed_to_its_end_with_each_epoch_reported_once() {
    let server = Server::start(&[]);
    let address = format!("http://{}", start_proxy(&server));
    let text = server.folder().join("verse.txt");
    std::fs::write(&text, verse(6000)).unwrap();
    let mut arguments = vec!["--addr", &address, "train", "--model", "verse"];
    arguments.extend(["--text", text.to_str().unwrap()]);
    let small = SMALL.chunks(2).filter(|pair| pair[0] != "--epochs");
    arguments.extend(small.flatten());
    arguments.extend(["--epochs", "40", "--sample-chars", "300"]);

    let output = ask(&server, &arguments);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(
        output.stderr.contains("reconnecting in"),
        "{}",
        output.stderr
    );
    let shown: Vec<&str> = output
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("epoch ")?.split('/').next())
        .collect();
    let expected: Vec<String> = (1..=40).map(|epoch: u32| epoch.to_string()).collect();
    assert_eq!(shown, expected);
    assert!(
        output.stdout.contains("succeeded: verse@1"),
        "{}",
        output.stdout
    );
}

#[test]
fn a_text_in_a_session_is_the_same_as_without_the_break() {
    let server = Server::start(&[]);
    let output = train_small(&server, "verse", &[]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
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

    let address = format!("http://{}", start_proxy(&server));
    let mut arguments = vec!["--addr", &address];
    arguments.extend(generate("broken"));
    let output = ask(&server, &arguments);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(
        output.stderr.contains("repeating the call"),
        "{}",
        output.stderr
    );
    assert_eq!(output.stdout, whole);
}
