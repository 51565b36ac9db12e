//! `GenerationService`: validates requests, and converts the events of the
//! engine into messages. How text is generated is in `charlstm_engine`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use charlstm_engine::{
    Engine, FinishReason, Finished, GenerateCall, GenerateError, GeneratedText, GenerationEvent,
    ScoreCall, Scored, SessionSource, Started, UnknownCharacters,
};
use charlstm_model::decode_step::Precision;
use charlstm_model::sampler::SamplingSettings;
use charlstm_proto::v1 as pb;
use charlstm_proto::v1::generation_service_server::{GenerationService, GenerationServiceServer};
use charlstm_store::session::{Owner, SessionId, SessionKey, SnapshotKeys};
use futures_util::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::call_context::CallContext;
use super::call_record::CallRecord;
use super::status;
use super::usage::StreamGuard;
use crate::metrics::Metrics;
use throttle::ThrottledEvents;

mod prompt_score;
mod score_stream;
#[cfg(test)]
mod tests;
mod text;
mod throttle;

pub(crate) use self::text::collect;

/// Number of characters that are generated if the request does not say.
const DEFAULT_MAX_CHARS: u32 = 200;

/// Maximum number of characters of one call. Longer texts take several calls
/// in a session, which give the same text.
const MAX_CHARS: u32 = 1_000_000;

/// Maximum number of stop strings of a call, and of characters of one. Each
/// costs a comparison per generated character, and may hold back as many.
const MAX_STOPS: usize = 16;
const MAX_STOP_CHARS: usize = 256;

/// Maximum number of logarithms in a response of `Score`: four bytes each, and
/// clients accept messages of 4 MiB by default.
const MAX_SCORE_LOGPROBS: usize = 1_000_000;

/// The service.
#[derive(Clone)]
pub struct GenerationRpc {
    engine: Engine,
    keys: Arc<SnapshotKeys>,
    accepts_snapshots: bool,
    metrics: Metrics,
}

impl GenerationRpc {
    /// Returns the service on an engine. It seals the sessions that clients
    /// hold with `keys`, and counts the text that it sends in `metrics`.
    pub fn new(engine: Engine, keys: Arc<SnapshotKeys>, metrics: Metrics) -> Self {
        Self {
            engine,
            keys,
            accepts_snapshots: true,
            metrics,
        }
    }

    /// Rejects sessions that clients hold: other replicas have other keys.
    pub fn without_snapshots(self) -> Self {
        Self {
            accepts_snapshots: false,
            ..self
        }
    }

    /// Returns the service, ready to be added to a server.
    pub fn server(self) -> GenerationServiceServer<Self> {
        GenerationServiceServer::new(self)
    }

    /// Starts a generation. Returns once it is in the queue.
    ///
    /// # Errors
    /// Those of `Generate`.
    pub(crate) async fn open(
        &self,
        request: pb::GenerateRequest,
        context: &CallContext,
    ) -> Result<GenerateResponses, Status> {
        let since = Instant::now();
        let CallContext {
            principal, record, ..
        } = context;
        let session = request.session_id.as_deref().unwrap_or_default();
        record.requested(&request.model, session, &request.prime);
        let uses_snapshots =
            !request.session_snapshot.is_empty() || request.return_session.unwrap_or_default();
        if uses_snapshots && !self.accepts_snapshots {
            return Err(status::no_snapshots());
        }
        let call = generate_call(request, context, &self.keys)?;
        let stream = principal.start_stream()?;
        let started = before(context.deadline, self.engine.generate(call)).await;
        let events = started.map_err(|error| status::generate_error(&error, "prime"))?;
        let throttle = principal.throttle();
        Ok(GenerateResponses {
            events: ThrottledEvents::new(events, throttle),
            _stream: stream,
            record: record.clone(),
            handed_over: None,
            keys: Arc::clone(&self.keys),
            metrics: self.metrics.clone(),
            since,
            is_first: true,
        })
    }
}

