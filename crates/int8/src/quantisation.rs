//! From float32 weights to int8 weights.

use thiserror::Error;

use crate::shape::ShapeError;

/// Largest magnitude of a weight or bias that is accepted. It keeps every
/// pre-activation and every logit finite.
pub const MAX_WEIGHT: f32 = 1e6;

/// Largest magnitude of an int8 weight. -128 is not used, so that the range is
/// symmetric.
const MAX_QUANTISED: f32 = 127.0;

/// A float32 network cannot be quantised.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum QuantisationError {
    /// A size of the network is outside its limits.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The number of layers given is not the one of the shape.
    #[error("{given} layers were given; the shape has {expected}")]
    Layers {
        /// Layers that were given.
        given: usize,
        /// Layers of the shape.
        expected: usize,
    },
    /// A tensor has another number of elements than its shape requires.
    #[error("{tensor} has {given} elements; it must have {expected}")]
    Length {
        /// PyTorch's name of the tensor, for example `lstm.weight_hh_l1`.
        tensor: String,
        /// Elements that were given.
        given: usize,
        /// Elements that the shape requires.
        expected: usize,
    },
    /// A weight or bias is not finite, or its magnitude is over
    /// [`MAX_WEIGHT`].
    #[error(
        "element {index} of {tensor} is {value}; weights must be finite and at most 1e6 in magnitude"
    )]
    Weight {
        /// PyTorch's name of the tensor.
        tensor: String,
        /// Index of the first such element in the flat tensor.
        index: usize,
        /// Its value.
        value: f32,
    },
}

/// A weight matrix in int8, row-major, with one scale per row.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantisedMatrix {
    columns: usize,
    weights: Vec<i8>,
    scales: Vec<f32>,
}

impl QuantisedMatrix {
    /// Quantises a row-major matrix of checked weights. `columns` is not 0 and
    /// divides the number of weights.
    pub(crate) fn quantise(weights: &[f32], columns: usize) -> Self {
        let mut quantised = Vec::with_capacity(weights.len());
        let mut scales = Vec::with_capacity(weights.len() / columns);
        for row in weights.chunks_exact(columns) {
            let max = row.iter().fold(0.0f32, |max, weight| max.max(weight.abs()));
            let mut scale = max / MAX_QUANTISED;
            // A row of zeros, or so small that the quotient is subnormal.
            if !scale.is_normal() {
                scale = 1.0;
            }
            quantised.extend(row.iter().map(|weight| {
                let q = (weight / scale).round_ties_even();
                q.clamp(-MAX_QUANTISED, MAX_QUANTISED) as i8
            }));
            scales.push(scale * (1.0 / MAX_QUANTISED));
        }
        Self {
            columns,
            weights: quantised,
            scales,
        }
    }

    /// Number of rows: one for each gate of each unit, or for each character.
    pub fn rows(&self) -> usize {
        self.scales.len()
    }

    /// Number of columns, the length of a dot product.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The weights q, row-major, `[rows, columns]`, each from -127 to 127.
    pub fn weights(&self) -> &[i8] {
        &self.weights
    }

    /// The weights of one row.
    ///
    /// # Panics
    /// Panics if there is no such row.
    pub fn row(&self, row: usize) -> &[i8] {
        &self.weights[row * self.columns..][..self.columns]
    }

    /// The scale s' of each row, `[rows]`: the row's float32 scale times
    /// 1/127, the scale of h. A dot product of int8 weights and int8 h times
    /// s' is the product of the real numbers.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }
}

/// Checks that a tensor has `expected` elements, all of them finite and of a
/// magnitude of at most [`MAX_WEIGHT`].
pub(crate) fn check_tensor(
    name: impl Fn() -> String,
    values: &[f32],
    expected: usize,
) -> Result<(), QuantisationError> {
    if values.len() != expected {
        return Err(QuantisationError::Length {
            tensor: name(),
            given: values.len(),
            expected,
        });
    }
    // The comparison is false for a NaN.
    let accepted = |value: &f32| value.abs() <= MAX_WEIGHT;
    match values.iter().position(|value| !accepted(value)) {
        Some(index) => Err(QuantisationError::Weight {
            tensor: name(),
            index,
            value: values[index],
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_weight_of_a_row_becomes_127_and_halves_round_to_even() {
        let matrix = QuantisedMatrix::quantise(&[127.0, 0.5, 1.5, -2.5, -254.0, 1.0, 3.0, 4.9], 4);
        assert_eq!(matrix.weights(), [127, 0, 2, -2, -127, 0, 2, 2]);
        assert_eq!(matrix.scales(), [1.0 / 127.0, 2.0 * (1.0 / 127.0)]);
        assert_eq!((matrix.rows(), matrix.columns()), (2, 4));
        assert_eq!(matrix.row(1), [-127, 0, 2, 2]);
    }

    #[test]
    fn rows_of_zeros_and_of_subnormal_scale_get_the_scale_one() {
        let tiny = f32::MIN_POSITIVE * 100.0;
        let matrix = QuantisedMatrix::quantise(&[0.0, -0.0, tiny, -tiny], 2);
        assert_eq!(matrix.weights(), [0, 0, 0, 0]);
        assert_eq!(matrix.scales(), [1.0 / 127.0; 2]);
        let smallest = f32::MIN_POSITIVE * 127.0;
        let matrix = QuantisedMatrix::quantise(&[smallest, -smallest], 2);
        assert_eq!(matrix.weights(), [127, -127]);
    }

    #[test]
    fn a_weight_that_is_not_finite_or_too_large_is_rejected_with_its_place() {
        let name = || "fc.weight".to_owned();
        assert_eq!(check_tensor(name, &[1e6, -1e6], 2), Ok(()));
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1_000_000.1] {
            let error = check_tensor(name, &[0.0, value], 2).expect_err("must be rejected");
            let QuantisationError::Weight { tensor, index, .. } = error else {
                panic!("{error}");
            };
            assert_eq!((tensor.as_str(), index), ("fc.weight", 1));
        }
        let error = check_tensor(name, &[0.0], 2).expect_err("must be rejected");
        assert_eq!(
            error.to_string(),
            "fc.weight has 1 elements; it must have 2"
        );
    }
}
