//! The parameters that a training begins from.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::architecture::Architecture;
use super::parameters::{Parameters, layout};

/// PyTorch's own initialisation of `nn.LSTM` and `nn.Linear`, which the
/// notebook uses: every number uniform within 1 / sqrt(hidden).
pub fn uniform(architecture: Architecture, seed: u64) -> Parameters {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_set_of_numbers_within_the_limit() {
        let architecture = Architecture {
            vocabulary_size: 5,
            hidden_size: 16,
            num_layers: 2,
        };
        let parameters = uniform(architecture, 3);
        assert_eq!(parameters, uniform(architecture, 3));
        assert_ne!(parameters, uniform(architecture, 4));
        assert!(parameters.values.iter().all(|value| value.abs() <= 0.25));
        let far = parameters.values.iter().filter(|value| value.abs() > 0.2);
        assert!(far.count() > parameters.values.len() / 10);
    }
}
