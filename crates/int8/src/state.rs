//! The state of one sequence between two characters.

use thiserror::Error;

use crate::shape::Shape;

/// Largest magnitude of an int8 h. |h| is below 1 in real numbers, so -128 does
/// not occur.
pub const MAX_H: i8 = 127;

/// Largest magnitude of c that a sequence can reach: each step adds less than 1
/// to the magnitude, and at 2^24 a float32 no longer changes by that.
pub const MAX_CELL: f32 = 16_777_216.0;

/// h and c of every layer of one sequence.
///
/// Serialised: h of all layers, `[layers, hidden]`, one byte each (two's
/// complement), then c of all layers, `[layers, hidden]`, each a float32 in
/// little-endian order. [`Shape::state_bytes`] is the length.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub(crate) h: Box<[i8]>,
    pub(crate) c: Box<[f32]>,
}

/// Bytes are not a state of a network of this shape.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum StateError {
    /// The number of bytes is wrong.
    #[error("the state has {given} bytes; this network's states have {expected}")]
    Length {
        /// Bytes that were given.
        given: usize,
        /// Bytes of a state of this shape.
        expected: usize,
    },
    /// An h is outside -127..=127.
    #[error("h of layer {layer}, unit {unit} is {value}; it must be from -127 to 127")]
    Hidden {
        /// The layer, from 0.
        layer: usize,
        /// The unit, from 0.
        unit: usize,
        /// The value.
        value: i8,
    },
    /// A c is not finite, or larger than any sequence can reach.
    #[error("c of layer {layer}, unit {unit} is {value}; it must be from -16777216 to 16777216")]
    Cell {
        /// The layer, from 0.
        layer: usize,
        /// The unit, from 0.
        unit: usize,
        /// The value.
        value: f32,
    },
}

impl State {
    /// Returns the state before the first character.
    pub fn zeros(shape: &Shape) -> Self {
        let units = shape.num_layers() * shape.hidden_size();
        Self {
            h: vec![0; units].into_boxed_slice(),
            c: vec![0.0; units].into_boxed_slice(),
        }
    }

    /// Reads a serialised state; as [`Self::from_parts`].
    ///
    /// # Errors
    /// Fails if the length is wrong or a value is out of range.
    pub fn from_bytes(shape: &Shape, bytes: &[u8]) -> Result<Self, StateError> {
        let expected = shape.state_bytes();
        if bytes.len() != expected {
            return Err(StateError::Length {
                given: bytes.len(),
                expected,
            });
        }
        let (h, c) = bytes.split_at(shape.num_layers() * shape.hidden_size());
        let (c, _) = c.as_chunks();
        Self::from_parts(
            shape,
            h.iter().map(|&byte| byte as i8).collect(),
            c.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
        )
    }

    /// Makes a state of h and c, each `[layers, hidden]`. The numbers may come
    /// from anywhere: values that no sequence can reach are rejected, so that
    /// a state can never lead to a number that is not finite.
    ///
    /// # Errors
    /// Fails if a length is wrong or a value is out of range.
    pub fn from_parts(shape: &Shape, h: Box<[i8]>, c: Box<[f32]>) -> Result<Self, StateError> {
        let hidden = shape.hidden_size();
        let units = shape.num_layers() * hidden;
        if h.len() != units || c.len() != units {
            return Err(StateError::Length {
                given: size_of_val(&*h) + size_of_val(&*c),
                expected: shape.state_bytes(),
            });
        }
        if let Some(index) = h.iter().position(|&h| h < -MAX_H) {
            return Err(StateError::Hidden {
                layer: index / hidden,
                unit: index % hidden,
                value: h[index],
            });
        }
        // The comparison is false for a NaN.
        let reachable = |c: &f32| c.abs() <= MAX_CELL;
        if let Some(index) = c.iter().position(|c| !reachable(c)) {
            return Err(StateError::Cell {
                layer: index / hidden,
                unit: index % hidden,
                value: c[index],
            });
        }
        Ok(Self { h, c })
    }

    /// Serialises the state.
    pub fn to_bytes(&self) -> Vec<u8> {
        let h = self.h.iter().map(|&h| h as u8);
        let c = self.c.iter().flat_map(|c| c.to_le_bytes());
        h.chain(c).collect()
    }

    /// h of all layers, `[layers, hidden]`, each from -127 to 127, in units of
    /// 1/127.
    pub fn h(&self) -> &[i8] {
        &self.h
    }

    /// c of all layers, `[layers, hidden]`.
    pub fn c(&self) -> &[f32] {
        &self.c
    }

    /// Whether this is a state of a network of this shape, as far as its size
    /// tells.
    pub fn fits(&self, shape: &Shape) -> bool {
        self.h.len() == shape.num_layers() * shape.hidden_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_serialisation_and_has_the_documented_layout() {
        let shape = Shape::new(5, 2, 2).expect("a shape");
        let state = State {
            h: [1, -127, 127, 0].into(),
            c: [0.5, -0.0, 16_777_216.0, f32::MIN_POSITIVE / 4.0].into(),
        };
        let bytes = state.to_bytes();
        assert_eq!(bytes.len(), shape.state_bytes());
        assert_eq!(bytes[..8], [1, 129, 127, 0, 0, 0, 0, 63]);
        let read = State::from_bytes(&shape, &bytes).expect("valid");
        assert_eq!(read, state);
        assert_eq!(read.to_bytes(), bytes);
        assert_eq!(
            State::from_bytes(&shape, &[0; 20]).expect("valid"),
            State::zeros(&shape)
        );
    }

    #[test]
    fn bytes_that_no_sequence_can_reach_are_rejected_with_their_place() {
        let shape = Shape::new(5, 2, 2).expect("a shape");
        let message = |bytes: &[u8]| {
            State::from_bytes(&shape, bytes)
                .expect_err("must be rejected")
                .to_string()
        };
        assert_eq!(
            message(&[0; 19]),
            "the state has 19 bytes; this network's states have 20"
        );
        let mut bytes = [0; 20];
        bytes[3] = 128;
        assert_eq!(
            message(&bytes),
            "h of layer 1, unit 1 is -128; it must be from -127 to 127"
        );
        for value in [f32::NAN, f32::INFINITY, -16_777_218.0] {
            let mut bytes = [0; 20];
            bytes[8..12].copy_from_slice(&value.to_le_bytes());
            assert_eq!(
                message(&bytes),
                format!("c of layer 0, unit 1 is {value}; it must be from -16777216 to 16777216")
            );
        }
    }
}
