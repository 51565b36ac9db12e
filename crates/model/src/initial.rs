//! Initialises the parameters of a new network.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::architecture::Architecture;
use super::parameters::{Parameters, layout};

/// A rule for the initial parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initial {
    /// PyTorch's rule for `nn.LSTM` and `nn.Linear`, which the notebook uses:
    /// all values uniform in ±1 / sqrt(hidden).
    Uniform,
    /// Recurrent weights of each gate orthogonal (Saxe et al., 2014), input
    /// weights of the first layer normal with a standard deviation of 0.3,
    /// forget gates open (a bias of 1; Jozefowicz et al., 2015), other biases
    /// 0.
    Orthogonal,
}

/// Standard deviation of the input weights of the first layer. The input is a
/// one-hot vector, so a single column of them is the whole signal; with
/// PyTorch's rule, it is too weak for a network to learn from at first.
const CHARACTER_DEVIATION: f32 = 0.3;

impl Initial {
    /// Returns the initial parameters for a seed.
    pub fn parameters(self, architecture: Architecture, seed: u64) -> Parameters {
        match self {
            Self::Uniform => uniform(architecture, seed),
            Self::Orthogonal => orthogonal(architecture, seed),
        }
    }
}

fn uniform(architecture: Architecture, seed: u64) -> Parameters {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let limit = 1.0 / (architecture.hidden_size as f32).sqrt();
    let mut parameters = Parameters::zeros(architecture);
    for view in layout(&architecture) {
        for value in &mut parameters.values[view.range] {
            *value = random.random_range(-limit..limit);
        }
    }
    parameters
}

fn orthogonal(architecture: Architecture, seed: u64) -> Parameters {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let hidden = architecture.hidden_size;
    let deviation = 1.0 / (hidden as f32).sqrt();
    let mut parameters = Parameters::zeros(architecture);
    for view in layout(&architecture) {
        let values = &mut parameters.values[view.range];
        let name = view.name.as_str();
        if name == "lstm.weight_ih_l0" {
            normal(values, CHARACTER_DEVIATION, &mut random);
        } else if name.starts_with("lstm.weight_hh") {
            for gate in values.chunks_exact_mut(hidden * hidden) {
                normal(gate, 1.0, &mut random);
                orthonormalize(gate, hidden);
            }
        } else if name.starts_with("lstm.bias_hh") {
            values[hidden..2 * hidden].fill(1.0);
        } else if view.shape.len() == 2 {
            normal(values, deviation, &mut random);
        }
    }
    parameters
}

fn normal(values: &mut [f32], deviation: f32, random: &mut ChaCha8Rng) {
    for value in values {
        let draw: f32 = StandardNormal.sample(random);
        *value = deviation * draw;
    }
}

/// Makes the rows of a square matrix orthonormal by the modified Gram-Schmidt
/// process. Random rows are far enough from linear dependence for it.
fn orthonormalize(matrix: &mut [f32], size: usize) {
    for row in 0..size {
        let (before, rest) = matrix.split_at_mut(row * size);
        let current = &mut rest[..size];
        // A second pass removes the rounding errors (Giraud et al., 2005).
        for _ in 0..2 {
            for other in before.chunks_exact(size) {
                let product = dot(current, other);
                for (value, other) in current.iter_mut().zip(other) {
                    *value -= product * other;
                }
            }
        }
        let length = dot(current, current).sqrt().max(f32::MIN_POSITIVE);
        for value in current {
            *value /= length;
        }
    }
}

/// Returns the dot product, as eight partial sums that fit one register.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Architecture {
        Architecture {
            vocabulary_size: 5,
            hidden_size: 16,
            num_layers: 2,
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_parameters() {
        for rule in [Initial::Uniform, Initial::Orthogonal] {
            let parameters = rule.parameters(small(), 3);
            assert_eq!(parameters, rule.parameters(small(), 3));
            assert_ne!(parameters, rule.parameters(small(), 4));
        }
    }

    #[test]
    fn uniform_values_fill_their_range() {
        let parameters = Initial::Uniform.parameters(small(), 3);
        assert!(parameters.values.iter().all(|value| value.abs() <= 0.25));
        let far = parameters.values.iter().filter(|value| value.abs() > 0.2);
        assert!(far.count() > parameters.values.len() / 10);
    }

    #[test]
    fn recurrent_weights_are_orthonormal_and_forget_gates_open() {
        let parameters = Initial::Orthogonal.parameters(small(), 3);
        for layer in 0..2 {
            let weights = parameters.get(&format!("lstm.weight_hh_l{layer}"));
            for gate in weights.expect("a weight").chunks_exact(16 * 16) {
                for (i, a) in gate.chunks_exact(16).enumerate() {
                    for (j, b) in gate.chunks_exact(16).enumerate() {
                        let expected = if i == j { 1.0 } else { 0.0 };
                        assert!((dot(a, b) - expected).abs() < 1e-5, "rows {i} and {j}");
                    }
                }
            }
            let bias = parameters.get(&format!("lstm.bias_hh_l{layer}"));
            let expected = [[0.0; 16], [1.0; 16], [0.0; 16], [0.0; 16]].concat();
            assert_eq!(bias, Some(expected.as_slice()));
        }
    }
}
