//! `generate`: prints the prompt and the text as it is generated. In a session,
//! a call whose connection was lost is repeated without printing a character
//! twice.

use charlstm_proto::v1::generate_response::Event;
use charlstm_proto::v1::{FinishReason, GenerateRequest, GenerateResponse, GenerationFinished};
use tonic::{Code, Status};

use super::replay::Replay;
use super::retry;
use crate::args::GenerateArgs;
use crate::connection::Connection;
use crate::display;
use crate::failure::{Failure, connection_lost};
use crate::json;
use crate::output::Output;

/// Generates a text and prints it.
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

/// Generates a text and prints it, after the prompt if `echo` is set, and
/// nothing else. Fails with `Refused` if the generation ended early.
pub(super) async fn print(
    connection: &Connection,
    request: GenerateRequest,
    echo: bool,
    output: Output,
) -> Result<GenerationFinished, Failure> {
    let mut printer = Printer {
        echo: echo.then(|| request.prime.clone()),
        replay: Replay::default(),
        has_printed: false,
        output,
    };
    let outcome = generate(connection, request, &mut printer).await;
    if printer.has_printed && output.is_terminal() {
        // The prompt of the shell goes on a new line.
        output.text("\n")?;
    }
    outcome
}

/// Makes the call, and repeats it if the connection is lost and the call is in
/// a session.
async fn generate(
    connection: &Connection,
    mut request: GenerateRequest,
    printer: &mut Printer,
) -> Result<GenerationFinished, Failure> {
    let session = request.session_id.clone().filter(|id| !id.is_empty());
    let mut delays = retry::delays();
    loop {
        let printed_before = printer.replay.printed();
        let status = match attempt(connection, request.clone(), printer).await {
            Ok(finished) => return check_reason(finished, session.as_deref()),
            Err(Failure::Server(status)) => status,
            Err(failure) => return Err(failure),
        };
        if printer.replay.printed() > printed_before {
            delays = retry::delays();
        }
        let is_repeated = request.expected_position.is_some();
        if session.is_none() || !is_retryable(&status, is_repeated) {
            return Err(Failure::Server(status));
        }
        let (Some(position), Some(delay)) = (printer.replay.restart(), delays.next()) else {
            return Err(Failure::Server(status));
        };
        printer.output.note(&format!(
            "{}; repeating the call from position {position} in {}",
            Failure::Server(status),
            display::seconds(delay.as_secs_f64()),
        ));
        tokio::time::sleep(delay).await;
        request.expected_position = Some(position);
    }
}

/// Returns true if the same call may succeed a moment later.
fn is_retryable(status: &Status, is_repeated: bool) -> bool {
    // ABORTED: the server may not have noticed yet that the previous attempt
    // is gone, and still reserves the session for it.
    connection_lost(status) || (is_repeated && status.code() == Code::Aborted)
}

/// Makes the call once, and prints its text.
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
    Err(Status::unavailable("the stream ended before the generation did").into())
}

/// Fails with `Refused` if the generation ended for another reason than the
/// length or a stop text.
fn check_reason(
    finished: GenerationFinished,
    session: Option<&str>,
) -> Result<GenerationFinished, Failure> {
    let chars = display::plural(finished.chars, "character");
    match finished.reason() {
        FinishReason::Length | FinishReason::Stop | FinishReason::Unspecified => Ok(finished),
        FinishReason::Cancelled => Err(Failure::Refused(format!(
            "the session or its model was deleted after {chars}"
        ))),
        FinishReason::Shutdown => Err(Failure::Refused(match session {
            Some(id) => format!(
                "the server shut down after {chars}; when it is back, \
                 `generate --session {id}` continues the text"
            ),
            None => format!("the server shut down after {chars}"),
        })),
    }
}

/// Prints the events of all attempts as those of one generation.
struct Printer {
    /// The prompt, until it has been printed.
    echo: Option<String>,
    replay: Replay,
    /// True once some text was printed.
    has_printed: bool,
    output: Output,
}

impl Printer {
    /// Prints what is new in `response`. Returns the last event.
    fn print(
        &mut self,
        mut response: GenerateResponse,
    ) -> Result<Option<GenerationFinished>, Failure> {
        let finished = match &mut response.event {
            Some(Event::Started(started)) => {
                if !self.replay.record_start(started.position) {
                    return Ok(None);
                }
                None
            }
            Some(Event::Text(text)) => {
                let new_part = self.replay.new_part(&text.text);
                if new_part.is_empty() {
                    return Ok(None);
                }
                let dropped_bytes = text.text.len() - new_part.len();
                text.text.drain(..dropped_bytes);
                None
            }
            Some(Event::Finished(finished)) => Some(finished.clone()),
            // An event of a newer version of the contract.
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
            // The prompt is printed only after the server has accepted it.
            Some(Event::Started(_)) => self.echo.take().unwrap_or_default(),
            Some(Event::Text(text)) => text.text.clone(),
            _ => return Ok(()),
        };
        self.has_printed |= !text.is_empty();
        self.output.text(&text)
    }
}
