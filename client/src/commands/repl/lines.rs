//! Reads lines of the conversation, with editing and history, on a thread of
//! its own: reading blocks, and Ctrl-C must be heard meanwhile.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::mpsc as blocking;
use std::thread;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tokio::sync::mpsc;

use crate::exit::{Failure, Interrupts};

const PROMPT: &str = "> ";
const NEXT_LINE_PROMPT: &str = "… ";

/// What came from the keyboard or the pipe.
#[derive(Debug)]
pub(super) enum Line {
    /// A line, or several that ended in a backslash.
    Said(String),
    /// Ctrl-C while a line was typed.
    Interrupted,
    /// SIGINT while the input is not a terminal.
    Killed,
    /// Ctrl-D, or the end of the input.
    End,
}

/// The thread that reads.
pub(super) struct Lines {
    ask: blocking::SyncSender<()>,
    answers: mpsc::Receiver<Line>,
    interrupts: Interrupts,
}

impl Lines {
    /// Starts the thread.
    pub(super) fn open() -> Result<Self, Failure> {
        let (ask, asked) = blocking::sync_channel(1);
        let (answer, answers) = mpsc::channel(1);
        thread::Builder::new()
            .name("lines".into())
            .spawn(move || read(&asked, &answer))
            .map_err(|error| Failure::Io {
                what: "read lines".into(),
                source: error,
            })?;
        Ok(Self {
            ask,
            answers,
            interrupts: Interrupts::listen(),
        })
    }

    /// The next line.
    pub(super) async fn next(&mut self) -> Line {
        if self.ask.send(()).is_err() {
            return Line::End;
        }
        // On a terminal Ctrl-C is a key, and the editor sees it. It must not
        // be left behind by a signal either: it would leave the terminal raw.
        let is_terminal = io::stdin().is_terminal();
        tokio::select! {
            line = self.answers.recv() => line.unwrap_or(Line::End),
            () = self.interrupts.next(), if !is_terminal => Line::Killed,
        }
    }
}

/// Reads a line each time that one is asked for.
fn read(asked: &blocking::Receiver<()>, answer: &mpsc::Sender<Line>) {
    let Ok(mut editor) = DefaultEditor::new() else {
        return;
    };
    let history = history_file();
    if let Some(path) = &history {
        // There is none before the first run.
        let _ = editor.load_history(path);
    }
    while asked.recv().is_ok() {
        let line = read_line(&mut editor);
        if let (Line::Said(said), Some(path)) = (&line, &history)
            && !said.is_empty()
            && editor.add_history_entry(said).is_ok()
        {
            // Without a history the conversation goes on all the same.
            let _ = editor.append_history(path);
        }
        if answer.blocking_send(line).is_err() {
            return;
        }
    }
}

/// One line, and the next ones while they end in a backslash.
fn read_line(editor: &mut DefaultEditor) -> Line {
    let mut said = String::new();
    loop {
        let prompt = if said.is_empty() {
            PROMPT
        } else {
            NEXT_LINE_PROMPT
        };
        match editor.readline(prompt) {
            Ok(line) => match line.strip_suffix('\\') {
                Some(beginning) => {
                    said.push_str(beginning);
                    said.push('\n');
                }
                None => return Line::Said(said + &line),
            },
            Err(ReadlineError::Interrupted) => return Line::Interrupted,
            Err(_) => return Line::End,
        }
    }
}

/// `$XDG_STATE_HOME/charlstm/history`, with its folder made.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    let folder = state.join("charlstm");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}
