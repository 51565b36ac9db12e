//! `repl`: continues each line that is typed, in one session. `command` parses
//! the lines, `line_reader` reads them, `completer` completes them.

mod command;
mod completer;
mod line_reader;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use charlstm_proto::v1::{DeleteSessionRequest, GenerateRequest};
use tonic::Code;

use self::command::{HELP, ReplCommand, Settings};
use self::completer::CommandCompleter;
use self::line_reader::{Line, LineReader};
use super::generation::{self, IfBusy, Printer};
use super::{models, sessions};
use crate::args::ReplArgs;
use crate::connection::Connection;
use crate::display;
use crate::failure::Failure;
use crate::field_names::FieldNames;
use crate::interrupt::Interrupts;
use crate::output::{self, Output};
use crate::output_file::Existing;

/// Reads lines and continues them until Ctrl-D or `/quit`. Errors of the server
/// are printed and do not end the REPL; if the lines come from a pipe, they make
/// it fail at the end.
pub(crate) async fn run(
    args: ReplArgs,
    connection: &Connection,
    output: Output,
) -> Result<(), Failure> {
    let mut repl = Repl::start(args, connection, output).await?;
    let mut lines = LineReader::start(repl.completer.clone())?;
    if lines.is_terminal() && !output.json {
        output.note(&repl.greeting());
    }
    let mut errors = Errors {
        output,
        is_terminal: lines.is_terminal(),
        line: 0,
        count: 0,
    };
    let outcome = loop {
        let line = lines.next().await;
        errors.line += 1;
        match line {
            Line::Text(line) => match repl.execute(command::parse(&line)).await {
                Ok(Next::Line) => {}
                Ok(Next::Reject(message)) => errors.report(&message),
                Ok(Next::Quit) => break errors.outcome(),
                Err(failure) if ends_repl(&failure) => break Err(failure),
                Err(failure) => errors.report(&failure.describe(FieldNames::REPL)),
            },
            Line::Invalid(message) => errors.report(&message),
            Line::Interrupted => output.note("press Ctrl-D to exit"),
            Line::Killed => break Err(Failure::Interrupted),
            Line::Broken(reason) => {
                break Err(Failure::Unreadable {
                    path: PathBuf::from("-"),
                    reason,
                });
            }
            Line::End => break errors.outcome(),
        }
    };
    // From here on, Ctrl-C ends the program.
    drop(lines);
    repl.delete_own_session().await;
    outcome
}

/// Returns true if no further line can be executed after `failure`.
fn ends_repl(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::ClosedPipe
            | Failure::Interrupted
            | Failure::Internal(_)
            | Failure::NoServer { .. }
    )
}

/// Reports the lines that could not be executed.
struct Errors {
    output: Output,
    /// A person sees the error below the line; otherwise the line is named.
    is_terminal: bool,
    /// Number of the current line, from 1.
    line: u64,
    count: u64,
}

impl Errors {
    fn report(&mut self, message: &str) {
        self.count += 1;
        if self.is_terminal {
            self.output.error(message);
        } else {
            self.output.error(&format!("line {}: {message}", self.line));
        }
    }

    /// Returns the outcome of a REPL that has ended: a person has seen the
    /// errors, a script learns of them by the exit code.
    fn outcome(&self) -> Result<(), Failure> {
        if self.is_terminal || self.count == 0 {
            return Ok(());
        }
        Err(Failure::Refused(format!(
            "{} of the input could not be continued",
            display::plural(self.count, "line")
        )))
    }
}

/// What follows a line.
enum Next {
    Line,
    /// The line was not accepted; the message says why.
    Reject(String),
    Quit,
}

/// Where the session stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Position {
    /// The session does not exist yet.
    New,
    /// After this number of characters.
    At(u64),
    /// Only the server knows, for example after Ctrl-C.
    Unknown,
}

/// The last generation, which can be undone or repeated.
#[derive(Clone, Debug)]
struct LastCall {
    prime: String,
    /// Position at which it began.
    start: u64,
}

