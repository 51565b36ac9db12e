//! Scores a text of any length part by part. Only one part at a time is in
//! memory.

use std::sync::Arc;

use charlstm_model::decode_step::Precision;
use charlstm_model::sampler::SamplingSettings;
use charlstm_repository::{LoadedModel, ModelId};
use tokio::sync::oneshot;

use super::model_ref::encode;
use super::{Engine, admit};
use crate::admission::Permit;
use crate::error::GenerateError;
use crate::inbox::Command;
use crate::request::{ScoreCall, Scored};
use crate::score::{ScoreJob, ScorePart, ScorePosition, ScoreShares};

/// A text that is scored part by part: the score is that of the parts joined.
/// Holds one of the engine's scoring slots until it is dropped.
pub struct TextScorer {
    engine: Engine,
    call: ScoreCall,
    model: Arc<LoadedModel>,
    position: ScorePosition,
    /// Characters of all parts, including unknown ones.
    chars: u64,
    /// Characters that were fed or are about to be.
    known_chars: u64,
    unknown_chars: u64,
    _permit: Permit,
}

/// The score of a part.
#[derive(Clone, Debug, PartialEq)]
pub struct PartScore {
    /// The score of the text so far.
    pub so_far: Scored,
    /// Natural logarithm of the probability of each predicted character of the
    /// part, if requested.
    pub logprobs: Vec<f32>,
}

impl Engine {
    /// Starts to score a text, next to the texts that are generated.
    ///
    /// # Errors
    /// `Model`, `Overloaded`, `Stopping`, `Internal`.
    pub async fn score(&self, call: ScoreCall) -> Result<TextScorer, GenerateError> {
        self.check_running()?;
        let permit = admit(&self.shared.scores, &call.caller, 1)?;
        // In float32 whatever the server generates in: a score is compared with
        // those of other programs.
        let precision = Some(Precision::Float32);
        let model = self.load_reference(&call.model, precision).await?;
        let position = ScorePosition {
            state: model.weights.zero_state(),
            last: None,
            nats: 0.0,
        };
        Ok(TextScorer {
            engine: self.clone(),
            call,
            model,
            position,
            chars: 0,
            known_chars: 0,
            unknown_chars: 0,
            _permit: permit,
        })
    }
}

impl TextScorer {
    /// The model version that scores.
    pub fn model(&self) -> &ModelId {
        &self.model.id
    }

    /// Scores the next part of the text. If the future is dropped, or fails,
    /// the scorer must not be used again.
    ///
    /// # Errors
    /// `UnknownCharacter`, `TextTooLong`, `Overloaded`, `Deadline`, `Stopping`,
    /// `Internal`.
    pub async fn push(&mut self, text: String) -> Result<PartScore, GenerateError> {
        let chars = text.chars().count();
        let text_permit = self.reserve(chars).await?;
        let settings = SamplingSettings::default();
        let encoded = encode(&self.model, text, self.call.unknown, &settings).await;
        let encoded = encoded.map_err(|error| self.in_whole_text(error))?;
        self.chars += chars as u64;
        self.known_chars += encoded.tokens.len() as u64;
        self.unknown_chars += encoded.unknown_chars;
        let mut tokens = encoded.tokens;
        if let Some(last) = self.position.last {
            tokens.insert(0, last);
        }
        let logprobs = self.predict(tokens, text_permit).await?;
        Ok(PartScore {
            so_far: self.score(),
            logprobs,
        })
    }

    /// Returns the score of the whole text, once all parts are scored.
    ///
    /// # Errors
    /// `TextTooShort`.
    pub fn finish(self) -> Result<Scored, GenerateError> {
        if self.known_chars < 2 {
            let known = usize::try_from(self.known_chars).unwrap_or(usize::MAX);
            return Err(GenerateError::TextTooShort(known));
        }
        Ok(self.score())
    }

    fn score(&self) -> Scored {
        let chars = self.known_chars.saturating_sub(1);
        Scored {
            chars,
            loss: if chars == 0 {
                0.0
            } else {
                self.position.nats / chars as f64
            },
            unknown_chars: self.unknown_chars,
        }
    }

    /// Predicts all characters of `tokens` but the first.
    async fn predict(
        &mut self,
        tokens: Vec<u32>,
        text_permit: Permit,
    ) -> Result<Vec<f32>, GenerateError> {
        let worker = self.engine.least_loaded();
        let shares = ScoreShares {
            _load: worker.load.add(tokens.len()),
            _text_permit: text_permit,
        };
        let part = ScorePart {
            model: Arc::clone(&self.model),
            position: self.position.clone(),
            logprobs: self.call.logprobs,
            deadline: self.call.deadline,
        };
        let (reply, answer) = oneshot::channel();
        let job = ScoreJob::new(part, tokens, reply, shares);
        worker
            .inbox
            .put(Command::Score(Box::new(job)))
            .map_err(|_| GenerateError::Stopping)?;
        let scored = answer
            .await
            .unwrap_or_else(|_| Err(GenerateError::Internal("a worker failed".to_owned())))?;
        self.position = scored.position;
        Ok(scored.logprobs)
    }

    /// Reserves a share of the budget of queued characters. The first part is
    /// rejected if there is none; the others wait, since the text has begun.
    async fn reserve(&self, chars: usize) -> Result<Permit, GenerateError> {
        let config = &self.engine.shared.config;
        let max = config.max_queued_chars.max(config.max_prompt_chars);
        loop {
            match self.engine.reserve_text(&self.call.caller, chars, max) {
                Err(GenerateError::Overloaded { retry_after }) if self.chars > 0 => {
                    tokio::time::sleep(retry_after).await;
                }
                reserved => return reserved,
            }
        }
    }

    /// Converts the position of an unknown character to that in the text.
    fn in_whole_text(&self, error: GenerateError) -> GenerateError {
        let GenerateError::UnknownCharacter(mut unknown) = error else {
            return error;
        };
        let before = usize::try_from(self.chars).unwrap_or(usize::MAX);
        unknown.position = unknown.position.saturating_add(before);
        GenerateError::UnknownCharacter(unknown)
    }
}
