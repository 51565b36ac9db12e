//! A point in a text from which it can go on, and the characters kept with
//! it.

use std::sync::Arc;

use charlstm_model::decode_step::HiddenState;
use charlstm_model::sampler::RandomState;
use charlstm_repository::ModelId;

/// The model that a session belongs to: not only its name, but its content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelKey {
    /// Name and version.
    pub id: ModelId,
    /// SHA-256 of its file.
    pub digest: [u8; 32],
}

/// Where a text stands. Feeding `unfed` to `hidden` gives the logits of the
/// next character; the same point can be written in more than one way, with
/// an older state and more unfed characters, and goes on bit for bit the
/// same.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionState {
    /// State of the network; `None` is the state before the first character.
    /// Shared with other points, so that a copy costs nothing.
    pub hidden: Option<Arc<HiddenState>>,
    /// Characters seen, but not fed in yet. Empty only at position 0.
    pub unfed: TokenIds,
    /// Place in the random sequence.
    pub random: RandomState,
    /// Characters seen.
    pub position: u64,
}

impl SessionState {
    /// The point before the first character.
    pub fn origin(seed: u64) -> Self {
        Self {
            hidden: None,
            unfed: TokenIds::default(),
            random: RandomState::seeded(seed),
            position: 0,
        }
    }

    /// Bytes of the state, without those of `unfed`.
    fn hidden_bytes(&self) -> usize {
        self.hidden
            .as_ref()
            .map_or(0, |hidden| size_of_val::<[f32]>(&hidden.0))
    }

    /// Bytes on the heap of this point beside another one: a state that both
    /// share counts once.
    pub(super) fn bytes_beside(&self, other: Option<&SessionState>) -> usize {
        let shared = other.is_some_and(|other| self.shares_hidden(other));
        let hidden = if shared { 0 } else { self.hidden_bytes() };
        hidden + self.unfed.bytes()
    }

    /// Whether both stand on the very same state in memory.
    pub(super) fn shares_hidden(&self, other: &SessionState) -> bool {
        match (&self.hidden, &other.hidden) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        }
    }

    /// Whether the point fits a network: the length of the state, and every
    /// character under the size of the vocabulary.
    pub fn fits(&self, state_len: usize, vocabulary_size: usize) -> bool {
        self.hidden
            .as_ref()
            .is_none_or(|hidden| hidden.0.len() == state_len)
            && self.unfed.iter().all(|t| (t as usize) < vocabulary_size)
            && self.unfed.is_empty() == (self.position == 0)
            && self.unfed.len() as u64 <= self.position
    }
}

/// A few characters, as numbers. Most vocabularies have fewer than 256, so
/// that a byte holds one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenIds {
    /// Every number is under 256.
    Narrow(Box<[u8]>),
    /// Any numbers.
    Wide(Box<[u32]>),
}

impl Default for TokenIds {
    fn default() -> Self {
        Self::Narrow(Box::default())
    }
}

impl From<&[u32]> for TokenIds {
    fn from(tokens: &[u32]) -> Self {
        let narrow: Result<Box<[u8]>, _> = tokens.iter().map(|&t| u8::try_from(t)).collect();
        narrow.map_or_else(|_| Self::Wide(tokens.into()), Self::Narrow)
    }
}

impl TokenIds {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Narrow(tokens) => tokens.len(),
            Self::Wide(tokens) => tokens.len(),
        }
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let (narrow, wide): (&[u8], &[u32]) = match self {
            Self::Narrow(tokens) => (tokens, &[]),
            Self::Wide(tokens) => (&[], tokens),
        };
        narrow
            .iter()
            .map(|&t| u32::from(t))
            .chain(wide.iter().copied())
    }

    /// Bytes on the heap.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Narrow(tokens) => tokens.len(),
            Self::Wide(tokens) => size_of_val::<[u32]>(tokens),
        }
    }

    /// These and then those.
    pub(super) fn followed_by(&self, more: &TokenIds) -> TokenIds {
        let all: Vec<u32> = self.iter().chain(more.iter()).collect();
        TokenIds::from(all.as_slice())
    }
}
