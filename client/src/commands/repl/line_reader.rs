//! Reads the lines of the REPL, with editing and history. A thread of its own
//! does the blocking reads, so that Ctrl-C can be handled at the same time.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::mpsc as blocking;
use std::thread;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tokio::sync::mpsc;

use crate::failure::Failure;
use crate::interrupt::Interrupts;

const PROMPT: &str = "> ";
const CONTINUATION_PROMPT: &str = "… ";

/// An event of the keyboard or of the pipe.
#[derive(Debug)]
pub(super) enum Line {
    /// A line, or several lines of which all but the last ended in a
    /// backslash.
    Text(String),
    /// Ctrl-C on a terminal while a line was typed.
    Interrupted,
    /// SIGINT while the input is not a terminal.
    Killed,
    /// Ctrl-D, or the end of the input.
    End,
}

/// A handle of the thread that reads.
pub(super) struct LineReader {
    requests: blocking::SyncSender<()>,
    lines: mpsc::Receiver<Line>,
    interrupts: Interrupts,
}

impl LineReader {
    /// Starts the thread.
    pub(super) fn start() -> Result<Self, Failure> {
        let (request_sender, requests) = blocking::sync_channel(1);
        let (line_sender, lines) = mpsc::channel(1);
        thread::Builder::new()
            .name("line-reader".into())
            .spawn(move || serve(&requests, &line_sender))
            .map_err(|error| Failure::Io {
                action: "start a thread to read lines".into(),
                source: error,
            })?;
        Ok(Self {
            requests: request_sender,
            lines,
            interrupts: Interrupts::listen(),
        })
    }

    /// Returns the next line.
    pub(super) async fn next(&mut self) -> Line {
        if self.requests.send(()).is_err() {
            return Line::End;
        }
        // On a terminal the editor receives Ctrl-C as a key. It must not be
        // abandoned because of a signal: the terminal would stay in raw mode.
        let is_terminal = io::stdin().is_terminal();
        tokio::select! {
            line = self.lines.recv() => line.unwrap_or(Line::End),
            () = self.interrupts.next(), if !is_terminal => Line::Killed,
        }
    }
}

/// Reads a line for each request.
fn serve(requests: &blocking::Receiver<()>, lines: &mpsc::Sender<Line>) {
    let Ok(mut editor) = DefaultEditor::new() else {
        return;
    };
    let history = history_file();
    if let Some(path) = &history {
        // Before the first run there is no history.
        let _ = editor.load_history(path);
    }
    while requests.recv().is_ok() {
        let line = read_line(&mut editor);
        if let (Line::Text(text), Some(path)) = (&line, &history)
            && !text.is_empty()
            && editor.add_history_entry(text).is_ok()
        {
            // The REPL is usable even if the history cannot be written.
            let _ = editor.append_history(path);
        }
        if lines.blocking_send(line).is_err() {
            return;
        }
    }
}

/// Reads a line, and further lines while they end in a backslash.
fn read_line(editor: &mut DefaultEditor) -> Line {
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
            Err(_) => return Line::End,
        }
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
