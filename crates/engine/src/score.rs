//! Scoring of a text of any length: chunk by chunk between the decode steps of
//! running generations, in bounded memory.

use std::sync::Arc;
use std::time::Instant;

use charlstm_model::decode_step::{DecodeBatch, DecodeError, HiddenState};
use charlstm_model::sampler::log_probability;
use charlstm_repository::LoadedModel;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::admission::Permit;
use crate::error::GenerateError;
use crate::request::Scored;
use crate::worker_load::LoadShare;

/// What a caller gets.
pub(crate) type ScoreResult = Result<Scored, GenerateError>;

/// A text that is being scored.
pub(crate) struct ScoreJob {
    pub(crate) model: Arc<LoadedModel>,
    pub(crate) deadline: Option<Instant>,
    tokens: Vec<u32>,
    reply: oneshot::Sender<ScoreResult>,
    state: HiddenState,
    fed: usize,
    /// Sum of the losses in nats, in the order of the characters, so that the
    /// size of the chunks has no effect.
    nats: f64,
    _shares: ScoreShares,
}

/// What a score job holds of bounded resources.
pub(crate) struct ScoreShares {
    pub(crate) _permit: Permit,
    pub(crate) _load: LoadShare,
    pub(crate) _text_permit: OwnedSemaphorePermit,
}

impl ScoreJob {
    /// Creates a job for a text of at least two characters.
    pub(crate) fn new(
        model: Arc<LoadedModel>,
        tokens: Vec<u32>,
        deadline: Option<Instant>,
        reply: oneshot::Sender<ScoreResult>,
        shares: ScoreShares,
    ) -> Self {
        Self {
            state: model.weights.zero_state(),
            model,
            deadline,
            tokens,
            reply,
            fed: 0,
            nats: 0.0,
            _shares: shares,
        }
    }

    /// True if nobody waits for the score any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Feeds at most `max_chars` characters. Returns the score once all
    /// characters are predicted.
    pub(crate) fn advance(
        &mut self,
        batch: &mut DecodeBatch,
        max_chars: usize,
    ) -> Result<Option<Scored>, DecodeError> {
        let last = self.tokens.len() - 1;
        let end = last.min(self.fed + max_chars);
        let chunk = &self.tokens[self.fed..end];
        let logits = batch.prefill_logits(&mut self.state, chunk)?;
        let width = logits.len() / chunk.len().max(1);
        let predicted = &self.tokens[self.fed + 1..];
        for (row, &token) in logits.chunks_exact(width.max(1)).zip(predicted) {
            self.nats -= log_probability(row, token);
        }
        self.fed = end;
        Ok((end == last).then(|| Scored {
            chars: last as u64,
            loss: self.nats / last as f64,
        }))
    }

    /// Ends the job. A caller that has left gets nothing.
    pub(crate) fn answer(self, result: ScoreResult) {
        let _ = self.reply.send(result);
    }
}
