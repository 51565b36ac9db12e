//! What the engine is asked for, free of the wire format.

use std::time::Instant;

use charlstm_model::decode_step::Precision;
use charlstm_model::sampler::SamplingSettings;
use charlstm_store::session::{Owner, SessionKey, SessionSnapshot};

use crate::caller::CallerId;

/// A text to generate.
#[derive(Clone, Debug)]
pub struct GenerateCall {
    /// Who makes the call.
    pub caller: CallerId,
    /// Model, as `name` or `name@version`. Empty: the session's, or the only
    /// model that exists.
    pub model: String,
    /// Whom the call is made for. Calls of others do not share its cached
    /// prompts.
    pub owner: Owner,
    /// Text to feed first.
    pub prompt: String,
    /// What happens to characters of the prompt that the model does not know.
    pub unknown: UnknownCharacters,
    /// Number of characters to generate.
    pub max_chars: u64,
    /// What the text continues.
    pub session: SessionSource,
    /// Maximum number of sessions of the session's owner, if the call creates
    /// one.
    pub owner_limit: Option<u64>,
    /// Returns the session with the last event, as a snapshot for this
    /// principal. Not for stored sessions.
    pub snapshot_for: Option<Owner>,
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

/// What a text continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionSource {
    /// Nothing: the text starts at its prompt.
    None,
    /// A stored session, which is created if it does not exist.
    Stored(SessionKey),
    /// A session that the client holds. Its seal was verified.
    Snapshot(Box<SessionSnapshot>),
}

impl SessionSource {
    /// The key of a stored session.
    pub(crate) fn key(&self) -> Option<&SessionKey> {
        match self {
            Self::Stored(key) => Some(key),
            Self::None | Self::Snapshot(_) => None,
        }
    }
}

/// What happens to the characters of a text that the model does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownCharacters {
    /// The call fails.
    #[default]
    Reject,
    /// They are left out.
    Skip,
    /// Each is replaced by the most frequent character that the model knows.
    Replace,
}

/// A text to score.
#[derive(Clone, Debug)]
pub struct ScoreCall {
    /// Who makes the call.
    pub caller: CallerId,
    /// Model, as in [`GenerateCall`].
    pub model: String,
    /// What happens to characters that the model does not know.
    pub unknown: UnknownCharacters,
    /// Whether the logarithms of the probabilities are requested.
    pub logprobs: bool,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
}

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scored {
    /// Characters predicted: all but the first.
    pub chars: u64,
    /// Mean loss in nats per character; 0 if none was predicted.
    pub loss: f64,
    /// Characters that the model does not know. Skipped ones are not in
    /// `chars`; replaced ones are.
    pub unknown_chars: u64,
}
