//! The record of a session: everything that is needed to continue it, or to
//! repeat its last call.

use bytes::Bytes;
pub use charlstm_model::sampler::RandomState;

use super::error::RecordError;
use super::identity::SessionIdentity;
use super::name::SessionKey;
use super::token_ids::TokenIds;

/// Maximum number of characters of a call that are kept, so that the call's
/// end can be computed again from its beginning: a few tenths of a second of
/// prefill.
pub const MAX_REPLAY_CHARS: usize = 2048;

/// Maximum size of one state. The largest network (8 layers of 4096 units,
/// float32) has 256 KiB; the rest is room for larger ones.
pub const MAX_STATE_BYTES: usize = 4 << 20;

/// Maximum position. Exact in a JSON number, and 2,000 years away at 100,000
/// characters a second.
pub const MAX_POSITION: u64 = 1 << 53;

/// Maximum number of characters of a state that were not fed yet. A call that
/// is cut off leaves at most the distance between two saved states and the
/// unread characters, some thousands; a repeat of a call adds
/// [`MAX_REPLAY_CHARS`].
pub const MAX_UNFED_CHARS: usize = 64 * 1024;

/// A point in a text from which generation continues. The same point can be
/// written in several ways, with an older network state and more unfed
/// characters; the text that follows is the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionState {
    /// State of the network, opaque here. `None` is the state before the first
    /// character.
    pub network: Option<Bytes>,
    /// Characters that were seen but not fed to the network yet, in order.
    /// Empty only at position 0.
    pub unfed: TokenIds,
    /// Place in the random sequence.
    pub random: RandomState,
    /// Characters seen.
    pub position: u64,
}

impl SessionState {
    /// The state before the first character.
    pub fn origin(seed: u64) -> Self {
        Self {
            network: None,
            unfed: TokenIds::default(),
            random: RandomState { seed, draws: 0 },
            position: 0,
        }
    }

    /// Checks the limits and that the fields fit together.
    ///
    /// # Errors
    /// [`RecordError::Content`] or [`RecordError::TooLarge`].
    pub fn check(&self) -> Result<(), RecordError> {
        let network_bytes = self.network.as_ref().map_or(0, Bytes::len);
        if network_bytes > MAX_STATE_BYTES {
            return Err(RecordError::TooLarge {
                what: "network state, in bytes",
                value: network_bytes,
                max: MAX_STATE_BYTES,
            });
        }
        if self.unfed.len() > MAX_UNFED_CHARS {
            return Err(RecordError::TooLarge {
                what: "characters not fed yet",
                value: self.unfed.len(),
                max: MAX_UNFED_CHARS,
            });
        }
        if self.position > MAX_POSITION {
            return Err(RecordError::Content("the position is out of range"));
        }
        if self.unfed.is_empty() != (self.position == 0) {
            return Err(RecordError::Content(
                "the characters not fed yet do not match the position",
            ));
        }
        if self.unfed.len() as u64 > self.position {
            return Err(RecordError::Content(
                "there are more characters not fed yet than characters seen",
            ));
        }
        Ok(())
    }
}

/// SHA-256 over the parameters of a call that its text depends on: prompt,
/// sampling settings and seed. The engine defines how they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParametersDigest(pub [u8; 32]);

/// What is kept of the last call of a session besides its two states.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastCall {
    /// The characters that the call added, prompt and text; `None` if there
    /// are more than [`MAX_REPLAY_CHARS`].
    pub tokens: Option<TokenIds>,
    /// Digest of the call's parameters; `None` for a session of version 0.1,
    /// which did not keep one.
    pub parameters: Option<ParametersDigest>,
}

/// Everything that is kept of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// Owner and id.
    pub key: SessionKey,
    /// Model, precision and arithmetic.
    pub identity: SessionIdentity,
    /// The state at the beginning of the last call.
    pub begin: SessionState,
    /// The state at its end, from which the next call continues.
    pub end: SessionState,
    /// The last call itself.
    pub last_call: LastCall,
    /// When the session was created, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// When the session was last used, on the store's clock that counts only
    /// the time during which the server runs, in milliseconds. Set by the
    /// store at each commit; without meaning in another store.
    pub last_used_ms: u64,
}

impl SessionRecord {
    /// Returns the memory that the states and the characters of the last call
    /// take, in bytes.
    pub fn content_bytes(&self) -> usize {
        let state = |state: &SessionState| {
            let network = state.network.as_ref().map_or(0, Bytes::len);
            network + state.unfed.len()
        };
        let tokens = self.last_call.tokens.as_ref().map_or(0, |t| t.len());
        state(&self.begin) + state(&self.end) + tokens
    }

    /// The space that a session takes whose record has `record_bytes`, for
    /// [`SessionLimits::max_bytes`](super::SessionLimits::max_bytes).
    pub fn stored_bytes(record_bytes: usize) -> u32 {
        super::index::stored_bytes(record_bytes)
    }

    /// Checks the limits and that the fields fit together. Every record is
    /// checked when it is stored and when it is read.
    ///
    /// # Errors
    /// [`RecordError::Content`] or [`RecordError::TooLarge`].
    pub fn check(&self) -> Result<(), RecordError> {
        self.begin.check()?;
        self.end.check()?;
        if self.begin.position > self.end.position {
            return Err(RecordError::Content("the last call ends before it begins"));
        }
        let Some(tokens) = &self.last_call.tokens else {
            return Ok(());
        };
        if tokens.len() > MAX_REPLAY_CHARS {
            return Err(RecordError::TooLarge {
                what: "characters of the last call",
                value: tokens.len(),
                max: MAX_REPLAY_CHARS,
            });
        }
        if self.begin.position + tokens.len() as u64 != self.end.position {
            return Err(RecordError::Content(
                "the characters of the last call do not lead from its beginning to its end",
            ));
        }
        Ok(())
    }
}
