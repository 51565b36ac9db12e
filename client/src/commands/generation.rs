//! Runs a generation to its end. A call that was interrupted by a lost
//! connection, a crash or a shutdown of the server is repeated or continued
//! without printing a character twice: `leg` keeps track of the text, `printer`
//! prints it.

mod leg;
mod printer;

use charlstm_proto::v1::generate_response::Event;
use charlstm_proto::v1::{
    FinishReason, GenerateRequest, GenerateResponse, GenerationFinished, GetSessionRequest,
    ListSessionsRequest, Sampling, Session,
};
use tonic::{Code, Status};

use self::leg::{Diverged, Leg};
pub(super) use self::printer::Printer;
use super::retry::{self, Pause, RetryPolicy};
use crate::connection::Connection;
use crate::display;
use crate::failure::{self, Failure};
use crate::suggestion::nearest;

/// What helps if the model does not know a character.
pub(super) const UNKNOWN_REMEDY: &str = "`--unknown skip` leaves out the characters that the model \
     does not know, `--unknown replace` replaces them";

/// What to do if another call is generating in the session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum IfBusy {
    /// Fail.
    Fail,
    /// Wait: the other call is one of this client that was interrupted.
    Wait,
}

/// Generates a text and prints it.
///
/// In a session whose position is not known (`expected_position` is not set),
/// the server is asked for it first. A call that does not continue a session
/// gets a seed. Both make it safe to repeat the call even if the answer to the
/// first attempt is lost.
///
/// Fails with `Refused` if the generation ended early.
pub(super) async fn run(
    connection: &Connection,
    mut request: GenerateRequest,
    if_busy: IfBusy,
    printer: &mut Printer,
) -> Result<GenerationFinished, Failure> {
    let mut policy = RetryPolicy::new();
    locate(connection, &mut request, if_busy, &mut policy, printer).await?;
    let mut leg = Leg::new(request);
    let mut is_repeated = if_busy == IfBusy::Wait;
    loop {
        let printed_before = leg.printed_chars();
        let outcome = attempt(connection, &mut leg, printer).await;
        if leg.printed_chars() > printed_before {
            policy.reset();
        }
        match outcome {
            Ok(finished) if finished.reason() == FinishReason::Shutdown => {
                let Some(delay) = policy.next_delay() else {
                    printer.finish(finished.clone())?;
                    return check_reason(finished, leg.session());
                };
                printer.add_seconds(finished.seconds);
                let Some(rest) = leg.after_shutdown(&finished) else {
                    let finished = GenerationFinished {
                        reason: FinishReason::Length.into(),
                        ..finished
                    };
                    return printer.finish(finished);
                };
                leg = rest;
                let from = leg
                    .start()
                    .map_or_else(String::new, |position| format!(" at position {position}"));
                printer.note(&format!(
                    "the server is shutting down; continuing{from} in {}",
                    display::seconds(delay.as_secs_f64()),
                ));
                tokio::time::sleep(delay).await;
                connection.use_next_server();
                is_repeated = true;
            }
            Ok(finished) => {
                let finished = printer.finish(finished)?;
                return check_reason(finished, leg.session());
            }
            Err(Failure::Server(status)) => {
                // ABORTED: the server may not have noticed yet that the previous
                // attempt is gone, and still reserves the session for it.
                let pause = match status.code() {
                    Code::Aborted if is_repeated || was_taken_over(&status) => {
                        policy.next_delay().map(Pause::Reconnect)
                    }
                    _ => policy.pause(&status, leg.has_started()),
                };
                let Some(pause) = pause else {
                    return Err(with_remedy(status, leg.session()));
                };
                wait(pause, &status, leg.start(), printer).await;
                connection.use_next_server();
                is_repeated = true;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Whether another server continued the session while this one was suspended or
/// cut off: nothing of the call was stored, and it can be repeated.
fn was_taken_over(status: &Status) -> bool {
    failure::has_reason(status, "SESSION_FENCED")
}

/// Reports a failed attempt and waits.
async fn wait(pause: Pause, status: &Status, start: Option<u64>, printer: &mut Printer) {
    let delay = match pause {
        Pause::Storage(delay) => {
            printer.note(&retry::storage_message(status, delay));
            delay
        }
        Pause::Reconnect(delay) => {
            let from =
                start.map_or_else(String::new, |position| format!(" from position {position}"));
            printer.note(&format!(
                "{}; repeating the call{from} in {}",
                Failure::from(status.clone()),
                display::seconds(delay.as_secs_f64()),
            ));
            delay
        }
    };
    tokio::time::sleep(delay).await;
}

/// Completes a request with what makes its repetition safe: the position of the
/// session, and the seed of a call that does not continue a session.
async fn locate(
    connection: &Connection,
    request: &mut GenerateRequest,
    if_busy: IfBusy,
    policy: &mut RetryPolicy,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let Some(id) = request.session_id.clone().filter(|id| !id.is_empty()) else {
        choose_seed(request);
        return Ok(());
    };
    if request.expected_position.is_some() {
        return Ok(());
    }
    loop {
        let status = match get_session(connection, &id).await {
            Ok(Some(session)) if session.busy && if_busy == IfBusy::Wait => {
                let Some(delay) = policy.next_delay() else {
                    return Err(Failure::Refused(format!(
                        "another call is generating in session {id}"
                    )));
                };
                tokio::time::sleep(delay).await;
                continue;
            }
            Ok(Some(session)) => {
                request.expected_position = Some(session.position);
                policy.reset();
                return Ok(());
            }
            Ok(None) if request.prime.is_empty() => {
                return Err(no_such_session(connection, &id).await);
            }
            Ok(None) => {
                request.expected_position = Some(0);
                choose_seed(request);
                policy.reset();
                return Ok(());
            }
            // A server without sessions reports that itself.
            Err(status) if status.code() == Code::Unimplemented => return Ok(()),
            Err(status) => status,
        };
        let Some(pause) = policy.pause(&status, false) else {
            return Err(with_remedy(Box::new(status), Some(&id)));
        };
        wait(pause, &status, None, printer).await;
        connection.use_next_server();
    }
}

/// Describes a session; `None` if it does not exist and can be created.
async fn get_session(connection: &Connection, id: &str) -> Result<Option<Session>, Status> {
    let request = GetSessionRequest {
        session_id: id.to_owned(),
        owner: None,
    };
    match connection.sessions().get_session(request).await {
        Ok(response) => Ok(response.into_inner().session),
        // Any other reason means that the session was evicted or lost.
        Err(status)
            if status.code() == Code::NotFound
                && failure::reason(&status).is_none_or(|reason| reason == "SESSION_NOT_FOUND") =>
        {
            Ok(None)
        }
        Err(status) => Err(status),
    }
}

/// Describes a session, or returns `None` if it does not exist and can be
/// created. A server that cannot describe sessions has none.
pub(super) async fn existing_session(
    connection: &Connection,
    id: &str,
) -> Result<Option<Session>, Failure> {
    match get_session(connection, id).await {
        Ok(session) => Ok(session),
        Err(status) if status.code() == Code::Unimplemented => Ok(None),
        Err(status) => Err(with_remedy(Box::new(status), Some(id))),
    }
}

/// Sets a random seed if the request has none.
pub(super) fn choose_seed(request: &mut GenerateRequest) {
    let sampling = request.sampling.get_or_insert_with(Sampling::default);
    sampling.seed.get_or_insert_with(rand::random);
}

/// Creates the failure of continuing a session that does not exist.
async fn no_such_session(connection: &Connection, id: &str) -> Failure {
    let request = ListSessionsRequest::default();
    let sessions = match connection.sessions().list_sessions(request).await {
        Ok(response) => response.into_inner().sessions,
        // The list only serves a suggestion.
        Err(_) => Vec::new(),
    };
    let ids = sessions.iter().map(|session| session.session_id.as_str());
    let suggestion =
        nearest(id, ids).map_or_else(String::new, |id| format!(" (did you mean {id:?}?)"));
    Failure::Refused(format!(
        "there is no session {id:?}{suggestion}; use --prime TEXT to start it"
    ))
}

/// Creates the failure of a call, with the command that helps if there is one.
fn with_remedy(status: Box<Status>, session: Option<&str>) -> Failure {
    // The message is larger than the server accepts.
    if status.code() == Code::OutOfRange {
        return Failure::Refused("the prompt is too long for one call".into()).with_remedy(
            "split it, and read the parts one after another in a session with --length 0",
        );
    }
    if failure::is_unknown_character(&status) {
        return Failure::Server(status).with_remedy(UNKNOWN_REMEDY);
    }
    let reason = failure::reason(&status).unwrap_or_default();
    let is_evicted = reason.starts_with("SESSION_EVICTED") || reason.starts_with("SESSION_LOST");
    let failure = Failure::Server(status);
    match session {
        Some(id) if is_evicted || reason == "SESSION_MODEL_GONE" => failure.with_remedy(format!(
            "run `charlstm-client sessions delete {id}` to free the name, and use --prime TEXT \
             to start a new session"
        )),
        _ => failure,
    }
}

/// Makes the call once, and prints its text. Returns the last event, which is
/// not printed yet.
async fn attempt(
    connection: &Connection,
    leg: &mut Leg,
    printer: &mut Printer,
) -> Result<GenerationFinished, Failure> {
    let request = leg.next_attempt();
    let mut stream = connection
        .generation()
        .generate(request)
        .await?
        .into_inner();
    while let Some(mut response) = stream.message().await? {
        match &mut response.event {
            Some(Event::Started(started)) => {
                let is_first = leg.record_start(started).map_err(diverged)?;
                if is_first {
                    printer.start(started.clone())?;
                }
            }
            Some(Event::Text(text)) => {
                let new_part = leg.new_part(&text.text).map_err(diverged)?;
                if new_part.is_empty() {
                    continue;
                }
                let old_bytes = text.text.len() - new_part.len();
                let old_chars = text.text[..old_bytes].chars().count();
                text.text.drain(..old_bytes);
                text.logprobs.drain(..old_chars.min(text.logprobs.len()));
                printer.text(text.clone())?;
            }
            Some(Event::Finished(finished)) => {
                // A repetition may be cut off before it has caught up.
                let is_cut_off = matches!(
                    finished.reason(),
                    FinishReason::Shutdown | FinishReason::Cancelled
                );
                if !is_cut_off {
                    leg.check_end().map_err(diverged)?;
                }
                return Ok(finished.clone());
            }
            // An event of a newer version of the contract.
            None => {}
        }
    }
    Err(Status::unavailable("the stream ended before the generation did").into())
}

fn diverged(error: Diverged) -> Failure {
    Failure::Refused(format!(
        "cannot continue the text after the interruption: {error}"
    ))
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
                 `charlstm-client generate --session {id}` continues the text"
            ),
            None => format!("the server shut down after {chars}"),
        })),
    }
}

/// Wraps an event into the message that `--json` prints.
fn response(event: Event) -> GenerateResponse {
    GenerateResponse { event: Some(event) }
}
