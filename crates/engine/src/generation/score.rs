//! Scoring a text of any length: chunk by chunk between the steps of the
//! texts under way, in bounded memory.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::admission::{LoadShare, Permit};
use super::error::GenerateError;
use super::request::Scored;
use charlstm_model::decode_step::{DecodeBatch, DecodeError, HiddenState};
use charlstm_model::sampler::log_probability;
use charlstm_repository::LoadedModel;

/// A text that is being scored.
pub(super) struct ScoreJob {
    pub(super) model: Arc<LoadedModel>,
    pub(super) tokens: Vec<u32>,
    pub(super) deadline: Option<Instant>,
    pub(super) reply: oneshot::Sender<Result<Scored, GenerateError>>,
    progress: ScoreProgress,
    _permit: Permit,
    _load: LoadShare,
}

/// How far the scoring has come.
#[derive(Debug)]
pub(super) struct ScoreProgress {
    state: HiddenState,
    fed: usize,
    /// Nats, summed in the order of the characters, so that the size of the
    /// chunks does not show.
    nats: f64,
}

impl ScoreProgress {
    /// Before the first character.
    pub(super) fn new(state: HiddenState) -> Self {
        Self {
            state,
            fed: 0,
            nats: 0.0,
        }
    }

    /// Feeds at most `most` characters. Returns the score once all are
    /// predicted.
    pub(super) fn advance(
        &mut self,
        stepper: &mut DecodeBatch,
        tokens: &[u32],
        most: usize,
    ) -> Result<Option<Scored>, DecodeError> {
        let last = tokens.len() - 1;
        let end = last.min(self.fed + most);
        let stretch = &tokens[self.fed..end];
        let logits = stepper.prefill_logits(&mut self.state, stretch)?;
        let width = logits.len() / stretch.len().max(1);
        let coming = &tokens[self.fed + 1..];
        for (row, &token) in logits.chunks_exact(width.max(1)).zip(coming) {
            self.nats -= log_probability(row, token);
        }
        self.fed = end;
        Ok((end == last).then(|| Scored {
            chars: last as u64,
            loss: self.nats / last as f64,
        }))
    }
}

impl ScoreJob {
    /// A job for a text of at least two characters.
    pub(super) fn new(
        model: Arc<LoadedModel>,
        tokens: Vec<u32>,
        deadline: Option<Instant>,
        reply: oneshot::Sender<Result<Scored, GenerateError>>,
        permit: Permit,
        load: LoadShare,
    ) -> Self {
        let state = HiddenState::zeros(model.weights.architecture());
        Self {
            model,
            tokens,
            deadline,
            reply,
            progress: ScoreProgress::new(state),
            _permit: permit,
            _load: load,
        }
    }

    /// True where nobody waits for the score any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// One chunk.
    pub(super) fn advance(
        &mut self,
        stepper: &mut DecodeBatch,
        most: usize,
    ) -> Result<Option<Scored>, DecodeError> {
        self.progress.advance(stepper, &self.tokens, most)
    }

    /// Ends the job. One who left is not told.
    pub(super) fn answer(self, answer: Result<Scored, GenerateError>) {
        let _ = self.reply.send(answer);
    }
}
