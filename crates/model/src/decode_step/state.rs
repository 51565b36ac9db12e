//! The state of one sequence between two characters, in either precision, and
//! its form as bytes.

use charlstm_int8::{Shape, ShapeError, State as Int8State};

use super::Precision;
use crate::architecture::Architecture;

/// h and c of every layer of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum HiddenState {
    /// `[layers, 2, hidden]`, h before c.
    Float32(Box<[f32]>),
    /// h as int8, c as float32.
    Int8(Int8State),
}

impl HiddenState {
    /// Returns the state before the first character.
    ///
    /// # Panics
    /// If the precision is int8 and has no networks of this architecture;
    /// there are no weights for it then, either.
    pub fn zeros(precision: Precision, architecture: &Architecture) -> Self {
        match precision {
            Precision::Float32 => {
                Self::Float32(vec![0.0; architecture.state_len()].into_boxed_slice())
            }
            Precision::Int8 => {
                let shape = shape(architecture).expect("an architecture with int8 weights");
                Self::Int8(Int8State::zeros(&shape))
            }
        }
    }

    /// Returns the precision that the state was computed in.
    pub fn precision(&self) -> Precision {
        match self {
            Self::Float32(_) => Precision::Float32,
            Self::Int8(_) => Precision::Int8,
        }
    }

    /// Returns whether the state is as large as those of a network of this
    /// architecture.
    pub fn fits(&self, architecture: &Architecture) -> bool {
        match self {
            Self::Float32(values) => values.len() == architecture.state_len(),
            Self::Int8(state) => shape(architecture).is_ok_and(|shape| state.fits(&shape)),
        }
    }

    /// Returns the length of the serialised state, which is also about the
    /// memory that the state takes.
    pub fn byte_len(&self) -> usize {
        match self {
            Self::Float32(values) => size_of_val(&**values),
            Self::Int8(state) => size_of_val(state.h()) + size_of_val(state.c()),
        }
    }

    /// Serialises the state. The length follows from precision and
    /// architecture, so there is no header.
    ///
    /// In float32, the layout is that of version 0.1: `[layers, 2, hidden]`, h
    /// before c, each number a little-endian binary32. In int8 it is that of
    /// docs/arithmetic.md: h of all layers, one byte each, then c of all
    /// layers, each a little-endian binary32.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Float32(values) => values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
            Self::Int8(state) => state.to_bytes(),
        }
    }

    /// Reads a serialised state of a network. `None` if the length is not that
    /// of its states, or if it has a value that no sequence can reach in int8.
    ///
    /// In float32 any numbers are accepted, NaN included: the sampler never
    /// chooses a character whose logit is NaN unless all are.
    pub fn from_bytes(
        precision: Precision,
        architecture: &Architecture,
        bytes: &[u8],
    ) -> Option<Self> {
        match precision {
            Precision::Float32 => {
                let (numbers, rest) = bytes.as_chunks::<4>();
                if numbers.len() != architecture.state_len() || !rest.is_empty() {
                    return None;
                }
                let numbers = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes));
                Some(Self::Float32(numbers.collect()))
            }
            Precision::Int8 => {
                let state = Int8State::from_bytes(&shape(architecture).ok()?, bytes);
                state.ok().map(Self::Int8)
            }
        }
    }

    /// Returns the values of a float32 state, `[layers, 2, hidden]`.
    ///
    /// # Panics
    /// If the state is of another precision. A batch checks that before it
    /// passes a state to its backend.
    pub fn float32(&self) -> &[f32] {
        match self {
            Self::Float32(values) => values,
            Self::Int8(_) => panic!("an int8 state in a float32 batch"),
        }
    }

    /// Returns an int8 state.
    ///
    /// # Panics
    /// As [`Self::float32`].
    pub fn int8(&self) -> &Int8State {
        match self {
            Self::Int8(state) => state,
            Self::Float32(_) => panic!("a float32 state in an int8 batch"),
        }
    }
}

/// Returns the sizes of a network. Fails if int8 cannot compute it.
pub(super) fn shape(architecture: &Architecture) -> Result<Shape, ShapeError> {
    Shape::new(
        architecture.vocabulary_size,
        architecture.hidden_size,
        architecture.num_layers,
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ARCHITECTURE: Architecture = Architecture {
        vocabulary_size: 3,
        hidden_size: 2,
        num_layers: 1,
    };

    fn read(precision: Precision, bytes: &[u8]) -> Option<HiddenState> {
        HiddenState::from_bytes(precision, &ARCHITECTURE, bytes)
    }

    #[test]
    fn the_layout_of_float32_is_that_of_version_0_1() {
        let state = HiddenState::Float32([1.0, -2.5, 0.0, 1e-40].into());
        let bytes = state.to_bytes();
        let expected = [
            0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0, 0, 0, 0, 0, 0xc2, 0x16, 0x01, 0,
        ];
        assert_eq!(bytes, expected);
        assert_eq!(read(Precision::Float32, &bytes), Some(state));
    }

    #[test]
    fn the_layout_of_int8_is_that_of_its_definition() {
        let bytes = [1, 0x81, 0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0];
        let state = read(Precision::Int8, &bytes).unwrap();
        assert_eq!(state.int8().h(), [1, -127]);
        assert_eq!(state.int8().c(), [1.0, -2.5]);
        assert_eq!(state.to_bytes(), bytes);
        assert_eq!(
            read(Precision::Int8, &[0; 10]),
            Some(HiddenState::zeros(Precision::Int8, &ARCHITECTURE))
        );
    }

    #[test]
    fn a_state_of_another_length_or_precision_is_rejected() {
        for length in [0, 9, 10, 11, 12, 15, 17, 20] {
            assert_eq!(read(Precision::Float32, &vec![0; length]), None);
            let is_int8 = read(Precision::Int8, &vec![0; length]).is_some();
            assert_eq!(is_int8, length == 10);
        }
        assert_eq!(read(Precision::Int8, &[0; 16]), None);
    }

    #[test]
    fn an_int8_state_that_no_sequence_can_reach_is_rejected() {
        let mut bytes = [0; 10];
        bytes[0] = 0x80;
        assert_eq!(read(Precision::Int8, &bytes), None);
        let mut bytes = [0; 10];
        bytes[2..6].copy_from_slice(&f32::NAN.to_le_bytes());
        assert_eq!(read(Precision::Int8, &bytes), None);
    }
}