#[tonic::async_trait]
impl GenerationService for GenerationRpc {
    type GenerateStream = GenerateResponses;
    type ScoreStreamStream = score_stream::Responses;

    async fn generate(
        &self,
        request: Request<pb::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let context = CallContext::of(request.extensions())?;
        let responses = self.open(request.into_inner(), &context).await;
        Ok(Response::new(responses?))
    }

    async fn generate_text(
        &self,
        request: Request<pb::GenerateTextRequest>,
    ) -> Result<Response<pb::GenerateTextResponse>, Status> {
        let context = CallContext::of(request.extensions())?;
        let request = text::stream_request(request.into_inner())?;
        let responses = self.open(request, &context).await?;
        Ok(Response::new(collect(responses).await?))
    }

    async fn score(
        &self,
        request: Request<pb::ScoreRequest>,
    ) -> Result<Response<pb::ScoreResponse>, Status> {
        let CallContext {
            caller,
            record,
            deadline,
            ..
        } = CallContext::of(request.extensions())?;
        let request = request.into_inner();
        record.requested(&request.model, "", &request.text);
        let logprobs = request.logprobs.unwrap_or_default();
        if logprobs && request.text.chars().count() > MAX_SCORE_LOGPROBS {
            let message =
                format!("at most {MAX_SCORE_LOGPROBS} can be requested; use ScoreStream for more");
            return Err(status::invalid("logprobs", message));
        }
        let call = ScoreCall {
            caller: caller.name().into(),
            model: request.model,
            unknown: unknown_characters(request.unknown)?,
            logprobs,
            deadline,
        };
        let text = request.text;
        let score = async {
            let mut scorer = self.engine.score(call).await?;
            let part = scorer.push(text).await?;
            Ok((scorer.finish()?, part.logprobs))
        };
        let scored = before(deadline, score).await;
        let (scored, logprobs) = scored.map_err(|error| status::generate_error(&error, "text"))?;
        Ok(Response::new(score_response(scored, logprobs)))
    }

    async fn score_stream(
        &self,
        request: Request<Streaming<pb::ScoreStreamRequest>>,
    ) -> Result<Response<Self::ScoreStreamStream>, Status> {
        let context = CallContext::of(request.extensions())?;
        score_stream::start(self.engine.clone(), request.into_inner(), &context)
            .await
            .map(Response::new)
    }
}

/// Waits for a result, at most until the deadline.
async fn before<T>(
    deadline: Option<Instant>,
    result: impl Future<Output = Result<T, GenerateError>>,
) -> Result<T, GenerateError> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), result)
            .await
            .unwrap_or(Err(GenerateError::Deadline)),
        None => result.await,
    }
}

/// The messages of one generation.
pub struct GenerateResponses {
    events: ThrottledEvents,
    /// Counts towards the quota of the principal.
    _stream: StreamGuard,
    record: CallRecord,
    /// When the transport took the last text, until it comes for more.
    handed_over: Option<Instant>,
    keys: Arc<SnapshotKeys>,
    metrics: Metrics,
    /// When the last text was handed over, or, before the first text, when the
    /// call arrived.
    since: Instant,
    is_first: bool,
}

impl GenerateResponses {
    /// Returns the same messages for a reader that collects the whole text: if
    /// the generation fails or is dropped, its session stays as it was.
    fn whole(mut self) -> Self {
        self.events = self.events.whole();
        self
    }

    fn count(&mut self, text: &GeneratedText) {
        let now = Instant::now();
        let chars = text.text.chars().count() as u64;
        let waited = now.duration_since(self.since);
        self.metrics.text_sent(chars, self.is_first, waited);
        self.record.text(&text.text, chars);
        self.handed_over = Some(now);
        (self.since, self.is_first) = (now, false);
    }
}

