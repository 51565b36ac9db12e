//! Reads the lines of the REPL: with editing, history and completion from a
//! terminal, as they are from a pipe. A thread of its own does the blocking
//! reads, so that Ctrl-C can be handled at the same time.

use std::io::{self, BufRead, IsTerminal, StdinLock};
use std::path::{Path, PathBuf};
use std::sync::mpsc as blocking;
use std::thread;

use rustyline::Editor;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use tokio::sync::mpsc;

use super::completer::CommandCompleter;
use crate::failure::{Failure, io_reason};
use crate::file_content::{self, SNIFF_BYTES};
use crate::interrupt::Interrupts;

const PROMPT: &str = "> ";
const CONTINUATION_PROMPT: &str = "… ";

/// An event of the keyboard or of the pipe.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Line {
    /// A line, or several lines of which all but the last ended in a
    /// backslash.
    Text(String),
    /// A line that is not text; the message says why.
    Invalid(String),
    /// Ctrl-C on a terminal while a line was typed.
    Interrupted,
    /// SIGINT while the input is not a terminal.
    Killed,
    /// The input cannot be read any further; the message says why.
    Broken(String),
    /// Ctrl-D, or the end of the input.
    End,
}

/// A handle of the thread that reads.
pub(super) struct LineReader {
    requests: blocking::SyncSender<()>,
    lines: mpsc::Receiver<Line>,
    interrupts: Interrupts,
    is_terminal: bool,
}

impl LineReader {
    /// Starts the thread.
    pub(super) fn start(completer: CommandCompleter) -> Result<Self, Failure> {
        let (request_sender, requests) = blocking::sync_channel(1);
        let (line_sender, lines) = mpsc::channel(1);
        let is_terminal = io::stdin().is_terminal();
        thread::Builder::new()
            .name("line-reader".into())
            .spawn(move || {
                if is_terminal {
                    serve_terminal(completer, &requests, &line_sender);
                } else {
                    let mut lines = PipedLines::new(io::stdin().lock());
                    serve(&requests, &line_sender, || lines.next());
                }
            })
            .map_err(|error| Failure::Io {
                action: "start a thread to read lines".into(),
                source: error,
            })?;
        Ok(Self {
            requests: request_sender,
            lines,
            interrupts: Interrupts::listen(),
            is_terminal,
        })
    }

    /// Returns true if the lines are typed by a person.
    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Returns the next line.
    pub(super) async fn next(&mut self) -> Line {
        if self.requests.send(()).is_err() {
            return Line::End;
        }
        // On a terminal the editor receives Ctrl-C as a key. It must not be
        // abandoned because of a signal: the terminal would stay in raw mode.
        tokio::select! {
            line = self.lines.recv() => line.unwrap_or(Line::End),
            () = self.interrupts.next(), if !self.is_terminal => Line::Killed,
        }
    }
}

/// Reads a line for each request.
fn serve(
    requests: &blocking::Receiver<()>,
    lines: &mpsc::Sender<Line>,
    mut next: impl FnMut() -> Line,
) {
    while requests.recv().is_ok() {
        if lines.blocking_send(next()).is_err() {
            return;
        }
    }
}

fn serve_terminal(
    completer: CommandCompleter,
    requests: &blocking::Receiver<()>,
    lines: &mpsc::Sender<Line>,
) {
    let mut editor: Editor<CommandCompleter, FileHistory> = match Editor::new() {
        Ok(editor) => editor,
        Err(error) => return serve(requests, lines, || Line::Broken(error.to_string())),
    };
    editor.set_helper(Some(completer));
    let history = history_file();
    if let Some(path) = &history {
        // Before the first run there is no history.
        let _ = editor.load_history(path);
    }
    serve(requests, lines, || {
        let line = edit_line(&mut editor);
        if let (Line::Text(text), Some(path)) = (&line, &history)
            && !text.is_empty()
            && editor.add_history_entry(text).is_ok()
        {
            // The REPL is usable even if the history cannot be written.
            let _ = editor.append_history(path);
        }
        line
    });
}

