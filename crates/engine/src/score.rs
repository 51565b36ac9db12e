//! Scoring of a part of a text: chunk by chunk between the decode steps of
//! running generations. `engine/text_scorer` scores a text part by part.

use std::sync::Arc;
use std::time::Instant;

use charlstm_model::decode_step::{DecodeBatch, DecodeError, HiddenState};
use charlstm_model::sampler::log_probability;
use charlstm_repository::LoadedModel;
use tokio::sync::oneshot;

use crate::admission::Permit;
use crate::error::GenerateError;
use crate::worker_load::LoadShare;

/// What a caller gets.
pub(crate) type ScoreResult = Result<ScoredPart, GenerateError>;

/// Where the scoring of a text is.
#[derive(Clone, Debug)]
pub(crate) struct ScorePosition {
    /// State of the network, before `last` is fed.
    pub(crate) state: HiddenState,
    /// The last character so far, which is not fed yet.
    pub(crate) last: Option<u32>,
    /// Sum of the losses in nats, in the order of the characters, so that the
    /// size of parts and chunks has no effect.
    pub(crate) nats: f64,
}

/// A part of a text that has been scored.
#[derive(Debug)]
pub(crate) struct ScoredPart {
    /// Where the next part continues.
    pub(crate) position: ScorePosition,
    /// Natural logarithm of the probability of each predicted character, if
    /// requested.
    pub(crate) logprobs: Vec<f32>,
}

/// A part of a text that is being scored.
pub(crate) struct ScoreJob {
    pub(crate) model: Arc<LoadedModel>,
    pub(crate) deadline: Option<Instant>,
    /// The last character of the part before, if there is one, and the
    /// characters of this part.
    tokens: Vec<u32>,
    reply: oneshot::Sender<ScoreResult>,
    position: ScorePosition,
    fed: usize,
    logprobs: Option<Vec<f32>>,
    _shares: ScoreShares,
}

/// What a score job holds of bounded resources.
pub(crate) struct ScoreShares {
    pub(crate) _load: LoadShare,
    pub(crate) _text_permit: Permit,
}

/// What a score job starts from.
pub(crate) struct ScorePart {
    pub(crate) model: Arc<LoadedModel>,
    pub(crate) position: ScorePosition,
    pub(crate) logprobs: bool,
    pub(crate) deadline: Option<Instant>,
}

impl ScoreJob {
    /// Creates a job that predicts all characters of `tokens` but the first.
    pub(crate) fn new(
        part: ScorePart,
        tokens: Vec<u32>,
        reply: oneshot::Sender<ScoreResult>,
        shares: ScoreShares,
    ) -> Self {
        let logprobs = part
            .logprobs
            .then(|| Vec::with_capacity(tokens.len().saturating_sub(1)));
        Self {
            model: part.model,
            deadline: part.deadline,
            position: part.position,
            tokens,
            reply,
            fed: 0,
            logprobs,
            _shares: shares,
        }
    }

    /// True if nobody waits for the score any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Feeds at most `max_chars` characters. Returns whether all characters are
    /// predicted.
    pub(crate) fn advance(
        &mut self,
        batch: &mut DecodeBatch,
        max_chars: usize,
    ) -> Result<bool, DecodeError> {
        let last = self.tokens.len().saturating_sub(1);
        let end = last.min(self.fed + max_chars);
        let chunk = &self.tokens[self.fed..end];
        if !chunk.is_empty() {
            let logits = batch.prefill_logits(&mut self.position.state, chunk)?;
            let width = logits.len() / chunk.len();
            let predicted = &self.tokens[self.fed + 1..];
            for (row, &token) in logits.chunks_exact(width.max(1)).zip(predicted) {
                let logprob = log_probability(row, token);
                self.position.nats -= logprob;
                if let Some(logprobs) = &mut self.logprobs {
                    #[allow(clippy::cast_possible_truncation)]
                    logprobs.push(logprob as f32);
                }
            }
        }
        self.fed = end;
        Ok(end == last)
    }

    /// Ends a job whose characters are all predicted.
    pub(crate) fn finish(mut self) {
        let part = ScoredPart {
            position: ScorePosition {
                last: self.tokens.last().copied(),
                ..self.position
            },
            logprobs: self.logprobs.take().unwrap_or_default(),
        };
        // A caller that has left gets nothing.
        let _ = self.reply.send(Ok(part));
    }

    /// Ends a job that failed. A caller that has left gets nothing.
    pub(crate) fn fail(self, error: GenerateError) {
        let _ = self.reply.send(Err(error));
    }
}
