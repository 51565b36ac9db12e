//! Random networks and states, the same on every machine.

use charlstm_int8::{FloatLayer, FloatNetwork, QuantisedNetwork, Shape, State};
use charlstm_model::architecture::Architecture;
use charlstm_model::parameters::Parameters;

/// A deterministic source of numbers (splitmix64).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn floats(&mut self, count: usize, amplitude: f32) -> Vec<f32> {
        let mut one = || (self.next() >> 40) as f32 * (2.0 / (1 << 24) as f32) - 1.0;
        (0..count).map(|_| one() * amplitude).collect()
    }
}

/// A network with random weights.
pub(crate) fn random_network(numbers: &mut Numbers, shape: &Shape) -> QuantisedNetwork {
    let (hidden, rows) = (shape.hidden_size(), shape.gate_rows());
    let tensors: Vec<[Vec<f32>; 4]> = (0..shape.num_layers())
        .map(|layer| {
            let inputs = if layer == 0 {
                shape.vocabulary_size()
            } else {
                hidden
            };
            [
                numbers.floats(rows * inputs, 0.8),
                numbers.floats(rows * hidden, 0.3),
                numbers.floats(rows, 0.3),
                numbers.floats(rows, 0.3),
            ]
        })
        .collect();
    let fc_weight = numbers.floats(shape.vocabulary_size() * hidden, 0.5);
    let fc_bias = numbers.floats(shape.vocabulary_size(), 0.5);
    let layers = tensors
        .iter()
        .map(|[weight_ih, weight_hh, bias_ih, bias_hh]| FloatLayer {
            weight_ih,
            weight_hh,
            bias_ih,
            bias_hh,
        });
    let network = FloatNetwork {
        layers: layers.collect(),
        fc_weight: &fc_weight,
        fc_bias: &fc_bias,
    };
    QuantisedNetwork::new(*shape, &network).expect("a valid network")
}

/// A state in the middle of a text.
pub(crate) fn random_state(numbers: &mut Numbers, shape: &Shape) -> State {
    let units = shape.num_layers() * shape.hidden_size();
    let h = (0..units)
        .map(|_| (numbers.below(255) as i32 - 127) as i8)
        .collect();
    let c = numbers.floats(units, 2.0).into_boxed_slice();
    State::from_parts(shape, h, c).expect("a valid state")
}

/// Random parameters of a network in float32.
pub(crate) fn random_parameters(numbers: &mut Numbers, architecture: Architecture) -> Parameters {
    let count = architecture.parameter_count();
    Parameters {
        architecture,
        values: numbers.floats(count, 0.3),
    }
}
