//! Prints the events of all attempts as those of one generation.

use charlstm_proto::v1::generate_response::Event;
use charlstm_proto::v1::{GeneratedText, GenerationFinished, GenerationStarted};

use super::response;
use crate::display;
use crate::failure::Failure;
use crate::json;
use crate::output::{GeneratedOutput, Output};

/// Prints one generation.
pub(in crate::commands) struct Printer {
    /// The prompt, until it has been printed.
    echo: Option<String>,
    /// What the server reported when the first attempt started.
    started: Option<GenerationStarted>,
    chars: u64,
    seconds: f64,
    text: GeneratedOutput,
    output: Output,
}

impl Printer {
    /// Creates a printer that prints `echo` before the text.
    pub(in crate::commands) fn new(echo: Option<String>, output: Output) -> Self {
        Self {
            echo,
            started: None,
            chars: 0,
            seconds: 0.0,
            text: output.generated(),
            output,
        }
    }

    /// Returns what the server reported at the start, once the generation has
    /// started.
    pub(in crate::commands) fn started(&self) -> Option<&GenerationStarted> {
        self.started.as_ref()
    }

    /// Ends the line on a terminal, so that the prompt of the shell starts on a
    /// new one.
    pub(in crate::commands) fn end_line(&mut self) -> Result<(), Failure> {
        if self.output.json {
            return Ok(());
        }
        self.text.end_line()
    }

    /// Writes a message to standard error, on a line of its own.
    pub(super) fn note(&mut self, message: &str) {
        // A terminal that cannot be written to is reported with the text.
        let _ = self.end_line();
        self.output.note(message);
    }

    /// Prints that the generation started. The prompt is printed only now,
    /// because the server has accepted it.
    pub(super) fn start(&mut self, started: GenerationStarted) -> Result<(), Failure> {
        if self.started.is_some() {
            return Ok(());
        }
        self.started = Some(started.clone());
        if started.unknown_chars > 0 {
            self.output.note(&format!(
                "the model does not know {} of the prompt: skipped or replaced (--unknown)",
                display::plural(started.unknown_chars, "character")
            ));
        }
        if self.output.json {
            return self.object(Event::Started(started));
        }
        match self.echo.take() {
            Some(prompt) => self.text.write(&prompt),
            None => Ok(()),
        }
    }

    /// Prints text that was not printed before.
    pub(super) fn text(&mut self, text: GeneratedText) -> Result<(), Failure> {
        self.chars += text.text.chars().count() as u64;
        if self.output.json {
            return self.object(Event::Text(text));
        }
        self.text.write(&text.text)
    }

    /// Adds the duration of a part of the generation that has ended.
    pub(super) fn add_seconds(&mut self, seconds: f64) {
        self.seconds += seconds;
    }

    /// Prints the last event, with the number of characters and the duration of
    /// the whole generation, and returns it.
    pub(super) fn finish(
        &mut self,
        finished: GenerationFinished,
    ) -> Result<GenerationFinished, Failure> {
        let finished = GenerationFinished {
            chars: self.chars,
            seconds: self.seconds + finished.seconds,
            ..finished
        };
        if self.output.json {
            self.object(Event::Finished(finished.clone()))?;
        }
        Ok(finished)
    }

    fn object(&self, event: Event) -> Result<(), Failure> {
        let object = json::event("GenerateResponse", &response(event));
        self.output.object(&object)
    }
}
