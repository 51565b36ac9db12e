//! The built client against a scripted server: what a person or a pipe sees.

#![allow(clippy::unwrap_used, missing_docs)]

mod fake;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};

use fake::{Fake, alphabet, free_port};

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
fn generate_prints_the_prime_and_the_text_and_nothing_else() {
    let server = Fake::default().serve("127.0.0.1:0");
    let arguments = ["generate", "--prime", "é ", "--length", "30"];
    let output = run(server.address, &arguments);
    assert_eq!(text(&output.stdout), format!("é {}", alphabet(0, 30)));
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_broken_connection_in_a_session_is_repeated_and_no_character_twice() {
    let address = free_port().to_string();
    let first = Fake {
        stall_after: Some(10),
        ..Default::default()
    };
    let second = Fake::default();
    let running = first.serve(&address);
    let arguments = [
        "generate",
        "--prime",
        "> ",
        "--length",
        "40",
        "--session",
        "s",
    ];
    let mut child = client(&address, &arguments).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut seen = vec![0; 2 + 10];
    stdout.read_exact(&mut seen).unwrap();
    drop(running);
    let _running = second.serve(&address);

    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&seen), format!("> {}", alphabet(0, 10)));
    assert_eq!(rest, alphabet(10, 30));
    assert!(text(&output.stderr).contains("repeating the call from position 0"));
    let asked = second.asked.lock().unwrap();
    let repeated = asked.generate.last().unwrap();
    assert_eq!(repeated.expected_position, Some(0));
    assert_eq!(repeated.prime, "> ");
}