/// A session and the settings for generating in it.
struct Repl<'c> {
    connection: &'c Connection,
    output: Output,
    completer: CommandCompleter,
    model: String,
    session: String,
    /// True if the REPL chose the id of the session; then it deletes the
    /// session at the end.
    owns_session: bool,
    position: Position,
    last_call: Option<LastCall>,
    /// True after `/undo`, until the session is continued: the server still has
    /// the text that was undone.
    is_undone: bool,
    settings: Settings,
}

impl<'c> Repl<'c> {
    /// Finds the model or the session. Fails if it does not exist, so that the
    /// first text does not.
    async fn start(
        args: ReplArgs,
        connection: &'c Connection,
        output: Output,
    ) -> Result<Self, Failure> {
        let completer = CommandCompleter::default();
        completer.set_models(models::names(connection).await?);
        let (mut model, mut position) = (args.model, Position::New);
        if let Some(id) = &args.session
            && let Some(session) = generation::existing_session(connection, id).await?
        {
            position = Position::At(session.position);
            if model.is_empty() && !session.model.is_empty() {
                model = format!("{}@{}", session.model, session.version);
            }
        }
        if position == Position::New {
            model = models::resolve(connection, &model).await?;
        }
        Ok(Self {
            connection,
            output,
            completer,
            model,
            owns_session: args.session.is_none(),
            session: args.session.unwrap_or_else(new_session_id),
            position,
            last_call: None,
            is_undone: false,
            settings: Settings {
                sampling: args.sampling,
                length: args.length,
                stop: None,
                unknown: args.unknown,
            },
        })
    }

    fn greeting(&self) -> String {
        let session = match self.position {
            Position::At(position) => format!(
                ", session {} at position {}",
                self.session,
                display::count(position)
            ),
            _ => String::new(),
        };
        format!(
            "model {}{session}\ntype a text to continue it; /help lists the commands, Ctrl-D exits",
            self.model
        )
    }

    /// Executes one line.
    async fn execute(&mut self, command: ReplCommand) -> Result<Next, Failure> {
        match command {
            ReplCommand::Continue(text) => return self.continue_text(text).await,
            ReplCommand::Retry => return self.retry().await,
            ReplCommand::Undo => {
                let Some(last) = self.last_call.take() else {
                    return Ok(Next::Reject("there is nothing to undo".into()));
                };
                self.position = Position::At(last.start);
                self.is_undone = true;
                self.output.note(&format!(
                    "the last text is undone; the session continues at position {}",
                    display::count(last.start)
                ));
            }
            ReplCommand::ShowSettings => self.output.note(&self.settings()),
            ReplCommand::Set { name, value } => match self.settings.set(&name, &value) {
                Ok(()) => self.output.note(&self.settings()),
                Err(message) => return Ok(Next::Reject(message)),
            },
            ReplCommand::ShowModels => {
                let names = models::names(self.connection).await?;
                self.output.note(&format!(
                    "using {}; available: {}",
                    self.model,
                    names.join(", ")
                ));
                self.completer.set_models(names);
            }
            ReplCommand::Model(name) => {
                let model = models::resolve(self.connection, &name).await?;
                self.reset().await?;
                self.model = model;
                self.output
                    .note(&format!("started a new session with model {}", self.model));
            }
            ReplCommand::Fork(new) => {
                if let Some(reason) = self.cannot_copy() {
                    return Ok(Next::Reject(reason));
                }
                if let Some(copy) = interruptible(self.fork(&new)).await? {
                    self.output.note(&format!(
                        "continuing in session {new} at position {}; session {} is unchanged",
                        display::count(copy),
                        self.session
                    ));
                    (self.session, self.owns_session) = (new, false);
                    (self.position, self.last_call) = (Position::At(copy), None);
                }
            }
            ReplCommand::Reset => {
                self.reset().await?;
                self.output.note("started a new session");
            }
            ReplCommand::Save { path, force } => {
                if let Some(reason) = self.cannot_copy() {
                    return Ok(Next::Reject(reason));
                }
                interruptible(self.save(path, Existing::from_force(force))).await?;
            }
            ReplCommand::Load(path) => self.load(&path).await?,
            ReplCommand::Help => self.output.note(HELP),
            ReplCommand::Quit => return Ok(Next::Quit),
            ReplCommand::Invalid(message) => return Ok(Next::Reject(message)),
        }
        Ok(Next::Line)
    }

