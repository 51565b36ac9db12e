//! Writes results to standard output and messages to standard error. The
//! modules `display` and `json` format values. `console` applies colours only
//! on a terminal, and not if `NO_COLOR` is set.

use std::io::{self, ErrorKind, IsTerminal, Write};

use console::{Style, Term};
use serde_json::{Value, json};

use crate::failure::{self, Failure};
use crate::field_names::FieldNames;
use crate::terminal_text::{self, LineWrapper};

/// Where results and messages go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Results are JSON objects, one per line, instead of text.
    pub(crate) json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Writes a text to standard output and flushes it, so that the reader of
    /// a pipe receives each character immediately. Blocks while the pipe is
    /// full. Fails with `ClosedPipe` if the reader is gone.
    pub(crate) fn text(self, text: &str) -> Result<(), Failure> {
        self.bytes(text.as_bytes())
    }

    /// Writes bytes to standard output, like [`Output::text`].
    pub(crate) fn bytes(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(bytes)
            .and_then(|()| stdout.flush())
            .map_err(|error| match error.kind() {
                ErrorKind::BrokenPipe => Failure::ClosedPipe,
                _ => Failure::Io {
                    action: "write to standard output".into(),
                    source: error,
                },
            })
    }

    /// Writes lines for people to standard output. On a terminal, they are
    /// broken between words.
    pub(crate) fn line(self, line: &str) -> Result<(), Failure> {
        match stdout_columns() {
            Some(columns) => self.text(&format!("{}\n", terminal_text::wrapped(line, columns))),
            None => self.text(&format!("{line}\n")),
        }
    }

    /// Writes one JSON object as a line to standard output.
    pub(crate) fn object(self, value: &Value) -> Result<(), Failure> {
        self.text(&format!("{value}\n"))
    }

    /// Writes a result to standard output: as an object with `--json`,
    /// otherwise as text.
    pub(crate) fn result(
        self,
        object: impl FnOnce() -> Value,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if self.json {
            self.object(&object())
        } else {
            self.line(&text())
        }
    }

    /// Writes a message for people to standard error. On a terminal, its lines
    /// are broken between words.
    pub(crate) fn note(self, message: &str) {
        let message = match stderr_columns() {
            Some(columns) => &terminal_text::wrapped(message, columns),
            None => message,
        };
        // If standard error is closed, nobody can be told about it.
        let _ = writeln!(io::stderr().lock(), "{message}");
    }

    /// Returns true if standard output is a terminal.
    pub(crate) fn is_terminal(self) -> bool {
        io::stdout().is_terminal()
    }

    /// Starts to write a generated text.
    pub(crate) fn generated(self) -> GeneratedOutput {
        GeneratedOutput {
            output: self,
            is_terminal: self.is_terminal(),
            wrapper: LineWrapper::default(),
        }
    }

    /// Reports why the command failed: as text on standard error, with the
    /// names that the command has for fields, and with `--json` also as the
    /// last object on standard output, with the names of the contract.
    pub(crate) fn failure(self, failure: &Failure, names: FieldNames) {
        // After Ctrl-C the command may still hold the lock of standard output,
        // so only the exit code reports it.
        if matches!(failure, Failure::ClosedPipe | Failure::Interrupted) {
            return;
        }
        if self.json {
            self.failure_object(failure);
        }
        self.error(&terminal_text::escaped(&failure.describe(names)));
    }

    /// Writes the last object of a command that has failed.
    pub(crate) fn failure_object(self, failure: &Failure) {
        // If this write fails, the message on standard error reports the failure.
        let _ = self.object(&failure_object(failure));
    }

    /// Writes an error message to standard error.
    pub(crate) fn error(self, message: &str) {
        let label = Style::new().red().bold().for_stderr().apply_to("error:");
        self.note(&format!("{label} {message}"));
    }
}

/// Writes a generated text to standard output while it arrives: exactly as it
/// is, or on a terminal with its control characters escaped and its lines broken
/// between words.
pub(crate) struct GeneratedOutput {
    output: Output,
    is_terminal: bool,
    wrapper: LineWrapper,
}

impl GeneratedOutput {
    /// Writes the next part. Fails like [`Output::text`].
    pub(crate) fn write(&mut self, text: &str) -> Result<(), Failure> {
        if !self.is_terminal {
            return self.output.text(text);
        }
        let text = terminal_text::escaped(text);
        let shown = self
            .wrapper
            .push(&text, stdout_columns().unwrap_or(usize::MAX));
        self.output.text(&shown)
    }

    /// Ends the current line on a terminal, so that what follows does not start
    /// within it.
    pub(crate) fn end_line(&mut self) -> Result<(), Failure> {
        if self.is_terminal && self.wrapper.is_within_line() {
            self.wrapper = LineWrapper::default();
            return self.output.text("\n");
        }
        Ok(())
    }
}

/// Returns the width of the terminal that standard output is, or `None` if it
/// is not a terminal or cannot erase characters.
pub(crate) fn stdout_columns() -> Option<usize> {
    columns(&Term::stdout())
}

/// Returns the width of the terminal that standard error is.
pub(crate) fn stderr_columns() -> Option<usize> {
    columns(&Term::stderr())
}

fn columns(terminal: &Term) -> Option<usize> {
    if !terminal.is_term() || std::env::var_os("TERM").is_some_and(|name| name == "dumb") {
        return None;
    }
    let (_, columns) = terminal.size_checked()?;
    (columns > 0).then_some(columns.into())
}

/// Returns the last object that a failed command writes with `--json`.
fn failure_object(failure: &Failure) -> Value {
    let mut object = json!({
        "event": "error",
        "message": failure.to_string(),
        "exit_code": failure.exit_code(),
    });
    let failure = match failure {
        Failure::WithRemedy { failure, remedy } => {
            object["message"] = json!(failure.to_string());
            object["remedy"] = json!(remedy);
            failure
        }
        failure => failure,
    };
    if let Failure::Server(status) = failure {
        object["code"] = json!(code_name(status.code()));
        object["message"] = json!(status.message());
        if let Some(reason) = failure::reason(status) {
            object["reason"] = json!(reason);
        }
        if let Some(delay) = failure::retry_delay(status) {
            object["retry_after_seconds"] = json!(delay.as_secs_f64());
        }
    }
    object
}

/// Returns the name of a gRPC code as the gRPC specification spells it.
fn code_name(code: tonic::Code) -> String {
    let mut name = String::new();
    for character in format!("{code:?}").chars() {
        if character.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(character.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::*;

    #[test]
    fn codes_have_the_names_of_the_specification() {
        assert_eq!(code_name(Code::NotFound), "NOT_FOUND");
        assert_eq!(code_name(Code::Ok), "OK");
        assert_eq!(code_name(Code::ResourceExhausted), "RESOURCE_EXHAUSTED");
    }

    #[test]
    fn a_failure_is_an_object_with_its_code_and_exit_code() {
        let failure = Failure::from(Status::not_found("no model \"x\""));
        assert_eq!(
            failure_object(&failure),
            json!({"event": "error", "code": "NOT_FOUND", "message": "no model \"x\"", "exit_code": 1})
        );
        let object = failure_object(&failure.with_remedy("train one"));
        assert_eq!(object["code"], "NOT_FOUND");
        assert_eq!(object["message"], "no model \"x\"");
        assert_eq!(object["remedy"], "train one");
    }
}
