//! `generate`: prints the prime and the text as it comes, and repeats a call
//! in a session safely where the connection broke.

use charlstm_proto::v1::generate_response::Event;
use charlstm_proto::v1::{FinishReason, GenerateRequest, GenerateResponse, GenerationFinished};
use tonic::{Code, Status};

use super::replay::{Backoff, Replay};
use crate::args::GenerateArgs;
use crate::connect::Connection;
use crate::exit::{Failure, lost_connection};
use crate::human;
use crate::json;
use crate::output::Output;

/// Generates and prints.
pub(crate) async fn run(
    args: GenerateArgs,
    connection: &Connection,
    output: Output,
) -> Result<(), Failure> {
    let request = GenerateRequest {
        model: args.model,
        prime: args.prime.unwrap_or_default(),
        max_chars: Some(args.length),
        session_id: args.session,
        sampling: Some(args.sampling.to_sampling()),
        stop: args.stop,
        ..Default::default()
    };
    print(connection, request, !args.no_echo, output)
        .await
        .map(drop)
}

/// Prints the text of `request`, after its prime where `echo` is set, and
/// nothing else. Returns when the generation has ended; `Refused` where it
/// ended early.
pub(crate) async fn print(
    connection: &Connection,
    request: GenerateRequest,
    echo: bool,
    output: Output,
) -> Result<GenerationFinished, Failure> {
    let mut printer = Printer {
        echo: echo.then(|| request.prime.clone()),
        replay: Replay::default(),
        line_open: false,
        output,
    };
    let outcome = generate(connection, request, &mut printer).await;
    if printer.line_open && output.on_terminal() {
        // The prompt of the shell belongs on a line of its own.
        output.text("\n")?;
    }
    outcome
}

/// Makes the call, and makes it again where that is safe.
async fn generate(
    connection: &Connection,
    mut request: GenerateRequest,
    printer: &mut Printer,
) -> Result<GenerationFinished, Failure> {
    let session = request.session_id.clone().filter(|id| !id.is_empty());
    let mut backoff = Backoff::default();
    loop {
        let shown_before = printer.replay.shown();
        let status = match attempt(connection, request.clone(), printer).await {
            Ok(finished) => return ended_well(finished, session.as_deref()),
            Err(Failure::Server(status)) => status,
            Err(failure) => return Err(failure),
        };
        if printer.replay.shown() > shown_before {
            backoff.reset();
        }
        let repeated = request.expected_position.is_some();
        if session.is_none() || !worth_repeating(&status, repeated) {
            return Err(Failure::Server(status));
        }
        let (Some(position), Some(wait)) = (printer.replay.again(), backoff.next()) else {
            return Err(Failure::Server(status));
        };
        printer.output.note(&format!(
            "{}; repeating the call from position {position} in {}",
            Failure::Server(status),
            human::seconds(wait.as_secs_f64()),
        ));
        tokio::time::sleep(wait).await;
        request.expected_position = Some(position);
    }
}

/// True where the same call may succeed a little later.
fn worth_repeating(status: &Status, repeated: bool) -> bool {
    // The server may not have noticed yet that the broken call has left.
    lost_connection(status) || (repeated && status.code() == Code::Aborted)
}

/// One call from its beginning to its end.
async fn attempt(
    connection: &Connection,
    request: GenerateRequest,
    printer: &mut Printer,
) -> Result<GenerationFinished, Failure> {
    let mut stream = connection
        .generation()
        .generate(request)
        .await?
        .into_inner();
    while let Some(response) = stream.message().await? {
        if let Some(finished) = printer.print(response)? {
            return Ok(finished);
        }
    }
    Err(Status::unavailable("the text ended before the generation did").into())
}

/// Tells an end that was asked for from one that was not.
fn ended_well(
    finished: GenerationFinished,
    session: Option<&str>,
) -> Result<GenerationFinished, Failure> {
    let chars = human::count(finished.chars);
    match finished.reason() {
        FinishReason::Length | FinishReason::Stop | FinishReason::Unspecified => Ok(finished),
        FinishReason::Cancelled => Err(Failure::Refused(format!(
            "the session was deleted or its model removed after {chars} characters"
        ))),
        FinishReason::Shutdown => Err(Failure::Refused(match session {
            Some(id) => format!(
                "the server stopped after {chars} characters; \
                 `generate --session {id}` goes on when it is back"
            ),
            None => format!("the server stopped after {chars} characters"),
        })),
    }
}

/// Writes the events of all tries as those of one generation.
struct Printer {
    /// The prime, until it has been printed.
    echo: Option<String>,
    replay: Replay,
    /// Something was printed, and no line end after it.
    line_open: bool,
    output: Output,
}

impl Printer {
    /// Prints what is new in `response`; the last event comes back.
    fn print(
        &mut self,
        mut response: GenerateResponse,
    ) -> Result<Option<GenerationFinished>, Failure> {
        let finished = match &mut response.event {
            Some(Event::Started(started)) => {
                if !self.replay.started(started.position) {
                    return Ok(None);
                }
                None
            }
            Some(Event::Text(text)) => {
                let unseen = self.replay.unseen(&text.text);
                if unseen.is_empty() {
                    return Ok(None);
                }
                let left_out = text.text.len() - unseen.len();
                text.text.drain(..left_out);
                None
            }
            Some(Event::Finished(finished)) => Some(*finished),
            // An event of a later contract.
            None => return Ok(None),
        };
        if self.output.json {
            let object = json::event("GenerateResponse", &response);
            self.output.object(&object)?;
        } else {
            self.print_text(&response)?;
        }
        Ok(finished)
    }

    fn print_text(&mut self, response: &GenerateResponse) -> Result<(), Failure> {
        let text = match &response.event {
            // The prime is printed once the server has accepted it.
            Some(Event::Started(_)) => self.echo.take().unwrap_or_default(),
            Some(Event::Text(text)) => text.text.clone(),
            _ => return Ok(()),
        };
        self.line_open |= !text.is_empty();
        self.output.text(&text)
    }
}
