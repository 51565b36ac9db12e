//! What a service manager and scripts ask of the program.

use std::os::unix::net::UnixDatagram;
use std::process::Command;

use crate::support::files::write_secret;
use crate::support::process;
use crate::support::server::{Server, command};
use crate::support::wire::LIMIT;

#[test]
fn the_service_manager_is_notified_when_the_server_is_ready_and_when_it_stops() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut command = command(&folder.path().join("data"), &[]);
    command.env("NOTIFY_SOCKET", &path);
    let received = || {
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    let server = Server::launch(folder, command);
    assert_eq!(received().trim(), "READY=1");
    server.signal_to_stop();
    assert_eq!(received().trim(), "STOPPING=1");
}

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let output = process::output(command);
    (output.status.code(), output.stdout, output.stderr)
}

#[test]
fn settings_can_be_checked_and_printed_without_starting_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let tokens = folder.path().join("tokens");
    write_secret(&tokens, "secret\n");
    let flags = ["--auth-token-file", tokens.to_str().unwrap()];
    let check = [&flags[..], &["--check-config"]].concat();
    let (code, output, error) = run(&mut command(&data, &check));
    assert_eq!(
        (code, &*output),
        (Some(0), "the configuration is valid\n"),
        "{error}"
    );
    let print = [&flags[..], &["--print-config", "--max-batch", "7"]].concat();
    let (code, output, error) = run(&mut command(&data, &print));
    assert_eq!(code, Some(0), "{error}");
    assert!(output.contains("max-batch = \"7\""), "{output}");
    assert!(!output.contains("secret"), "{output}");
    assert!(!data.exists(), "nothing is created");
    write_secret(&tokens, "");
    let (code, _, error) = run(&mut command(&data, &check));
    assert_eq!(code, Some(1));
    assert!(error.contains("contains no token"), "{error}");
}
