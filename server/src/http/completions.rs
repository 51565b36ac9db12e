//! `POST /v1/completions`: the generations of the gRPC API in the format of
//! OpenAI's completions.

mod request;
mod response;
mod stream;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{Extensions, HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use charlstm_proto::v1 as pb;
use futures_util::future::try_join_all;

use self::request::ChoiceRequest;
pub(super) use self::request::CompletionRequest;
use self::response::finish_reason;
pub(super) use self::response::{Choice, Completion, Logprobs, Usage};
use super::api_error::{ApiError, ErrorBody};
use super::{ApiState, MAX_BODY_BYTES};
use crate::rpc::call_context::CallContext;
use crate::rpc::generation::{GenerateResponses, collect};
use crate::rpc::layers::call_outcome::CallOutcome;

/// Number of times that OpenAI's clients have already sent a request.
const RETRY_COUNT: &str = "x-stainless-retry-count";

/// Generates text.
///
/// A token is a character. If the client disconnects, the generation ends. In a
/// session, a response that is not streamed advances the session only if it can
/// be sent completely; a stream advances it by what was sent.
#[utoipa::path(
    post,
    path = "/v1/completions",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The text; with `stream`, as server-sent events, each of \
            which has a part of a text, and the last of which is `[DONE]`",
            content((Completion = "application/json"), (String = "text/event-stream"))),
        (status = 400, description = "A field is not valid", body = ErrorBody),
        (status = 401, description = "The token is missing or unknown", body = ErrorBody),
        (status = 403, description = "The host, the origin or the role is not allowed", body = ErrorBody),
        (status = 404, description = "The model is unknown, or the session was evicted", body = ErrorBody),
        (status = 409, description = "The session is busy, at another position or of another \
            model, or the request is an unsafe repeat", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The content type is not application/json", body = ErrorBody),
        (status = 429, description = "The server is at capacity; see Retry-After", body = ErrorBody),
        (status = 503, description = "The server is shutting down, or cannot store sessions", body = ErrorBody),
    ),
    security(("bearer" = []))
)]
pub(super) async fn complete(
    State(state): State<ApiState>,
    extensions: Extensions,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(MAX_BODY_BYTES),
        _ => ApiError::bad_body(rejection),
    })?;
    let request = CompletionRequest::parse(&body)?;
    drop(body);
    let can_repeat = !request.has_session() || request.expected_position.is_some();
    if !can_repeat && is_repeat(&headers) {
        return Err(ApiError::unsafe_repeat());
    }
    let choices = request.choices()?;
    let context = CallContext::of(&extensions)?;
    let opened = open(&state, &context, &choices).await;
    let result = match opened {
        Ok(generations) if request.streams() => {
            let outcome = CallOutcome::default();
            let events = stream::respond(&request, choices, generations, outcome.clone());
            Ok((Extension(outcome), events).into_response())
        }
        Ok(generations) => whole(&request, &choices, generations).await,
        Err(error) => Err(error),
    };
    // A repeat without a position would be rejected, and hide this error.
    result.map_err(|error| {
        let error = error.with_request_id(context.record.request_id());
        if can_repeat {
            error
        } else {
            error.not_to_be_repeated()
        }
    })
}

fn is_repeat(headers: &HeaderMap) -> bool {
    let count = headers.get(RETRY_COUNT);
    count.is_some_and(|value| value.as_bytes().iter().any(|&byte| byte != b'0'))
}

/// Starts all generations of a request, in order. If one is rejected, all end.
async fn open(
    state: &ApiState,
    context: &CallContext,
    choices: &[ChoiceRequest],
) -> Result<Vec<GenerateResponses>, ApiError> {
    let mut generations = Vec::with_capacity(choices.len());
    for choice in choices {
        let generation = state.generation.open(choice.generate.clone(), context);
        generations.push(generation.await?);
    }
    Ok(generations)
}

/// Collects all texts into one response.
async fn whole(
    request: &CompletionRequest,
    choices: &[ChoiceRequest],
    generations: Vec<GenerateResponses>,
) -> Result<Response, ApiError> {
    let texts = try_join_all(generations.into_iter().map(collect)).await?;
    let started = texts.first().and_then(|text| text.started.clone());
    let mut completion = Completion::new(&started.unwrap_or_default());
    if let Some(finished) = texts.first().and_then(|text| text.finished.as_ref()) {
        completion.position = completion.position.map(|_| finished.position);
    }
    let prompt_chars = choices.iter().map(ChoiceRequest::prompt_chars).sum();
    let chars = texts.iter().filter_map(|text| text.finished.as_ref());
    completion.usage = Some(Usage::new(
        prompt_chars,
        chars.map(|finished| finished.chars).sum(),
    ));
    let with_logprobs = request.logprobs.is_some();
    completion.choices = texts
        .into_iter()
        .zip(choices)
        .enumerate()
        .map(|(index, (text, choice))| whole_choice(index, text, choice, with_logprobs))
        .collect();
    Ok(Json(completion).into_response())
}

fn whole_choice(
    index: usize,
    text: pb::GenerateTextResponse,
    choice: &ChoiceRequest,
    with_logprobs: bool,
) -> Choice {
    Choice {
        logprobs: with_logprobs.then(|| Logprobs::new(&text.text, text.logprobs, 0)),
        text: format!("{}{}", choice.echo, text.text),
        index,
        finish_reason: text.finished.as_ref().map(finish_reason),
        seed: text.started.map(|started| started.seed),
    }
}

impl ChoiceRequest {
    fn prompt_chars(&self) -> u64 {
        self.generate.prime.chars().count() as u64
    }
}
