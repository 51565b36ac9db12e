//! `POST /v1/completions`: the generations of the gRPC API in the format of
//! OpenAI's completions.

mod echo;
mod prompts;
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

use self::echo::Echo;
use self::prompts::Prompts;
pub(super) use self::request::CompletionRequest;
use self::response::finish_reason;
use self::response::{Choice, Completion, Usage};
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
    let mut request = CompletionRequest::parse(&body)?;
    drop(body);
    let can_repeat = !request.has_session() || request.expected_position.is_some();
    if !can_repeat && is_repeat(&headers) {
        return Err(ApiError::unsafe_repeat());
    }
    let prompts = request.take_prompts()?;
    let context = CallContext::of(&extensions)?;
    let result = respond(&state, &context, request, prompts).await;
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

/// A text whose generation has begun.
struct OpenText {
    messages: GenerateResponses,
    /// What is sent before it.
    echo: Echo,
}

async fn respond(
    state: &ApiState,
    context: &CallContext,
    mut request: CompletionRequest,
    prompts: Prompts,
) -> Result<Response, ApiError> {
    let prompt_chars = prompts.total_chars();
    let texts = open(state, context, &mut request, prompts).await?;
    if request.streams() {
        let outcome = CallOutcome::default();
        let events = stream::respond(&request, prompt_chars, texts, outcome.clone());
        return Ok((Extension(outcome), events).into_response());
    }
    whole(&request, prompt_chars, texts).await
}

/// Starts all generations of a request, in order. If one is rejected, all end.
async fn open(
    state: &ApiState,
    context: &CallContext,
    request: &mut CompletionRequest,
    mut prompts: Prompts,
) -> Result<Vec<OpenText>, ApiError> {
    let echoes = Echo::of_prompts(state, context, request, &prompts).await?;
    let mut texts = Vec::with_capacity(prompts.count());
    for index in 0..prompts.count() {
        let generate = request.generate_request(prompts.take(index), index);
        texts.push(OpenText {
            messages: state.generation.open(generate, context).await?,
            echo: echoes[prompts.of_text(index)].clone(),
        });
    }
    Ok(texts)
}

/// Collects all texts into one response.
async fn whole(
    request: &CompletionRequest,
    prompt_chars: u64,
    texts: Vec<OpenText>,
) -> Result<Response, ApiError> {
    let (messages, echoes): (Vec<_>, Vec<_>) = texts
        .into_iter()
        .map(|text| (text.messages, text.echo))
        .unzip();
    let texts = try_join_all(messages.into_iter().map(collect)).await?;
    let started = texts.first().and_then(|text| text.started.clone());
    let mut completion = Completion::new(&started.unwrap_or_default());
    if let Some(finished) = texts.first().and_then(|text| text.finished.as_ref()) {
        completion.position = completion.position.map(|_| finished.position);
    }
    let chars = texts.iter().filter_map(|text| text.finished.as_ref());
    let chars = chars.map(|finished| finished.chars).sum();
    completion.usage = Some(Usage::new(prompt_chars, chars));
    let with_logprobs = request.logprobs.is_some();
    completion.choices = texts
        .into_iter()
        .zip(echoes)
        .enumerate()
        .map(|(index, (text, echo))| whole_choice(index, text, &echo, with_logprobs))
        .collect();
    Ok(Json(completion).into_response())
}

fn whole_choice(
    index: usize,
    generated: pb::GenerateTextResponse,
    echo: &Echo,
    with_logprobs: bool,
) -> Choice {
    let logprobs = with_logprobs.then(|| {
        let mut all = echo.logprobs();
        let values = generated.logprobs.iter().copied().map(Some);
        all.append(&generated.text, values);
        all
    });
    let mut text = generated.text;
    text.insert_str(0, &echo.text);
    Choice {
        logprobs,
        text,
        index,
        finish_reason: generated.finished.as_ref().map(finish_reason),
        seed: generated.started.map(|started| started.seed),
    }
}