/// Reads a line from a terminal, and further lines while they end in a
/// backslash.
fn edit_line(editor: &mut Editor<CommandCompleter, FileHistory>) -> Line {
    let mut text = String::new();
    loop {
        let prompt = if text.is_empty() {
            PROMPT
        } else {
            CONTINUATION_PROMPT
        };
        match editor.readline(prompt) {
            Ok(line) => match line.strip_suffix('\\') {
                Some(beginning) => {
                    text.push_str(beginning);
                    text.push('\n');
                }
                None => return Line::Text(text + &line),
            },
            Err(ReadlineError::Interrupted) => return Line::Interrupted,
            Err(ReadlineError::Eof) => return Line::End,
            Err(error) => return Line::Broken(error.to_string()),
        }
    }
}

/// Reads lines of bytes, which may or may not be text.
struct PipedLines<R> {
    input: R,
    has_begun: bool,
}

impl PipedLines<StdinLock<'static>> {
    fn new(input: StdinLock<'static>) -> Self {
        Self {
            input,
            has_begun: false,
        }
    }
}

impl<R: BufRead> PipedLines<R> {
    /// Reads a line, and further lines while they end in a backslash.
    fn next(&mut self) -> Line {
        let mut text = String::new();
        loop {
            let mut bytes = Vec::new();
            if let Err(error) = self.read(&mut bytes) {
                return Line::Broken(error);
            }
            if bytes.is_empty() {
                return if text.is_empty() {
                    Line::End
                } else {
                    Line::Text(text)
                };
            }
            if bytes.ends_with(b"\n") {
                bytes.pop();
            }
            if bytes.ends_with(b"\r") {
                bytes.pop();
            }
            let line = match String::from_utf8(bytes) {
                Ok(line) => line,
                Err(error) => {
                    let invalid = error.utf8_error().valid_up_to();
                    let content = file_content::guess(error.as_bytes(), invalid);
                    return Line::Invalid(format!(
                        "invalid UTF-8 at byte {invalid} of the line; {}",
                        content.advice(Path::new("-"))
                    ));
                }
            };
            match line.strip_suffix('\\') {
                Some(beginning) => {
                    text.push_str(beginning);
                    text.push('\n');
                }
                None => return Line::Text(text + &line),
            }
        }
    }

    /// Reads bytes up to the end of a line; none at the end of the input.
    fn read(&mut self, bytes: &mut Vec<u8>) -> Result<(), String> {
        if !std::mem::replace(&mut self.has_begun, true) {
            let beginning = self.input.fill_buf().map_err(|error| io_reason(&error))?;
            let beginning = &beginning[..beginning.len().min(SNIFF_BYTES)];
            if let Some(content) = file_content::recognize(beginning) {
                return Err(content.advice(Path::new("-")));
            }
            // The byte order mark of UTF-8.
            if beginning.starts_with(b"\xef\xbb\xbf") {
                self.input.consume(3);
            }
        }
        self.input
            .read_until(b'\n', bytes)
            .map(drop)
            .map_err(|error| io_reason(&error))
    }
}

/// Returns `$XDG_STATE_HOME/charlstm/history`, and creates its folder. Without
/// a home folder there is no history.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    let folder = state.join("charlstm");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8]) -> Vec<Line> {
        let mut reader = PipedLines {
            input,
            has_begun: false,
        };
        let mut lines = Vec::new();
        loop {
            match reader.next() {
                Line::End => return lines,
                broken @ Line::Broken(_) => {
                    lines.push(broken);
                    return lines;
                }
                line => lines.push(line),
            }
        }
    }

    fn text(line: &str) -> Line {
        Line::Text(line.into())
    }

    #[test]
    fn lines_of_a_pipe_lose_their_line_endings_and_the_byte_order_mark() {
        let input = "\u{feff}one\r\ntwo\n\nthree\\\r\nfour";
        let expected = [text("one"), text("two"), text(""), text("three\nfour")];
        assert_eq!(lines(input.as_bytes()), expected);
    }

    #[test]
    fn a_line_that_is_not_utf_8_does_not_end_the_input() {
        let found = lines(b"Line 1\ncaf\xe9\nLine 2\n");
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], text("Line 1"));
        assert!(
            matches!(&found[1], Line::Invalid(why) if why.contains("byte 3") && why.contains("Latin-1")),
            "{found:?}"
        );
        assert_eq!(found[2], text("Line 2"));
    }

    #[test]
    fn an_input_in_another_encoding_is_not_read_at_all() {
        let found = lines(b"\xff\xfea\0\n\0");
        assert!(
            matches!(&found[..], [Line::Broken(why)] if why.contains("UTF-16")),
            "{found:?}"
        );
    }
}
