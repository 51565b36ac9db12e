//! What the engine is asked for, free of the wire format.

use std::time::Instant;

use charlstm_model::decode_step::Precision;
use charlstm_model::sampler::SamplingSettings;
use charlstm_store::session::SessionKey;

/// A text to generate.
#[derive(Clone, Debug)]
pub struct GenerateCall {
    /// Model, as `name` or `name@version`. Empty: the session's, or the only
    /// model that exists.
    pub model: String,
    /// Text to feed first.
    pub prompt: String,
    /// Number of characters to generate.
    pub max_chars: u64,
    /// Session to continue or to create; `None`: nothing is kept.
    pub session: Option<SessionKey>,
    /// How characters are chosen.
    pub settings: SamplingSettings,
    /// Seed of the random sequence. `None`, or the seed of the session's
    /// sequence, continues that sequence; without a session, `None` draws a
    /// seed. So a client repeats a call with the seed that `Started` reports,
    /// whether the call gave one or not.
    pub seed: Option<u64>,
    /// Strings that end the generation, none empty.
    pub stop: Vec<String>,
    /// Whether the logarithms of the probabilities are requested.
    pub logprobs: bool,
    /// Where the session must be, or where its last call must have begun.
    pub expected_position: Option<u64>,
    /// The precision that the text must be computed in; `None`: the
    /// session's, otherwise the server's.
    pub precision: Option<Precision>,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
}

/// A text to score.
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