impl Stream for GenerateResponses {
    type Item = Result<pb::GenerateResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(handed_over) = self.handed_over.take() {
            self.record.sent(handed_over.elapsed());
        }
        let event = ready!(Pin::new(&mut self.events).poll_next(context));
        match &event {
            Some(Ok(GenerationEvent::Started(started))) => {
                self.record.started(started.model.to_string());
            }
            Some(Ok(GenerationEvent::Text(text))) => self.count(text),
            Some(Ok(GenerationEvent::Finished(_))) => self.record.finished(),
            Some(Err(_)) | None => {}
        }
        Poll::Ready(event.map(|event| {
            let event = event.map_err(|error| status::generate_error(&error, "prime"))?;
            generate_response(event, &self.keys)
        }))
    }
}

/// Validates a request.
fn generate_call(
    request: pb::GenerateRequest,
    context: &CallContext,
    keys: &SnapshotKeys,
) -> Result<GenerateCall, Status> {
    let principal = &context.principal;
    let max_chars = request.max_chars.unwrap_or(DEFAULT_MAX_CHARS);
    if max_chars > MAX_CHARS {
        let message = format!("must be 0 to {MAX_CHARS}, not {max_chars}");
        return Err(status::invalid("max_chars", message));
    }
    let owner = principal.owner_or(request.owner.as_deref())?;
    let session = session_source(&request, &owner, keys)?;
    if session == SessionSource::None && request.expected_position.is_some() {
        let message = "requires a session_id or a session_snapshot: \
                       only a session has a position";
        return Err(status::invalid("expected_position", message));
    }
    let returns_session = request.return_session.unwrap_or_default();
    if returns_session && matches!(session, SessionSource::Stored(_)) {
        let message = "cannot be combined with session_id: the server keeps that session; \
                       use ExportSession to get a copy";
        return Err(status::invalid("return_session", message));
    }
    let precision = match request.precision.as_deref() {
        None | Some("") => None,
        Some(name) => Some(Precision::from_name(name).ok_or_else(|| status::bad_precision(name))?),
    };
    check_stops(&request.stop)?;
    let sampling = request.sampling.unwrap_or_default();
    Ok(GenerateCall {
        caller: context.caller.name().into(),
        model: request.model,
        prompt: request.prime,
        unknown: unknown_characters(request.unknown)?,
        max_chars: max_chars.into(),
        session,
        owner_limit: principal.max_sessions(&owner),
        snapshot_for: returns_session.then(|| owner.clone()),
        owner,
        settings: settings(&sampling)?,
        seed: sampling.seed,
        stop: request.stop,
        logprobs: request.logprobs.unwrap_or_default(),
        expected_position: request.expected_position,
        precision,
        deadline: context.deadline,
    })
}

/// The session that a request continues.
fn session_source(
    request: &pb::GenerateRequest,
    owner: &Owner,
    keys: &SnapshotKeys,
) -> Result<SessionSource, Status> {
    let id = request.session_id.as_deref().unwrap_or_default();
    let snapshot = &request.session_snapshot;
    if !id.is_empty() && !snapshot.is_empty() {
        let message = "cannot be combined with session_id: the text continues one session";
        return Err(status::invalid("session_snapshot", message));
    }
    if !snapshot.is_empty() {
        let opened = keys.open(snapshot, Some(owner));
        let opened = opened.map_err(|error| status::invalid_snapshot(&error))?;
        return Ok(SessionSource::Snapshot(Box::new(opened)));
    }
    if id.is_empty() {
        return Ok(SessionSource::None);
    }
    let id = session_id("session_id", id)?;
    let key = SessionKey::new(owner.clone(), id);
    Ok(SessionSource::Stored(key))
}

/// Validates a session id.
pub(super) fn session_id(field: &str, name: &str) -> Result<SessionId, Status> {
    SessionId::new(name).map_err(|error| status::bad_session_id(field, &error))
}

