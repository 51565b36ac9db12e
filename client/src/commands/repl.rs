//! `repl`: a conversation with a session. What is typed is understood in
//! `words`; lines are read in `lines`.

mod lines;
mod words;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use charlstm_proto::v1::{DeleteSessionRequest, GenerateRequest};
use tonic::Code;

use self::lines::{Line, Lines};
use self::words::{HELP, Said};
use super::replay::Backoff;
use super::{generate, sessions};
use crate::args::{ReplArgs, SamplingFlags};
use crate::connect::Connection;
use crate::exit::{Failure, Interrupts};
use crate::human;
use crate::output::Output;

/// Reads, generates and prints until Ctrl-D or `/quit`.
pub(crate) async fn run(
    args: ReplArgs,
    connection: &Connection,
    output: Output,
) -> Result<(), Failure> {
    let mut conversation = Conversation {
        connection,
        output,
        model: args.model,
        own_session: args.session.is_none(),
        session: args.session.unwrap_or_else(new_session_id),
        begun: false,
        length: args.length,
        sampling: args.sampling,
    };
    if output.on_terminal() {
        output.note("type text to go on from it; /help tells more, Ctrl-D leaves");
    }
    let mut lines = Lines::open()?;
    let outcome = loop {
        match lines.next().await {
            Line::Said(line) => match conversation.turn(words::understand(&line)).await {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                // The conversation outlives what the server refuses.
                Err(failure @ (Failure::Server(_) | Failure::Refused(_) | Failure::Io { .. })) => {
                    output.note(&format!("error: {failure}"));
                }
                Err(failure) => break Err(failure),
            },
            Line::Interrupted => output.note("Ctrl-D leaves"),
            Line::Killed => break Err(Failure::Interrupted),
            Line::End => break Ok(()),
        }
    };
    // From here on Ctrl-C leaves at once.
    drop(lines);
    conversation.leave().await;
    outcome
}

/// A session and how text is generated in it.
struct Conversation<'c> {
    connection: &'c Connection,
    output: Output,
    model: String,
    session: String,
    /// The session was made here, and is let go at the end.
    own_session: bool,
    begun: bool,
    length: u32,
    sampling: SamplingFlags,
}

impl Conversation<'_> {
    /// Does what was said; false where it was the last word.
    async fn turn(&mut self, said: Said) -> Result<bool, Failure> {
        match said {
            Said::Text(text) => self.generate(text).await?,
            Said::Show => self.output.note(&self.settings()),
            Said::Set { name, value } => {
                match words::set(&mut self.sampling, &mut self.length, &name, &value) {
                    Ok(()) => self.output.note(&self.settings()),
                    Err(message) => self.output.note(&message),
                }
            }
            Said::Fork(new) => stoppable(self.fork(new)).await?,
            Said::Reset => {
                stoppable(async {
                    self.leave().await;
                    Ok(())
                })
                .await?;
                self.session = new_session_id();
                (self.own_session, self.begun) = (true, false);
                self.output.note("a new session; the old text is forgotten");
            }
            Said::Save(path) => stoppable(self.save(path)).await?,
            Said::Help => self.output.note(HELP),
            Said::Quit => return Ok(false),
            Said::Unclear(message) => self.output.note(&message),
        }
        Ok(true)
    }

    /// Generates from `text`; Ctrl-C stops the text only.
    async fn generate(&mut self, text: String) -> Result<(), Failure> {
        if text.is_empty() && !self.begun && self.own_session {
            self.output
                .note("there is nothing to go on from yet; type some text");
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
        // On a terminal a text that was not stopped ends its own line.
        let line_open = tokio::select! {
            outcome = self.print(request) => {
                outcome?;
                !self.output.on_terminal()
            }
            () = interrupts.next() => true,
        };
        // Even a call that was stopped has moved the session.
        self.begun = true;
        // The seed began the random numbers; the session goes on with them.
        self.sampling.seed = None;
        if line_open && !self.output.json {
            self.output.text("\n")?;
        }
        Ok(())
    }

    /// Prints one text. A call that was stopped a moment ago may still hold
    /// the session: then it is tried again.
    async fn print(&self, request: GenerateRequest) -> Result<(), Failure> {
        let mut backoff = Backoff::default();
        loop {
            let outcome =
                generate::print(self.connection, request.clone(), false, self.output).await;
            match outcome {
                Err(Failure::Server(status)) if status.code() == Code::Aborted => {
                    match backoff.next() {
                        Some(wait) => tokio::time::sleep(wait).await,
                        None => return Err(Failure::Server(status)),
                    }
                }
                other => return other.map(drop),
            }
        }
    }

    /// Goes on in a copy; the session as it is now stays under its name.
    async fn fork(&mut self, new: String) -> Result<(), Failure> {
        let session = sessions::fork(self.connection, &self.session, &new).await?;
        self.output.note(&format!(
            "going on as {new} at position {}; {} stays as it is",
            human::count(session.position),
            self.session
        ));
        (self.session, self.own_session) = (new, false);
        Ok(())
    }

    async fn save(&self, path: Option<PathBuf>) -> Result<(), Failure> {
        let path = path.unwrap_or_else(|| PathBuf::from(format!("{}.session", self.session)));
        let bytes = sessions::export(self.connection, &self.session, &path).await?;
        self.output.note(&format!(
            "wrote {} ({}); `charlstm-client sessions import` reads it",
            path.display(),
            human::bytes(bytes)
        ));
        Ok(())
    }

    /// Lets the session go where nobody else knows its name.
    async fn leave(&self) {
        if self.own_session && self.begun {
            let request = DeleteSessionRequest {
                session_id: self.session.clone(),
            };
            // The server lets it go by itself after a while.
            let _ = self.connection.sessions().delete_session(request).await;
        }
    }

    fn settings(&self) -> String {
        let sampling = self.sampling.to_sampling();
        let number = |value: Option<f64>| value.map_or("default".into(), |value| value.to_string());
        human::facts(&[
            ("session", self.session.clone()),
            ("length", self.length.to_string()),
            ("temperature", number(sampling.temperature)),
            (
                "top_k",
                sampling.top_k.map_or("all".into(), |k| k.to_string()),
            ),
            ("top_p", number(sampling.top_p)),
            ("min_p", number(sampling.min_p)),
            (
                "seed",
                sampling
                    .seed
                    .map_or("default".into(), |seed| seed.to_string()),
            ),
            ("greedy", sampling.greedy().to_string()),
        ])
    }
}

/// Does `work`, unless Ctrl-C comes before it is done.
async fn stoppable(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let mut interrupts = Interrupts::listen();
    tokio::select! {
        outcome = work => outcome,
        () = interrupts.next() => Ok(()),
    }
}

/// A name that no other client uses.
fn new_session_id() -> String {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("repl-{}-{}", std::process::id(), since_epoch.as_micros())
}