    /// Continues the session with `text`.
    async fn continue_text(&mut self, text: String) -> Result<Next, Failure> {
        let is_empty = matches!(self.position, Position::New | Position::At(0));
        if text.is_empty() && is_empty {
            let message = "there is nothing to continue yet; type some text";
            return Ok(Next::Reject(message.into()));
        }
        let mut request = self.request(text);
        match self.position {
            Position::New => {
                request.expected_position = Some(0);
                generation::choose_seed(&mut request);
            }
            Position::At(position) => request.expected_position = Some(position),
            Position::Unknown => {}
        }
        self.generate(request).await
    }

    /// Generates the last text again: a call with another seed, which starts
    /// where the last one did, replaces it.
    async fn retry(&mut self) -> Result<Next, Failure> {
        let Some(last) = self.last_call.clone() else {
            return Ok(Next::Reject("there is no text to generate again".into()));
        };
        let mut request = self.request(last.prime);
        request.expected_position = Some(last.start);
        generation::choose_seed(&mut request);
        self.generate(request).await
    }

    fn request(&self, prime: String) -> GenerateRequest {
        GenerateRequest {
            model: self.model.clone(),
            unknown: self.settings.unknown.to_contract().into(),
            prime,
            max_chars: Some(self.settings.length),
            session_id: Some(self.session.clone()),
            sampling: Some(self.settings.sampling.to_sampling()),
            stop: self.settings.stop.iter().cloned().collect(),
            ..Default::default()
        }
    }

    /// Generates and prints a text. Ctrl-C stops the generation, not the REPL.
    async fn generate(&mut self, request: GenerateRequest) -> Result<Next, Failure> {
        let prime = request.prime.clone();
        // A call that was interrupted a moment ago may still hold the session.
        let if_busy = match self.position {
            Position::Unknown => IfBusy::Wait,
            _ => IfBusy::Fail,
        };
        let mut printer = Printer::new(None, self.output);
        let mut interrupts = Interrupts::listen();
        let outcome = tokio::select! {
            outcome = generation::run(self.connection, request, if_busy, &mut printer) => {
                outcome.map(Some)
            }
            () = interrupts.next() => Ok(None),
        };
        if self.output.is_terminal() {
            printer.end_line()?;
        } else if !self.output.json && printer.started().is_some() {
            self.output.text("\n")?;
        }
        if let Some(started) = printer.started() {
            self.last_call = Some(LastCall {
                prime,
                start: started.position,
            });
            self.is_undone = false;
            // The seed applies to one call; the session keeps its random state.
            self.settings.sampling.seed = None;
        }
        match outcome {
            Ok(Some(finished)) => self.position = Position::At(finished.position),
            // An interrupted call advances the session too.
            Ok(None) => self.position = Position::Unknown,
            Err(failure) => {
                if printer.started().is_some() || may_have_moved(&failure) {
                    self.position = Position::Unknown;
                }
                return Err(failure);
            }
        }
        Ok(Next::Line)
    }

    /// Returns why the session cannot be copied or saved now.
    fn cannot_copy(&self) -> Option<String> {
        if self.position == Position::New && self.owns_session {
            Some("the session is empty; type some text first".into())
        } else if self.is_undone {
            Some("the text that was undone is still part of the session; continue it first".into())
        } else {
            None
        }
    }

    /// Copies the session and returns the position of the copy.
    async fn fork(&self, new: &str) -> Result<u64, Failure> {
        let copy = sessions::fork(self.connection, &self.session, new, self.output).await?;
        Ok(copy.position)
    }

