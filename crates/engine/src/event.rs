//! The events of a generation.

use charlstm_model::ModelId;
use charlstm_model::decode_step::Precision;
use charlstm_store::session::{SessionId, SessionSnapshot};

/// One event of a generation: `Started`, any number of `Text`, `Finished`.
#[derive(Clone, Debug, PartialEq)]
pub enum GenerationEvent {
    /// The call has a slot.
    Started(Started),
    /// Some characters.
    Text(GeneratedText),
    /// The last event. In a session: the session's new state is durable.
    Finished(Finished),
}

/// The call has a slot: what a client needs to repeat the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// The stored session, if the call names one.
    pub session: Option<SessionId>,
    /// The model version.
    pub model: ModelId,
    /// The precision in which the text is computed.
    pub precision: Precision,
    /// Seed of the random sequence.
    pub seed: u64,
    /// Position of the session before the call.
    pub position: u64,
    /// Characters of the prompt that the model does not know, which were
    /// skipped or replaced.
    pub unknown_chars: u64,
}

/// Some generated characters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GeneratedText {
    /// At least one character.
    pub text: String,
    /// Natural logarithm of the probability of each character, if requested.
    pub logprobs: Vec<f32>,
    /// Position after this text.
    pub position: u64,
}

/// The end of a generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// Characters that were sent.
    pub chars: u64,
    /// Position of the session now. After a stop string it counts the stop
    /// string, although that was not sent: the next call continues after it.
    /// After a repeat of the session's last call that was cut off, it may be
    /// further than the text that was sent: such a repeat never moves the
    /// session back.
    pub position: u64,
    /// Seconds from the first generated character to the last.
    pub seconds: f64,
    /// The session, if it was requested and there is one: a call that was cut
    /// off before its text does not start a session.
    pub snapshot: Option<Box<SessionSnapshot>>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// All requested characters were generated.
    Length,
    /// A stop string was reached.
    Stop,
    /// The session or its model version was deleted.
    Cancelled,
    /// The engine is shutting down.
    Shutdown,
}
