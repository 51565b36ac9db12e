//! What a session's text depends on besides its state: the model's content,
//! the precision, and the definition of the arithmetic.

use std::fmt;
use std::sync::Arc;

pub use charlstm_model::decode_step::{ARITHMETIC_REVISION, Precision};

/// A version of a model, by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelVersion {
    /// Name of the model.
    pub name: Arc<str>,
    /// Version, from 1. Never reused, even after the version was deleted.
    pub version: u64,
}

impl fmt::Display for ModelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// The identity of a session: it continues only on exactly this model content
/// and arithmetic. `model` is for people and for finding the file; `digest`
/// decides.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionIdentity {
    /// The model version that the session started on.
    pub model: ModelVersion,
    /// SHA-256 of the model's file.
    pub digest: [u8; 32],
    /// The precision that the session started with.
    pub precision: Precision,
    /// Revision of the arithmetic, see [`ARITHMETIC_REVISION`].
    pub revision: u16,
}