#[test]
fn a_broken_connection_without_a_session_is_an_error() {
    let fake = Fake {
        stall_after: Some(3),
        ..Default::default()
    };
    let running = fake.serve("127.0.0.1:0");
    let arguments = ["generate", "--prime", "x", "--no-echo"];
    let mut child = client(running.address, &arguments).spawn().unwrap();
    let mut seen = [0; 3];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut seen)
        .unwrap();
    drop(running);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("error: "));
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let server = Fake::default().serve("127.0.0.1:0");
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
fn ctrl_c_ends_a_generation_with_130() {
    let fake = Fake {
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
fn a_full_server_is_an_error_that_says_when_to_try_again() {
    let fake = Fake {
        full: true,
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
fn no_server_is_an_error_that_says_how_to_start_one() {
    let address = free_port();
    let output = run(address, &["models", "list"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    let beginning = format!("error: no server answers at http://{address}: ");
    assert!(message.starts_with(&beginning), "{message}");
    assert!(message.contains("`charlstm-server`"), "{message}");
}

#[test]
fn with_json_each_event_is_an_object_on_a_line() {
    let server = Fake::default().serve("127.0.0.1:0");
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
fn a_text_is_sent_in_chunks_and_each_epoch_is_shown() {
    let fake = Fake::default();
    let server = fake.serve("127.0.0.1:0");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let corpus = "Größe ".repeat(200_000);
    file.write_all(corpus.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    let arguments = ["train", "--text", path, "--model", "m", "--epochs", "2"];
    let output = run(server.address, &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let asked = fake.asked.lock().unwrap();
    assert_eq!(asked.spec.as_ref().unwrap().epochs, Some(2));
    assert!(asked.chunks > 1);
    assert!(asked.corpus == corpus.as_bytes());
    let shown = text(&output.stdout);
    assert!(shown.contains("epoch 1/2  loss 3.000"), "{shown}");
    assert!(shown.contains("  | sample 2"), "{shown}");
    assert!(shown.ends_with("succeeded: m@1, loss 1.500\n"), "{shown}");
    assert!(text(&output.stderr).contains("1,000 characters, 26 distinct"));
}

#[test]
fn a_text_from_standard_input_is_trained_on_and_detach_prints_the_id() {
    let fake = Fake::default();
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
    assert_eq!(fake.asked.lock().unwrap().corpus, b"some text");
}

#[test]
fn a_training_whose_connection_broke_is_watched_to_its_end() {
    let fake = Fake {
        break_training: true,
        ..Default::default()
    };
    let server = fake.serve("127.0.0.1:0");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"some text").unwrap();
    let path = file.path().to_str().unwrap();
    let output = run(server.address, &["train", "--text", path, "--model", "m"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(fake.asked.lock().unwrap().watched_from, [Some(2)]);
    let shown = text(&output.stdout);
    assert_eq!(shown.matches("epoch 1/2").count(), 1);
    assert_eq!(shown.matches("epoch 2/2").count(), 1);
}

#[test]
fn the_first_ctrl_c_cancels_the_training_and_shows_its_end() {
    let fake = Fake {
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
    assert_eq!(fake.asked.lock().unwrap().cancelled, ["t1"]);
    let notes = text(&output.stderr);
    assert!(notes.contains("cancelled: m"), "{notes}");
    assert!(notes.contains("trainings resume t1"), "{notes}");
}

#[test]
fn a_conversation_is_text_in_and_text_out() {
    let fake = Fake::default();
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let mut child = client(server.address, &["repl", "--session", "s"])
        .env("XDG_STATE_HOME", folder.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin
        .write_all(b"/set length 3\n/set seed 5\nHello\n\n/nope\n")
        .unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "abc\nabc\n");
    assert!(text(&output.stderr).contains("/nope is not a command"));
    let asked = fake.asked.lock().unwrap();
    assert_eq!(asked.generate[0].prime, "Hello");
    assert_eq!(asked.generate[0].sampling.as_ref().unwrap().seed, Some(5));
    assert_eq!(asked.generate[1].prime, "");
    assert_eq!(asked.generate[1].sampling.as_ref().unwrap().seed, None);
}

#[test]
fn a_load_test_reports_each_number_of_streams() {
    let server = Fake::default().serve("127.0.0.1:0");
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
    let figures: Vec<serde_json::Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(figures.len(), 2);
    assert_eq!(figures[1]["sessions"], 3);
    assert!(figures[1]["chars"].as_u64().unwrap() > 0);
    assert_eq!(figures[0]["chars_per_message"], 1.0);
}

#[test]
fn a_server_that_tells_nothing_of_itself_still_has_a_status() {
    let server = Fake::default().serve("127.0.0.1:0");
    let output = run(server.address, &["status"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("models are not told"));
}

#[test]
fn ctrl_c_is_heard_while_the_text_is_still_being_read() {
    let server = Fake::default().serve("127.0.0.1:0");
    let arguments = ["train", "--text", "-", "--model", "m"];
    let mut child = client(server.address, &arguments)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // More than a pipe holds: when it is written, the client reads. Less than
    // a chunk, so that it waits for more.
    stdin.write_all(&[b'a'; 160 << 10]).unwrap();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    drop(stdin);
}

#[test]
fn ctrl_c_is_heard_while_a_server_says_nothing() {
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
fn several_files_and_folders_are_one_text_and_windows_line_ends_are_told() {
    let fake = Fake::default();
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("novels")).unwrap();
    std::fs::write(path("novels/b.txt"), "b\r\nbb").unwrap();
    std::fs::write(path("novels/a.txt"), "a\n").unwrap();
    std::fs::write(path("letter.txt"), "c").unwrap();
    let (novels, letter, plot) = (path("novels"), path("letter.txt"), path("loss.png"));
    let arguments = [
        "train", "--text", &novels, "--text", &letter, "--model", "m", "--plot", &plot,
    ];
    let output = run(server.address, &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&fake.asked.lock().unwrap().corpus), "a\nb\nbb\nc");
    assert!(text(&output.stderr).contains("1 line ends CR LF became LF"));
    assert!(std::fs::read(plot).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn a_text_that_is_not_utf8_is_refused_with_its_name_and_place() {
    let server = Fake::default().serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad.txt");
    std::fs::write(&bad, b"abc\xffdef").unwrap();
    let bad = bad.to_str().unwrap();
    let output = run(server.address, &["train", "--text", bad, "--model", "m"]);
    assert_eq!(output.status.code(), Some(2));
    let expected = format!("error: cannot read {bad}: it is not UTF-8 text at byte 3\n");
    assert_eq!(text(&output.stderr), expected);
}

#[test]
fn each_command_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let output = run("127.0.0.1:1", &["man", path]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for page in [
        "charlstm-client",
        "charlstm-client-train",
        "charlstm-client-models-import",
    ] {
        let page = folder.path().join(format!("{page}.1"));
        let words = std::fs::read_to_string(&page).unwrap();
        assert!(words.contains("SYNOPSIS"), "{}", page.display());
    }
}

#[test]
fn without_a_terminal_nothing_is_coloured() {
    let server = Fake::default().serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.txt");
    std::fs::write(&path, "some text").unwrap();
    let path = path.to_str().unwrap();
    let output = run(server.address, &["train", "--text", path, "--model", "m"]);
    assert!(!text(&output.stdout).contains('\u{1b}'));
    assert!(!text(&output.stderr).contains('\u{1b}'));
    let refused = run(free_port(), &["status"]);
    assert!(!text(&refused.stderr).contains('\u{1b}'));
}

#[test]
fn a_negative_number_is_answered_as_a_number_and_not_as_a_flag() {
    let arguments = ["generate", "--prime", "x", "--top-k", "-1"];
    let output = run("127.0.0.1:1", &arguments);
    assert_eq!(output.status.code(), Some(2));
    let message = text(&output.stderr);
    assert!(
        message.contains("invalid value '-1' for '--top-k <K>'"),
        "{message}"
    );
}
