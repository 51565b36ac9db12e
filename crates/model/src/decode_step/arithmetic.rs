//! What a state was computed with: number format and revision.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The revision of the arithmetic that this version computes with: of the
/// decode step and the sampler, in every precision. A state of another
/// revision must not be continued: its text would silently change.
pub const ARITHMETIC_REVISION: u16 = 1;

/// The number format in which weights and states are computed and stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Weights and states are IEEE 754 binary32.
    Float32,
    /// Weights and hidden state are int8, the cell state is binary32.
    Int8,
}

impl Precision {
    /// Returns the precision of a name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Float32, Self::Int8]
            .into_iter()
            .find(|precision| precision.as_str() == name)
    }

    /// Returns the name on the wire and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The arithmetic that a session runs on, part of the session's identity next
/// to the digest of its model: two different values can produce different
/// text from the same state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Arithmetic {
    /// The number format.
    pub precision: Precision,
    /// The revision of the definition of the decode step and of the sampler.
    pub revision: u16,
}

impl Arithmetic {
    /// The float32 arithmetic, the only one of version 0.1.
    pub const FLOAT32: Self = Self::of(Precision::Float32);

    /// The int8 arithmetic of docs/arithmetic.md.
    pub const INT8: Self = Self::of(Precision::Int8);

    /// Returns the arithmetic that this version uses for a precision.
    pub const fn of(precision: Precision) -> Self {
        Self {
            precision,
            revision: ARITHMETIC_REVISION,
        }
    }
}

const _: () = assert!(charlstm_int8::REVISION == ARITHMETIC_REVISION as u32);