fn check_stops(stops: &[String]) -> Result<(), Status> {
    if stops.len() > MAX_STOPS {
        let message = format!("must have at most {MAX_STOPS} strings, not {}", stops.len());
        return Err(status::invalid("stop", message));
    }
    for (index, stop) in stops.iter().enumerate() {
        let chars = stop.chars().count();
        if chars == 0 || chars > MAX_STOP_CHARS {
            let message = format!("must have 1 to {MAX_STOP_CHARS} characters, not {chars}");
            return Err(status::invalid(&format!("stop[{index}]"), message));
        }
    }
    Ok(())
}

fn settings(sampling: &pb::Sampling) -> Result<SamplingSettings, Status> {
    let settings = SamplingSettings::new(
        sampling.temperature.unwrap_or(1.0),
        sampling.top_k.unwrap_or(0),
        sampling.top_p.unwrap_or(1.0),
        sampling.min_p.unwrap_or(0.0),
    )
    .map_err(|error| status::bad_sampling(&error))?;
    if sampling.greedy.unwrap_or_default() {
        return Ok(SamplingSettings::greedy());
    }
    Ok(settings)
}

/// Converts the enum of the contract.
fn unknown_characters(value: i32) -> Result<UnknownCharacters, Status> {
    match pb::UnknownCharacters::try_from(value) {
        Ok(pb::UnknownCharacters::Unspecified | pb::UnknownCharacters::Error) => {
            Ok(UnknownCharacters::Reject)
        }
        Ok(pb::UnknownCharacters::Skip) => Ok(UnknownCharacters::Skip),
        Ok(pb::UnknownCharacters::Replace) => Ok(UnknownCharacters::Replace),
        Err(_) => {
            let message = format!("must be ERROR, SKIP or REPLACE, not {value}");
            Err(status::invalid("unknown", message))
        }
    }
}

fn generate_response(
    event: GenerationEvent,
    keys: &SnapshotKeys,
) -> Result<pb::GenerateResponse, Status> {
    use pb::generate_response::Event;
    let event = match event {
        GenerationEvent::Started(started) => Event::Started(generation_started(started)),
        GenerationEvent::Text(GeneratedText {
            text,
            logprobs,
            position,
        }) => Event::Text(pb::GeneratedText {
            text,
            logprobs,
            position,
        }),
        GenerationEvent::Finished(finished) => {
            Event::Finished(generation_finished(finished, keys)?)
        }
    };
    Ok(pb::GenerateResponse { event: Some(event) })
}

fn generation_started(started: Started) -> pb::GenerationStarted {
    pb::GenerationStarted {
        session_id: started
            .session
            .map_or_else(String::new, |id| id.to_string()),
        model: started.model.name,
        version: started.model.version,
        seed: started.seed,
        position: started.position,
        precision: started.precision.to_string(),
        unknown_chars: started.unknown_chars,
    }
}

fn generation_finished(
    finished: Finished,
    keys: &SnapshotKeys,
) -> Result<pb::GenerationFinished, Status> {
    let reason = match finished.reason {
        FinishReason::Length => pb::FinishReason::Length,
        FinishReason::Stop => pb::FinishReason::Stop,
        FinishReason::Cancelled => pb::FinishReason::Cancelled,
        FinishReason::Shutdown => pb::FinishReason::Shutdown,
    };
    let snapshot = finished.snapshot.map(|snapshot| keys.seal(&snapshot));
    let snapshot = snapshot.transpose();
    Ok(pb::GenerationFinished {
        reason: reason.into(),
        chars: finished.chars,
        position: finished.position,
        seconds: finished.seconds,
        session_snapshot: snapshot
            .map_err(|error| status::internal(&error))?
            .unwrap_or_default(),
    })
}

fn score_response(scored: Scored, logprobs: Vec<f32>) -> pb::ScoreResponse {
    pb::ScoreResponse {
        chars: scored.chars,
        bits_per_char: scored.loss / std::f64::consts::LN_2,
        loss: scored.loss,
        perplexity: scored.loss.exp(),
        logprobs,
        unknown_chars: scored.unknown_chars,
    }
}
