//! Tests of the compiled client with a fake server: output, messages and exit
//! codes.

#![allow(clippy::unwrap_used, missing_docs)]

mod completion;
mod connection;
mod fake;
mod interrupted_generation;
mod output_files;
mod repl;
mod run_command;
mod terminal;
mod texts;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};

use fake::{FakeServer, alphabet, free_address};

/// Returns a call of the client for the server at `address`.
fn client(address: impl std::fmt::Display, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_charlstm-client"));
    command
        .arg("--addr")
        .arg(format!("http://{address}"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(address: impl std::fmt::Display, arguments: &[&str]) -> Output {
    client(address, arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn interrupt(child: &Child) {
    let pid = child.id().to_string();
    let status = Command::new("kill").args(["-INT", &pid]).status().unwrap();
    assert!(status.success());
}

#[test]
fn generate_prints_only_the_prompt_and_the_text() {
    let server = FakeServer::default().serve("127.0.0.1:0");
    let arguments = ["generate", "--prime", "é ", "--length", "30"];
    let output = run(server.address, &arguments);
    assert_eq!(text(&output.stdout), format!("é {}", alphabet(0, 30)));
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_closed_pipe_ends_the_client_without_an_error() {
    let server = FakeServer::default().serve("127.0.0.1:0");
    let arguments = ["generate", "--prime", "x", "--length", "1000000"];
    let mut child = client(server.address, &arguments).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut head = [0; 100];
    stdout.read_exact(&mut head).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn ctrl_c_ends_a_generation_with_exit_code_130() {
    let fake = FakeServer {
        stall_after: Some(1),
        ..Default::default()
    };
    let server = fake.serve("127.0.0.1:0");
    let arguments = ["generate", "--prime", "x", "--session", "s"];
    let mut child = client(server.address, &arguments).spawn().unwrap();
    let mut seen = [0; 2];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut seen)
        .unwrap();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
}

#[test]
fn a_saturated_server_is_an_error_that_says_when_to_retry() {
    let fake = FakeServer {
        saturated: true,
        ..Default::default()
    };
    let server = fake.serve("127.0.0.1:0");
    let output = run(server.address, &["generate", "--prime", "x"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    assert_eq!(
        text(&output.stderr),
        "error: the queue is full; try again in 3.0 s\n"
    );
}

#[test]
fn an_invalid_field_is_reported_by_its_flag_and_in_json_by_its_field() {
    let fake = FakeServer {
        invalid_field: Some("max_chars"),
        ..Default::default()
    };
    let server = fake.serve("127.0.0.1:0");
    let output = run(server.address, &["--json", "generate", "--prime", "x"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "error: --length: must be smaller\n");
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["message"], "max_chars: must be smaller");
}

#[test]
fn an_invalid_field_does_not_end_the_repl_and_is_reported_by_its_setting() {
    let fake = FakeServer {
        invalid_field: Some("sampling.top_p"),
        ..Default::default()
    };
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let mut child = client(server.address, &["repl", "--session", "s"])
        .env("XDG_STATE_HOME", folder.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"Hello\n/nope\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let messages = text(&output.stderr);
    let expected =
        "error: line 1: /set top_p: must be smaller\nerror: line 2: unknown command /nope";
    assert!(messages.starts_with(expected), "{messages}");
    assert!(
        messages.ends_with("error: 2 lines of the input could not be continued\n"),
        "{messages}"
    );
}

#[test]
fn a_missing_server_is_an_error_that_says_how_to_start_one() {
    let address = free_address();
    let output = run(address, &["models", "list"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    let beginning = format!("error: cannot connect to http://{address}: ");
    assert!(message.starts_with(&beginning), "{message}");
    assert!(message.contains("`charlstm-server`"), "{message}");
}

#[test]
fn with_json_each_event_is_an_object_on_its_own_line() {
    let server = FakeServer::default().serve("127.0.0.1:0");
    let arguments = ["--json", "generate", "--prime", "x", "--length", "2"];
    let output = run(server.address, &arguments);
    let events: Vec<serde_json::Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let names: Vec<_> = events.iter().map(|event| &event["event"]).collect();
    assert_eq!(names, ["started", "text", "text", "finished"]);
    assert_eq!(events[2]["text"], "b");
    assert_eq!(events[3]["reason"], "FINISH_REASON_LENGTH");
}

#[test]
fn a_text_is_uploaded_in_chunks_and_each_epoch_is_printed() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let corpus = "Größe ".repeat(200_000);
    file.write_all(corpus.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    let arguments = ["train", "--text", path, "--model", "m", "--epochs", "2"];
    let output = run(server.address, &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let received = fake.received.lock().unwrap();
    assert_eq!(received.spec.as_ref().unwrap().epochs, Some(2));
    assert!(received.chunks > 1);
    assert!(received.corpus == corpus.as_bytes());
    let shown = text(&output.stdout);
    assert!(shown.contains("epoch 1/2  loss 3.000"), "{shown}");
    assert!(shown.contains("  | sample 2"), "{shown}");
    assert!(shown.ends_with("succeeded: m@1, loss 1.500\n"), "{shown}");
    assert!(text(&output.stderr).contains("1,000 characters, 26 distinct"));
}

#[test]
fn a_text_can_come_from_standard_input_and_detach_prints_the_id() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    let arguments = ["train", "--text", "-", "--model", "m", "--detach"];
    let mut child = client(server.address, &arguments)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"some text").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "t1\n");
    assert_eq!(fake.received.lock().unwrap().corpus, b"some text");
}

#[test]
fn a_training_is_watched_to_its_end_after_the_connection_was_lost() {
    let fake = FakeServer {
        break_training: true,
        ..Default::default()
    };
    let server = fake.serve("127.0.0.1:0");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"some text").unwrap();
    let path = file.path().to_str().unwrap();
    let output = run(server.address, &["train", "--text", path, "--model", "m"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(fake.received.lock().unwrap().watched_from, [Some(2)]);
    let shown = text(&output.stdout);
    assert_eq!(shown.matches("epoch 1/2").count(), 1);
    assert_eq!(shown.matches("epoch 2/2").count(), 1);
}

#[test]
fn the_first_ctrl_c_cancels_the_training_and_says_how_to_resume_it() {
    let fake = FakeServer {
        wait_for_cancel: true,
        ..Default::default()
    };
    let server = fake.serve("127.0.0.1:0");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"some text").unwrap();
    let path = file.path().to_str().unwrap();
    let arguments = ["train", "--text", path, "--model", "m"];
    let mut child = client(server.address, &arguments).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("epoch 1/2"));
    interrupt(&child);
    for line in lines {
        line.unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(fake.received.lock().unwrap().cancelled, ["t1"]);
    let notes = text(&output.stderr);
    assert!(notes.contains("cancelled: m"), "{notes}");
    assert!(notes.contains("trainings resume t1"), "{notes}");
}

#[test]
fn a_training_can_be_deleted() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    for arguments in [["trainings", "delete", "t1"], ["trainings", "rm", "t1"]] {
        let output = run(server.address, &arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "deleted t1 (running)\n");
    }
    assert_eq!(
        fake.received.lock().unwrap().deleted_trainings,
        ["t1", "t1"]
    );
}

#[test]
fn an_interrupted_training_is_an_error_that_says_how_to_resume_it() {
    let fake = FakeServer {
        interrupts_training: true,
        ..Default::default()
    };
    let server = fake.serve("127.0.0.1:0");
    let output = run(server.address, &["trainings", "watch", "t1"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.contains(
            "error: the training was interrupted; run `charlstm-client trainings resume t1`"
        ),
        "{message}"
    );
    let output = run(server.address, &["trainings", "cancel", "t1"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.contains("nothing to cancel: t1 has already ended"),
        "{message}"
    );
}

#[test]
fn no_message_claims_that_a_training_continues_on_a_dead_server() {
    let fake = FakeServer {
        wait_for_cancel: true,
        ..Default::default()
    };
    let server = fake.serve("127.0.0.1:0");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"some text").unwrap();
    let path = file.path().to_str().unwrap();
    let arguments = ["train", "--text", path, "--model", "m"];
    let mut child = client(server.address, &arguments).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("epoch 1/2"));
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    drop(server);
    let mut messages = String::new();
    while messages.matches("reconnecting in").count() < 3 {
        stderr.read_line(&mut messages).unwrap();
    }
    interrupt(&child);
    stderr.read_to_string(&mut messages).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    for claim in ["goes on", "going on", "continues", "is running"] {
        assert!(!messages.contains(claim), "{messages}");
    }
    assert!(messages.contains("trainings show t1"), "{messages}");
}

#[test]
fn the_repl_continues_each_line_in_one_session() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let mut child = client(server.address, &["repl", "--session", "s"])
        .env("XDG_STATE_HOME", folder.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin
        .write_all(b"/set length 3\n/set seed 5\nHello\n\n")
        .unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "abc\ndef\n");
    let received = fake.received.lock().unwrap();
    assert_eq!(received.generate[0].prime, "Hello");
    assert_eq!(
        received.generate[0].sampling.as_ref().unwrap().seed,
        Some(5)
    );
    assert_eq!(received.generate[1].prime, "");
    assert_eq!(received.generate[1].sampling.as_ref().unwrap().seed, None);
}

#[test]
fn a_load_test_reports_each_number_of_streams() {
    let server = FakeServer::default().serve("127.0.0.1:0");
    let arguments = [
        "--json",
        "bench",
        "--sessions",
        "1,3",
        "--seconds",
        "1",
        "--length",
        "20",
    ];
    let output = run(server.address, &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let results: Vec<serde_json::Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(results.len(), 2);
    assert_eq!(results[1]["sessions"], 3);
    assert!(results[1]["chars"].as_u64().unwrap() > 0);
    assert_eq!(results[0]["chars_per_message"], 1.0);
}

#[test]
fn status_works_with_a_server_that_offers_no_status() {
    let server = FakeServer::default().serve("127.0.0.1:0");
    let output = run(server.address, &["status"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(shown.contains("load    unknown"), "{shown}");
    assert!(shown.contains("m@1"), "{shown}");
}

#[test]
fn ctrl_c_works_while_the_text_is_being_read() {
    let server = FakeServer::default().serve("127.0.0.1:0");
    let arguments = ["train", "--text", "-", "--model", "m"];
    let mut child = client(server.address, &arguments)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // More than a pipe buffers, so that the client is reading once this is
    // written; less than a chunk, so that the client waits for more.
    stdin.write_all(&[b'a'; 160 << 10]).unwrap();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    drop(stdin);
}

#[test]
fn ctrl_c_works_while_the_server_does_not_answer() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    for arguments in [&["trainings", "resume", "t1"][..], &["status"], &["run"]] {
        let child = client(address, arguments).spawn().unwrap();
        let connection = silent.accept().unwrap();
        interrupt(&child);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{arguments:?}");
        drop(connection);
    }
}

#[test]
fn files_and_folders_are_one_text_and_converted_line_endings_are_reported() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("novels")).unwrap();
    std::fs::write(path("novels/b.txt"), "b\r\nbb").unwrap();
    std::fs::write(path("novels/a.txt"), "a\n").unwrap();
    std::fs::write(path("letter.txt"), "c").unwrap();
    let (novels, letter) = (path("novels"), path("letter.txt"));
    let arguments = [
        "train", "--text", &novels, "--text", &letter, "--model", "m",
    ];
    let output = run(server.address, &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&fake.received.lock().unwrap().corpus), "a\nb\nbb\nc");
    assert!(text(&output.stderr).contains("converted 1 line ending from CR LF to LF"));
}

/// Trains with `--plot FILE` and returns the output and the file.
fn train_with_plot() -> (Output, Option<Vec<u8>>) {
    let server = FakeServer::default().serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let (text, plot) = (folder.path().join("t.txt"), folder.path().join("loss.png"));
    std::fs::write(&text, "some text").unwrap();
    let (text, file) = (text.to_str().unwrap(), plot.to_str().unwrap());
    let arguments = ["train", "--text", text, "--model", "m", "--plot", file];
    (run(server.address, &arguments), std::fs::read(&plot).ok())
}

#[cfg(feature = "plot")]
#[test]
fn train_plots_the_losses_to_a_file() {
    let (output, plot) = train_with_plot();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(plot.unwrap().starts_with(b"\x89PNG"));
}

#[cfg(not(feature = "plot"))]
#[test]
fn a_build_without_plots_rejects_the_flag_and_names_the_feature() {
    let (output, plot) = train_with_plot();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("cargo feature `plot`"));
    assert_eq!(plot, None);
}

#[test]
fn invalid_utf8_is_reported_with_its_file_and_offset() {
    let server = FakeServer::default().serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad.txt");
    std::fs::write(&bad, b"abc\xffdef").unwrap();
    let bad = bad.to_str().unwrap();
    let output = run(server.address, &["train", "--text", bad, "--model", "m"]);
    assert_eq!(output.status.code(), Some(2));
    let expected = format!("error: cannot read {bad}: invalid UTF-8 at byte 3; ");
    assert!(text(&output.stderr).starts_with(&expected));
}

#[test]
fn each_command_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_charlstm-client"))
        .args(["man", path])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for page in [
        "charlstm-client",
        "charlstm-client-train",
        "charlstm-client-models-import",
    ] {
        let page = folder.path().join(format!("{page}.1"));
        let content = std::fs::read_to_string(&page).unwrap();
        assert!(content.contains("SYNOPSIS"), "{}", page.display());
    }
}

#[test]
fn output_has_no_colours_without_a_terminal() {
    let server = FakeServer::default().serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.txt");
    std::fs::write(&path, "some text").unwrap();
    let path = path.to_str().unwrap();
    let output = run(server.address, &["train", "--text", path, "--model", "m"]);
    assert!(!text(&output.stdout).contains('\u{1b}'));
    assert!(!text(&output.stderr).contains('\u{1b}'));
    let failed = run(free_address(), &["status"]);
    assert!(!text(&failed.stderr).contains('\u{1b}'));
}

#[test]
fn a_negative_number_is_an_invalid_value_and_not_an_unknown_flag() {
    let arguments = ["generate", "--prime", "x", "--top-k", "-1"];
    let output = run("127.0.0.1:1", &arguments);
    assert_eq!(output.status.code(), Some(2));
    let message = text(&output.stderr);
    assert!(
        message.contains("invalid value '-1' for '--top-k <K>'"),
        "{message}"
    );
}
