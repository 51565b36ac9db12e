//! `repl`: continues each line that is typed, in one session. `command` parses
//! the lines, `line_reader` reads them.

mod command;
mod line_reader;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use charlstm_proto::v1::{DeleteSessionRequest, GenerateRequest};
use tonic::Code;

use self::command::{HELP, ReplCommand};
use self::line_reader::{Line, LineReader};
use super::{generate, retry, sessions};
use crate::args::{ReplArgs, SamplingFlags};
use crate::connection::Connection;
use crate::display;
use crate::failure::Failure;
use crate::field_names::FieldNames;
use crate::interrupt::Interrupts;
use crate::output::Output;

/// Reads lines and continues them until Ctrl-D or `/quit`. Errors of the server
/// are printed and do not end the REPL.
pub(crate) async fn run(
    args: ReplArgs,
    connection: &Connection,
    output: Output,
) -> Result<(), Failure> {
    let mut repl = Repl {
        connection,
        output,
        model: args.model,
        owns_session: args.session.is_none(),
        session: args.session.unwrap_or_else(new_session_id),
        has_generated: false,
        length: args.length,
        sampling: args.sampling,
    };
    if output.is_terminal() {
        output.note("type a text to continue it; /help lists the commands, Ctrl-D exits");
    }
    let mut lines = LineReader::start()?;
    let outcome = loop {
        match lines.next().await {
            Line::Text(line) => match repl.execute(command::parse(&line)).await {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(failure @ (Failure::Server(_) | Failure::Refused(_) | Failure::Io { .. })) => {
                    output.error(&failure.describe(FieldNames::REPL));
                }
                Err(failure) => break Err(failure),
            },
            Line::Interrupted => output.note("press Ctrl-D to exit"),
            Line::Killed => break Err(Failure::Interrupted),
            Line::End => break Ok(()),
        }
    };
    // From here on, Ctrl-C ends the program.
    drop(lines);
    repl.delete_own_session().await;
    outcome
}

/// A session and the settings for generating in it.
struct Repl<'c> {
    connection: &'c Connection,
    output: Output,
    model: String,
    session: String,
    /// True if the REPL chose the id of the session; then it deletes the
    /// session at the end.
    owns_session: bool,
    /// True once text was generated in the session.
    has_generated: bool,
    length: u32,
    sampling: SamplingFlags,
}

impl Repl<'_> {
    /// Executes one line. Returns false if the REPL ends.
    async fn execute(&mut self, command: ReplCommand) -> Result<bool, Failure> {
        match command {
            ReplCommand::Continue(text) => self.generate(text).await?,
            ReplCommand::ShowSettings => self.output.note(&self.settings()),
            ReplCommand::Set { name, value } => {
                match command::set(&mut self.sampling, &mut self.length, &name, &value) {
                    Ok(()) => self.output.note(&self.settings()),
                    Err(message) => self.output.note(&message),
                }
            }
            ReplCommand::Fork(new) => interruptible(self.fork(new)).await?,
            ReplCommand::Reset => {
                interruptible(async {
                    self.delete_own_session().await;
                    Ok(())
                })
                .await?;
                self.session = new_session_id();
                (self.owns_session, self.has_generated) = (true, false);
                self.output.note("started a new session");
            }
            ReplCommand::Save(path) => interruptible(self.save(path)).await?,
            ReplCommand::Help => self.output.note(HELP),
            ReplCommand::Quit => return Ok(false),
            ReplCommand::Invalid(message) => self.output.note(&message),
        }
        Ok(true)
    }

    /// Continues `text`. Ctrl-C stops the generation, not the REPL.
    async fn generate(&mut self, text: String) -> Result<(), Failure> {
        if text.is_empty() && !self.has_generated && self.owns_session {
            self.output
                .note("there is nothing to continue yet; type some text");
            return Ok(());
        }
        let request = GenerateRequest {
            model: self.model.clone(),
            prime: text,
            max_chars: Some(self.length),
            session_id: Some(self.session.clone()),
            sampling: Some(self.sampling.to_sampling()),
            ..Default::default()
        };
        let mut interrupts = Interrupts::listen();
        // `generate::print` ends the line only on a terminal, and only if it
        // is not interrupted.
        let needs_line_end = tokio::select! {
            outcome = self.print(request) => {
                outcome?;
                !self.output.is_terminal()
            }
            () = interrupts.next() => true,
        };
        // An interrupted call advances the session too.
        self.has_generated = true;
        // The seed applies to one call; the session keeps its random state.
        self.sampling.seed = None;
        if needs_line_end && !self.output.json {
            self.output.text("\n")?;
        }
        Ok(())
    }

    /// Generates and prints one text. Retries while the previous call, if it
    /// was interrupted a moment ago, still holds the session.
    async fn print(&self, request: GenerateRequest) -> Result<(), Failure> {
        let mut delays = retry::delays();
        loop {
            let outcome =
                generate::print(self.connection, request.clone(), false, self.output).await;
            match outcome {
                Err(Failure::Server(status)) if status.code() == Code::Aborted => {
                    match delays.next() {
                        Some(delay) => tokio::time::sleep(delay).await,
                        None => return Err(Failure::Server(status)),
                    }
                }
                other => return other.map(drop),
            }
        }
    }

    /// Copies the session and switches to the copy, which is kept at the end.
    async fn fork(&mut self, new: String) -> Result<(), Failure> {
        let copy = sessions::fork(self.connection, &self.session, &new).await?;
        self.output.note(&format!(
            "continuing in session {new} at position {}; session {} is unchanged",
            display::count(copy.position),
            self.session
        ));
        (self.session, self.owns_session) = (new, false);
        Ok(())
    }

    /// Writes the session to a file.
    async fn save(&self, path: Option<PathBuf>) -> Result<(), Failure> {
        let path = path.unwrap_or_else(|| PathBuf::from(format!("{}.session", self.session)));
        let bytes = sessions::export(self.connection, &self.session, &path).await?;
        self.output.note(&format!(
            "wrote {} ({}); import it with `charlstm-client sessions import`",
            path.display(),
            display::bytes(bytes)
        ));
        Ok(())
    }

    /// Deletes the session if the REPL chose its id.
    async fn delete_own_session(&self) {
        if self.owns_session && self.has_generated {
            let request = DeleteSessionRequest {
                session_id: self.session.clone(),
            };
            // If this fails, the server evicts the idle session after a while.
            let _ = self.connection.sessions().delete_session(request).await;
        }
    }

    fn settings(&self) -> String {
        fn or_default<T: ToString>(value: Option<T>, default: &str) -> String {
            value.map_or_else(|| format!("{default} (default)"), |value| value.to_string())
        }
        let sampling = self.sampling.to_sampling();
        display::key_values(&[
            ("session", self.session.clone()),
            ("length", self.length.to_string()),
            ("temperature", or_default(sampling.temperature, "1")),
            ("top_k", or_default(sampling.top_k, "all")),
            ("top_p", or_default(sampling.top_p, "1")),
            ("min_p", or_default(sampling.min_p, "0")),
            ("seed", or_default(sampling.seed, "random")),
            ("greedy", sampling.greedy().to_string()),
        ])
    }
}

/// Runs `work` until it ends or Ctrl-C cancels it.
async fn interruptible(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let mut interrupts = Interrupts::listen();
    tokio::select! {
        outcome = work => outcome,
        () = interrupts.next() => Ok(()),
    }
}

/// Creates a session id that no other client uses.
fn new_session_id() -> String {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("repl-{}-{}", std::process::id(), since_epoch.as_micros())
}
