//! What the engine is asked for and what it answers, checked and free of the
//! wire.

use std::time::Instant;

use crate::sessions::SessionId;
use charlstm_model::sampler::SamplingSettings;
use charlstm_repository::ModelId;

/// What to generate.
#[derive(Clone, Debug)]
pub struct GenerateCall {
    /// Model, as `name` or `name@version`; empty for the only one there is,
    /// or for that of the session.
    pub model: String,
    /// Text to feed in first.
    pub prime: String,
    /// Characters to generate.
    pub max_chars: u64,
    /// Session to go on with or to create.
    pub session: Option<SessionId>,
    /// How characters are chosen.
    pub settings: SamplingSettings,
    /// Seed; `None` goes on with the session's random numbers, or draws one.
    pub seed: Option<u64>,
    /// Texts that end the generation, none empty.
    pub stop: Vec<String>,
    /// Whether probabilities are wanted.
    pub logprobs: bool,
    /// Where the session must stand, or where its last call began.
    pub expected_position: Option<u64>,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
}

/// One event of a generation: `Started`, any number of `Text`, `Finished`.
#[derive(Clone, Debug, PartialEq)]
pub enum GenerationEvent {
    /// The call has a place in the batch.
    Started(Started),
    /// Some characters.
    Text(GeneratedText),
    /// The end.
    Finished(Finished),
}

/// The call has a place in the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// The session, if there is one.
    pub session: Option<SessionId>,
    /// The model.
    pub model: ModelId,
    /// Seed of the random numbers.
    pub seed: u64,
    /// Characters that the session had seen.
    pub position: u64,
}

/// Some generated characters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GeneratedText {
    /// At least one character.
    pub text: String,
    /// Natural logarithm of each character's probability, if wanted.
    pub logprobs: Vec<f32>,
    /// Characters that the session has seen, with this text.
    pub position: u64,
}

/// The end of a generation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// Characters sent.
    pub chars: u64,
    /// Characters that the session has seen. After a stop text it counts the
    /// stop text, though that was not sent: the session goes on behind it.
    pub position: u64,
    /// Seconds from the first generated character to the last.
    pub seconds: f64,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// All characters were generated.
    Length,
    /// A stop text was reached.
    Stop,
    /// Its session was deleted, or its model removed.
    Cancelled,
    /// The server stops.
    Shutdown,
}

/// What to score.
#[derive(Clone, Debug)]
pub struct ScoreCall {
    /// Model, as in [`GenerateCall`].
    pub model: String,
    /// The text, at least two characters.
    pub text: String,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
}

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// Characters predicted: all but the first.
    pub chars: u64,
    /// Mean loss in nats per character.
    pub loss: f64,
}
