//! The client on a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use charlstm_proto::v1::{State, Training, TrainingSpec};
use nix::pty::{Winsize, openpty};
use tokio::sync::Notify;

use crate::fake::FakeServer;
use crate::{client, interrupt};

/// A client whose standard streams are a terminal.
struct TerminalSession {
    child: Child,
    terminal: File,
    /// What was shown so far, with escape sequences.
    shown: String,
}

impl TerminalSession {
    fn start(mut command: Command, columns: u16) -> Self {
        let size = Winsize {
            ws_row: 24,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).unwrap();
        let stream = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = command
            .stdin(stream())
            .stdout(stream())
            .stderr(stream())
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .spawn()
            .unwrap();
        // The terminal ends with its last user.
        drop((pty.slave, command));
        Self {
            child,
            terminal: pty.master.into(),
            shown: String::new(),
        }
    }

    /// Reads until `pattern` is shown.
    fn wait_for(&mut self, pattern: &str) {
        while !self.shown.contains(pattern) {
            assert!(self.read(), "{pattern} was not shown: {}", self.shown);
        }
    }

    /// Reads until `pattern` is shown and a prompt after it: what is typed
    /// before the prompt is there can be lost.
    fn wait_for_prompt_after(&mut self, pattern: &str) {
        let is_shown = |shown: &str| {
            let after = shown.rfind(pattern).map(|at| &shown[at..]);
            after.is_some_and(|after| after.contains("> "))
        };
        while !is_shown(&self.shown) {
            assert!(self.read(), "no prompt after {pattern}: {}", self.shown);
        }
    }

    fn type_text(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).unwrap();
    }

    /// Waits for the end, and returns it with everything that was shown.
    fn finish(mut self) -> (ExitStatus, String) {
        while self.read() {}
        (self.child.wait().unwrap(), self.shown)
    }

    /// Reads what is shown next. Returns false at the end.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match self.terminal.read(&mut buffer) {
            Ok(0) | Err(_) => false,
            Ok(read) => {
                self.shown
                    .push_str(&String::from_utf8_lossy(&buffer[..read]));
                true
            }
        }
    }
}

/// Returns the lines that remain on a screen of `columns` columns, as a terminal
/// shows them: a line that is too long is broken in the middle of a word.
fn screen(shown: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![Vec::new()];
    let (mut row, mut column) = (0, 0);
    let mut chars = shown.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' => column = 0,
            '\n' => row += 1,
            '\u{1b}' => {
                assert_eq!(chars.next(), Some('['), "{shown:?}");
                let mut parameter = String::new();
                let end = loop {
                    match chars.next() {
                        Some(end) if end.is_ascii_alphabetic() => break end,
                        Some(digit) => parameter.push(digit),
                        None => panic!("an escape sequence does not end"),
                    }
                };
                let count = parameter.parse().unwrap_or(1);
                match end {
                    'A' => row -= count,
                    'B' => row += count,
                    'D' => column -= count,
                    'C' => column += count,
                    'K' if parameter == "2" => lines[row].clear(),
                    'K' => lines[row].truncate(column),
                    _ => {}
                }
            }
            c => {
                if column == columns {
                    (row, column) = (row + 1, 0);
                }
                while lines.len() <= row {
                    lines.push(Vec::new());
                }
                if lines[row].len() <= column {
                    lines[row].resize(column + 1, ' ');
                }
                lines[row][column] = c;
                column += 1;
            }
        }
        while lines.len() <= row {
            lines.push(Vec::new());
        }
    }
    let lines = lines.into_iter().map(String::from_iter);
    lines
        .map(|line: String| line.trim_end().to_owned())
        .collect()
}

#[test]
fn a_text_is_broken_between_words_and_its_control_characters_are_escaped() {
    let fake = FakeServer {
        text: Some("Call me Ishmael \u{1b}]0;x\u{7}. Some years ago\n"),
        ..Default::default()
    };
    let server = fake.serve("127.0.0.1:0");
    let arguments = ["generate", "--prime", "> ", "--length", "38"];
    let session = TerminalSession::start(client(server.address, &arguments), 24);
    let (status, shown) = session.finish();
    assert!(status.success());
    assert!(
        !shown.contains("\u{1b}]") && !shown.contains('\u{7}'),
        "{shown:?}"
    );
    let expected = [
        "> Call me Ishmael",
        "\\u{1b}]0;x\\u{7}. Some",
        "years ago",
        "",
    ];
    assert_eq!(screen(&shown, 24), expected, "{shown:?}");
}

