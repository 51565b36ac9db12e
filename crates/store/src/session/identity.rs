//! What a session's text depends on besides its state: the model's content,
//! the precision, and the definition of the arithmetic.

use std::fmt;
use std::sync::Arc;

/// The revision of the arithmetic that this version computes with. A session
/// of another revision is rejected: its text would silently change.
pub const ARITHMETIC_REVISION: u16 = 1;

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

/// The number format that a session's state is computed and stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Weights and state are float32.
    Float32,
    /// Weights and hidden state are int8, the cell state is float32.
    Int8,
}

impl Precision {
    /// The name on the wire and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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
