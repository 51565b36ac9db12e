//! Makes the job of a call that was accepted, and hands it to a worker.

use std::sync::Arc;

use charlstm_model::decode_step::HiddenState;
use charlstm_model::sampler::{Draws, RandomState};
use charlstm_repository::LoadedModel;
use charlstm_store::session::{MAX_POSITION, MAX_UNFED_CHARS, SessionState};

use super::model_ref::EncodedText;
use super::opening::CallStart;
use super::{Engine, sessions};
use crate::admission::Permit;
use crate::error::GenerateError;
use crate::event::Started;
use crate::inbox::Command;
use crate::job::{Job, JobParts};
use crate::progress::{ANCHOR_CHARS, Destination, OpenSession, Progress};
use crate::prompt_cache::CachedPrompt;
use crate::request::GenerateCall;
use crate::stop_matcher::StopMatcher;
use crate::stream::GenerationStream;
use crate::text_buffer::{ReaderSession, TextBuffer, TextBufferParts};

/// Maximum number of unread characters of a call in a session. A session that
/// is committed at its reader keeps the characters since the last saved state,
/// and stop strings may hold back some more.
const MAX_SESSION_UNREAD_CHARS: usize = MAX_UNFED_CHARS / 2 - ANCHOR_CHARS;

/// A call that was checked, with its model and session.
pub(super) struct AcceptedCall {
    pub(super) call: GenerateCall,
    pub(super) permit: Permit,
    pub(super) prompt_permit: Permit,
    pub(super) prompt: EncodedText,
    /// What is known of the prompt, if it starts from the zero state.
    pub(super) cached: Option<CachedPrompt>,
    pub(super) start: CallStart,
}

impl Engine {
    pub(super) fn submit(&self, accepted: AcceptedCall) -> Result<GenerationStream, GenerateError> {
        let AcceptedCall {
            call,
            permit,
            mut prompt_permit,
            prompt,
            cached,
            start,
        } = accepted;
        let EncodedText {
            tokens: prompt,
            unknown_chars,
            hash,
        } = prompt;
        let CallStart {
            model,
            identity,
            lease,
            state,
        } = start;
        let begin = begin_state(state, call.seed);
        let mut state = network_state_of(&begin, &model)?;
        let prompt_chars = prompt.len() as u64;
        if begin.position + prompt_chars + call.max_chars > MAX_POSITION {
            return Err(GenerateError::PositionLimit {
                position: begin.position,
                max: MAX_POSITION,
            });
        }
        let unfed = begin.unfed.len();
        prompt_permit.merge(self.reserve_chars(&call.caller, unfed)?);
        let feed: Vec<u32> = begin.unfed.iter().chain(prompt.iter().copied()).collect();
        if feed.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        let mut fed = 0;
        let recorder = cached.map(|CachedPrompt { found, rest }| {
            if let Some((chars, found)) = found {
                (fed, state) = (chars, (*found).clone());
            }
            rest
        });
        let worker = self.least_loaded();
        let id = call.session.key().map(|key| key.id.clone());
        let reader_session = lease.as_ref().map(|lease| ReaderSession {
            id: lease.key().id.clone(),
            lease: lease.handle(),
        });
        let destination = match (lease, call.snapshot_for) {
            (Some(lease), _) => Some(Destination::Storage(lease)),
            (None, principal) => principal.map(Destination::Client),
        };
        let max_unread = self.shared.config.max_unread_chars;
        let buffer = TextBuffer::new(TextBufferParts {
            started: Started {
                session: id,
                model: model.id.clone(),
                precision: identity.precision,
                seed: begin.random.seed,
                position: begin.position,
                unknown_chars,
            },
            prompt_chars,
            capacity_chars: match destination {
                Some(_) => max_unread.min(MAX_SESSION_UNREAD_CHARS),
                None => max_unread,
            },
            session: reader_session,
            inbox: Arc::clone(&worker.inbox),
            committer: Arc::clone(&self.shared.committer),
            permit,
        });
        let stream = GenerationStream::new(Arc::clone(&buffer));
        let random = begin.random;
        let progress = destination.map(|destination| {
            let session = OpenSession {
                destination,
                identity,
                begin,
            };
            Progress::new(session, hash.digest(random.seed), &prompt)
        });
        let job = Job::new(JobParts {
            caller: call.caller,
            buffer,
            settings: call.settings,
            draws: Draws::at(random),
            stops: stop_matcher(&model, &call.stop),
            logprobs: call.logprobs,
            max_chars: call.max_chars,
            deadline: call.deadline,
            state,
            load: worker.load.add(feed.len() - fed),
            feed,
            unfed,
            fed,
            recorder,
            progress,
            model,
            prompt_permit,
        });
        worker
            .inbox
            .put(Command::Generate(Box::new(job)))
            .map_err(|_| GenerateError::Stopping)?;
        Ok(stream)
    }
}

/// Where a call begins. It continues the session's random sequence if it names
/// no seed or the seed of that sequence, which is what a repeat of a call
/// does; otherwise it starts the sequence of its seed.
fn begin_state(start: Option<SessionState>, seed: Option<u64>) -> SessionState {
    match (start, seed) {
        (Some(state), Some(seed)) if seed != state.random.seed => SessionState {
            random: RandomState::seeded(seed),
            ..state
        },
        (Some(state), _) => state,
        (None, seed) => SessionState::origin(seed.unwrap_or_else(draw_seed)),
    }
}

/// Draws a seed of 53 bits: clients that read numbers as JavaScript does can
/// send it back.
fn draw_seed() -> u64 {
    rand::random::<u64>() >> 11
}

/// The state of the network at `state`. The digest of its session's model
/// matches, so a mismatch is an error inside.
fn network_state_of(
    state: &SessionState,
    model: &LoadedModel,
) -> Result<HiddenState, GenerateError> {
    sessions::hidden_state(state, model).ok_or_else(|| {
        GenerateError::Internal("the state of a session does not fit its model".to_owned())
    })
}

/// A matcher for the stop strings that the model can write; others never
/// occur.
fn stop_matcher(model: &LoadedModel, strings: &[String]) -> StopMatcher {
    let encoded = strings.iter().filter(|string| !string.is_empty());
    StopMatcher::new(
        encoded
            .filter_map(|string| model.vocabulary.encode(string).ok())
            .collect(),
    )
}
