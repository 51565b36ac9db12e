//! What goes to standard output (results) and to standard error (messages).
//! How values look is in `human` and `json`. Colours are for terminals only,
//! and never where NO_COLOR is set: `console` sees to that.

use std::io::{self, ErrorKind, IsTerminal, Write};

use console::Style;
use serde_json::{Value, json};

use crate::exit::{self, Failure};

/// Where results and messages go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// One JSON object a line instead of words.
    pub(crate) json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Writes to standard output and flushes: a reader of the pipe sees each
    /// character as it comes. Blocks while the pipe is full.
    pub(crate) fn text(self, text: &str) -> Result<(), Failure> {
        self.bytes(text.as_bytes())
    }

    /// As `text`, for bytes.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(bytes)
            .and_then(|()| stdout.flush())
            .map_err(|error| match error.kind() {
                ErrorKind::BrokenPipe => Failure::ClosedPipe,
                _ => Failure::Io {
                    what: "write to standard output".into(),
                    source: error,
                },
            })
    }

    /// Writes a line to standard output.
    pub(crate) fn line(self, line: &str) -> Result<(), Failure> {
        self.text(&format!("{line}\n"))
    }

    /// Writes one JSON object as a line to standard output.
    pub(crate) fn object(self, value: &Value) -> Result<(), Failure> {
        self.line(&value.to_string())
    }

    /// Writes a result: the object with `--json`, else the words.
    pub(crate) fn result(
        self,
        value: impl FnOnce() -> Value,
        words: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if self.json {
            self.object(&value())
        } else {
            self.line(&words())
        }
    }

    /// Writes a message for people to standard error.
    pub(crate) fn note(self, message: &str) {
        // A message that nobody can read any more is not worth an error.
        let _ = writeln!(io::stderr().lock(), "{message}");
    }

    /// True where a person watches standard output.
    pub(crate) fn on_terminal(self) -> bool {
        io::stdout().is_terminal()
    }

    /// Tells why the run ended: in words on standard error, and with `--json`
    /// also as a last object on standard output.
    pub(crate) fn failure(self, failure: &Failure) {
        // After Ctrl-C the command may still hold standard output, so nothing
        // is written there; the exit code says it.
        if matches!(failure, Failure::ClosedPipe | Failure::Interrupted) {
            return;
        }
        if self.json {
            // If this cannot be written either, the words below still are.
            let _ = self.object(&failure_object(failure));
        }
        let word = Style::new().red().bold().for_stderr().apply_to("error:");
        self.note(&format!("{word} {failure}"));
    }
}

/// A failure as the object that `--json` ends with.
fn failure_object(failure: &Failure) -> Value {
    let mut object = json!({
        "event": "error",
        "message": failure.to_string(),
        "exit_code": failure.exit_code(),
    });
    if let Failure::Server(status) = failure {
        object["code"] = json!(code_name(status.code()));
        object["message"] = json!(status.message());
        if let Some(reason) = exit::reason(status) {
            object["reason"] = json!(reason);
        }
        if let Some(delay) = exit::retry_after(status) {
            object["retry_after_seconds"] = json!(delay.as_secs_f64());
        }
    }
    object
}

/// The name of a gRPC code as the specification writes it.
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
    fn codes_are_named_as_the_specification_names_them() {
        assert_eq!(code_name(Code::NotFound), "NOT_FOUND");
        assert_eq!(code_name(Code::Ok), "OK");
        assert_eq!(code_name(Code::ResourceExhausted), "RESOURCE_EXHAUSTED");
    }

    #[test]
    fn a_failure_is_told_as_an_object() {
        let failure = Failure::from(Status::not_found("no model \"x\""));
        assert_eq!(
            failure_object(&failure),
            json!({"event": "error", "code": "NOT_FOUND", "message": "no model \"x\"", "exit_code": 1})
        );
    }
}