#[test]
fn a_training_fits_a_narrow_terminal() {
    let fake = FakeServer {
        sample: Some("a \u{1b}[31msample of the text that is longer than one line of the terminal"),
        ..Default::default()
    };
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("book.txt");
    std::fs::write(&path, "some text").unwrap();
    let arguments = ["train", "--text", path.to_str().unwrap(), "--model", "m"];
    for columns in [60, 80, 120] {
        let command = client(server.address, &arguments);
        let session = TerminalSession::start(command, columns);
        let (status, shown) = session.finish();
        assert!(status.success());
        assert!(!shown.contains("\u{1b}[31m"), "{shown:?}");
        let lines = screen(&shown, columns.into());
        let sample: Vec<_> = lines
            .iter()
            .filter(|line| line.starts_with("  | "))
            .collect();
        assert!(
            sample[0].starts_with("  | a \\u{1b}[31msample of the text"),
            "{lines:?}"
        );
        // Nothing is broken within a word or left over of the bar.
        for line in &lines {
            let ends = [
                "", "m", "hidden", "0,", "one", "line", "terminal", "1.500", "s",
            ];
            let is_whole = line.is_empty()
                || line.chars().count() < columns.into()
                || ends.iter().any(|end| line.ends_with(end));
            assert!(is_whole && !line.contains("[="), "{line:?} in {lines:?}");
        }
        assert!(
            lines
                .iter()
                .any(|line| line == "succeeded: m@1, loss 1.500"),
            "{lines:?}"
        );
    }
}

#[test]
fn a_text_that_is_typed_says_how_it_ends() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    let arguments = ["train", "--text", "-", "--model", "m"];
    let mut session = TerminalSession::start(client(server.address, &arguments), 80);
    session.wait_for("then press Ctrl-D");
    session.type_text("some text\n\u{4}");
    let (status, shown) = session.finish();
    assert!(status.success(), "{shown}");
    assert_eq!(fake.received.lock().unwrap().corpus, b"some text\n");
}

#[test]
fn a_queued_training_says_what_it_waits_for() {
    let turn = Arc::new(Notify::new());
    let fake = FakeServer {
        queued_until: Some(Arc::clone(&turn)),
        ..Default::default()
    };
    let training = |id: &str, state: State, model: &str| Training {
        training_id: id.into(),
        state: state.into(),
        spec: Some(TrainingSpec {
            model: model.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    *fake.trainings.lock().unwrap() = vec![
        training("t1", State::Queued, "m"),
        training("t0", State::Running, "epic"),
    ];
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("book.txt");
    std::fs::write(&path, "some text").unwrap();
    let arguments = ["train", "--text", path.to_str().unwrap(), "--model", "m"];
    let mut session = TerminalSession::start(client(server.address, &arguments), 80);
    session.wait_for("waiting for 1 training: t0 (model epic)");
    turn.notify_one();
    let (status, _) = session.finish();
    assert!(status.success());
    // Also without a terminal.
    let mut child = client(server.address, &arguments).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let mut shown = String::new();
    while !shown.contains("waiting for 1 training: t0 (model epic)") {
        let mut byte = [0];
        stderr.read_exact(&mut byte).unwrap();
        shown.push(byte[0].into());
    }
    turn.notify_one();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_second_ctrl_c_leaves_no_bar_and_says_how_to_find_the_training() {
    let turn = Arc::new(Notify::new());
    let fake = FakeServer {
        queued_until: Some(turn),
        ..Default::default()
    };
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("book.txt");
    std::fs::write(&path, "some text").unwrap();
    let arguments = ["train", "--text", path.to_str().unwrap(), "--model", "m"];
    let mut session = TerminalSession::start(client(server.address, &arguments), 80);
    session.wait_for("training t1");
    interrupt(&session.child);
    session.wait_for("press Ctrl-C again");
    interrupt(&session.child);
    let (status, shown) = session.finish();
    assert_eq!(status.code(), Some(130));
    let lines = screen(&shown, 80);
    assert!(!lines.iter().any(|line| line.contains("%")), "{lines:?}");
    let text = lines.join("\n");
    assert!(text.contains("trainings show t1"), "{text}");
    assert!(text.contains("trainings resume t1"), "{text}");
}

#[test]
fn ctrl_c_removes_the_bar_of_a_training_that_is_only_watched() {
    let fake = FakeServer {
        watch_stalls: true,
        ..Default::default()
    };
    let server = fake.serve("127.0.0.1:0");
    let command = client(server.address, &["trainings", "watch", "t1"]);
    let mut session = TerminalSession::start(command, 80);
    session.wait_for("epoch 1/2");
    session.wait_for("%");
    interrupt(&session.child);
    let (status, shown) = session.finish();
    assert_eq!(status.code(), Some(130));
    let lines = screen(&shown, 80);
    assert!(!lines.iter().any(|line| line.contains("%")), "{lines:?}");
}

#[test]
fn the_repl_completes_commands_and_shows_its_model() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let mut command = client(server.address, &["repl", "--length", "3"]);
    command.env("XDG_STATE_HOME", folder.path());
    let mut session = TerminalSession::start(command, 80);
    session.wait_for("model m@1");
    session.wait_for("> ");
    session.type_text("Hello\r");
    session.wait_for("abc");
    session.type_text("/he\t\r");
    session.wait_for_prompt_after("/retry           generate the last text again");
    session.type_text("/nope\r");
    session.wait_for_prompt_after("unknown command");
    session.type_text("\u{4}");
    let (status, _) = session.finish();
    // A person has seen the error.
    assert!(status.success());
}

#[test]
fn a_model_is_not_written_to_a_terminal() {
    let server = FakeServer::default().serve("127.0.0.1:0");
    let command = client(server.address, &["models", "export", "m", "-o", "-"]);
    let (status, shown) = TerminalSession::start(command, 80).finish();
    assert_eq!(status.code(), Some(2));
    assert!(shown.contains("is a terminal"), "{shown}");
}
