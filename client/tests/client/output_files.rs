//! Files that the client writes: nothing is overwritten, and pipes are written
//! into.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::fake::{FakeServer, MODEL_FILE};
use crate::{client, run, text};

fn path(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

/// Starts to read a new pipe.
fn read_pipe(path: &str) -> std::thread::JoinHandle<Vec<u8>> {
    mkfifo(path, Mode::S_IRWXU).unwrap();
    let path = path.to_owned();
    std::thread::spawn(move || {
        let mut content = Vec::new();
        File::open(path).unwrap().read_to_end(&mut content).unwrap();
        content
    })
}

#[test]
fn an_export_does_not_replace_a_file_unless_asked_to() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    run(
        server.address,
        &["generate", "--prime", "x", "--session", "s"],
    );
    let folder = tempfile::tempdir().unwrap();
    let file = path(&folder, "precious");
    for export in [["models", "export", "m"], ["sessions", "export", "s"]] {
        std::fs::write(&file, "mine").unwrap();
        let arguments = [&export[..], &["-o", &file]].concat();
        let output = run(server.address, &arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("--force"));
        assert_eq!(std::fs::read(&file).unwrap(), b"mine");
        let forced = [&arguments[..], &["--force"]].concat();
        let output = run(server.address, &forced);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_ne!(std::fs::read(&file).unwrap(), b"mine");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn an_export_to_a_pipe_or_to_standard_output_is_written_into_it() {
    let server = FakeServer::default().serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let fifo = path(&folder, "fifo");
    let reader = read_pipe(&fifo);
    let output = run(
        server.address,
        &["models", "export", "m", "--output", &fifo],
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(reader.join().unwrap(), MODEL_FILE);
    assert!(Path::new(&fifo).metadata().unwrap().file_type().is_fifo());

    for name in ["-", "/dev/stdout", "/dev/fd/1"] {
        let output = run(server.address, &["models", "export", "m", "-o", name]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(output.stdout, MODEL_FILE);
        assert!(text(&output.stderr).contains("exported m@1"));
        // Also if standard output is a file.
        let file = path(&folder, "redirected");
        let status = client(server.address, &["models", "export", "m", "-o", name])
            .stdout(File::create(&file).unwrap())
            .status()
            .unwrap();
        assert!(status.success());
        assert_eq!(std::fs::read(&file).unwrap(), MODEL_FILE);
    }
}

#[test]
fn an_export_reports_the_checksum_of_its_file() {
    let server = FakeServer::default().serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let file = path(&folder, "m.safetensors");
    let output = run(
        server.address,
        &["--json", "models", "export", "m", "-o", &file],
    );
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = std::process::Command::new("sha256sum")
        .arg(&file)
        .output()
        .unwrap();
    let expected = text(&expected.stdout).split(' ').next().unwrap().to_owned();
    assert_eq!(object["sha256"], expected);
}

#[test]
fn a_plot_does_not_replace_a_file_and_is_checked_before_the_training() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let corpus = path(&folder, "book.txt");
    std::fs::write(&corpus, "some text").unwrap();
    let plot = path(&folder, "loss.svg");
    std::fs::write(&plot, "mine").unwrap();
    let train = ["train", "--text", &corpus, "--model", "m", "--plot", &plot];
    let output = run(server.address, &train);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(std::fs::read(&plot).unwrap(), b"mine");
    assert!(fake.received.lock().unwrap().spec.is_none());
    let output = run(server.address, &[&train[..], &["--force"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let svg = std::fs::read_to_string(&plot).unwrap();
    assert!(svg.starts_with("<svg"), "{svg}");
}

#[test]
fn a_pipe_receives_the_last_plot_only() {
    let server = FakeServer::default().serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let corpus = path(&folder, "book.txt");
    std::fs::write(&corpus, "some text").unwrap();
    let fifo = path(&folder, "loss.svg");
    let reader = read_pipe(&fifo);
    let train = ["train", "--text", &corpus, "--model", "m", "--plot", &fifo];
    let output = run(server.address, &train);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let svg = String::from_utf8(reader.join().unwrap()).unwrap();
    assert_eq!(svg.matches("<svg").count(), 1);
    assert!(svg.trim_end().ends_with("</svg>"));
}

#[test]
fn a_completion_script_can_be_written_to_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = path(&folder, "client.bash");
    let write = || run("127.0.0.1:1", &["completions", "bash", "-o", &file]);
    assert_eq!(write().status.code(), Some(0));
    assert!(
        std::fs::read_to_string(&file)
            .unwrap()
            .contains("COMPREPLY")
    );
    assert_eq!(write().status.code(), Some(2));
}

#[test]
fn changes_of_sessions_wait_for_the_storage_of_the_server() {
    let fake = FakeServer {
        storage_delay: Duration::from_millis(5),
        ..Default::default()
    };
    let server = fake.serve("127.0.0.1:0");
    run(
        server.address,
        &["generate", "--prime", "x", "--session", "s"],
    );
    for arguments in [
        &["sessions", "fork", "s", "t"][..],
        &["sessions", "rename", "t", "u"],
        &["sessions", "delete", "u"],
    ] {
        fake.storage_failures.store(2, Ordering::SeqCst);
        let output = run(server.address, arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let messages = text(&output.stderr);
        assert_eq!(
            messages.matches("accepts no writes").count(),
            2,
            "{messages}"
        );
    }
    let sessions = fake.sessions.lock().unwrap();
    assert_eq!(sessions.keys().collect::<Vec<_>>(), ["s"]);
}

#[test]
fn a_model_is_copied_by_an_export_and_an_import() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    let output = run(server.address, &["cp", "m", "copy"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("copied m to "));
    let received = fake.received.lock().unwrap();
    let mut content = Vec::new();
    for message in &received.imported {
        use charlstm_proto::v1::import_model_request::Payload;
        match message.payload.as_ref().unwrap() {
            Payload::Header(header) => assert_eq!(header.name, "copy"),
            Payload::Chunk(chunk) => content.extend_from_slice(chunk),
        }
    }
    assert_eq!(content, MODEL_FILE);
}

#[test]
fn a_model_that_sessions_use_is_not_renamed() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    run(
        server.address,
        &["generate", "--prime", "x", "--session", "s"],
    );
    let output = run(server.address, &["models", "rename", "m", "n"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("1 session use model \"m\""));
    run(server.address, &["sessions", "rm", "s"]);
    let output = run(server.address, &["rename", "m", "n"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let received = fake.received.lock().unwrap();
    assert!(!received.imported.is_empty());
    assert_eq!(received.deleted_models, ["m"]);
}

#[test]
fn an_export_that_was_changed_on_the_way_is_an_error_and_leaves_no_file() {
    let fake = FakeServer {
        wrong_sha256: Some("00"),
        ..Default::default()
    };
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.st");
    let path = file.to_str().unwrap();
    let output = run(server.address, &["models", "export", "m", "-o", path]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("changed on the way"), "{message}");
    assert!(!file.exists());
}