    /// Writes the session to a file.
    async fn save(&self, path: Option<PathBuf>, existing: Existing) -> Result<(), Failure> {
        let path = path.unwrap_or_else(|| PathBuf::from(format!("{}.session", self.session)));
        let exported = sessions::export(self.connection, &self.session, &path, existing).await?;
        self.output.note(&format!(
            "wrote {} ({}); `/load {}` continues it",
            display::path(&path),
            display::bytes(exported.bytes),
            display::path(&path)
        ));
        Ok(())
    }

    /// Continues a session that was saved to a file, under a new id.
    async fn load(&mut self, path: &Path) -> Result<(), Failure> {
        let data = sessions::read(path)?;
        let id = new_session_id();
        let import = sessions::import(self.connection, data, Some(id), self.output);
        let Some(session) = interruptible(import).await? else {
            return Ok(());
        };
        self.reset().await?;
        self.session = session.session_id;
        self.model = format!("{}@{}", session.model, session.version);
        self.position = Position::At(session.position);
        self.output.note(&format!(
            "loaded {}: model {} at position {}",
            display::path(path),
            self.model,
            display::count(session.position)
        ));
        Ok(())
    }

    /// Starts over with a new session.
    async fn reset(&mut self) -> Result<(), Failure> {
        interruptible(async {
            self.delete_own_session().await;
            Ok(())
        })
        .await?;
        self.session = new_session_id();
        (self.owns_session, self.is_undone) = (true, false);
        (self.position, self.last_call) = (Position::New, None);
        Ok(())
    }

    /// Deletes the session if the REPL chose its id.
    async fn delete_own_session(&self) {
        if self.owns_session && self.position != Position::New {
            let request = DeleteSessionRequest {
                session_id: self.session.clone(),
                owner: None,
            };
            // If this fails, the server evicts the idle session after a while.
            let _ = self.connection.sessions().delete_session(request).await;
        }
    }

    fn settings(&self) -> String {
        fn or_default<T: ToString>(value: Option<T>, default: &str) -> String {
            value.map_or_else(|| format!("{default} (default)"), |value| value.to_string())
        }
        let on_or_off = |on| if on { "on" } else { "off" };
        let sampling = self.settings.sampling.to_sampling();
        let stop = self.settings.stop.as_deref().map(display::quoted);
        let pairs = [
            ("model", self.model.clone()),
            ("session", self.session.clone()),
            ("length", self.settings.length.to_string()),
            ("temperature", or_default(sampling.temperature, "1")),
            ("top_k", or_default(sampling.top_k, "all")),
            ("top_p", or_default(sampling.top_p, "1")),
            ("min_p", or_default(sampling.min_p, "0")),
            ("seed", or_default(sampling.seed, "random")),
            ("greedy", or_default(sampling.greedy.map(on_or_off), "off")),
            ("stop", or_default(stop, "none")),
            ("unknown", self.settings.unknown.name().to_owned()),
        ];
        display::key_values(&pairs, output::stderr_columns())
    }
}

/// Returns true if a call that has failed before it started may have left the
/// session at another position than expected.
fn may_have_moved(failure: &Failure) -> bool {
    match failure {
        Failure::Server(status) => status.code() != Code::InvalidArgument,
        Failure::WithRemedy { failure, .. } => may_have_moved(failure),
        _ => true,
    }
}

/// Runs `work` until it ends, or returns `None` when Ctrl-C cancels it.
async fn interruptible<Outcome>(
    work: impl Future<Output = Result<Outcome, Failure>>,
) -> Result<Option<Outcome>, Failure> {
    let mut interrupts = Interrupts::listen();
    tokio::select! {
        outcome = work => outcome.map(Some),
        () = interrupts.next() => Ok(None),
    }
}

/// Creates a session id that no other client uses.
fn new_session_id() -> String {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("repl-{}-{}", std::process::id(), since_epoch.as_micros())
}
